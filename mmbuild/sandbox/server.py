"""The offline Earth Engine as a local HTTP server: HTTP/1.1 with keep-alive, one thread per connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from mmbuild.sandbox.rest import Sandbox

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """A server bound to this machine only; `url` is what `ee.Initialize(url=...)` wants."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, sandbox: Sandbox, *, port: int = 0, latency_ms: float = 0.0) -> None:
        self.sandbox, self.latency_ms = sandbox, latency_ms
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def run(self, *, ready: Callable[[str], object]) -> None:
        """Serve until interrupted; `ready` gets one line with the address once it listens."""
        kind = "synthetic" if self.sandbox.world.synthetic else "archive"
        with self:
            ready(f"offline Earth Engine ({kind} world {self.sandbox.world.version}) at {self.url}")
            try:
                self.serve_forever()
            except KeyboardInterrupt:
                ready("stopped")


class Handler(BaseHTTPRequestHandler):
    """Carries one connection's requests to the sandbox."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        # Answers are written in one piece; waiting for more (Nagle) would add 40 ms to every small one.
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if self.server.latency_ms:
            time.sleep(self.server.latency_ms / 1000.0)
        parts = urlsplit(self.path)
        headers = dict(self.headers.items())
        status, answered, content = self.server.sandbox.handle(self.command, parts.path, parts.query, headers, body)
        self.send_response(status)
        for name, value in answered.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Silent: counters are in the sandbox."""


@contextmanager
def serve(sandbox: Sandbox, port: int = 0, *, latency_ms: float = 0.0) -> Iterator[Server]:
    """A server in a thread for as long as the block runs; port 0 takes a free one."""
    server = Server(sandbox, port=port, latency_ms=latency_ms)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
