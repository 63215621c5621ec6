"""WebDataset: tars of samples, each plane set packed by the codec that mmbuild uses, a shuffle buffer of 512."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import webdataset
from common import Options, collate, run, source
from numcodecs import blosc
from packing import packed, unpack

PER_TAR = 264


def batches(given: Options) -> Any:
    blosc.use_threads = False
    tars = sorted(given.store.glob("*.tar"))
    urls = [f"{given.url}/{tar.name}" if given.url else str(tar) for tar in tars]

    def open_sample(parts: dict[str, Any]) -> Any:
        return unpack(pickle.loads(parts["pickle"]), given.modalities, given.crop)

    def batch_of(samples: list[dict[str, Any]]) -> Any:
        return collate([{k: v for k, v in sample.items() if not k.startswith("__")} for sample in samples])

    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None, empty_check=False)
        .shuffle(512)
        .map(open_sample)
    )
    loader = webdataset.WebLoader(
        data.batched(given.batch, collation_fn=batch_of), batch_size=None, num_workers=given.workers
    )
    return loader


def write(folder: Path, store: Path, _: Options) -> None:
    store.mkdir(parents=True, exist_ok=True)
    arrays = source(folder)
    n = len(next(iter(arrays.values())))
    for first in range(0, n, PER_TAR):
        with tarfile.open(store / f"{first // PER_TAR:04d}.tar", "w") as tar:
            for i in range(first, min(first + PER_TAR, n)):
                data = pickle.dumps(packed(arrays, i))
                info = tarfile.TarInfo(f"{i:08d}.pickle")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    run(batches, write)
