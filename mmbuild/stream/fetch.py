"""Byte ranges of a corpus's objects: by pread from a folder, by many requests at once from an object store.

It knows nothing of what the bytes mean. A range that is not there is FileNotFoundError or EOFError.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from mmbuild.errors import UserError
from mmbuild.heap import return_freed
from mmbuild.store import Store
from mmbuild.stream.cache import Cache
from mmbuild.stream.chunks import Encoded

# Shard objects kept open on a local disk: half of the usual limit of 1,024 files a process. Opening one costs as much
# as reading a small chunk; with 128 of 462 objects open, reading took a tenth longer (measured).
MAX_OPEN_FILES = 512
# After so many bytes the gaps that answers left behind in the heap are given back: freed in any order, they grew to
# 150 MB (measured). Each time takes some 8 ms of one thread.
TIDY_BYTES = 96 * 2**20
# A request that failed is repeated after these waits; obstore has repeated what it could before.
RETRY_WAITS_S = (0.1, 0.5, 1.0, 2.0, 4.0)


class LocalFiles:
    """Ranges of files that stay open between reads; the least used are closed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()

    def file(self, key: str) -> OpenFile:
        """FileNotFoundError when there is none."""
        with self._lock:
            found = self._open.get(key)
            if found is None:
                found = self._open[key] = OpenFile(os.fspath(self._store.handle(key)))
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return found

    def close(self) -> None:
        with self._lock:
            self._open.clear()


class OpenFile:
    """An open file that closes when its last user lets go, so that eviction never closes it under a read."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes; EOFError when the file is too short."""
        data = os.pread(self.fd, length, start)
        while len(data) < length:  # a signal may shorten a read; an empty answer is the end of the file
            more = os.pread(self.fd, length - len(data), start + len(data))
            if not more:
                raise EOFError(f"{len(data)} of {length} bytes at {start}")
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Requests:
    """Ranges of an object store, ``connections`` at a time, through a cache on the local disk if there is one."""

    def __init__(self, store: Store, *, connections: int, cache: Cache | None) -> None:
        self._store, self._cache = store, cache
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="mmbuild-request")
        self._lock = Lock()
        self.requests = self.bytes = 0

    def submit(self, key: str, start: int, length: int, stamp: int, done: Callable[[Future[Encoded]], None]) -> None:
        """Ask for a range; ``done`` gets the future in the thread that got it. stamp: the object's version."""
        self._pool.submit(self._get, key, start, length, stamp).add_done_callback(done)

    def do(self, work: Callable[[], None]) -> Future[None]:
        """Run something that gets ranges, among the other requests."""
        return self._pool.submit(work)

    def get(self, key: str, start: int, length: int) -> Encoded:
        """Exactly ``length`` bytes from the store itself, past the cache."""
        for wait_s in RETRY_WAITS_S:
            try:
                return self._ask(key, start, length)
            except (UserError, EOFError):
                time.sleep(wait_s)
        return self._ask(key, start, length)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _get(self, key: str, start: int, length: int, stamp: int) -> Encoded:
        if self._cache is None:
            return self.get(key, start, length)
        name = f"{key} {start} {length} {stamp}"
        found: Encoded | None = self._cache.get(name)
        if found is None or len(found) != length:
            found = self.get(key, start, length)
            self._cache.put(name, bytes(found))
        return found

    def _ask(self, key: str, start: int, length: int) -> Encoded:
        # An array, because checksums take no memoryview.
        data = np.frombuffer(self._store.view_range(key, start, length), np.uint8)
        with self._lock:
            self.requests += 1
            times_before = self.bytes // TIDY_BYTES
            self.bytes += len(data)
            is_untidy = self.bytes // TIDY_BYTES > times_before
        if is_untidy:
            return_freed()
        if len(data) != length:
            raise EOFError(f"{len(data)} of {length} bytes at {start}")
        return data


class Allowance:
    """Sends what is asked for in its order: what is needed now at once, of what comes later so many bytes ahead."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._ahead: deque[int] = deque()
        self.asked = 0

    def ask(self, length: int, send: Callable[[], None]) -> None:
        """Have ``send`` called when these bytes are needed, or allowed ahead."""
        self._waiting.append((length, send))
        self.asked += 1
        self._send()

    def need(self, upto: int) -> None:
        """The first ``upto`` of all that were asked for are needed now."""
        begun = self.asked - len(self._waiting) - len(self._ahead)
        for _ in range(begun, upto):
            if self._ahead:
                self._ahead.popleft()
            else:
                self._waiting.popleft()[1]()
        self._send()

    @property
    def is_used_up(self) -> bool:
        """Whether something that was asked for waits."""
        return bool(self._waiting)

    def _send(self) -> None:
        while self._waiting and sum(self._ahead) + self._waiting[0][0] <= self._limit:
            length, send = self._waiting.popleft()
            self._ahead.append(length)
            send()


def no_pickle(state: dict[str, Any], *names: str) -> dict[str, Any]:
    """The state of an object without its threads and files."""
    return {name: value for name, value in state.items() if name not in names}
