"""Every asset of the catalogue exists offline with its bands, pixel types, grids, dates and properties.

Asked through the genuine client; what is expected comes from tests/catalogue_facts.yaml, facts of the public catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ee
import pytest

from mmbuild.sandbox.earth import SyntheticWorld
from tests.catalogue import (
    COLLECTIONS,
    DYNAMIC_WORLD,
    EMBEDDING,
    ERA5,
    ERA5_LAND,
    FACTS,
    HLS_LANDSAT,
    HLS_SENTINEL,
    L1C,
    L2A,
    MUNICH,
    NAIP,
    RADAR,
    RASTERS,
    RAW,
    SCORE,
    a_place,
    a_time,
    an_image,
    chip,
    images,
    point,
)
from tests.sandbox_worlds import connected

GEOGRAPHIC = {ERA5, ERA5_LAND, "NASA/NASADEM_HGT/001", "USGS/SRTMGL1_003", "COPERNICUS/DEM/GLO30",
              "COPERNICUS/DEM/GLO30_2024_1", "ESA/WorldCover/v100", "ESA/WorldCover/v200",
              "projects/sat-io/open-datasets/ASTER/GDEM", "users/nlang/ETH_GlobalCanopyHeight_2020_10m_v1",
              "users/nlang/ETH_GlobalCanopyHeightSD_2020_10m_v1"}  # fmt: skip
# Pixel types. Recorded from the live service: level-2A B* (0..65535) and SCL (0..255). The others are assumed: whole
# numbers as narrow as their catalogued range, quotients and decibels as double, modelled shares as float.
TYPES = {
    "uint16": ("int", 0, 65535), "uint8": ("int", 0, 255), "uint32": ("int", 0, 4294967295),
    "int16": ("int", -32768, 32767), "float": ("float", None, None), "double": ("double", None, None),
    "share": ("float", 0, 1), "axis": ("double", -1, 1),
}  # fmt: skip
_S2 = {"B": "uint16", "QA10": "uint16", "QA20": "uint32", "QA60": "uint16", "MSK": "uint8"}
_DEM = {"": "uint8", "DEM": "float", "HEM": "float"}
BAND_TYPES: dict[str, dict[str, str]] = {
    RAW: _S2, L1C: _S2, L2A: {**_S2, "AOT": "uint16", "WVP": "uint16", "SCL": "uint8", "TCI": "uint8"},
    RADAR: {"": "double"}, SCORE: {"": "share"}, DYNAMIC_WORLD: {"": "share", "label": "uint8"},
    "COPERNICUS/S2_CLOUD_PROBABILITY": {"": "uint8"},
    "ESA/WorldCover/v100": {"": "uint8"}, "ESA/WorldCover/v200": {"": "uint8"},
    "NASA/NASADEM_HGT/001": {"elevation": "int16", "num": "uint8", "swb": "uint8"},
    "USGS/SRTMGL1_003": {"": "int16"},
    "COPERNICUS/DEM/GLO30": _DEM, "COPERNICUS/DEM/GLO30_2024_1": _DEM,
    ERA5: {"": "float"}, ERA5_LAND: {"": "double"}, NAIP: {"": "uint8"},
    HLS_LANDSAT: {"": "float", "Fmask": "uint8"}, HLS_SENTINEL: {"": "float", "Fmask": "uint8"},
    EMBEDDING: {"": "axis"},
    "projects/sat-io/open-datasets/ASTER/GDEM": {"": "int16"},
    "users/nlang/ETH_GlobalCanopyHeight_2020_10m_v1": {"": "uint8"},
    "users/nlang/ETH_GlobalCanopyHeightSD_2020_10m_v1": {"": "uint8"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    with connected(SyntheticWorld()):
        yield


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", FACTS)
def test_the_asset_exists_with_its_type_and_says_that_it_is_synthetic(asset: str) -> None:
    told = ee.data.getAsset(asset)
    assert told["type"] == FACTS[asset]["type"].upper()
    about = SyntheticWorld().dataset(asset).info()
    assert about["synthetic"] is True
    assert about["title"].startswith("Synthetic stand-in for ")
    assert about["licence"] == "CC0-1.0"
    assert about["provider"] == "mmbuild synthetic Earth"
    assert about["original_provider"]
    assert about["original_licence"]


@pytest.mark.parametrize("asset", FACTS)
def test_deprecated_assets_name_their_successor(asset: str) -> None:
    about = SyntheticWorld().dataset(asset).info()
    assert about.get("deprecated", False) == FACTS[asset].get("deprecated", False)
    if "deprecated" in about:
        assert about["successor"] in FACTS
        assert not FACTS[about["successor"]].get("deprecated")


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    """What `getInfo` says of one image of each asset: of the ones with most bands among a few."""
    found: dict[str, dict[str, Any]] = {}
    for asset in RASTERS:
        if FACTS[asset]["type"] == "image":
            found[asset] = ee.Image(asset).getInfo()
        else:
            few = images(asset, a_place(asset), *a_time(asset)).limit(6).getInfo()["features"]
            found[asset] = max(few, key=lambda image: len(image["bands"]))
    return found


@pytest.mark.parametrize("asset", RASTERS)
def test_bands_are_those_of_the_catalogue_in_its_order(asset: str, told: dict[str, dict[str, Any]]) -> None:
    expected = ["VV", "VH", "angle"] if asset == RADAR else FACTS[asset]["bands"]
    assert [band["id"] for band in told[asset]["bands"]] == expected


@pytest.mark.parametrize("asset", RASTERS)
def test_bands_have_their_pixel_types(asset: str, told: dict[str, dict[str, Any]]) -> None:
    for band in told[asset]["bands"]:
        kinds = BAND_TYPES[asset]
        name = max((key for key in kinds if band["id"].startswith(key)), key=len)
        kind = band["data_type"]
        assert (kind["precision"], kind.get("min"), kind.get("max")) == TYPES[kinds[name]], band["id"]


@pytest.mark.parametrize("asset", RASTERS)
def test_bands_have_their_native_scale_and_a_fitting_projection(asset: str, told: dict[str, dict[str, Any]]) -> None:
    facts = FACTS[asset]
    for band in told[asset]["bands"]:
        step = abs(band["crs_transform"][0])
        metres = step * (111_319.49 if band["crs"] == "EPSG:4326" else 1.0)
        expected = facts.get("band_gsd", {}).get(band["id"], facts.get("gsd"))
        if asset.startswith("COPERNICUS/DEM"):  # thinned out in longitude towards the poles
            metres = abs(band["crs_transform"][4]) * 111_319.49
        # 30 m stands for one arc second, 30.92 m, and 10 m for a third of one or 1/12000 degree.
        assert metres == pytest.approx(expected, rel=0.08), band["id"]
        assert band["crs"] == "EPSG:4326" if asset in GEOGRAPHIC else band["crs"].startswith(("EPSG:326", "EPSG:269"))


@pytest.mark.parametrize("asset", RASTERS)
def test_values_lie_in_the_catalogued_ranges(asset: str) -> None:
    place = a_place(asset)
    image = an_image(asset)
    held = image.bandNames().getInfo()
    for band, (low, high) in FACTS[asset].get("ranges", {}).items():
        if band in held:
            values, valid = chip(image, band, place, 8)
            # The catalogue's ranges of physical quantities are estimates of the 98 % that is usual.
            slack = 0.15 * (high - low) if asset == ERA5 else 0.0
            assert (values[valid] >= low - slack).all(), band
            assert (values[valid] <= high + slack).all(), band


@pytest.mark.parametrize("asset", COLLECTIONS)
def test_no_image_is_older_or_younger_than_the_collection(asset: str) -> None:
    facts, place = FACTS[asset], a_place(asset)
    first, last = str(facts["first"]), str(facts.get("last", ""))
    assert images(asset, place, "1900-01-01", first).size().getInfo() == 0
    assert images(asset, place, *a_time(asset)).size().getInfo() > 0
    if last:
        day_after = ee.Date(last).advance(1, "day")
        found = ee.ImageCollection(asset).filterBounds(point(place)).filterDate(day_after, "2100-01-01")
        assert found.size().getInfo() == 0


@pytest.mark.parametrize(
    ("asset", "place", "start", "end"),
    [
        (L1C, MUNICH, "2015-06-27", "2015-08-15"),
        (RAW, MUNICH, "2015-06-27", "2015-08-15"),
        (SCORE, MUNICH, "2015-06-27", "2015-08-15"),
        (L2A, MUNICH, "2017-03-28", "2017-04-28"),
        (RADAR, MUNICH, "2014-10-03", "2014-11-15"),
        (ERA5, MUNICH, "1979-01-01", "1979-01-02"),
        (ERA5, MUNICH, "2020-06-01", "2020-06-02"),
        (ERA5_LAND, MUNICH, "1950-02-01", "1950-02-02"),
        (HLS_LANDSAT, MUNICH, "2013-04-11", "2013-05-15"),
        (HLS_SENTINEL, MUNICH, "2015-11-28", "2016-01-15"),
        (EMBEDDING, MUNICH, "2017-01-01", "2017-01-02"),
    ],
)
def test_the_collection_begins_and_ends_with_images(
    asset: str, place: tuple[float, float], start: str, end: str
) -> None:
    assert images(asset, place, start, end).size().getInfo() > 0


@pytest.mark.parametrize("asset", [name for name in RASTERS if "properties" in FACTS[name]])
def test_images_have_the_catalogued_properties(asset: str, told: dict[str, dict[str, Any]]) -> None:
    assert set(FACTS[asset]["properties"]) <= set(told[asset]["properties"])


def test_ecoregions_have_the_catalogued_columns() -> None:
    row = ee.FeatureCollection("RESOLVE/ECOREGIONS/2017").first().getInfo()
    assert set(FACTS["RESOLVE/ECOREGIONS/2017"]["properties"]) == set(row["properties"])
