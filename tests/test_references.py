"""The reference corpora, small: what each recipe builds from the offline Earth Engine, fixed mode."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import pyarrow.parquet as pq
import pytest

from mmbuild.build import build_corpus
from mmbuild.cube import Corpus

Build = Callable[..., Corpus]
ZOOM = 18


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    def run(name: str, *overrides: str) -> Corpus:
        out = tmp_path_factory.mktemp(name) / "corpus"
        return build_corpus(name, out, overrides=["source=sandbox", "store.samples_per_shard=32", *overrides])

    return run


@pytest.fixture(scope="module")
def mmearth(build: Build) -> Corpus:
    return build("mmearth", "samples=14", "grid.size=16")


@pytest.fixture(scope="module")
def ssl4eo(build: Build) -> Corpus:
    return build("ssl4eo_s12", "samples=6", "grid.size=16")


@pytest.fixture(scope="module")
def tiles(build: Build) -> Corpus:
    """Smaller tiles with fewer pixels."""
    place = "sampler={kind: xyz, states: null, tiles: [14/3936/6082], covered_by: naip}"
    return build("scale_alibi_micro", "samples=2", "grid.size=32", f"grid.zoom={ZOOM}", place)


def rows_of(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for row in corpus.records().to_pylist() if row["sample_status"] == "stored"]


def requests(corpus: Corpus) -> dict[str, int]:
    (key,) = [key for key in corpus.store.list("runs/") if key.endswith(".json")]
    found: dict[str, int] = json.loads(corpus.store.get(key))["requests"]
    return found


def grids(corpus: Corpus, slot: int) -> set[tuple[Any, ...]]:
    """The ground of every stored raster of a sample: code, corner and sides in metres."""
    own = [row for row in rows_of(corpus) if row["slot"] == slot and row["gsd"] is not None]
    return {(r["epsg"], r["x0"], r["y0"], r["gsd"] * r["width"], r["gsd"] * r["height"]) for r in own}


def test_mmearth_has_every_biome_once_and_all_modalities_on_one_lattice(mmearth: Corpus) -> None:
    biomes = Counter(json.loads(row["tags"])["biome"] for row in rows_of(mmearth) if row["modality"] == "month")
    assert set(biomes.values()) == {1}
    stored = {row["modality"] for row in rows_of(mmearth) if row["status"] == "stored"}
    assert stored == set(mmearth.modalities)
    assert all(len(grids(mmearth, slot)) == 1 for slot in range(14))


def test_mmearth_gives_each_place_one_of_two_levels_near_which_radar_lies(mmearth: Corpus) -> None:
    for row in rows_of(mmearth):
        if row["modality"].startswith("sentinel1_") and row["status"] == "stored":
            assert abs(row["delta_days"]) <= 12
    levels = [r for r in rows_of(mmearth) if r["modality"] in ("sentinel2_l1c", "sentinel2_l2a")]
    stored = Counter(row["slot"] for row in levels if row["status"] == "stored")
    assert set(stored.values()) == {1}
    assert all(row["clear_fraction"] >= 0.9 for row in levels if row["status"] == "stored")
    masks = [r for r in rows_of(mmearth) if r["modality"] == "sentinel2_qa60"]
    scene = {r["slot"]: r["scene_ids"][0].rsplit("/", 1)[-1] for r in levels if r["status"] == "stored"}
    assert all(r["scene_ids"][0].endswith(scene[r["slot"]]) for r in masks if r["status"] == "stored")


def test_ssl4eo_has_three_images_of_every_date_on_one_lattice(ssl4eo: Corpus) -> None:
    rows = rows_of(ssl4eo)
    slots = sorted({row["slot"] for row in rows})
    assert slots, "no place was stored"
    for slot in slots:
        own = {(r["modality"], r["time"]): r for r in rows if r["slot"] == slot}
        assert len(own) == 12
        assert all(row["status"] == "stored" and abs(row["delta_days"]) <= 15 for row in own.values())
        assert len(grids(ssl4eo, slot)) == 1
        for time in range(4):
            pass_gap = own["sentinel2_l1c", time]["datetime"] - own["sentinel2_l2a", time]["datetime"]
            assert abs(pass_gap.total_seconds()) < 60, "both levels are of one pass"
        months = [own["sentinel2_l2a", time]["datetime"].month for time in range(4)]
        assert len(set(months)) == 4
    assert requests(ssl4eo)["pixel_requests"] <= 1.1 * len(slots)


def test_ssl4eo_places_lie_around_cities(ssl4eo: Corpus) -> None:
    tags = [json.loads(row["tags"]) for row in rows_of(ssl4eo)]
    assert all(any("city" in key for key in tag) for tag in tags)


def test_scale_alibi_tiles_are_exact_and_photographs_cover_the_same_ground_twice_as_finely(tiles: Corpus) -> None:
    rows = rows_of(tiles)
    assert rows, "no tile was stored"
    for slot in {row["slot"] for row in rows}:
        own = {row["modality"]: row for row in rows if row["slot"] == slot}
        bounds = mercantile.xy_bounds(mercantile.tile(own["naip"]["lon"], own["naip"]["lat"], ZOOM))
        (ground,) = {tuple(round(v, 3) for v in grid[1:]) for grid in grids(tiles, slot)}
        side = bounds.right - bounds.left
        assert ground == pytest.approx((bounds.left, bounds.top, side, side), abs=1e-3)
        coarse, fine = (tiles.read_chip(name, slot).astype(float) for name in ("naip", "naip_2x"))
        assert (coarse.shape[-1], fine.shape[-1]) == (32, 64)
        assert own["naip"]["scene_ids"] == own["naip_2x"]["scene_ids"]
        halved = fine.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
        shifted = np.roll(halved, 3, axis=2)
        apart = [np.abs(coarse - other)[:, 4:-4, 4:-4].mean() for other in (halved, shifted)]
        assert apart[0] < apart[1], "the photograph at twice the resolution shows other ground"


def test_scale_alibi_has_clear_optics_near_the_flight_and_ground_sizes_in_metres(tiles: Corpus) -> None:
    for row in rows_of(tiles):
        limit = {"sentinel1": 30, "sentinel2_l2a": 45, "sentinel2_tci": 45, "naip": 0, "naip_2x": 0}[row["modality"]]
        assert row["status"] == "stored"
        assert abs(row["delta_days"]) <= limit
    for item in pq.read_table(Path(tiles.store.url) / "items.parquet").to_pylist():
        shrink = np.cos(np.radians(rows_of(tiles)[0]["lat"]))
        for name, px in (("sentinel2_l2a", 32), ("naip", 32), ("naip_2x", 64)):
            asset = item["assets"][name]
            assert asset["proj:transform"][0] == pytest.approx(2 * 20037508.342789244 / 2**ZOOM / px)
            assert asset["gsd"] == pytest.approx(asset["proj:transform"][0] * shrink, rel=0.2)
            assert asset["gsd"] < asset["proj:transform"][0]


def test_a_place_that_is_tried_takes_one_pixel_request_a_lattice(mmearth: Corpus, tiles: Corpus) -> None:
    for corpus, most in ((mmearth, 1), (tiles, 2)):
        tried = sum(row["alternate"] + 1 for row in rows_of(corpus) if row["modality"] == next(iter(corpus.modalities)))
        assert 0 < requests(corpus)["pixel_requests"] <= most * tried
