"""The synthetic ecoregions: a gapless map of the biomes, with every biome and some ecoregions in several rows."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from mmbuild.sandbox.earth import Earth, SyntheticWorld

REGIONS = "RESOLVE/ECOREGIONS/2017"
WORLD = SyntheticWorld()
EARTH = Earth(WORLD)


def test_ecoregions_have_all_biomes_and_some_have_several_rows() -> None:
    rows = WORLD.dataset(REGIONS).features()
    assert {r[1]["BIOME_NUM"] for r in rows} == set(map(float, range(1, 15)))
    numbers = [r[1]["ECO_ID"] for r in rows]
    assert 150 <= len(set(numbers)) <= 400
    assert len(numbers) > len(set(numbers)) + 20
    assert numbers == sorted(numbers)
    assert min(numbers) > 847, "an id of the real table would name a real ecoregion"
    assert all(r[1]["ECO_NAME"].startswith("Synthetic ") for r in rows)
    by_number: dict[float, set[tuple[str, str]]] = {}
    for _, properties in rows:
        by_number.setdefault(properties["ECO_ID"], set()).add((properties["ECO_NAME"], properties["BIOME_NAME"]))
    assert all(len(v) == 1 for v in by_number.values())


def test_ecoregion_polygons_are_valid_and_do_not_overlap() -> None:
    shapes = [r[0] for r in WORLD.dataset(REGIONS).features()]
    assert all(s.is_valid and s.area > 0 for s in shapes)
    assert sum(s.area for s in shapes) == pytest.approx(shapely.union_all(shapes).area, rel=1e-9)


def test_most_ground_of_an_ecoregion_has_its_biome_and_is_land() -> None:
    rng = np.random.default_rng(1)
    hits, land = [], []
    for shape, properties in WORLD.dataset(REGIONS).features()[::7]:
        west, south, east, north = shape.bounds
        x, y = rng.uniform(west, east, 60), rng.uniform(south, north, 60)
        inside = shapely.contains_xy(shape, x, y)
        if properties["BIOME_NUM"] not in (14.0, 9.0) and inside.any():
            hits.append((EARTH.biome(x, y) == properties["BIOME_NUM"])[inside].mean())
            land.append((EARTH.elevation(x, y) > 0)[inside].mean())
    assert np.mean(hits) > 0.7
    assert np.mean(land) > 0.8


def test_nearly_all_land_lies_in_an_ecoregion() -> None:
    rng = np.random.default_rng(4)
    lon, lat = rng.uniform(-180, 180, 6000), np.degrees(np.arcsin(rng.uniform(-0.85, 0.97, 6000)))
    land = EARTH.elevation(lon, lat) > 0
    whole = shapely.union_all([r[0] for r in WORLD.dataset(REGIONS).features()])
    assert shapely.contains_xy(whole, lon[land], lat[land]).mean() > 0.93
