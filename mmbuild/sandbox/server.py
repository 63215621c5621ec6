"""The offline Earth Engine as a local HTTP server: HTTP/1.1 with keep-alive, one thread per connection.

Here the faults of a connection are real: resets, answers cut off, bytes that drip, and silence.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from mmbuild.sandbox.fault_kinds import Reply, Wire
from mmbuild.sandbox.faults import Faults
from mmbuild.sandbox.limits import PAYLOAD_LIMIT_BYTES, Limits
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.service import Service

HOST = "127.0.0.1"
# SO_LINGER on, for 0 seconds: closing sends RST instead of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class Server(ThreadingHTTPServer):
    """A server bound to this machine only; `url` is what `ee.Initialize(url=...)` wants. Limits: none unless given."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        port: int = 0,
        latency_ms: float = 0.0,
        limits: Limits | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.service = Service(sandbox, latency_ms=latency_ms, limits=limits, faults=faults)
        self.closing = threading.Event()
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def run(self, *, ready: Callable[[str], object]) -> None:
        """Serve until interrupted; `ready` gets one line with the address once it listens."""
        about = self.sandbox.about
        kind = "synthetic" if about["synthetic"] else "archive"
        with self:
            ready(f"offline Earth Engine ({kind} world {about['world']}) at {self.url}")
            try:
                self.serve_forever()
            except KeyboardInterrupt:
                ready("stopped")

    def server_close(self) -> None:
        self.closing.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a bug and is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Carries one connection's requests to the service."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        # Answers are written in one piece; waiting for more (Nagle) would add 40 ms to every small one.
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def _serve(self) -> None:
        body = self._body()
        parts = urlsplit(self.path)
        headers = dict(self.headers.items())
        reply = self.server.service.exchange(self.command, parts.path, parts.query, headers, body)
        _CARRY[reply.wire](self, reply)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _body(self) -> bytes:
        """The body, or the beginning of one that will be refused; the rest is read so that the client hears why."""
        left = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(min(left, PAYLOAD_LIMIT_BYTES + 1))
        left -= len(body)
        while left > 0 and (piece := self.rfile.read(min(left, 2**20))):
            left -= len(piece)
        return body

    def _head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()

    def _whole(self, reply: Reply) -> None:
        self._head(reply)
        self.wfile.write(reply.body)

    def _truncated(self, reply: Reply) -> None:
        """Half of the body, and the end of the connection."""
        self._head(reply)
        self.wfile.write(reply.body[: len(reply.body) // 2])
        self.close_connection = True

    def _trickle(self, reply: Reply) -> None:
        self._head(reply)
        for position in range(len(reply.body)):
            if self._is_over(reply.interval_s):
                return
            self.wfile.write(reply.body[position : position + 1])

    def _hang(self, reply: Reply) -> None:
        while not self._is_over(1.0):
            pass

    def _reset(self, reply: Reply) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        # Closed by its number: shutting down first, as the server does, would send FIN before RST.
        socket.close(self.connection.detach())

    def _is_over(self, seconds: float) -> bool:
        """Wait; True when meanwhile the client hung up or the server is closing, which ends this connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        gone = bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        over = gone or self.server.closing.wait(seconds)
        self.close_connection = self.close_connection or over
        return over

    def log_message(self, format: str, *args: object) -> None:
        """Silent: counters are in the service."""


_CARRY: dict[Wire, Callable[[Handler, Reply], None]] = {
    Wire.WHOLE: Handler._whole,
    Wire.RESET: Handler._reset,
    Wire.TRUNCATED: Handler._truncated,
    Wire.TRICKLE: Handler._trickle,
    Wire.HANG: Handler._hang,
}


@contextmanager
def serve(
    sandbox: Sandbox,
    port: int = 0,
    *,
    latency_ms: float = 0.0,
    limits: Limits | None = None,
    faults: Faults | None = None,
) -> Iterator[Server]:
    """A server in a thread for as long as the block runs; port 0 takes a free one."""
    server = Server(sandbox, port=port, latency_ms=latency_ms, limits=limits, faults=faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
