"""Bytes by key in one folder or one object-store prefix: the only place that knows where a corpus lives.

Every ``put`` is atomic: a reader sees the old object or the new one, never half of one. What the bytes mean is not
known here. A place that cannot be read or written is a UserError that says which place, why and what to do.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

# A name that no finished object has: what a killed writer leaves behind is recognised by it and swept.
PARTIAL_SUFFIX = ".partial"


class Store(Protocol):
    """Keys are relative POSIX paths such as ``cube.zarr/zarr.json``; a missing key raises FileNotFoundError."""

    url: str
    is_local: bool

    def get(self, key: str) -> bytes: ...
    def get_range(self, key: str, start: int, length: int) -> bytes: ...
    def view_range(self, key: str, start: int, length: int) -> memoryview: ...
    def put(self, key: str, data: bytes) -> None: ...
    def exists(self, key: str) -> bool: ...
    def size(self, key: str) -> int: ...
    def list(self, prefix: str = "") -> list[str]: ...
    def delete(self, key: str) -> None: ...
    def sweep(self) -> int: ...
    def lease(self, key: str) -> AbstractContextManager[None]: ...
    def handle(self, key: str) -> Any: ...


def open_store(location: str | os.PathLike[str]) -> Store:
    """A local folder, or a URL that obstore understands (s3://, gs://, az://, http(s)://, memory:// is not kept).

    Credentials and endpoints of object stores come from the usual variables of each cloud (AWS_ENDPOINT_URL, ...).
    """
    from mmbuild.store.local import LocalStore
    from mmbuild.store.objects import ObjectStore

    text = os.fspath(location)
    if "://" not in text:
        return LocalStore(Path(text))
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    return ObjectStore(text)
