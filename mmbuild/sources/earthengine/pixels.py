"""Which chips one pixel request may carry, and the chips in its answer.

An answer that is not whole, or of another type than asked for, never becomes a chip.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mmbuild.errors import SourceError, UserError
from mmbuild.modality import Modality
from mmbuild.sources import RESPONSE_LIMIT_BANDS, RESPONSE_LIMIT_BYTES

# The header of an NPY file names every band: 1,024 of them take some 26 KB, numpy reads 10 KB unless told otherwise.
NPY_HEADER_BYTES = 2**20


def groups(wanted: Mapping[str, Modality], shape: tuple[int, int]) -> list[list[str]]:
    """The chips of one lattice, by their keys, so that each answer stays below the response limits."""
    found: list[list[str]] = [[]]
    room, bands = RESPONSE_LIMIT_BYTES, RESPONSE_LIMIT_BANDS
    for key, modality in wanted.items():
        need = shape[0] * shape[1] * len(modality.bands) * (modality.np_dtype.itemsize + 1)
        if need > RESPONSE_LIMIT_BYTES:
            raise UserError(
                f"one {modality.name} chip is {need / 2**20:.0f} MiB, Earth Engine answers at most 48 MiB", "grid",
                "use a smaller size or fewer bands",
            )  # fmt: skip
        if need > room or len(modality.bands) > bands:
            found.append([])
            room, bands = RESPONSE_LIMIT_BYTES, RESPONSE_LIMIT_BANDS
        found[-1].append(key)
        room, bands = room - need, bands - len(modality.bands)
    return found


def chips(raw: bytes, asked: Sequence[Modality], shape: tuple[int, int]) -> list[np.ndarray]:
    """The chips (band, y, x) in an NPY answer, in which band b of the chip at position p is called ``m<p>_<b>``.

    Anything but the whole answer is a transient SourceError; another dtype than asked for is one for good.
    """
    try:
        pixels = _array_in(raw)
    except (ValueError, EOFError) as error:
        raise SourceError(f"a pixel answer of {len(raw)} bytes is not a whole NPY file", transient=True) from error
    names = [[f"m{position}_{band}" for band in range(len(m.bands))] for position, m in enumerate(asked)]
    given = {key: pixels.dtype[key] for key in pixels.dtype.names or ()}
    expected = {key for own in names for key in own}
    if pixels.shape != shape or set(given) != expected:
        found, wanted = f"shape {pixels.shape} and {len(given)} bands", f"{shape} and {len(expected)}"
        raise SourceError(f"a pixel answer has {found}, asked were {wanted}", transient=True)
    for modality, own in zip(asked, names, strict=True):
        for key, band in zip(own, modality.band_names, strict=True):
            if given[key].newbyteorder("=") != modality.np_dtype.newbyteorder("="):
                raise SourceError(f"band {band} of {modality.name} came as {given[key]}, expected {modality.np_dtype}")
    return [
        np.stack([pixels[key] for key in own]).astype(modality.np_dtype, copy=False)
        for modality, own in zip(asked, names, strict=True)
    ]


def _array_in(raw: bytes) -> np.ndarray:
    """The array of an NPY file where it lies: numpy's own reader would hold an answer of 20 MB twice."""
    version = np.lib.format.read_magic(io.BytesIO(raw))
    if version not in _LENGTH_BYTES:
        raise ValueError(f"NPY version {version}")
    start = np.lib.format.MAGIC_LEN + _LENGTH_BYTES[version]
    end = start + int.from_bytes(raw[np.lib.format.MAGIC_LEN : start], "little")
    shape, is_fortran, dtype = _header(version, raw[np.lib.format.MAGIC_LEN : end])
    values = np.frombuffer(raw, dtype, count=math.prod(shape), offset=end)
    return values.reshape(shape, order="F" if is_fortran else "C")


@lru_cache(maxsize=256)
def _header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype; all samples that ask for the same get the same header.

    numpy reads it with ast.literal_eval. In CPython 3.11 before 3.11.8, threads that do so side by side may spoil each
    other's count of nested nodes and fail with SystemError (python/cpython issue 106905), so they take turns.
    """
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    with _TURN:
        return read(io.BytesIO(header), max_header_size=NPY_HEADER_BYTES)


# Bytes of a header's length by version of the format.
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
_TURN = threading.Lock()
