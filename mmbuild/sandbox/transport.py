"""The offline Earth Engine inside the process: an httplib2-shaped transport for `ee.Initialize(http_transport=...)`.

The genuine client, serializer, retry and error paths run unchanged; no socket is opened. A fault of the connection
becomes the exception that the client's own transport raises for it, at once: nothing here waits for a time limit.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httplib2

from mmbuild.sandbox.fault_kinds import Reply, Wire
from mmbuild.sandbox.faults import Faults
from mmbuild.sandbox.limits import Limits
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.service import Service


class Transport:
    """`.request(...)` as httplib2.Http has it, answered by a sandbox; latency_ms is added to every answer.

    Limits are those of this process only, and none unless given. `.service.quota` counts what came in.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        latency_ms: float = 0.0,
        limits: Limits | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.service = Service(sandbox, latency_ms=latency_ms, limits=limits, faults=faults)

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> tuple[httplib2.Response, bytes]:
        parts = urlsplit(uri)
        data = body.encode() if isinstance(body, str) else body or b""
        asked = {**(headers or {}), "host": parts.netloc}
        reply = self.service.exchange(method, parts.path, parts.query, asked, data)
        _break(reply)
        answered = {**reply.headers, "status": str(reply.status), "content-length": str(len(reply.body))}
        return httplib2.Response(answered), reply.body

    def close(self) -> None:
        """Nothing to close; the client calls it."""


def _break(reply: Reply) -> None:
    """Raise what a broken connection looks like from the client's side; nothing for one that holds."""
    if reply.wire is Wire.RESET:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    if reply.wire is Wire.TRUNCATED:
        read = len(reply.body) // 2
        raise ConnectionError(
            f"Connection broken: IncompleteRead({read} bytes read, {len(reply.body) - read} more expected)"
        )
    if reply.wire in (Wire.TRICKLE, Wire.HANG):
        raise TimeoutError("timed out: the answer did not arrive in time")
