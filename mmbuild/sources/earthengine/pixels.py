"""Which chips one pixel request may carry, and the chips in its answer.

An answer that is not whole, or of another type than asked for, never becomes a chip.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

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
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"NPY version {version}")
    shape, is_fortran, dtype = _HEADERS[version](stream, max_header_size=NPY_HEADER_BYTES)
    values = np.frombuffer(raw, dtype, count=math.prod(shape), offset=stream.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
