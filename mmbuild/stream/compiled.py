"""What the reader does with a chunk, for many chunks in one call that holds no lock: the door to ``_chunks.c``.

It is built where mmbuild is installed, if there is a C compiler. Without it everything is done in Python, one chunk
after the other, with the same results, and two threads get in each other's way (``mmbuild bench`` says which it is).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np

_chunks: ModuleType | None
try:
    _chunks = import_module("mmbuild.stream._chunks")
except ImportError:
    _chunks = None

# The columns of _chunks.c, in its order.
_CHIP = np.dtype(
    [(name, np.int64) for name in (
        "kind", "type", "itemsize", "nbytes", "planes", "rows", "cols", "plane_stride", "bands", "mean", "scale",
        "known", "table", "ignore",
    )] + [("nodata", np.float64)]
)  # fmt: skip
ROW = np.dtype([(name, np.int64) for name in (
    "fd", "source", "length", "chip", "place", "mask", "first", "row_stride", "col_stride", "failed",
)])  # fmt: skip
DIRECT, STORED, KEPT, NORMALISED, CLASSES = range(5)
_TYPES = ("u1", "i1", "u2", "i2", "i4", "f4")


def is_built() -> bool:
    """Whether there is compiled code that takes what this version describes to it.

    An installation for editing may have an older one. It needs Blosc and crc32c of the packages that have them.
    """
    built = _chunks is not None and (ROW.itemsize, _CHIP.itemsize) == (_chunks.ROW_BYTES, _chunks.CHIP_BYTES)
    return built and _functions() is not None


def converts(dtype: np.dtype[Any]) -> bool:
    """Whether values of a stored dtype can be converted."""
    return dtype.str[1:] in _TYPES


@dataclass(frozen=True, kw_only=True, eq=False)
class Chip:
    """What all chips of a modality have in common, in the memory that rows point to as long as this lives."""

    record: np.ndarray
    arrays: tuple[np.ndarray, ...]

    @property
    def address(self) -> int:
        return int(self.record.ctypes.data)


def chip(kind: int, dtype: np.dtype[Any], numbers: dict[str, float], arrays: dict[str, np.ndarray]) -> Chip:
    """numbers, arrays: columns of _CHIP; the arrays' addresses are written."""
    kept = tuple(np.ascontiguousarray(array) for array in arrays.values())
    record = np.zeros(1, _CHIP)
    given = {"kind": kind, "type": _TYPES.index(dtype.str[1:]) if converts(dtype) else -1, "itemsize": dtype.itemsize}
    addresses = {name: array.ctypes.data for name, array in zip(arrays, kept, strict=True)}
    for name, value in (given | numbers | addresses).items():
        record[name] = value
    return Chip(record=record, arrays=kept)


def fill(rows: np.ndarray) -> tuple[float, float, float, int, int]:
    """Do every row of work; ``failed`` says of which nothing came.

    -> seconds of reading, of decoding and of the rest; bytes read and decoded. rows: (n,) ROW. What they point to has
    to live until this returns.
    """
    functions = _functions()
    assert _chunks is not None
    assert functions is not None
    done: tuple[float, float, float, int, int] = _chunks.fill(rows, *functions)
    return done


@cache
def _functions() -> tuple[int, int] | None:
    """Where in memory the decoder of Blosc and crc32c begin, of the packages that Python itself uses.

    None where a package hides its own, or does the work in Python.
    """
    try:
        blosc, crc32c = ctypes.CDLL(numcodecs.blosc.__file__), ctypes.CDLL(google_crc32c._crc32c.__file__)
        return _address(blosc.blosc_decompress_ctx), _address(crc32c.crc32c_value)
    except (AttributeError, OSError):
        return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
