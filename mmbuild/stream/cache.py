"""What was read from an object store, kept on the local disk up to a size: shared by the processes of a machine.

An entry is written under a temporary name and renamed, so that a process killed at any moment leaves a whole entry or
none; an entry is named by object, range and version, so that it is never stale. Damaged entries are dropped when read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import time
from pathlib import Path

import google_crc32c

from mmbuild.errors import UserError
from mmbuild.store import PARTIAL_SUFFIX

# Entries go, the least used first, until this share of the limit is left: so sweeps are rare.
_KEEP_SHARE = 0.9
# A sweep looks at every entry; one per this share of the limit written by a process keeps the overshoot small.
_SWEEP_SHARE = 0.05
# A temporary file this old belongs to a process that was killed.
_ABANDONED_S = 600.0


class Cache:
    """A folder with at most ``limit_bytes`` of entries, give or take what its processes write between two sweeps."""

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be made: {error.strerror}", str(folder), "name another folder") from error
        self._written = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (Cache, (self.folder, self.limit_bytes))

    def get(self, name: str) -> bytes | None:
        """The bytes of an entry, None when there is none or it is damaged."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        body = data[:-4]
        if len(data) < 4 or struct.pack("<I", google_crc32c.value(body)) != data[-4:]:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # swept a moment ago
            os.utime(path)
        return body

    def put(self, name: str, data: bytes) -> None:
        """Keep an entry; what a full disk refuses is not kept, reading goes on without it."""
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL_SUFFIX}")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data + struct.pack("<I", google_crc32c.value(data)))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            return
        with self._lock:
            self._written += len(data)
            due = self._written > self.limit_bytes * _SWEEP_SHARE
            if due:
                self._written = 0
        if due:
            self.sweep()

    def sweep(self) -> int:
        """Remove the least used entries beyond the limit, and abandoned temporary files; how many bytes are left.

        One process sweeps at a time; the system drops the lock of one that dies.
        """
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return -1
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            if total > self.limit_bytes:
                for _, size, path in entries:
                    if total <= self.limit_bytes * _KEEP_SHARE:
                        break
                    path.unlink(missing_ok=True)
                    total -= size
            return total

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if not path.name.endswith(PARTIAL_SUFFIX):
                found.append((status.st_mtime, status.st_size, path))
            elif time.time() - status.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        return found

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
        return self.folder / digest[:2] / digest[2:]
