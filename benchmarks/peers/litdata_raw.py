"""LitData with uncompressed samples, its fastest layout; read through its StreamingDataLoader."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litdata
import numpy as np
from common import Options, collate, cut, run, source


def sample(index: int, folder: str) -> dict[str, Any]:
    return {name: np.array(array[index]) for name, array in source(folder).items()}


class Streaming(litdata.StreamingDataset):
    names: list[str] | None = None
    crop: int | None = None

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        found = super().__getitem__(index)
        return {name: np.ascontiguousarray(cut(found[name], self.crop)) for name in self.names or found}


def batches(given: Options) -> Any:
    data = Streaming(given.url or str(given.store / "chunks"), shuffle=True)
    data.names, data.crop = given.modalities, given.crop
    return litdata.StreamingDataLoader(data, batch_size=given.batch, num_workers=given.workers, collate_fn=collate)


def write_chunks(sample: Callable[..., dict[str, Any]], folder: Path, store: Path) -> None:
    n = len(next(iter(source(folder).values())))
    litdata.optimize(
        functools.partial(sample, folder=str(folder)), list(range(n)), str(store / "chunks"), chunk_bytes="64MB",
        num_workers=2,
    )  # fmt: skip


def write(folder: Path, store: Path, _: Options) -> None:
    write_chunks(sample, folder, store)


if __name__ == "__main__":
    run(batches, write)
