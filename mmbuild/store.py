"""Bytes by key in one folder or one object-store prefix: the only place that knows where a corpus lives.

Every ``put`` is atomic: a reader sees the old object or the new one, never half of one. What the bytes mean is not
known here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mmbuild.errors import UserError

# A name that no finished object has: what a killed writer leaves behind is recognised by it and swept.
PARTIAL_SUFFIX = ".partial"
# A builder on an object store renews its lease every minute; after five silent ones it is taken for dead.
LEASE_RENEWAL_S = 60.0
LEASE_SILENCE_S = 300.0


class Store(Protocol):
    """Keys are relative POSIX paths such as ``cube.zarr/zarr.json``; a missing key raises FileNotFoundError."""

    url: str
    is_local: bool

    def get(self, key: str) -> bytes: ...
    def get_range(self, key: str, start: int, length: int) -> bytes: ...
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
    text = os.fspath(location)
    if "://" not in text:
        return LocalStore(Path(text))
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    return ObjectStore(text)


class LocalStore:
    """A folder. ``put`` writes a temporary file, fsyncs it, renames it and fsyncs the folder."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LocalStore, (self.root,))

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with (self.root / key).open("rb") as file:
            return os.pread(file.fileno(), length, start)

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        # The process and thread in the name keep two writers from sharing a temporary file.
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL_SUFFIX}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        _fsync_folder(path.parent)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def size(self, key: str) -> int:
        return (self.root / key).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._walk(prefix) if not key.endswith(PARTIAL_SUFFIX))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.root / key).unlink()

    def sweep(self) -> int:
        """Remove what killed writers left behind; call it only while holding the corpus's lease."""
        left = [key for key in self._walk("") if key.endswith(PARTIAL_SUFFIX)]
        for key in left:
            self.delete(key)
        return len(left)

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Hold the only right to write here; the system drops it when the process dies, however it dies."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _held(self.url, path.read_text()) from None
            file.truncate(0)
            file.write(_holder())
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def handle(self, key: str) -> Path:
        """What other libraries open: the path of ``key``."""
        return self.root / key

    def _walk(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file():
                yield path.relative_to(self.root).as_posix()


class ObjectStore:
    """A bucket prefix through obstore; a put is one request and therefore atomic, so there is nothing to sweep."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._inner = _open_obstore(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStore, (self.url,))

    def get(self, key: str) -> bytes:
        return bytes(self._inner.get(key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(self._inner.get_range(key, start=start, length=length))

    def put(self, key: str, data: bytes) -> None:
        self._inner.put(key, data, use_multipart=False)

    def exists(self, key: str) -> bool:
        try:
            self._inner.head(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._inner.head(key)["size"])

    def list(self, prefix: str = "") -> list[str]:
        return sorted(str(meta["path"]) for batch in self._inner.list(prefix or None) for meta in batch)

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._inner.delete(key)

    def sweep(self) -> int:
        return 0

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Hold the only right to write here, renewed while held; a holder silent for five minutes is taken for dead."""
        self._take(key)
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(key, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            self.delete(key)

    def _take(self, key: str) -> None:
        from obstore.exceptions import AlreadyExistsError

        try:
            self._inner.put(key, _holder().encode(), mode="create", use_multipart=False)
        except AlreadyExistsError:
            held = self.get(key).decode()
            if time.time() - json.loads(held)["renewed"] < LEASE_SILENCE_S:
                raise _held(self.url, held) from None
            self.put(key, _holder().encode())

    def _renew(self, key: str, stop: threading.Event) -> None:
        while not stop.wait(LEASE_RENEWAL_S):
            self.put(key, _holder().encode())

    def handle(self, key: str) -> Any:
        """What other libraries open: an obstore store rooted at ``key``."""
        return _open_obstore(f"{self.url}/{key}")


def _holder() -> str:
    """Who holds a lease, and when it last said so (wall clock: it is never part of a corpus)."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()})


def _held(url: str, text: str) -> UserError:
    holder = json.loads(text or "{}")
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return UserError(
        f"another build is writing here ({who})", url, "wait for it or stop it; one build a corpus at a time"
    )


def _open_obstore(url: str) -> Any:
    import obstore.store

    options: dict[str, Any] = {}
    if url.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        # obstore refuses plain http unless told so; a plain-http endpoint was named by the user.
        options["client_options"] = {"allow_http": True}
    try:
        return obstore.store.from_url(url, **options)
    except Exception as error:
        if type(error).__module__.startswith("obstore"):
            raise UserError(str(error).splitlines()[0], url, "use s3://bucket/prefix, gs://... or a folder") from error
        raise


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
