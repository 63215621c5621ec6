"""What the client asks of the live service before it can be used, kept on this machine for a day.

The description of the API and the list of algorithms (0.75 MB) are the same for every process; a build with 40 workers
would fetch both 40 times. An answer that cannot be kept or read is fetched, never guessed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httplib2

from mmbuild.sources.earthengine.wire import Transport

# New algorithms appear every few weeks.
LIFETIME_S = 24 * 3600.0


def default_folder() -> Path:
    return Path.home() / ".cache" / "mmbuild" / "earthengine"


class Kept:
    """A transport that answers discovery and the algorithm list from ``folder`` while they are fresh.

    version: of the client, which may ask differently in its next one. Several processes may share the folder.
    """

    def __init__(
        self, inner: Transport, folder: Path, version: str, *, now: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self.inner, self.folder, self.version, self.now = inner, folder, version, now

    def request(
        self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **options: Any
    ) -> tuple[httplib2.Response, bytes]:
        path = urlsplit(uri).path
        if method != "GET" or not (path == "/$discovery/rest" or path.endswith("/algorithms")):
            return self.inner.request(uri, method, body=body, headers=headers, **options)
        file = self.folder / f"{hashlib.sha256(f'{self.version} {uri}'.encode()).hexdigest()}.json"
        content = self._fresh(file)
        if content is not None:
            return httplib2.Response({"status": "200", "content-type": "application/json"}), content
        response, content = self.inner.request(uri, method, body=body, headers=headers, **options)
        if int(response.status) == 200 and _is_object(content):
            _keep(file, content)
        return response, content

    def _fresh(self, file: Path) -> bytes | None:
        try:
            age_s = self.now() - file.stat().st_mtime
            content = file.read_bytes() if abs(age_s) < LIFETIME_S else None
        except OSError:
            return None
        return content if content is not None and _is_object(content) else None

    def close(self) -> None:
        self.inner.close()


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def _keep(file: Path, content: bytes) -> None:
    """Write the file whole or not at all; a home that cannot be written to only costs the next process a request."""
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
