"""LMDB with a value a sample, each plane set packed by the codec that mmbuild uses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lmdb
from common import Options, Sample, run, source, torch_loader
from numcodecs import blosc
from packing import packed, unpack
from torch.utils.data import Dataset


class Samples(Dataset[Sample]):
    def __init__(self, given: Options) -> None:
        self.path, self.names, self.crop, self.file = (
            str(given.store / "samples.lmdb"),
            given.modalities,
            given.crop,
            None,
        )
        with lmdb.open(self.path, readonly=True, lock=False) as file:
            self.n = file.stat()["entries"]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        if self.file is None:
            self.file = lmdb.open(self.path, readonly=True, lock=False, readahead=False)
        with self.file.begin(buffers=True) as view:
            return unpack(pickle.loads(view.get(b"%08d" % index)), self.names, self.crop)


def batches(given: Options) -> Any:
    blosc.use_threads = False
    return torch_loader(Samples(given), given)


def write(folder: Path, store: Path, _: Options) -> None:
    store.mkdir(parents=True, exist_ok=True)
    arrays = source(folder)
    with lmdb.open(str(store / "samples.lmdb"), map_size=2**35) as file:
        for i in range(len(next(iter(arrays.values())))):
            with file.begin(write=True) as change:
                change.put(b"%08d" % i, pickle.dumps(packed(arrays, i)))


if __name__ == "__main__":
    run(batches, write)
