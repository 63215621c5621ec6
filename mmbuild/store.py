"""Bytes by key in one folder or one object-store prefix: the only place that knows where a corpus lives.

Every ``put`` is atomic: a reader sees the old object or the new one, never half of one. What the bytes mean is not
known here. A place that cannot be read or written is a UserError that says which place, why and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Protocol

from mmbuild.errors import UserError

# A name that no finished object has: what a killed writer leaves behind is recognised by it and swept.
PARTIAL_SUFFIX = ".partial"
# A builder on an object store renews its lease every minute; after five silent ones it is taken for dead.
LEASE_RENEWAL_S = 60.0
LEASE_SILENCE_S = 300.0
# How long a request to an object store is repeated before its failure is told; obstore's own three minutes look like a
# hang. A connection is given up after CONNECT_S, so a dead endpoint is known after their sum.
RETRY_S = 15.0
CONNECT_S = 5.0
# One request may carry a whole shard (256 MiB at most); obstore's 30 s would ask for 9 MB/s.
REQUEST_S = 120.0

_log = logging.getLogger(__name__)


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
        with _reading(self.url):
            return (self.root / key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with _reading(self.url), (self.root / key).open("rb") as file:
            return os.pread(file.fileno(), length, start)

    def put(self, key: str, data: bytes) -> None:
        with _writing(self.url):
            self._put(self.root / key, data)

    def _put(self, path: Path, data: bytes) -> None:
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
        with _reading(self.url):
            return (self.root / key).is_file()

    def size(self, key: str) -> int:
        with _reading(self.url):
            return (self.root / key).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._walk(prefix) if not key.endswith(PARTIAL_SUFFIX))

    def delete(self, key: str) -> None:
        with _writing(self.url), contextlib.suppress(FileNotFoundError):
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
        with self._claim(self.root / key) as file:
            try:
                yield
            finally:
                file.truncate(0)

    def _claim(self, path: Path) -> IO[str]:
        """The lease's file, opened and locked, with this process written in it."""
        with _writing(self.url), contextlib.ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = undo.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _held(self.url, path.read_text()) from None
            file.truncate(0)
            file.write(_holder())
            file.flush()
            undo.pop_all()
            return file
        raise AssertionError

    def handle(self, key: str) -> Path:
        """What other libraries open: the path of ``key``."""
        return self.root / key

    def _walk(self, prefix: str) -> Iterator[str]:
        folder = self.root / prefix
        with _reading(self.url):
            paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        for path in paths:
            yield path.relative_to(self.root).as_posix()


class ObjectStore:
    """A bucket prefix through obstore; a put is one request and therefore atomic, so there is nothing to sweep."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._inner = _open_obstore(self.url)
        # Why the lease that this store holds is no longer its own; nothing is put from then on.
        self._lost: UserError | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStore, (self.url,))

    def get(self, key: str) -> bytes:
        with _answering(self.url):
            return bytes(self._inner.get(key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        from obstore.exceptions import BaseError

        with _answering(self.url):
            try:
                return bytes(self._inner.get_range(key, start=start, length=length))
            except BaseError as error:
                # Beyond the end there are no bytes, as in a folder; an object cut short is noticed by who reads it.
                if "416 Range Not Satisfiable" in str(error):
                    return b""
                raise
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        self._put(key, data)

    def _put(self, key: str, data: bytes, mode: Any = "overwrite") -> dict[str, str]:
        """Put, and return the version that ``mode`` of a later put can insist on."""
        with _answering(self.url):
            try:
                result = self._inner.put(key, data, mode=mode, use_multipart=False)
            except FileNotFoundError:
                raise UserError(
                    "there is no such bucket", self.url, "create it, or check the name and AWS_ENDPOINT_URL"
                ) from None
        return _version(result)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        with _answering(self.url):
            return int(self._inner.head(key)["size"])

    def list(self, prefix: str = "") -> list[str]:
        with _answering(self.url):
            return sorted(str(meta["path"]) for batch in self._inner.list(prefix or None) for meta in batch)

    def delete(self, key: str) -> None:
        with _answering(self.url), contextlib.suppress(FileNotFoundError):
            self._inner.delete(key)

    def sweep(self) -> int:
        return 0

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Hold the only right to write here, renewed while held; a holder silent for five minutes is taken for dead.

        A holder that lost it (it could not renew, or another took over) cannot put any more, and UserError says so.
        """
        version, self._lost = self._take(key), None
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(key, version, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            if self._lost is None:
                self.delete(key)
        if self._lost is not None:
            raise self._lost

    def _take(self, key: str) -> dict[str, str]:
        """Create the lease, or take over that of a dead holder; of several who try, one succeeds."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with contextlib.suppress(AlreadyExistsError):
            return self._put(key, _holder().encode(), "create")
        found = self._read_lease(key)
        if found is None:  # given back between the two requests
            return self._take(key)
        text, version = found
        if not _is_dead(text):
            raise _held(self.url, text)
        try:
            return self._put(key, _holder().encode(), version or "overwrite")
        except PreconditionError:
            raise _held(self.url, self.get(key).decode()) from None

    def _read_lease(self, key: str) -> tuple[str, dict[str, str]] | None:
        """Who holds the lease, and its version; None when nobody does."""
        try:
            with _answering(self.url):
                found = self._inner.get(key)
                return bytes(found.bytes()).decode(), _version(found.meta)
        except FileNotFoundError:
            return None

    def _renew(self, key: str, version: dict[str, str], stop: threading.Event) -> None:
        """Say every minute that the holder lives; a failed time is repeated at the next, but not for ever."""
        heard = time.monotonic()
        while self._lost is None and not stop.wait(LEASE_RENEWAL_S):
            try:
                version = self._renewed(key, version)
                heard = time.monotonic()
            except UserError as error:
                _log.warning("the lease was not renewed, the next try is in %.0f s: %s", LEASE_RENEWAL_S, error)
                if time.monotonic() - heard > LEASE_SILENCE_S:
                    self._lose("the right to write here could not be renewed, so another build may have taken over")

    def _renewed(self, key: str, version: dict[str, str]) -> dict[str, str]:
        from obstore.exceptions import PreconditionError

        try:
            return self._put(key, _holder().encode(), version or "overwrite")
        except PreconditionError:
            found = self._read_lease(key)
        # A renewal that arrived although its answer was lost has changed the version too.
        if found is not None and _is_own(found[0]):
            return found[1]
        self._lose("another build took over writing here")
        return version

    def _lose(self, why: str) -> None:
        self._lost = UserError(why, self.url, "run the same build again when no other is writing; it goes on")
        _log.error("%s", self._lost)

    def handle(self, key: str) -> Any:
        """What other libraries open: an obstore store rooted at ``key``."""
        return _open_obstore(f"{self.url}/{key}")


# -- who holds a lease ----------------------------------------------------------------------------------------------


def _holder() -> str:
    """Who holds a lease, and when it last said so (wall clock: it is never part of a corpus)."""
    return json.dumps({"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "renewed": time.time()})


def _machine() -> str:
    """Where a process id means something: the host, this boot of it, and the container (Linux; elsewhere the host)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_dead(text: str) -> bool:
    """Whether the holder was silent for too long, or was a process of this machine that is gone."""
    holder = json.loads(text)
    if time.time() - holder["renewed"] >= LEASE_SILENCE_S:
        return True
    return holder.get("machine") == _machine() and not _is_running(holder["pid"])


def _is_own(text: str) -> bool:
    holder = json.loads(text)
    return bool(holder.get("machine") == _machine() and holder["pid"] == os.getpid())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _held(url: str, text: str) -> UserError:
    holder = json.loads(text or "{}")
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return UserError(
        f"another build is writing here ({who})", url, "wait for it or stop it; one build a corpus at a time"
    )


def _version(meta: Any) -> dict[str, str]:
    """What names one version of an object: its ETag on S3 and Azure, its generation on Google Cloud."""
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key)}


# -- what went wrong, as people can mend it -----------------------------------------------------------------------


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn what the file system refuses into a UserError; a missing key stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot be read: {_reason(error)}", url, "name a corpus that you may read") from error


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        fix = "name a folder, or a place where nothing is yet"
        raise UserError(f"is not a folder ({_reason(error)})", url, fix) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "make room and run the same command again; what is stored stays stored and it goes on"
            raise UserError("the disk is full", url, fix) from error
        raise UserError(
            f"cannot be written: {_reason(error)}", url, "name a folder that can be made and that you may write to"
        ) from error


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error.strerror or error)


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn what an object store refuses into a UserError; a missing key stays FileNotFoundError.

    The two answers that settle a race (AlreadyExistsError, PreconditionError) pass: the lease acts on them.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except NotFoundError as error:
        raise FileNotFoundError(str(error).splitlines()[0]) from error
    except (BaseError, NotImplementedError) as error:
        raise UserError(
            f"the object store did not do it: {str(error).splitlines()[0]}", url,
            "check AWS_ENDPOINT_URL, the credentials and the bucket, then run the same command again",
        ) from error  # fmt: skip


def _open_obstore(url: str) -> Any:
    import obstore.store

    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=REQUEST_S),
    }  # fmt: skip
    if url.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        # obstore refuses plain http unless told so; a plain-http endpoint was named by the user.
        client["allow_http"] = True
    # More tries than fit into the time: the time decides.
    retry: Any = {
        "max_retries": 100, "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"max_backoff": timedelta(seconds=3)},
    }  # fmt: skip
    options: dict[str, Any] = {"client_options": client, "retry_config": retry}
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
