"""Freed memory goes back to the system, where the C library can be told to."""

from __future__ import annotations

import platform

import psutil
import pytest

from mmbuild.heap import return_freed, share_heaps

PIECE, PIECES = 100_000, 1_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_gaps_between_what_is_alive_are_given_back() -> None:
    pieces = [b"x" * PIECE for _ in range(PIECES)]
    kept = pieces[::50]
    del pieces
    before = psutil.Process().memory_info().rss
    return_freed()
    assert before - psutil.Process().memory_info().rss > PIECE * PIECES / 2
    assert all(one == b"x" * PIECE for one in kept)


def test_a_system_without_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    # There the library has neither function; asked for by name, each would be an error.
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("asked the C library"))
    share_heaps(2)
    return_freed()
