"""Maps, elevation, climate and embeddings offline: one or many, where they end, and that their bands agree."""

from __future__ import annotations

from collections.abc import Iterator

import ee
import numpy as np
import pytest
from numpy.typing import NDArray

from mmbuild.sandbox.earth import Earth, SyntheticWorld
from tests.catalogue import (
    AMAZON,
    ATLANTIC,
    EMBEDDING,
    ERA5,
    ERA5_LAND,
    FACTS,
    L2A,
    MUNICH,
    RASTERS,
    an_image,
    chip,
    images,
    indexes,
    point,
)
from tests.sandbox_worlds import connected, grid, pixels


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    with connected(SyntheticWorld()):
        yield


# -- maps and elevation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", ["ESA/WorldCover/v100", "ESA/WorldCover/v200"])
def test_land_cover_is_the_first_of_a_collection_of_one(asset: str) -> None:
    collection = ee.ImageCollection(asset)
    assert collection.size().getInfo() == 1
    year = "2020" if asset.endswith("v100") else "2021"
    assert collection.first().id().getInfo() == year
    assert collection.first().bandNames().getInfo() == ["Map"]


@pytest.mark.parametrize("asset", [name for name in RASTERS if FACTS[name]["type"] == "image"])
def test_lone_images_are_no_collections(asset: str) -> None:
    assert ee.Image(asset).getInfo()["id"] == asset
    with pytest.raises(ee.EEException, match=asset.rsplit("/", 1)[-1]):
        ee.ImageCollection(asset).size().getInfo()


@pytest.mark.parametrize(
    ("asset", "north", "south"),
    [("NASA/NASADEM_HGT/001", 60, -56), ("USGS/SRTMGL1_003", 60, -56),
     ("projects/sat-io/open-datasets/ASTER/GDEM", 83, -83)],
)  # fmt: skip
def test_elevation_ends_where_the_mission_did(asset: str, north: int, south: int) -> None:
    band = FACTS[asset]["bands"][0]
    told = ee.Image(asset).select(band).getInfo()["bands"][0]
    top = told["crs_transform"][5]
    assert top == pytest.approx(north, abs=0.01)
    assert top + told["crs_transform"][4] * told["dimensions"][1] == pytest.approx(south, abs=0.01)


def test_two_countries_are_missing_in_the_old_copernicus_model_only() -> None:
    baku = (49.5, 40.4)
    assert ee.ImageCollection("COPERNICUS/DEM/GLO30").filterBounds(point(baku)).size().getInfo() == 0
    assert ee.ImageCollection("COPERNICUS/DEM/GLO30_2024_1").filterBounds(point(baku)).size().getInfo() > 0


def test_elevation_quality_bands_agree_with_the_water() -> None:
    """Handbook: EDM 8 ocean, 9 lake, 10 river; NASADEM swb 255 and num 0 on water."""
    place = (-70.4204, -49.6325)
    image = ee.ImageCollection("COPERNICUS/DEM/GLO30_2024_1").filterBounds(point(place)).first()
    water, edits, fill = (chip(image, band, place, 200)[0].astype(int) for band in ("WBM", "EDM", "FLM"))
    assert {0} < set(np.unique(water))
    for wet, code in ((1, 8), (2, 9), (3, 10)):
        assert (edits[water == wet] == code).all()
    assert set(np.unique(edits[water == 0])) <= {1, 2}
    assert set(np.unique(fill)) <= {1, 2, 9}
    body, count = (chip(ee.Image("NASA/NASADEM_HGT/001"), band, place, 200)[0] for band in ("swb", "num"))
    assert set(np.unique(body)) == {0, 255}
    assert np.array_equal(count == 0, body == 255)


# -- climate -------------------------------------------------------------------------------------------------------


def month(asset: str, index: str, place: tuple[float, float]) -> dict[str, float | None]:
    image = ee.Image(f"{asset}/{index}")
    return image.reduceRegion(ee.Reducer.first(), point(place), 11_132, bestEffort=True).getInfo()


def test_era5_monthly_ends_in_june_2020_and_era5_land_goes_on() -> None:
    assert indexes(ee.ImageCollection(ERA5).filterDate("2020-05-01", "2100-01-01")) == ["202005", "202006"]
    assert indexes(ee.ImageCollection(ERA5_LAND).filterDate("2020-07-01", "2020-09-01")) == ["202007", "202008"]


def test_era5_land_is_masked_over_the_sea_and_era5_is_not() -> None:
    assert set(month(ERA5_LAND, "202001", ATLANTIC).values()) == {None}
    assert None not in month(ERA5, "202001", ATLANTIC).values()
    assert None not in month(ERA5_LAND, "202001", MUNICH).values()


@pytest.mark.parametrize("index", ["202001", "202007"])
@pytest.mark.parametrize("place", [MUNICH, AMAZON, (20.0, 23.0), (100.0, 65.0)])
def test_every_month_lies_between_its_extremes_and_its_balances_close(index: str, place: tuple[float, float]) -> None:
    value = month(ERA5_LAND, index, place)
    names = [name for name in value if not name.endswith(("_min", "_max"))]
    assert len(names) == 50
    hours = 31 * 24
    for name in names:
        low, high = (value[f"{name.removesuffix('_sum')}_{end}"] for end in ("min", "max"))
        middle = value[name] / hours if name.endswith("_sum") else value[name]
        assert low <= middle + 1e-9, name
        assert middle <= high + 1e-9, name
    parts = [name for name in names if name.startswith("evaporation_from") or name == "snow_evaporation_sum"]
    assert sum(value[name] for name in parts) == pytest.approx(value["total_evaporation_sum"], rel=1e-6)
    runoff = value["surface_runoff_sum"] + value["sub_surface_runoff_sum"]
    assert runoff == pytest.approx(value["runoff_sum"], rel=1e-6)
    # Energy: what the sun and sky bring, evaporation and warm air take away.
    brought = value["surface_net_solar_radiation_sum"] + value["surface_net_thermal_radiation_sum"]
    taken = value["surface_latent_heat_flux_sum"] + value["surface_sensible_heat_flux_sum"]
    assert brought + taken == pytest.approx(0.0, abs=1e-3 * abs(brought) + 1.0)
    assert value["surface_latent_heat_flux_sum"] == pytest.approx(2.45e9 * value["total_evaporation_sum"], rel=1e-6)
    assert value["dewpoint_temperature_2m"] <= value["temperature_2m"]
    assert 1000 * value["snow_depth_water_equivalent"] == pytest.approx(value["snow_depth"] * value["snow_density"])


def test_pressure_falls_with_height_as_in_the_standard_atmosphere() -> None:
    """International standard atmosphere: 54048 Pa at 5 km, 41105 Pa at 7 km, at 15 degrees Celsius on the sea."""
    place = (90.5, 28.75)
    high, low = (month(ERA5, "202001", at) for at in (place, ATLANTIC))
    assert low["surface_pressure"] == pytest.approx(low["mean_sea_level_pressure"])
    height = float(Earth().elevation(*_cell_centre(place, 0.25)))
    assert height > 4500
    standard = 101_325 * (1 - 2.25577e-5 * height) ** 5.25588
    assert high["surface_pressure"] == pytest.approx(standard, rel=0.05)
    assert high["mean_2m_air_temperature"] < low["mean_2m_air_temperature"]


def _cell_centre(place: tuple[float, float], step: float) -> tuple[float, float]:
    """ERA5's grid points lie on whole quarters of a degree."""
    lon, lat = (round(value / step) * step for value in place)
    return lon, lat


# -- embeddings ----------------------------------------------------------------------------------------------------


# 480 m of farms and houses west of Munich.
SUBURB = grid(680_000.0, 5_331_000.0, size=48, crs="EPSG:32632")


@pytest.fixture(scope="module")
def vectors() -> dict[int, NDArray[np.float64]]:
    """Year to (64, y, x) at Munich."""
    found = {}
    for year in (2019, 2020):
        found_tiles = images(EMBEDDING, MUNICH, f"{year}-01-01", f"{year}-01-02")
        raw = pixels(found_tiles.filter(ee.Filter.eq("UTM_ZONE", "32N")).first(), SUBURB)
        found[year] = np.stack([raw[f"A{axis:02d}"] for axis in range(64)])
    return found


def test_embeddings_have_unit_length(vectors: dict[int, NDArray[np.float64]]) -> None:
    for field in vectors.values():
        assert (field**2).sum(axis=0) == pytest.approx(1.0, abs=1e-9)


def test_embeddings_of_two_years_differ_a_little(vectors: dict[int, NDArray[np.float64]]) -> None:
    alike = (vectors[2019] * vectors[2020]).sum(axis=0)
    assert 0.9 < alike.mean() < 0.9999


def test_embeddings_know_land_cover(vectors: dict[int, NDArray[np.float64]]) -> None:
    """Nearest class mean, fitted on the western half: better than always naming the most frequent class."""
    cover = pixels(ee.ImageCollection("ESA/WorldCover/v100").first(), SUBURB)["Map"]
    field = vectors[2020]
    west, east = np.s_[:, :, :24], np.s_[:, :, 24:]
    codes = np.unique(cover[:, :24])
    means = np.stack([field[west][:, cover[:, :24] == code].mean(axis=1) for code in codes])
    guess = codes[np.argmax(np.einsum("ca,ayx->cyx", means, field[east]), axis=0)]
    truth = cover[:, 24:]
    usual = max((truth == code).mean() for code in np.unique(truth))
    assert len(codes) >= 2
    assert (guess == truth).mean() > max(usual + 0.05, 0.8)


def test_an_embedding_is_a_year_of_a_tile_without_a_footprint_property() -> None:
    found = ee.ImageCollection(EMBEDDING).filterBounds(point(MUNICH)).filter(ee.Filter.eq("UTM_ZONE", "32N")).getInfo()
    years = [image["properties"]["system:time_start"] for image in found["features"]]
    assert [int(np.datetime64(ms, "ms").astype("datetime64[Y]").astype(int)) + 1970 for ms in years] == list(
        range(2017, 2026)
    )
    image = found["features"][0]
    assert image["bands"][0]["dimensions"] == [16384, 16384]
    assert image["properties"]["system:time_end"] == int(np.datetime64("2018-01-01", "ms").astype(int))
    assert "system:footprint" not in image["properties"]
    assert "system:footprint" in an_image(L2A).getInfo()["properties"]
    assert ee.ImageCollection(EMBEDDING).filterBounds(point(ATLANTIC)).size().getInfo() == 0
