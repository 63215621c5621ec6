"""What MMEarth's own reader does with that file, restated: values to float, no-data to NaN, z-score, class indexes.

Written from the description of its steps, none of its code is used. Random crop of 112 when a crop is asked for, the
same in all modalities; missing values become 0 for the optical, radar, terrain and canopy planes.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import torch
from common import Options, Sample, run, torch_loader
from hdf5 import write
from torch.utils.data import Dataset


class Samples(Dataset[Sample]):
    def __init__(self, given: Options) -> None:
        self.path, self.crop, self.file = given.store / "samples.h5", given.crop, None
        with h5py.File(self.path) as file:
            self.names = given.modalities or list(file)
            self.n = len(file[self.names[0]])
            self.kinds = {name: file[name].dtype for name in self.names}
            # Statistics of the first samples: what they are does not matter to the time.
            few = {name: np.nan_to_num(file[name][:16].astype(np.float64)) for name in self.names}
            self.mean = {name: value.mean(axis=(0, *range(2, value.ndim))) for name, value in few.items()}
            self.std = {name: value.std(axis=(0, *range(2, value.ndim))) + 1e-6 for name, value in few.items()}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if self.file is None:
            self.file = h5py.File(self.path)
        rng = np.random.default_rng()
        corner = None
        found = {}
        for name in self.names:
            data = self.file[name][index : index + 1][0]
            is_class = self.kinds[name] == np.uint8 and data.ndim == 3 and data.shape[0] == 1
            data = data.astype(np.float32)
            nodata = 255.0 if self.kinds[name] == np.uint8 else 65535.0
            data = np.where(data == nodata, np.nan, data)
            if is_class:
                for place, code in enumerate((10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)):
                    data = np.where(data == code, place, data)
                data = np.where(np.isnan(data), -1, data).astype(np.int64)
            else:
                shape = (-1,) + (1,) * (data.ndim - 1)
                data = (data - self.mean[name].reshape(shape)) / self.std[name].reshape(shape)
                data = np.nan_to_num(data.astype(np.float32))
            tensor = torch.from_numpy(np.ascontiguousarray(data))
            if self.crop and data.ndim == 3:
                room = data.shape[-1] - self.crop + 1
                corner = corner or tuple(rng.integers(0, room, 2))
                top, left = corner
                tensor = tensor[:, top : top + self.crop, left : left + self.crop]
            found[name] = tensor.numpy()
        return found


def batches(given: Options) -> Any:
    return torch_loader(Samples(given), given)


if __name__ == "__main__":
    run(batches, write)
