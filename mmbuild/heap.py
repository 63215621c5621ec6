"""What the C library keeps of freed memory: less of it, where it is glibc; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameter for the number of heaps that threads share.
M_ARENA_MAX = -8


def share_heaps(number: int) -> None:
    """Let all threads allocate from so many heaps; those that there are already stay.

    By itself glibc gives each thread up to 64 MB that it keeps when what was in them is freed.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, number)


def return_freed() -> None:
    """Give pages that hold nothing back to the system; a few milliseconds, in which other threads run."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None
