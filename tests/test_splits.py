"""Splits: whole blocks, kept apart in true metres at any latitude, and unmoved by other samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from shards import write_corpus

from mmbuild.splits import assign, distance_to_block, smallest_distance, split_corpus

GEOD = Geod(ellps="WGS84")
TO_GRID = Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
WORLD_EDGE_M = TO_GRID.transform(180.0, 0.0)[0]
RULE = {"val": 0.1, "test": 0.15, "block_km": 50.0, "buffer_m": 0.0, "seed": 3}


def on_sphere(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, n), np.degrees(np.arcsin(rng.uniform(-0.98, 0.99, n)))


def around(lon: float, lat: float, n: int, radius_m: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    away = np.sqrt(rng.random(n)) * radius_m
    x, y, _ = GEOD.fwd(np.full(n, lon), np.full(n, lat), rng.uniform(0, 360, n), away)
    return np.asarray(x), np.asarray(y)


def block_of(lon: np.ndarray, lat: np.ndarray, block_km: float) -> np.ndarray:
    x, y = TO_GRID.transform(lon, lat)
    return np.floor(np.c_[x, y] / (block_km * 1000)).astype(int)


def outline(column: int, row: int, block_km: float, per_side: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Points along the edge of a block of the projected grid, in degrees."""
    t = np.linspace(0, 1, per_side)
    u = np.concatenate([t, np.ones_like(t), 1 - t, np.zeros_like(t)])
    v = np.concatenate([np.zeros_like(t), t, np.ones_like(t), 1 - t])
    edge = WORLD_EDGE_M
    x, y = (column + u) * block_km * 1000, (row + v) * block_km * 1000
    lon, lat = TO_GRID.transform(np.clip(x, -edge, edge), y, direction="INVERSE")
    return np.where(x >= edge, 180.0, lon), lat


def test_a_block_has_one_split() -> None:
    lon, lat = around(10, 47, 20_000, 400_000)
    split = assign(lon, lat, **RULE)
    found: dict[tuple[int, ...], set[str]] = {}
    for block, name in zip(map(tuple, block_of(lon, lat, 50).tolist()), split.tolist(), strict=True):
        found.setdefault(block, set()).add(name)
    assert len(found) > 150
    assert all(len(names) == 1 for names in found.values())


def test_the_shares_are_those_of_the_recipe_on_equal_ground() -> None:
    split = assign(*on_sphere(60_000), **RULE)
    counts = {name: np.mean(split == name) for name in ("train", "val", "test", "")}
    assert counts == pytest.approx({"train": 0.75, "val": 0.1, "test": 0.15, "": 0.0}, abs=0.006)


def test_the_seed_changes_the_blocks() -> None:
    lon, lat = on_sphere(5000)
    assert np.mean(assign(lon, lat, **RULE) == assign(lon, lat, **RULE | {"seed": 4})) < 0.7


def test_splits_are_pinned() -> None:
    lon, lat = [8.5, 100.0, -60.0, 179.99, -179.99, 15.0, 23.4, 5.0], [47.4, 13.7, -3.1, -17.0, -17.0, 78.2, 0.0, 52.0]
    assert assign(lon, lat, **RULE | {"val": 0.3, "test": 0.3}).tolist() == PINNED


def test_no_sample_moves_when_others_come() -> None:
    lon, lat = around(25, 69, 3000, 150_000)
    rule = RULE | {"buffer_m": 3000.0}
    whole = assign(lon, lat, **rule)
    np.testing.assert_array_equal(assign(lon[:700], lat[:700], **rule), whole[:700])
    np.testing.assert_array_equal(assign(lon[::-1], lat[::-1], **rule)[::-1], whole)
    assert [assign(x, y, **rule)[0] for x, y in zip(lon[:20], lat[:20], strict=True)] == whole[:20].tolist()


@pytest.mark.parametrize("lat", [0.3, 47.0, 70.0, -79.0])
@pytest.mark.parametrize("lon", [25.0, 179.95])
def test_the_buffer_holds_in_true_metres(lon: float, lat: float) -> None:
    """Against the densified outlines of all held-out blocks nearby, measured by geographiclib."""
    rule = RULE | {"block_km": 20.0, "test": 0.2, "val": 0.2, "buffer_m": 2500.0}
    x, y = around(lon, lat, 250, 30_000)
    split, bare = assign(x, y, **rule), assign(x, y, **rule | {"buffer_m": 0.0})
    fate = dict(zip(map(tuple, block_of(*around(lon, lat, 20_000, 40_000), 20).tolist()), [""] * 20_000, strict=False))
    for block in fate:
        # The world's edge cuts the outermost blocks: take a place in what is left of them.
        x0, x1 = np.clip([block[0] * 20_000, block[0] * 20_000 + 20_000], -WORLD_EDGE_M, WORLD_EDGE_M)
        middle = TO_GRID.transform((x0 + x1) / 2, (block[1] + 0.5) * 20_000, direction="INVERSE")
        fate[block] = assign(*middle, **rule | {"buffer_m": 0.0})[0]
    least = np.full(len(x), np.inf)
    for block in [block for block, name in fate.items() if name in ("val", "test")]:
        edge_lon, edge_lat = outline(*block, 20, 200)
        i, j = np.meshgrid(np.arange(len(x)), np.arange(len(edge_lon)), indexing="ij")
        to_edge = GEOD.inv(x[i].ravel(), y[i].ravel(), edge_lon[j].ravel(), edge_lat[j].ravel())[2].reshape(i.shape)
        least = np.minimum(least, to_edge.min(axis=1))
    # Outline points lie a hundred metres or less apart, so a distance of 2500 m is overstated by half a metre.
    sure = (bare == "train") & (np.abs(least - 2500) > 2)
    np.testing.assert_array_equal(split[sure] == "", least[sure] <= 2500)
    assert (split[sure] == "").sum() > 10
    assert sure.sum() > 50


@pytest.mark.parametrize("lat", [0.0, 55.0, 70.0, 83.5, -79.9])
def test_every_train_sample_is_further_from_every_held_out_one_than_the_buffer(lat: float) -> None:
    lon, lats = around(179.9, lat, 4000, 60_000)
    rule = RULE | {"block_km": 10.0, "buffer_m": 1000.0}
    split = assign(lon, lats, **rule)
    assert set(split.tolist()) == {"train", "val", "test", ""}
    for other in ("val", "test"):
        distance = smallest_distance(lon, lats, split, other)
        assert distance is not None
        assert 1000 < distance < 4000
    closest = smallest_distance(lon, lats, assign(lon, lats, **rule | {"buffer_m": 0.0}))
    assert closest is not None
    assert closest < 1000


def test_a_buffer_wider_than_the_blocks_reaches_over_them() -> None:
    lon, lat = around(10, 60, 3000, 60_000)
    rule = RULE | {"block_km": 2.0, "val": 0.0, "test": 0.002, "buffer_m": 12_000.0}
    split = assign(lon, lat, **rule)
    assert {"train", ""} <= set(split.tolist())
    distance = smallest_distance(lon, lat, split)
    assert distance is None or distance > 12_000


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(-79, 83),
    st.integers(-4, 4),
    st.integers(-4, 4),
    st.sampled_from([5.0, 50.0, 300.0]),
)
def test_distance_to_a_block_agrees_with_its_densified_outline(
    lon: float, lat: float, dx: int, dy: int, size: float
) -> None:
    here = block_of(np.array([lon]), np.array([lat]), size)[0]
    column, row = here[0] + dx, here[1] + dy
    edge_lon, edge_lat = outline(column, row, size, 2000)
    if not np.isfinite(edge_lat).all() or abs(TO_GRID.transform(0, 84)[1]) < abs(row * size * 1000) + size * 1000:
        return
    if abs((column * 2 + 1) * size * 500) + size * 500 > WORLD_EDGE_M:
        return
    found = distance_to_block(np.array([lon]), np.array([lat]), np.array([column]), np.array([row]), size)[0]
    if (dx, dy) == (0, 0):
        assert found == pytest.approx(0, abs=1e-6)
        return
    truth = GEOD.inv(np.full_like(edge_lon, lon), np.full_like(edge_lon, lat), edge_lon, edge_lat)[2].min()
    assert found <= truth + 0.01
    assert truth - found < 4 * size  # metres: half a step of the outline, on the longest side


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([(179.99, -17.0), (30.0, 83.9), (0.0, -79.9), (10.0, 0.0)]), st.booleans()
)
def test_the_smallest_distance_is_that_of_all_pairs(seed: int, where: tuple[float, float], is_global: bool) -> None:
    lon, lat = on_sphere(60, seed) if is_global else around(*where, 60, 30_000, seed)
    split = np.random.default_rng(seed).choice(["train", "val", "test", ""], 60)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    i, j = (a.ravel() for a in np.meshgrid(train, test))
    truth = GEOD.inv(lon[i], lat[i], lon[j], lat[j])[2].min()
    assert smallest_distance(lon, lat, split) == pytest.approx(truth, abs=1e-6)


def test_there_is_no_distance_without_both_sides() -> None:
    assert smallest_distance([1.0, 2.0], [0.0, 0.0], ["train", "val"]) is None
    assert smallest_distance([1.0, 2.0], [0.0, 0.0], ["test", "val"]) is None


def test_without_shares_everything_trains() -> None:
    assert set(assign(*on_sphere(1000), **RULE | {"val": 0.0, "test": 0.0, "buffer_m": 1e5}).tolist()) == {"train"}


def test_a_hundred_thousand_samples_take_seconds() -> None:
    lon, lat = on_sphere(100_000)
    split = assign(lon, lat, **RULE | {"buffer_m": 1000.0})
    assert 0.01 < np.mean(split == "") < 0.03  # a kilometre along the edges that a quarter of the blocks have
    distance = smallest_distance(lon, lat, split)
    assert distance is not None
    assert distance > 1000


def test_the_split_file_counts_what_is_stored_and_says_the_distances(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c").open()
    splits = split_corpus(corpus)
    lines = json.loads((tmp_path / "c/splits.json").read_text())
    assert sorted(splits) == [slot for slot in range(21) if slot != 6]  # slot 6 was rejected
    lon = 8.0 + np.array(sorted(splits)) / 100
    rule = {"val": 0.1, "test": 0.1, "block_km": 50.0, "buffer_m": 1000.0, "seed": 0}
    assert list(splits.values()) == assign(lon, np.full(20, 47.0), **rule).tolist()
    assert lines["rule"] == {"blocks": "EPSG:6933", **rule}
    assert lines["samples"] == sum(lines["counts"].values()) == 20
    assert set(lines["counts"]) == {"train", "val", "test", "none"}
    assert set(lines) == {"rule", "samples", "counts", "smallest_train_test_m", "smallest_train_val_m"}


PINNED = ["val", "train", "val", "val", "train", "val", "test", "test"]
