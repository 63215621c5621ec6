"""Issue 4: a 100-sample and a 20-sample taster of one corpus: nested, self-contained, distance printed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import xarray as xr

import mmbuild as mm
from tests.truth import record_rows, stored_chip

Mmbuild = Callable[..., Any]
COUNTS = (100, 20)


@pytest.fixture(scope="module")
def parent(mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "corpus"
    mmbuild("build", "recipes/tiny.yaml", out, "--samples", 140, "--set", "grid.size=16")
    return out


@pytest.fixture(scope="module")
def told(parent: Path, mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """Each taster, moved after it was cut, and what its command printed; the parent is gone by then."""
    made = {}
    for count in COUNTS:
        folder = tmp_path_factory.mktemp(f"taster{count}")
        done = mmbuild("taster", parent, folder / "cut", "--samples", count)
        shutil.move(folder / "cut", folder / "moved" / "elsewhere")
        made[count] = folder / "moved" / "elsewhere", done.stdout
    parent.rename(parent.with_name("gone"))
    return made


@pytest.fixture(scope="module")
def tasters(told: dict[int, tuple[Path, str]]) -> dict[int, Path]:
    return {count: path for count, (path, _) in told.items()}


def sample_ids(out: Path) -> list[str]:
    return list(dict.fromkeys(row["sample_id"] for row in record_rows(out)))


def test_the_smaller_is_inside_the_larger(tasters: dict[int, Path]) -> None:
    hundred, twenty = (sample_ids(tasters[count]) for count in COUNTS)
    assert (len(hundred), len(twenty)) == COUNTS
    assert twenty == hundred[:20]


def test_every_chip_of_both_is_the_parents(parent: Path, tasters: dict[int, Path]) -> None:
    gone = parent.with_name("gone")
    before = {(r["sample_id"], r["modality"]): r for r in record_rows(gone)}
    for out in tasters.values():
        for row in record_rows(out):
            old = before[row["sample_id"], row["modality"]]
            assert (row["status"], row["sha256"], row["scene_ids"]) == (old["status"], old["sha256"], old["scene_ids"])
            if row["status"] == "stored" and row["slot"] % 7 == 0:
                np.testing.assert_array_equal(stored_chip(out, row), stored_chip(gone, old))


@pytest.mark.parametrize("count", COUNTS)
def test_moved_to_another_folder_everything_still_opens(
    count: int, tasters: dict[int, Path], mmbuild: Mmbuild, tmp_path: Path
) -> None:
    out = tasters[count]
    corpus = mm.open_corpus(out)
    ids = sample_ids(out)
    assert len(corpus.locations()["slot"].unique()) == count
    with xr.open_datatree(out / "cube.zarr", engine="zarr") as tree:
        assert tree["id"].values.tolist() == ids
        assert float(tree["aster_gdem"]["data"].isel(sample=0).mean()) > -500
    seen = [name for batch in mm.Loader(corpus, split=None, batch_size=16) for name in batch["id"]]
    assert sorted(seen) == sorted(ids)
    assert json.loads(mmbuild("status", out, "--json").stdout)["stored"] == count
    mmbuild("show", out, ids[-1], "-o", tmp_path / "sample.png")
    assert (tmp_path / "sample.png").stat().st_size > 10_000
    mmbuild("catalog", out)
    collection = pystac.Collection.from_file(out / "collection.json")
    assert collection.id == f"tiny_taster_{count}"
    stats = json.loads((out / "stats.json").read_text())["modalities"]
    assert set(stats) == set(corpus.modalities)


@pytest.mark.parametrize("count", COUNTS)
def test_its_distance_to_the_parent_is_printed_and_kept(count: int, told: dict[int, tuple[Path, str]]) -> None:
    out, text = told[count]
    assert re.search(rf"{count} of 1[34]\d stored samples of tiny, [\d.]+ [KM]B", " ".join(text.split()))
    assert "distance: total variation of the shares of the labels; 0 is the same shares, 1 none in common" in text
    kept = json.loads((out / "collection.json").read_text())["mmbuild:taster"]["distance"]["variables"]
    assert {"biome", "latitude", "month", "land_cover"} <= set(kept)
    for name, found in kept.items():
        counts = f"{found['labels_here']} / {found['labels']}"
        row = rf"{name.replace('_', ' ')} +\S+ +{counts} +\S+ +{found['total_variation']:.3f}"
        assert re.search(row, text), f"{name} is not printed as it is kept:\n{text}"
        assert found["total_variation"] < found["random_draw"]


def test_the_larger_is_the_nearer(tasters: dict[int, Path]) -> None:
    kept = {
        count: json.loads((out / "collection.json").read_text())["mmbuild:taster"]["distance"]["variables"]
        for count, out in tasters.items()
    }
    assert all(kept[100][name]["total_variation"] < kept[20][name]["total_variation"] for name in kept[20])
