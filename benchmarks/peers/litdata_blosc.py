"""LitData with each plane set packed by the codec that mmbuild uses: what it streams fastest over a network.

It knows object stores of its own kind only, so a downloader of whole files by plain HTTP is given to it.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import litdata
from common import Options, Sample, collate, run, source
from litdata.streaming.downloader import Downloader, register_downloader
from litdata.streaming.resolver import Dir
from litdata_raw import write_chunks
from numcodecs import blosc
from packing import packed, unpack


class Http(Downloader):
    def download_file(self, remote_filepath: str, local_filepath: str) -> None:
        if os.path.exists(local_filepath):
            return
        partial = f"{local_filepath}.{os.getpid()}"
        urllib.request.urlretrieve(remote_filepath, partial)
        os.replace(partial, local_filepath)


register_downloader("http://", Http)


def sample(index: int, folder: str) -> dict[str, Any]:
    return {"sample": pickle.dumps(packed(source(folder), index))}


class Streaming(litdata.StreamingDataset):
    names: list[str] | None = None
    crop: int | None = None

    def __getitem__(self, index: Any) -> Sample:
        return unpack(pickle.loads(super().__getitem__(index)["sample"]), self.names, self.crop)


def batches(given: Options) -> Any:
    blosc.use_threads = False
    place = Dir(path=tempfile.mkdtemp(), url=given.url + "/chunks") if given.url else str(given.store / "chunks")
    data = Streaming(place, shuffle=True)
    data.names, data.crop = given.modalities, given.crop
    return litdata.StreamingDataLoader(data, batch_size=given.batch, num_workers=given.workers, collate_fn=collate)


def write(folder: Path, store: Path, _: Options) -> None:
    write_chunks(sample, folder, store)


if __name__ == "__main__":
    run(batches, write)
