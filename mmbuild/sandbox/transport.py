"""The offline Earth Engine inside the process: an httplib2-shaped transport for `ee.Initialize(http_transport=...)`.

The genuine client, serializer, retry and error paths run unchanged; no socket is opened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httplib2

from mmbuild.sandbox.rest import Sandbox


class Transport:
    """`.request(...)` as httplib2.Http has it, answered by a sandbox; latency_ms is added to every answer."""

    def __init__(self, sandbox: Sandbox, *, latency_ms: float = 0.0) -> None:
        self.sandbox, self.latency_ms = sandbox, latency_ms

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> tuple[httplib2.Response, bytes]:
        if self.latency_ms:
            time.sleep(self.latency_ms / 1000.0)
        parts = urlsplit(uri)
        data = body.encode() if isinstance(body, str) else body or b""
        asked = {**(headers or {}), "host": parts.netloc}
        status, answered, content = self.sandbox.handle(method, parts.path, parts.query, asked, data)
        return httplib2.Response({**answered, "status": str(status), "content-length": str(len(content))}), content

    def close(self) -> None:
        """Nothing to close; the client calls it."""
