"""Arrays that mmbuild did not write, through zarr-python: slower, with the same values.

A cube that somebody rechunked or compressed with other codecs still streams. Which arrays are ours is decided by their
metadata alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmbuild.cube import CUBE, ArrayLayout, Corpus


class ForeignArray:
    """One modality's array as zarr-python opens it; safe to share between threads and processes."""

    def __init__(self, corpus: Corpus, layout: ArrayLayout) -> None:
        self._corpus, self._layout = corpus, layout
        self._array = self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ForeignArray, (self._corpus, self._layout))

    def _open(self) -> Any:
        import zarr

        return zarr.open_array(self._corpus.zarr_store(), path=f"{self._layout.name}/data", mode="r")

    def read(self, slot: int, time: int) -> np.ndarray:
        """One chip; ValueError when zarr-python cannot decode it or it has another shape or dtype."""
        try:
            chip = np.ascontiguousarray(self._array[slot, time])
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if chip.shape != self._layout.chip or chip.dtype != self._layout.modality.np_dtype:
            raise ValueError(f"it is {chip.dtype}{chip.shape}")
        return chip


def foreign_arrays(corpus: Corpus, names: Sequence[str]) -> dict[str, ForeignArray]:
    """Those of the named modalities whose bytes on disk are not laid out as the commit records say."""
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        ours = list(pool.map(lambda name: is_ours(corpus, corpus.layouts[name]), names))
    return {name: ForeignArray(corpus, corpus.layouts[name]) for name, own in zip(names, ours, strict=True) if not own}


def is_ours(corpus: Corpus, layout: ArrayLayout) -> bool:
    """Sharded by the recipe's samples with all time steps, one chunk a chip, encoded as bytes, Blosc and crc32c."""
    about = json.loads(corpus.store.get(f"{CUBE}/{layout.name}/data/zarr.json"))
    codecs = about["codecs"]
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return False
    grid, inner = about["chunk_grid"]["configuration"]["chunk_shape"], codecs[0]["configuration"]
    names = [codec["name"] for codec in inner["codecs"]]
    same = inner["chunk_shape"] == [1, 1, *layout.chip] and grid[:2] == [layout.samples_per_shard, layout.times]
    return bool(same and names == ["bytes", "blosc", "crc32c"])
