"""What exports and imports must show: reference corpora there and back, killed imports, memory, and throughput."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.export import CASES, disk_rate, measure
from mmbuild.build import build_corpus
from mmbuild.cube import Corpus
from mmbuild.export import Options, export_corpus
from mmbuild.importers import import_corpus
from mmbuild.sources import SourceSpec
from tests.corpora import snapshot
from tests.packed import MMEARTH, pack_random

# recipe, what makes it small, layout, modalities that the layout carries value for value
REFERENCES = {
    "mmearth": (
        ("grid.size=48", "samples=12", "store.samples_per_shard=8"), "mmearth", Options(),
        ("sentinel2_l1c", "sentinel2_l2a", "sentinel2_scl", "sentinel1_asc", "sentinel1_desc", "canopy_height",
         "dynamic_world", "esa_worldcover", "era5", "biome", "geolocation", "month"),
    ),
    "ssl4eo_s12": (
        ("grid.size=48", "samples=8", "store.samples_per_shard=8"), "ssl4eo", Options(version="v1.0"),
        ("sentinel1", "sentinel2_l1c", "sentinel2_l2a"),
    ),
}  # fmt: skip


def by_key(corpus: Corpus, *columns: str) -> dict[tuple[float, ...], int]:
    """Slots of the stored samples by their place or by the corner of their grid, whichever a layout keeps."""
    rows = corpus.samples(["sample_status", *columns]).to_pylist()
    return {tuple(r[name] for name in columns): r["slot"] for r in rows if r["sample_status"] == "stored"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REFERENCES))
def test_a_reference_corpus_comes_back_from_its_own_layout(name: str, tmp_path: Path) -> None:
    overrides, layout, options, names = REFERENCES[name]
    corpus = build_corpus(name, tmp_path / "corpus", overrides=overrides, source=SourceSpec(name="sandbox"))
    export_corpus(corpus, tmp_path / "export", format=layout, options=options)
    back = import_corpus(tmp_path / "export", tmp_path / "back", format=layout)
    assert back.synthetic is True
    columns = ("lon", "lat") if layout == "mmearth" else ("x0", "y0")
    there, here = by_key(corpus, *columns), by_key(back, *columns)
    assert set(there) == set(here)
    assert len(there) >= 6
    compared = 0
    for key, slot in there.items():
        for modality in names:
            for step in range(corpus.shape(modality)[0]):
                expected, found = corpus.read_chip(modality, slot, step), back.read_chip(modality, here[key], step)
                fill = corpus.modalities[modality].fill
                if layout == "mmearth" and modality.startswith("sentinel2_l"):
                    expected = np.where(expected == 0, fill, expected)  # 0 is no data in that layout
                np.testing.assert_array_equal(found, expected, err_msg=f"{modality} of slot {slot}")
                compared += 1
    assert compared >= 18


IMPORT = """
import os, resource, signal, sys
from mmbuild.importers import import_corpus

def progress(done, total, size):
    if sys.argv[3] == "kill" and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

import_corpus(sys.argv[1], sys.argv[2], format="mmearth", threads=2, progress=progress)
print("peak MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run_import(source: Path, out: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT, str(source), str(out), how]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Exports of 128 and of 1,024 samples."""
    folder = tmp_path_factory.mktemp("published")
    found = {}
    for samples in (128, 1024):
        one_of = MMEARTH[:2]
        corpus = pack_random(folder / f"c{samples}", MMEARTH, samples=samples, size=32, one_of=one_of).corpus
        export_corpus(corpus, folder / f"e{samples}", format="mmearth")
        found[samples] = folder / f"e{samples}"
    return found


@pytest.mark.slow
def test_an_import_that_was_killed_goes_on_to_the_same_corpus(published: dict[int, Path], tmp_path: Path) -> None:
    assert run_import(published[128], tmp_path / "killed", "kill").returncode == -signal.SIGKILL
    done = list((tmp_path / "killed/shards").glob("*.parquet"))
    assert 2 <= len(done) <= 4
    assert run_import(published[128], tmp_path / "killed", "").returncode == 0
    assert run_import(published[128], tmp_path / "straight", "").returncode == 0
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "straight")


@pytest.mark.slow
def test_an_import_of_eight_times_the_samples_needs_hardly_more_memory(
    published: dict[int, Path], tmp_path: Path
) -> None:
    peaks = {}
    for samples, source in published.items():
        done = run_import(source, tmp_path / str(samples), "")
        peaks[samples] = float(re.search(r"peak MB ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    # 896 more samples are 80 MB of decoded values; what is kept of a sample is a few hundred bytes.
    assert peaks[1024] - peaks[128] < 50


@pytest.mark.slow
def test_packing_and_exporting_are_measured_beside_the_disk(tmp_path: Path) -> None:
    disk = disk_rate(tmp_path)
    rows = list(measure(tmp_path, CASES[:1], disk))
    assert [row.what.split()[0] for row in rows] == ["pack", "export", "export", "export"]
    for row in rows:
        print(f"{row.what}: {row.raw_mb_per_s:.1f} MB/s raw, {row.share_of_disk:.1%} of {disk:.0f} MB/s")
        assert row.raw_mb_per_s > 1
        assert row.share_of_disk == pytest.approx(row.written_mb_per_s / disk)
