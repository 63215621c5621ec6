"""Memory for batches that is used again as soon as nobody holds the batch any more, and never before.

New memory costs a page fault every 4 KiB, which takes longer than decoding into it (measured). Who keeps a batch keeps
its memory; a batch that was given out never changes.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

# Arrays begin at multiples of a cache line, so that no two threads write into the same one.
_ALIGN = 64
Allocate = Callable[[int], np.ndarray]
# How long a new batch waits for the memory of an old one, once there are as many blocks as reading ahead needs: longer
# than Python's garbage collection holds up the consumer (0.12 s measured), or that would cost a block for good.
PATIENCE_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One array of a batch: (n, *shape)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def nbytes(self, n: int) -> int:
        return n * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def plain_memory(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)


class Blocks:
    """A pool of blocks, each large enough for a batch of ``rows`` samples; usual: how many are normally enough."""

    def __init__(
        self, entries: Mapping[str, Entry], rows: int, allocate: Allocate = plain_memory, usual: int = 3
    ) -> None:
        self._entries, self._rows, self._allocate, self._usual = dict(entries), rows, allocate, usual
        # A queue, because the memory of a batch comes back in whatever thread lets the last array go.
        self._free: SimpleQueue[np.ndarray] = SimpleQueue()
        self._patience_s = PATIENCE_S
        self._nbytes = sum(-(-entry.nbytes(rows) // _ALIGN) * _ALIGN for entry in self._entries.values())
        self._made = 0
        self._dropped: list[None] = []

    @property
    def held(self) -> int:
        """How many blocks there are, in use or free."""
        return self._made - len(self._dropped)

    def take(self, n: int) -> dict[str, np.ndarray]:
        """The arrays of a batch of n samples, content undefined; their memory comes back when the last one dies."""
        block = self._block()
        # Every array made of the lease holds it, and whoever makes a tensor of such an array holds the array. (A
        # memoryview would not do: numpy makes another of the same memory and lets the first one go.)
        lease: Any = (ctypes.c_ubyte * self._nbytes).from_buffer(block)  # type: ignore[arg-type]
        weakref.finalize(lease, self._back, block).atexit = False
        arrays, offset = {}, 0
        for name, entry in self._entries.items():
            count = n * int(np.prod(entry.shape, dtype=np.int64))
            array = np.frombuffer(lease, entry.dtype, count, offset) if count else np.empty(0, entry.dtype)
            arrays[name] = array.reshape(n, *entry.shape)
            offset += -(-entry.nbytes(self._rows) // _ALIGN) * _ALIGN
        return arrays

    def _block(self) -> np.ndarray:
        """A free block, or a new one when none comes back soon.

        A consumer lets a batch go a moment after it was given the next one; who keeps all batches is not waited for.
        """
        try:
            block = self._free.get(timeout=self._patience_s) if self.held >= self._usual else self._free.get_nowait()
            self._patience_s = PATIENCE_S
        except Empty:
            block = self._allocate(self._nbytes)
            self._made += 1
            if self.held > 2 * self._usual:
                self._patience_s = 0.0
        return block

    def _back(self, block: np.ndarray) -> None:
        """Keep what reading ahead needs; what was made for a consumer that kept batches, or was held up, goes.

        No lock: this may run wherever Python collects garbage, also between two lines of this class.
        """
        if self._free.qsize() < self._usual:
            self._free.put(block)
        else:
            self._dropped.append(None)
