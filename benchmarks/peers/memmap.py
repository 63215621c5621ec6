"""Uncompressed arrays, memory-mapped, one sample at a time in a DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Options, Sample, cut, run, source, torch_loader
from torch.utils.data import Dataset


class Samples(Dataset[Sample]):
    def __init__(self, given: Options) -> None:
        self.arrays, self.crop = source(given.source, given.modalities), given.crop

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Sample:
        return {name: np.array(cut(array[index], self.crop)) for name, array in self.arrays.items()}


def batches(given: Options) -> Any:
    return torch_loader(Samples(given), given)


def write(_: Path, __: Path, ___: Options) -> None:
    """The source is what it reads."""


if __name__ == "__main__":
    run(batches, write)
