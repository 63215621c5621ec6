"""Golden numbers of published corpora: what their own code drew, and what their own files say."""

from __future__ import annotations

import csv
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmbuild import published
from mmbuild.foreign.pictures import load_triple
from mmbuild.foreign.recode import load_layout, recoders
from mmbuild.grid import tile_grid
from mmbuild.registry import load_modalities

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


# Digital numbers of radar and the bytes that the published code makes of them: x / 1000 within 0..1, times 256, uint8.
RADAR_BYTES = {1: 0, 10: 2, 502: 128, 999: 255, 1000: 0, 1001: 0, 10_100: 0, 65_535: 0}


def test_faithful_radar_bytes_turn_over_from_256_to_0_as_the_published_ones_do() -> None:
    numbers = np.array(list(RADAR_BYTES), np.float64)
    with np.errstate(invalid="ignore"):
        theirs = (np.clip(numbers / 1000, 0, 1) * 256).astype(np.int64).astype(np.uint8)
    assert theirs.tolist() == list(RADAR_BYTES.values())
    radar = load_modalities()["sentinel1"]
    chip = np.full((len(radar.bands), 1, len(numbers)), 20 * np.log10(numbers / 1000), np.float32)
    picture = load_triple().archives["sar"][0].one_of[1]
    ours = picture.paint(chip, radar, faithful=True)
    assert (picture.modality, picture.bands) == ("sentinel1", ("-", "VV", "VH"))
    assert ours[0, :, 1].tolist() == ours[0, :, 2].tolist() == theirs.tolist()
    assert not ours[..., 0].any()
    assert (ours[..., 3] == 255).all()
    fixed = picture.paint(chip, radar, faithful=False)
    assert fixed[0, :, 1].tolist() == [0, 0, 204, 255, 255, 255, 255, 255]


def test_canopy_heights_are_the_signed_bytes_that_h5py_makes_of_them(tmp_path: Path) -> None:
    """The published code hands h5py floats for an int8 dataset: all above 127 become 127, and so does its no data."""
    heights = np.array([1, 60, 126, 127, 128, 200, 254], np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        theirs = file.create_dataset("canopy", (8,), "int8")
        theirs[:] = np.append(heights, 255).astype(np.float32)
        published = theirs[:].tolist()
    assert published == [1, 60, 126, 127, 127, 127, 127, 127]
    recoder = recoders(load_layout("mmearth").datasets, load_modalities())["canopy_height_eth"]
    chip = np.stack([np.append(heights, 255)[None]] * 2)
    ours = recoder.encode({"canopy_height": chip}, (1, 8), faithful=True)
    assert ours.dtype == np.int8
    assert ours[:, 0, :7].tolist() == [published[:7]] * 2
    assert ours[:, 0, 7].tolist() == [0, 0]  # masked in Earth Engine, which writes 0
    none = recoder.encode({"canopy_height": None}, (1, 8), faithful=True)
    assert none.tolist() == [[[published[7]] * 8]] * 2  # a tile without the product: the 255 that h5py clips
    fixed = recoder.encode({"canopy_height": chip}, (1, 8), faithful=False)
    assert fixed[:, 0].tolist() == [[1, 60, 126, 126, 126, 126, 126, 127]] * 2


def test_whole_numbers_of_the_published_file_are_those_that_h5py_makes_of_floats(tmp_path: Path) -> None:
    """Slope and elevation lose what is behind the point, towards zero."""
    slopes = np.array([0.0, 0.9, 12.99, 89.5], np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        theirs = file.create_dataset("aster", (4,), "int16")
        theirs[:] = slopes
        published = theirs[:].tolist()
    known = load_modalities()
    recoder = recoders(load_layout("mmearth").datasets, known)["aster"]
    dem = known["aster_gdem"]
    chip = np.full((len(dem.bands), 1, 4), dem.fill)
    chip[dem.band_names.index("elevation")] = 100
    chip[dem.band_names.index("slope")] = np.round(slopes / dem.bands[1].scale)
    assert recoder.encode({"aster_gdem": chip}, (1, 4), faithful=True)[1, 0].tolist() == published == [0, 0, 12, 89]
