"""What the stream claims about speed and memory, on synthetic samples of MMEarth's shape, measured alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.loading import dump
from benchmarks.remote import range_server
from benchmarks.samples import make
from mmbuild.cube import Corpus
from mmbuild.stream.reader import Reader

REPO = Path(__file__).parents[3]
SAMPLES = 256
ROUNDS = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("loading")
    corpus = make(folder, SAMPLES, overrides=("samples=16",))
    dump(corpus, folder / "arrays")
    return corpus


@pytest.fixture(scope="module")
def hdf5(corpus: Corpus) -> Path:
    """The same samples as MMEarth ships them: a chunk a sample, gzip 4."""
    path = Path(corpus.store.url).parent / "samples.h5"
    with h5py.File(path, "w") as file:
        for name in corpus.modalities:
            data = np.load(path.parent / "arrays" / f"{name}.npy", mmap_mode="r")
            kept = {"chunks": (1, *data.shape[1:]), "compression": "gzip", "compression_opts": 4}
            file.create_dataset(name, data=data, **kept)
    return path


def cpu_seconds(work: Callable[[], object]) -> float:
    """The best of some rounds; both sides are measured by turns in one process."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def test_a_store_is_no_larger_than_gzip_hdf5_and_decodes_five_times_as_fast(corpus: Corpus, hdf5: Path) -> None:
    pixels = [name for name in corpus.modalities if corpus.gsd(name) is not None]
    slots = np.random.default_rng(0).permutation(SAMPLES)[:64]
    cube = Path(corpus.store.url) / "cube.zarr"
    ours = sum(path.stat().st_size for path in cube.rglob("*") if path.is_file())
    reader = Reader(corpus, pixels, threads=1)
    with h5py.File(hdf5) as file:
        theirs = sum(file[name].id.get_storage_size() for name in corpus.modalities)

        def gzip() -> None:
            for name in pixels:
                for slot in slots.tolist():
                    file[name][slot]

        for name, chips in reader.read(slots).items():
            for i, slot in enumerate(slots.tolist()):
                np.testing.assert_array_equal(chips.data[i, 0], file[name][slot])
        slow, fast = cpu_seconds(gzip), cpu_seconds(lambda: reader.read(slots))
    print(
        f"{ours / SAMPLES:,.0f} bytes a sample, gzip HDF5 {theirs / SAMPLES:,.0f}; decoded {slow / fast:.1f} x as fast"
    )
    assert ours <= theirs
    assert slow / fast >= 5


def thrice(corpus: Corpus, *options: str, stage: str = "stored") -> list[dict[str, float]]:
    """What the benchmark's process of our loader says of itself, three times."""
    peer = REPO / "benchmarks" / "peers" / "ours.py"
    command = [sys.executable, str(peer), "read", "--store", corpus.store.url, "--source", ".", *options]
    found = []
    for _ in range(3):
        environ = os.environ | {"MMBUILD_BENCH_VALUES": stage}
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(found)
    return found


@pytest.mark.parametrize(("stage", "crop"), [("stored", []), ("training", ["--crop", "112"])])
def test_the_first_batch_comes_soon_and_memory_is_bounded_and_flat(corpus: Corpus, stage: str, crop: list[str]) -> None:
    found = thrice(corpus, *crop, stage=stage)
    assert min(one["first_s"] for one in found) < 0.5
    assert max(one["rss_mb"] for one in found) < 600
    assert min(one["grown_mb"] for one in found) < 10


def test_the_first_batch_from_a_distant_server_comes_within_a_second(corpus: Corpus) -> None:
    """30 ms a request and 80 MB/s a connection, nothing cached, opening counted."""
    with range_server(Path(corpus.store.url)) as url:
        assert min(one["first_s"] for one in thrice(corpus, "--url", url, "--cold")) < 1.0
