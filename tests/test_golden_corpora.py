"""Golden numbers of published corpora: what their own code drew, and what their own files say."""

from __future__ import annotations

import csv
from itertools import chain
from pathlib import Path

import pytest

from mmbuild import published
from mmbuild.grid import tile_grid

SHARED = Path(__file__).parents[2] / "shared"
TABLE = SHARED / "facts/data/mmearth_ecoregions.csv"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason="../shared/facts is not here: MMEarth's table of areas")


def table() -> tuple[list[list[str]], list[list[float]]]:
    """Names and areas (km2) of the ecoregions, biome by biome in the order of the published files."""
    names: list[list[str]] = [[] for _ in range(14)]
    areas: list[list[float]] = [[] for _ in range(14)]
    with TABLE.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["biome_label"]:
                names[int(row["biome_label"])].append(row["eco_name"])
                areas[int(row["biome_label"])].append(float(row["area_km2"]))
    return names, areas


@needs_table
@pytest.mark.parametrize(
    ("samples", "total", "without"),
    [(1_500_000, 1_499_575, 25), (1_200_000, 1_199_577, 27), (100_000, 99_575, 74), (10_000, 9_611, 215),
     (1_000, 702, 576)],
)  # fmt: skip
def test_rounding_down_loses_places_and_ecoregions(samples: int, total: int, without: int) -> None:
    counts = [n for biome in published.floor_allocation(samples, table()[1]) for n in biome]
    assert (sum(counts), counts.count(0), len(counts)) == (total, without, 846)


@needs_table
def test_the_allocation_of_one_and_a_half_million_tiles_is_the_published_one() -> None:
    names, areas = table()
    counts = published.floor_allocation(1_500_000, areas)
    found = dict(zip(chain(*names), chain(*counts), strict=True))
    assert {name: found[name] for name in GOLDEN} == GOLDEN
    assert max(found.values()) == 34_012
    assert sum(n > 10_000 for n in found.values()) == 25


GOLDEN = {
    "Adelie Land tundra": 2,
    "Ahklun and Kilbuck Upland Tundra": 635,
    "Alaska-St. Elias Range tundra": 2064,
    "Amazon-Orinoco-Southern Caribbean mangroves": 13_242,
    "Bahamian-Antillean mangroves": 7_080,
    "Central American pine-oak forests": 17_464,
    "Sierra Madre Occidental pine-oak forests": 34_012,
    "East Siberian taiga": 27_281,
    "Caatinga": 20_289,
}


@pytest.mark.parametrize(
    ("index", "name", "points", "batch", "seed"),
    [
        (0, "Adelie Land tundra", 2, 0, 36_139),
        (1, "Ahklun and Kilbuck Upland Tundra", 635, 0, 35_178),
        (0, "Amazon-Orinoco-Southern Caribbean mangroves", 5000, 0, 79_650),
        (0, "Amazon-Orinoco-Southern Caribbean mangroves", 5000, 1, 8_880),
        (0, "Amazon-Orinoco-Southern Caribbean mangroves", 3242, 2, 98_435),
    ],
)
def test_point_seeds_are_the_published_ones(index: int, name: str, points: int, batch: int, seed: int) -> None:
    assert published.point_seed(index, name, points, batch) == seed


def test_points_are_drawn_in_batches_of_five_thousand() -> None:
    assert published.batches(13_242) == [5000, 5000, 3242]
    assert published.batches(10_000) == [5000, 5000]
    assert published.batches(0) == []


@pytest.mark.parametrize(
    ("lat", "lon", "seed", "year"),
    [
        # Published tiles of 2018-07-16 and 2017-04-20, both L1C.
        (-14.499441524746077, -56.98355999998649, 42_236, 2018),
        (38.79440357691547, -121.77260250000097, 73_635, 2017),
    ],
)
def test_the_draws_of_two_published_tiles_come_out_again(lat: float, lon: float, seed: int, year: int) -> None:
    draws = published.tile_draws(lon, lat)
    assert (draws.seed, draws.year, draws.is_l1c) == (seed, year, True)


def test_the_image_is_the_third_draw_of_a_tile() -> None:
    one, other = (published.tile_draws(-56.98355999998649, -14.499441524746077) for _ in range(2))
    assert [one.image(7) for _ in range(5)] == [other.image(7) for _ in range(5)]
    assert {published.tile_draws(lon / 7, 1.0).image(3) for lon in range(50)} == {0, 1, 2}


def test_degrees_and_cells_of_ssl4eo_are_the_published_ones() -> None:
    assert published.km_to_degrees(50) == pytest.approx(0.44966, abs=5e-6)
    assert published.grid_key(12.34, 56.78) == (192, 146)
    assert published.grid_key(-0.5, -0.5) == (179, 89)
    assert published.nearest_km(2.64) == pytest.approx(1.98)


@pytest.mark.parametrize(("zoom", "metres"), [(15, 4.7773), (17, 1.1943)])
def test_pixels_of_web_mercator_tiles_have_the_published_size(zoom: int, metres: float) -> None:
    assert tile_grid(0, 0, zoom).affine.a == pytest.approx(metres, abs=5e-5)
