"""MosaicML Streaming (MDS) with uncompressed arrays, its fastest layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Options, collate, cut, run, source
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset


class Streaming(StreamingDataset):
    names: list[str] | None = None
    crop: int | None = None

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        found = super().__getitem__(index)
        return {name: np.ascontiguousarray(cut(found[name], self.crop)) for name in self.names or found}


def batches(given: Options) -> Any:
    data = Streaming(local=str(given.store / "mds"), shuffle=True, batch_size=given.batch)
    data.names, data.crop = given.modalities, given.crop
    return StreamingDataLoader(data, batch_size=given.batch, num_workers=given.workers, collate_fn=collate)


def write(folder: Path, store: Path, _: Options) -> None:
    arrays = source(folder)
    columns = {name: f"ndarray:{array.dtype}:{','.join(map(str, array.shape[1:]))}" for name, array in arrays.items()}
    with MDSWriter(out=str(store / "mds"), columns=columns) as out:
        for i in range(len(next(iter(arrays.values())))):
            out.write({name: np.array(array[i]) for name, array in arrays.items()})


if __name__ == "__main__":
    run(batches, write)
