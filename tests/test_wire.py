"""The transport under the genuine client: whole answers within a time, one pool, no use after a fork, and its meter."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httplib2
import pytest

from mmbuild.errors import QuotaStop
from mmbuild.sources.earthengine.kept import LIFETIME_S, Kept
from mmbuild.sources.earthengine.meter import Metered, asking, forget, last_exchange, workload_tag
from mmbuild.sources.earthengine.wire import POOL_SIZE, Limits, Wire
from mmbuild.throttle import Spent
from tests.gates import Turnstile, in_a_fork

QUICK = Limits(connect_s=2.0, read_s=0.3, total_s=0.4)
OK, LENGTH = b"HTTP/1.1 200 OK\r\n", b"content-length: 99\r\n\r\n"


# -- a server that says what the test wants ------------------------------------------------------------------------


@contextmanager
def speaking(pieces: Sequence[bytes], *, pause_s: float = 0.0, hold: bool = False) -> Iterator[str]:
    """A server that sends these bytes to everyone, pausing after each piece, and then closes or holds the line."""
    closing = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(line: socket.socket) -> None:
        with line:
            line.recv(65536)
            for piece in pieces:
                try:
                    line.sendall(piece)
                except OSError:
                    return
                closing.wait(pause_s)
            if hold:
                closing.wait()

    def listen() -> None:
        while not closing.is_set():
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(line,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        closing.set()
        listener.close()


class EchoServer(ThreadingHTTPServer):
    """Counts the connections that are opened to it."""

    request_queue_size = 64
    lines = 0


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's body."""

    protocol_version = "HTTP/1.1"
    server: EchoServer

    def setup(self) -> None:
        self.server.lines += 1
        super().setup()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def echo() -> Iterator[Any]:
    server = EchoServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


# -- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_status_headers_and_body() -> None:
    with speaking([b"HTTP/1.1 404 Not Found\r\nX-Some: Thing\r\ncontent-length: 3\r\n\r\nabc"]) as url:
        response, content = Wire(QUICK).request(url)
    assert (response.status, response["x-some"], content) == (404, "Thing", b"abc")


def test_a_compressed_answer_is_unpacked() -> None:
    packed = gzip.compress(b'{"result": 1}')
    head = OK + f"content-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    with speaking([head + packed]) as url:
        assert Wire(QUICK).request(url)[1] == b'{"result": 1}'


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 9\r\n\r\nabc",
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nabc",
        OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 20",
        b"",
    ],
    ids=["length", "chunks", "gzip", "status line", "nothing"],
)
def test_a_broken_answer_is_a_lost_connection(answer: bytes) -> None:
    with speaking([answer]) as url, pytest.raises(ConnectionError):
        Wire(QUICK).request(url)


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"", b"HTTP/1.1 200 OK and then some"),
        (OK, b"x-header: and so on"),
        (OK + b"content-length: 99\r\n\r\n", b"abc"),
    ],
    ids=["status line", "headers", "body"],
)
def test_a_trickling_server_is_left_when_the_whole_answer_takes_too_long(head: bytes, drip: bytes) -> None:
    """Every byte comes well within the time for a read, so only a deadline for the whole answer ends it."""
    drops = [bytes([byte]) for byte in drip * 20]
    limits = Limits(connect_s=2.0, read_s=5.0, total_s=0.4)
    with speaking([head, *drops], pause_s=0.02) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            Wire(limits).request(url)
    assert 0.4 <= time.monotonic() - began < 3.0


def test_a_silent_server_is_left_after_the_time_for_a_read() -> None:
    with speaking([], hold=True) as url, pytest.raises(TimeoutError):
        Wire(Limits(connect_s=2.0, read_s=0.2, total_s=60.0)).request(url)


def test_a_slow_answer_within_its_time_is_taken() -> None:
    body = [bytes([byte]) for byte in b"twenty pieces of it."]
    with speaking([OK + b"content-length: 20\r\n\r\n", *body], pause_s=0.01) as url:
        assert Wire(Limits(read_s=5.0, total_s=30.0)).request(url)[1] == b"twenty pieces of it."


def test_nobody_listening_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        Wire(QUICK).request(f"http://127.0.0.1:{port}/")


def test_an_unknown_host_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionError, match="resolve"):
        Wire(QUICK).request("http://no-such-host.invalid/")


def test_a_certificate_of_nobody_is_not_trusted(tmp_path: Path) -> None:
    with secured(tmp_path) as url, pytest.raises(ssl.SSLCertVerificationError):
        Wire(QUICK).request(url)


def test_a_certificate_that_this_machine_trusts_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with secured(tmp_path) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert Wire(QUICK).request(url)[1] == b"safe"


@contextmanager
def secured(folder: Path) -> Iterator[str]:
    """A server with TLS and a certificate it signed itself."""
    write_certificate(folder / "cert.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem")

    class Safe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "4")
            self.end_headers()
            self.wfile.write(b"safe")

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Silent: a client that does not trust us hangs up."""

    server = Server(("127.0.0.1", 0), Safe)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def write_certificate(path: Path) -> None:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))


# -- the pool -----------------------------------------------------------------------------------------------------


def test_threads_share_a_pool_that_keeps_its_connections(echo: Any, caplog: pytest.LogCaptureFixture) -> None:
    """40 threads, each twice; a pool of ten, as the client's own has, would drop connections and open new ones."""
    wire = Wire()
    together = threading.Barrier(40)

    def ask(number: int) -> int:
        together.wait(20)
        return int(wire.request(url_of(echo), "POST", body=str(number).encode())[1])

    with ThreadPoolExecutor(40) as threads:
        assert list(threads.map(ask, range(80))) == list(range(80))
    assert echo.lines <= 40 <= POOL_SIZE
    assert "pool is full" not in caplog.text


def test_a_connection_keeps_its_full_time_for_the_next_request(echo: Any) -> None:
    wire = Wire(Limits(connect_s=2.0, read_s=2.0, total_s=2.0))
    for _ in range(3):
        assert wire.request(url_of(echo), "POST", body=b"x")[1] == b"x"
    (pool,) = wire._pools.values()
    idle = pool.connection_from_url(url_of(echo)).pool.queue  # type: ignore[union-attr]
    (line,) = [connection for connection in idle if connection is not None]
    assert line.sock.gettimeout() == 2.0
    assert echo.lines == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_transport_is_refused_after_a_fork(echo: Any) -> None:
    wire = Wire()
    wire.request(url_of(echo), "POST", body=b"x")
    said = in_a_fork(lambda: wire.request(url_of(echo), "POST", body=b"x"))
    assert said.startswith("UserError: Earth Engine: this process was forked off")
    assert "start workers with spawn" in said
    metered = Metered(Scripted([]), "http://ee.invalid")
    assert in_a_fork(lambda: metered.request("http://ee.invalid/x")).startswith("UserError: Earth Engine: this process")


def test_a_proxy_of_this_machine_is_used_but_never_for_loopback(echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with speaking([OK + b"content-length: 5\r\n\r\nproxy"]) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert Wire(QUICK).request("http://earthengine.invalid/")[1] == b"proxy"
        assert Wire(QUICK).request(url_of(echo), "POST", body=b"straight")[1] == b"straight"


# -- the meter ----------------------------------------------------------------------------------------------------

Reply = tuple[int, Mapping[str, str], bytes]


class Scripted:
    """A transport that gives its answers in turn, or raises them, and keeps what it was asked."""

    def __init__(self, answers: Sequence[Reply | Exception]) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, str, bytes, Any]]()

    def request(self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> Any:
        self.asked.append((uri, method, body, headers))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, found, content = answer
        return httplib2.Response({**found, "status": str(status)}), content

    def close(self) -> None:
        """Nothing to close."""


EE = "http://ee.invalid"
RESTRICTED = {"x-earth-engine-quota-status": "parallelism_restricted=true"}
GOOD: Reply = (200, {}, b'{"result": 1}')


def test_every_exchange_passes_the_gate_and_reports_what_it_cost() -> None:
    gate = Turnstile()
    answers: list[Reply | Exception] = [
        (
            200,
            {"x-mmbuild-eecu-seconds": "1.5", "x-earth-engine-quota-status": "parallelism_restricted=true"},
            b"12345",
        ),
        (429, {}, b'{"error": {"code": 429, "message": "slow down"}}'),
        (403, {}, b'{"error": {"code": 403, "message": "Rate", "errors": [{"reason": "rateLimitExceeded"}]}}'),
        (403, {}, b'{"error": {"code": 403, "message": "forbidden"}}'),
        ConnectionResetError("gone"),
    ]
    wire = Metered(Scripted(answers), EE)
    with asking(gate, None):
        for _ in range(4):
            wire.request(f"{EE}/v1/x", "POST", body=b"abc")
        with pytest.raises(ConnectionResetError):
            wire.request(f"{EE}/v1/x", "POST", body=b"abc")
    assert gate.came == 5
    assert gate.inside == 0
    assert gate.reports[0] == Spent(sent_bytes=3, received_bytes=5, eecu_s=1.5, restricted=True)
    assert [spent.throttled for spent in gate.reports] == [False, True, True, False, False]
    assert gate.reports[4] == Spent(sent_bytes=3, refused=True)
    assert [spent.refused for spent in gate.reports] == [False, True, True, True, True]


def test_a_gate_that_stops_lets_nothing_out() -> None:
    inner = Scripted([GOOD, GOOD])
    wire = Metered(inner, EE)
    with asking(Turnstile(most=1), None):
        wire.request(f"{EE}/v1/x", "POST", body=b"{}")
        with pytest.raises(QuotaStop):
            wire.request(f"{EE}/v1/x", "POST", body=b"{}")
    assert len(inner.asked) == 1


def test_access_tokens_cost_no_quota_and_are_not_noted() -> None:
    gate, inner = Turnstile(), Scripted([(200, {}, b"token")])
    forget()
    with asking(gate, "tag"):
        Metered(inner, EE).request("https://oauth2.example/token", "POST", body=b"{}")
    assert gate.came == 0
    assert last_exchange() is None
    assert inner.asked[0][2] == b"{}"


def test_a_free_transport_passes_no_gate() -> None:
    gate = Turnstile()
    with asking(gate, None):
        Metered(Scripted([GOOD]), EE, free=True).request(f"{EE}/v1/x", "POST", body=b"{}")
    assert (gate.came, gate.reports) == (0, [])


def test_each_thread_has_its_own_gate_and_last_exchange() -> None:
    wire, seen = Metered(Scripted([(404, {}, b"here")]), EE), list[Any]()
    with asking(Turnstile(), None):
        wire.request(f"{EE}/v1/x")
        thread = threading.Thread(target=lambda: seen.append(last_exchange()))
        thread.start()
        thread.join()
    assert seen == [None]
    last = last_exchange()
    assert last is not None
    assert (last.status, last.refusal) == (404, b"here")


def test_an_error_that_comes_with_status_200_counts_as_what_it_is() -> None:
    Metered(Scripted([(200, {}, b'{"error": {"code": 503, "message": "later"}}')]), EE).request(f"{EE}/v1/x")
    last = last_exchange()
    assert last is not None
    assert last.status == 503
    assert b"later" in last.refusal


@pytest.mark.parametrize(
    ("body", "tagged"),
    [
        (b'{"expression": 1}', {"workloadTag": "mine", "expression": 1}),
        (b"{}", {"workloadTag": "mine"}),
        (b'{"workloadTag": "its own", "expression": 1}', {"workloadTag": "its own", "expression": 1}),
    ],
)
def test_the_tag_is_the_askers_own(body: bytes, tagged: Mapping[str, Any]) -> None:
    inner = Scripted([GOOD])
    with asking(None, "mine"):
        Metered(inner, EE).request(f"{EE}/v1/x", "POST", body=body, headers={"Content-Length": str(len(body))})
    _, _, sent, headers = inner.asked[0]
    assert json.loads(sent) == tagged
    assert [value for key, value in headers.items() if key.lower() == "content-length"] == [str(len(sent))]


@pytest.mark.parametrize(
    ("name", "tag"),
    [("tiny", "tiny"), ("SSL4EO-S12", "ssl4eo-s12"), ("_My corpus (2nd)!", "my-corpus-2nd"), ("ü", None), (None, None),
     ("a" * 62 + "-b", "a" * 62), ("x" * 80, "x" * 63)],
)  # fmt: skip
def test_a_tag_is_one_that_earth_engine_takes(name: str | None, tag: str | None) -> None:
    import ee

    assert workload_tag(name) == tag
    ee.data.setDefaultWorkloadTag(tag)  # refuses any other
    ee.data.setDefaultWorkloadTag(None)


# -- what is kept of an endpoint ----------------------------------------------------------------------------------

LIST = f"{EE}/v1/projects/p/algorithms?alt=json"


def algorithms(count: int) -> Reply:
    return 200, {}, json.dumps({"algorithms": [{}] * count}).encode()


def test_the_algorithm_list_is_fetched_once_a_day_for_each_address_and_client(tmp_path: Path) -> None:
    clock = [time.time()]
    inner = Scripted([algorithms(count) for count in range(5)])

    def size(uri: str = LIST, version: str = "1") -> int:
        kept = Kept(inner, tmp_path / "cache", version, now=lambda: clock[0])
        return len(json.loads(kept.request(uri)[1])["algorithms"])

    assert [size(), size()] == [0, 0]
    assert size(version="2") == 1
    assert size(LIST.replace("/p/", "/q/")) == 2
    clock[0] += LIFETIME_S + 60
    assert [size(), len(inner.asked)] == [3, 4]


def test_only_good_answers_to_these_two_questions_are_kept(tmp_path: Path) -> None:
    inner = Scripted([(503, {}, b"<html>"), (200, {}, b"<html>"), algorithms(1), GOOD, GOOD])
    kept = Kept(inner, tmp_path, "1")
    assert [kept.request(LIST)[1] for _ in range(4)] == [b"<html>", b"<html>", algorithms(1)[2], algorithms(1)[2]]
    for _ in range(2):
        kept.request(f"{EE}/v1/projects/p/value:compute", "POST", body=b"{}")
    assert inner.answers == []


def test_a_damaged_file_or_a_home_that_cannot_be_written_is_fetched_around(tmp_path: Path) -> None:
    Kept(Scripted([algorithms(1)]), tmp_path, "1").request(LIST)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b'{"algorithms": [')
    assert Kept(Scripted([algorithms(2)]), tmp_path, "1").request(LIST)[1] == algorithms(2)[2]
    (tmp_path / "taken").write_text("a file, not a folder")
    assert Kept(Scripted([algorithms(3)]), tmp_path / "taken", "1").request(LIST)[1] == algorithms(3)[2]


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    Kept(Scripted([algorithms(1)]), tmp_path, "1").request(LIST)
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]
