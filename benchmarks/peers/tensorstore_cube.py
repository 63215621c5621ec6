"""The same cube through TensorStore, a batch of reads at a time with its own threads and two batches ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from common import Options, run


class Batches:
    def __init__(self, given: Options) -> None:
        root = given.store / "cube.zarr"
        names = given.modalities or sorted(p.parent.name for p in root.glob("*/data"))
        threads = {"limit": max(1, given.workers)}
        context = ts.Context({"data_copy_concurrency": threads, "file_io_concurrency": threads})
        self.given, self.seed = given, 0
        self.arrays = {name: ts.open(self.spec(root, name), context=context, read=True).result() for name in names}
        self.n = next(iter(self.arrays.values())).shape[0]

    def spec(self, root: Path, name: str) -> dict[str, Any]:
        if self.given.url:
            return {"driver": "zarr3", "kvstore": f"{self.given.url}/cube.zarr/{name}/data/"}
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{root}/{name}/data/"}}

    def ask(self, part: np.ndarray) -> dict[str, Any]:
        found = {}
        for name, array in self.arrays.items():
            view = array[ts.d[0][part]][:, 0]
            if self.given.crop and view.rank == 4:
                low = (view.shape[-1] - self.given.crop) // 2
                view = view[:, :, low : low + self.given.crop, low : low + self.given.crop]
            found[name] = view.read(order="C")
        return found

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.seed += 1
        order = np.random.default_rng(self.seed).permutation(self.n)
        parts = [order[i : i + self.given.batch] for i in range(0, self.n, self.given.batch)]
        ahead = [self.ask(part) for part in parts[:2]]
        for k in range(len(parts)):
            batch = {name: future.result() for name, future in ahead.pop(0).items()}
            if k + 2 < len(parts):
                ahead.append(self.ask(parts[k + 2]))
            yield batch


def write(_: Path, __: Path, ___: Options) -> None:
    """The cube is there."""


if __name__ == "__main__":
    run(Batches, write)
