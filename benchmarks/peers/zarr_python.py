"""The cube of mmbuild itself through zarr-python, one sample a read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import Options, Sample, cut, run, torch_loader
from torch.utils.data import Dataset


class Samples(Dataset[Sample]):
    def __init__(self, given: Options) -> None:
        self.path, self.crop = given.url or str(given.store / "cube.zarr"), given.crop
        self.names = given.modalities or [name for name, _ in zarr.open_group(self.path, mode="r").groups()]
        self.arrays: dict[str, Any] = {}
        self.n = zarr.open_array(f"{self.path}/{self.names[0]}/data", mode="r").shape[0]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if not self.arrays:
            self.arrays = {name: zarr.open_array(f"{self.path}/{name}/data", mode="r") for name in self.names}
        return {name: np.ascontiguousarray(cut(array[index, 0], self.crop)) for name, array in self.arrays.items()}


def batches(given: Options) -> Any:
    return torch_loader(Samples(given), given)


def write(_: Path, __: Path, ___: Options) -> None:
    """The cube is there."""


if __name__ == "__main__":
    run(batches, write)
