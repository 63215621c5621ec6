"""One HDF5 file with a chunk a sample, gzip 4 as MMEarth ships it, read row by row through h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from common import Options, Sample, cut, run, source, torch_loader
from torch.utils.data import Dataset


class Samples(Dataset[Sample]):
    def __init__(self, given: Options) -> None:
        self.path, self.names, self.crop, self.file = given.store / "samples.h5", given.modalities, given.crop, None
        with h5py.File(self.path) as file:
            self.names = self.names or list(file)
            self.n = len(file[self.names[0]])

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if self.file is None:  # once a worker
            self.file = h5py.File(self.path)
        return {name: np.ascontiguousarray(cut(self.file[name][index], self.crop)) for name in self.names}


def batches(given: Options) -> Any:
    return torch_loader(Samples(given), given)


def write(folder: Path, store: Path, _: Options) -> None:
    store.mkdir(parents=True, exist_ok=True)
    with h5py.File(store / "samples.h5", "w") as file:
        for name, array in source(folder).items():
            data = file.create_dataset(
                name, array.shape, array.dtype, chunks=(1, *array.shape[1:]), compression="gzip", compression_opts=4
            )
            for i in range(len(array)):
                data[i] = array[i]


if __name__ == "__main__":
    run(batches, write)
