"""A folder as a store: temporary file, fsync, rename; its lease is a lock of the operating system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmbuild.errors import UserError
from mmbuild.store import PARTIAL_SUFFIX, lease


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

    def view_range(self, key: str, start: int, length: int) -> memoryview:
        return memoryview(self.get_range(key, start, length))

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
                raise lease.held(self.url, path.read_text()) from None
            file.truncate(0)
            file.write(lease.holder())
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


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
