"""Downloads: what getDownloadURL asked for, kept under a name until somebody fetches the file.

A name is made from the request, so the same request has the same address. Only the newest requests are kept; an address
that was pushed out, or never was, is 404. The file is computed when it is fetched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbuild.sandbox.files import IMAGE_FORMATS, TABLE_FORMATS, check_format, table_file
from mmbuild.sandbox.graph import Context
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.pixels import DOWNLOAD, layers_of, pixels_file
from mmbuild.sandbox.values import EarthEngineError, Feature

# A request may be 10 MB: both bounds are needed so that a server that runs for weeks does not grow.
MAX_KEPT, MAX_KEPT_BYTES = 1000, 64 * 2**20

File = tuple[str, str, bytes]
"""File name, content type, bytes."""


class Downloads:
    """Requests by the name they were given, least recently used go first; threads may share it."""

    def __init__(self, entries: int = MAX_KEPT, size_bytes: int = MAX_KEPT_BYTES) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._entries, self._size_bytes, self._bytes = entries, size_bytes, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, parent: str, body: Mapping[str, Any]) -> str:
        """Remember a request; answers its resource name, `projects/p/thumbnails/...`."""
        text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        name = f"{parent}/{hashlib.sha256(text).hexdigest()[:32]}"
        with self._lock:
            self._bytes += len(text) - len(self._kept.pop(name, b""))
            self._kept[name] = text
            while len(self._kept) > 1 and (len(self._kept) > self._entries or self._bytes > self._size_bytes):
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return name

    def find(self, name: str) -> Mapping[str, Any]:
        """The request behind a name; EarthEngineError with 404 when there is none."""
        with self._lock:
            text = self._kept.get(name)
            if text is None:
                raise EarthEngineError(f"'{name}' was not found; create it again.", 404, "NOT_FOUND")
            self._kept.move_to_end(name)
        found: Mapping[str, Any] = json.loads(text)
        return found


def check_image(context: Context, value: Any, body: Mapping[str, Any]) -> None:
    """EarthEngineError when the image could not be downloaded, known without computing a pixel."""
    check_format(body["fileFormat"], IMAGE_FORMATS)
    layers_of(context, value, body, DOWNLOAD)


def image_download(context: Context, value: Any, body: Mapping[str, Any]) -> File:
    """The file of an image: called as asked, or by the end of the image's id, or `download` when it is computed."""
    own = value.id.rsplit("/", 1)[-1] if isinstance(value, Image) and value.id else "download"
    return pixels_file(context, value, body, DOWNLOAD, str(body.get("filenamePrefix") or own))


def check_table(body: Mapping[str, Any]) -> None:
    """EarthEngineError for a file format that is not written."""
    check_format(body.get("fileFormat", "CSV"), TABLE_FORMATS)


def table_download(features: Iterable[Feature], body: Mapping[str, Any]) -> File:
    """The file of features, with the properties that `selectors` names or all."""
    selectors: Sequence[str] | None = body.get("selectors")
    return table_file(features, body.get("fileFormat", "CSV"), selectors, str(body.get("filename") or "table"))
