"""A sample as bytes: each modality packed by the codec that mmbuild uses; for containers that know no arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Sample, cut
from numcodecs import blosc


def pack(chip: np.ndarray) -> bytes:
    return bytes(blosc.compress(np.ascontiguousarray(chip), b"lz4hc", 9, blosc.SHUFFLE, 0))


def unpack(packed: dict[str, Any], names: list[str] | None, crop: int | None) -> Sample:
    found = {}
    for name in names or packed:
        data, dtype, shape = packed[name]
        chip = np.empty(shape, dtype)
        blosc.decompress(data, chip)
        found[name] = np.ascontiguousarray(cut(chip, crop))
    return found


def packed(arrays: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    return {name: (pack(array[index]), array.dtype.str, array.shape[1:]) for name, array in arrays.items()}
