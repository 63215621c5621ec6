"""Issue 2: sixty-four samples are built, opened, left alone by a second run, extended, and the same in a bucket."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.corpora import snapshot
from tests.truth import record_rows, stored_chip

Mmbuild = Callable[..., Any]


@pytest.fixture
def copy64(tiny64: Path, tmp_path: Path) -> Path:
    """A corpus of its own for tests that build on."""
    return Path(shutil.copytree(tiny64, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def extended(tiny64: Path, mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sixty-four, extended to ninety-six."""
    out = Path(shutil.copytree(tiny64, tmp_path_factory.mktemp("tiny96") / "corpus"))
    mmbuild("build", "recipes/tiny.yaml", out, "--samples", 96)
    return out


def ledger(out: Path) -> dict[str, Any]:
    """What the last run asked."""
    found: dict[str, Any] = json.loads(max((out / "runs").glob("*.json")).read_text())
    return found


def files(out: Path) -> dict[Path, tuple[int, str]]:
    """Time of change and digest of every file but the ledgers of runs."""
    found = [path for path in out.rglob("*") if path.is_file() and path.relative_to(out).parts[0] != "runs"]
    return {
        path.relative_to(out): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in found
    }


def chunk(out: Path, row: dict[str, Any]) -> bytes:
    """The encoded bytes of a stored chip, from the place its commit record names."""
    shard = row["slot"] // 8
    (path,) = [p for p in (out / "cube.zarr" / row["modality"] / "data" / "c" / str(shard)).rglob("*") if p.is_file()]
    return path.read_bytes()[row["offset"] : row["offset"] + row["length"]]


def test_sixty_four_samples_with_seven_or_more_modalities_are_stored(tiny64: Path, mmbuild: Mmbuild) -> None:
    told = json.loads(mmbuild("status", tiny64, "--json").stdout)
    assert told["samples"] == told["stored"] == 64
    assert told["statuses"] == {"stored": 64}
    stored = {name: counts["stored"] for name, counts in told["modalities"].items() if counts["stored"]}
    assert len(stored) >= 7
    assert all(sum(counts[s] for s in ("stored", "no_data", "rejected", "failed", "not_asked")) == 64
               for counts in told["modalities"].values())  # fmt: skip
    # What status tells is what the records say, counted here again.
    rows = record_rows(tiny64)
    assert {n: sum(r["modality"] == n and r["status"] == "stored" for r in rows) for n in stored} == stored


def test_shards_hold_eight_samples(tiny64: Path) -> None:
    assert len(list((tiny64 / "shards").glob("*.parquet"))) == 8
    by_shard = json.loads((tiny64 / "cube.zarr" / "aster_gdem" / "data" / "zarr.json").read_text())
    assert by_shard["chunk_grid"]["configuration"]["chunk_shape"][0] == 8


def test_xarray_opens_the_cube_and_its_groups(tiny64: Path) -> None:
    tree = xr.open_datatree(tiny64 / "cube.zarr", engine="zarr")
    told = {row["modality"] for row in record_rows(tiny64)}
    assert set(tree.children) == told
    assert tree["lon"].sizes == {"sample": 64}
    for name in told:
        group = xr.open_zarr(tiny64 / "cube.zarr", group=name)
        assert dict(group["data"].sizes) == dict(tree[name]["data"].sizes)
        assert group["data"].dims in (("sample", "time", "band", "y", "x"), ("sample", "time", "band"))


def test_xarray_reads_stored_chips_and_missing_ones_as_nan(tiny64: Path) -> None:
    tree = xr.open_datatree(tiny64 / "cube.zarr", engine="zarr")
    for row in record_rows(tiny64)[::17]:
        seen = tree[row["modality"]]["data"][row["slot"], row["time"]].values
        raw, valid = stored_chip(tiny64, row), np.isfinite(seen)
        np.testing.assert_array_equal(seen[valid], raw[valid])
        assert valid.any() == (row["status"] == "stored")
        if row["status"] == "stored":
            # Of the bands that have any: a polarisation that was not recorded is not a gap.
            share = np.mean([band.mean() for band in valid if band.any()])
            assert row["valid_fraction"] == pytest.approx(share), row["modality"]


def test_a_second_run_stores_nothing_and_asks_for_no_pixels(copy64: Path, mmbuild: Mmbuild) -> None:
    before, runs = files(copy64), len(list((copy64 / "runs").glob("*.json")))
    mmbuild("build", "recipes/tiny.yaml", copy64, "--samples", 64)
    assert files(copy64) == before
    assert len(list((copy64 / "runs").glob("*.json"))) == runs + 1
    last = ledger(copy64)
    assert last["requests"]["pixel_requests"] == 0
    assert last["shards"] == {"planned": 0, "done": 0}


def test_the_first_run_asked_once_for_the_pixels_of_each_sample(tiny64: Path) -> None:
    asked = ledger(tiny64)["requests"]
    # Every sample is one lattice; alternates that were tried in vain ask for no pixels.
    assert asked["pixel_requests"] == 64
    assert asked["metadata_requests"] <= 3 * 8


def test_ninety_six_samples_extend_sixty_four(extended: Path, mmbuild: Mmbuild) -> None:
    told = json.loads(mmbuild("status", extended, "--json").stdout)
    assert (told["samples"], told["missing"]) == (96, 0)
    # A slot whose places are all beyond every satellite's reach ends without data, and says so.
    assert told["stored"] >= 94
    assert sum(told["statuses"].values()) == 96
    assert told["statuses"].get("failed", 0) == 0
    assert ledger(extended)["requests"]["pixel_requests"] == told["stored"] - 64
    assert xr.open_datatree(extended / "cube.zarr", engine="zarr")["lon"].sizes == {"sample": 96}


def test_the_first_sixty_four_keep_their_bytes(tiny64: Path, extended: Path) -> None:
    first = [row for row in record_rows(tiny64) if row["status"] == "stored"]
    again = {(row["slot"], row["modality"], row["time"]): row for row in record_rows(extended)}
    for row in first:
        same = again[row["slot"], row["modality"], row["time"]]
        assert same == row
        assert chunk(extended, same) == chunk(tiny64, row)
    # Whole objects too: shards and their records were not touched, not even rewritten with the same bytes.
    before, after = files(tiny64), files(extended)
    objects = [path for path in before if path.parts[0] == "shards" or path.parts[2:4] == ("data", "c")]
    assert len(objects) > 8 * 10
    assert {path: after[path] for path in objects} == {path: before[path] for path in objects}


def test_ninety_six_at_once_are_the_same_corpus(extended: Path, OUT: Path, mmbuild: Mmbuild) -> None:
    mmbuild("build", "recipes/tiny.yaml", OUT, "--samples", 96)
    assert snapshot(OUT) == snapshot(extended)


def test_a_bucket_holds_the_same_bytes(tiny64: Path, bucket_url: str, mmbuild: Mmbuild) -> None:
    mmbuild("build", "recipes/tiny.yaml", bucket_url, "--samples", 64)
    told = json.loads(mmbuild("status", bucket_url, "--json").stdout)
    assert told["stored"] == 64
    assert snapshot(bucket_url) == snapshot(tiny64)
