"""The reference recipes at the size that has to be shown, with synthetic pixels: counts, lattices, dates, requests."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import mercantile
import pyarrow.parquet as pq
import pytest

from mmbuild.cube import open_corpus
from tests.acceptance.conftest import Mmbuild

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def mmearth(mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mmearth") / "out"
    mmbuild("build", "recipes/mmearth.yaml", out, "--samples", 512, "--source", "sandbox")
    return out


@pytest.fixture(scope="module")
def ssl4eo(mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ssl4eo") / "out"
    mmbuild("build", "recipes/ssl4eo_s12.yaml", out, "--samples", 128, "--source", "sandbox")
    return out


@pytest.fixture(scope="module")
def scale_alibi(mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scale_alibi") / "out"
    mmbuild("build", "recipes/scale_alibi_small.yaml", out, "--samples", 256, "--source", "sandbox")
    return out


def stored(corpus: Path) -> Rows:
    """The records of the stored chips."""
    return [row for row in open_corpus(corpus).records().to_pylist() if row["status"] == "stored"]


def status(mmbuild: Mmbuild, corpus: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mmbuild("status", corpus, "--json").stdout)
    return found


def requests_without_rejected(corpus: Path) -> float:
    """Requests a stored sample, without the share that rejected places have of the searches."""
    (ledger,) = [json.loads(path.read_text()) for path in (corpus / "runs").glob("*.json")]
    used, there = ledger["requests"], ledger["samples"]["stored"]
    return float((used["metadata_requests"] * there / used["places"] + used["pixel_requests"]) / there)


def is_on_one_lattice(rows: Rows) -> bool:
    grounds = {(r["epsg"], r["x0"], r["y0"], r["gsd"] * r["width"]) for r in rows if r["gsd"] is not None}
    return len(grounds) == 1


def by_slot(rows: Rows) -> dict[int, Rows]:
    found: dict[int, Rows] = {}
    for row in rows:
        found.setdefault(row["slot"], []).append(row)
    return found


# -- MMEarth ------------------------------------------------------------------------------------------------------


def test_mmearth_stores_every_modality_of_the_paper_with_46_bands_on_one_lattice(mmearth: Path) -> None:
    corpus, rows = open_corpus(mmearth), stored(mmearth)
    assert {row["modality"] for row in rows} == set(corpus.modalities)
    beside = {"sentinel2_scl", "sentinel2_cloudprob", "sentinel2_qa60", "sentinel2_l1c"}
    bands = {name: len(modality.bands) for name, modality in corpus.modalities.items() if name not in beside}
    assert sum(bands.values()) == 46, "the product drawn counts once, with the bands that both have"
    assert all(is_on_one_lattice(own) for own in by_slot(rows).values())
    assert {(r["width"], r["gsd"]) for r in rows if r["gsd"] is not None} == {(128, 10.0)}


def test_mmearth_has_equally_many_samples_of_each_biome_and_reports_its_alternates(
    mmbuild: Mmbuild, mmearth: Path
) -> None:
    items = pq.read_table(mmearth / "items.parquet", columns=["biome", "mmbuild:alternate"])
    counts = Counter(items["biome"].to_pylist())
    assert len(counts) == 14
    assert max(counts.values()) - min(counts.values()) <= 1
    found = status(mmbuild, mmearth)
    assert found["alternates"] == sum(a > 0 for a in items["mmbuild:alternate"].to_pylist()) > 0
    assert found["stored"] == 512


def test_mmearth_asks_at_most_11_requests_for_ten_samples(mmearth: Path) -> None:
    assert requests_without_rejected(mmearth) <= 1.1


# -- SSL4EO-S12 ---------------------------------------------------------------------------------------------------


def test_ssl4eo_stores_three_images_at_four_dates_within_fifteen_days_on_one_lattice(ssl4eo: Path) -> None:
    samples = by_slot(stored(ssl4eo))
    assert len(samples) >= 0.95 * 128
    for rows in samples.values():
        wanted = {(n, t) for n in ("sentinel1", "sentinel2_l1c", "sentinel2_l2a") for t in range(4)}
        assert {(row["modality"], row["time"]) for row in rows} == wanted
        assert is_on_one_lattice(rows)
        assert {row["width"] for row in rows} == {264}
        assert all(abs(row["delta_days"]) <= 15 for row in rows)
        dates = [row["datetime"] for row in rows if row["modality"] == "sentinel2_l2a"]
        gaps = [(b - a).days for a, b in pairwise(dates)]
        assert all(58 <= gap <= 124 for gap in gaps)


def test_ssl4eo_has_a_phase_of_its_own_for_every_place(ssl4eo: Path) -> None:
    first = [r["datetime"].month for r in stored(ssl4eo) if r["modality"] == "sentinel2_l2a" and r["time"] == 0]
    assert len(set(first)) >= 10


def test_ssl4eo_asks_at_most_11_requests_for_ten_dates_rejected_places_included(ssl4eo: Path) -> None:
    (ledger,) = [json.loads(path.read_text()) for path in (ssl4eo / "runs").glob("*.json")]
    used = ledger["requests"]
    assert (used["metadata_requests"] + used["pixel_requests"]) / (128 * 4) <= 1.1


# -- Scale-ALiBi --------------------------------------------------------------------------------------------------


def test_scale_alibi_stores_exact_tiles_of_three_sensors_and_photographs_twice_as_fine(scale_alibi: Path) -> None:
    samples = by_slot(stored(scale_alibi))
    assert len(samples) >= 0.95 * 256
    for rows in samples.values():
        own = {row["modality"]: row for row in rows}
        assert set(own) == {"sentinel1", "sentinel2_l2a", "sentinel2_tci", "naip", "naip_2x"}
        assert {name: row["width"] for name, row in own.items() if name != "naip_2x"} == dict.fromkeys(
            ("sentinel1", "sentinel2_l2a", "sentinel2_tci", "naip"), 256
        )
        assert own["naip_2x"]["width"] == 512
        bounds = mercantile.xy_bounds(mercantile.tile(own["naip"]["lon"], own["naip"]["lat"], 15))
        for row in rows:
            assert (row["x0"], row["y0"]) == pytest.approx((bounds.left, bounds.top), abs=1e-6)
            assert row["gsd"] * row["width"] == pytest.approx(bounds.right - bounds.left)
        assert own["naip"]["scene_ids"] == own["naip_2x"]["scene_ids"]
        assert abs(own["sentinel1"]["delta_days"]) <= 30
        assert abs(own["sentinel2_l2a"]["delta_days"]) <= 45


def test_scale_alibi_asks_at_most_21_requests_for_ten_tiles(scale_alibi: Path) -> None:
    assert requests_without_rejected(scale_alibi) <= 2.1


# -- faithful mode ------------------------------------------------------------------------------------------------


def test_faithful_mmearth_repeats_what_can_be_repeated_offline(mmbuild: Mmbuild, OUT: Path) -> None:
    """Its points by our own counters: their seeds take a request for each ecoregion (tests/test_samplers_biome.py)."""
    faithful = ("--set", "mode=faithful", "--set", "grid.size=16", "--set", "sampler.points=counter")
    build = ("build", "recipes/mmearth.yaml", OUT, "--source", "sandbox", *faithful)
    mmbuild(*build, "--samples", 2000, "--max-requests", 40, expect=3)
    corpus = open_corpus(OUT)
    assert corpus.recipe.mode == "faithful"
    assert corpus.n_slots < 2000, "floor allocation comes out short"
    assert corpus.modalities["era5"].months == (-12, 0)
    assert set(corpus.locations()["alternate"]) == {0}
