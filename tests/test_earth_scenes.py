"""The scenes of the synthetic Earth: real tile names and lattices, real revisit, honest footprints, findable again."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Point, box

from mmbuild.sandbox.assets import ImageInfo
from mmbuild.sandbox.earth import Earth, SyntheticWorld
from mmbuild.sandbox.mgrs import tile_named, tiles_at, tiles_in, transformer, zone_of
from mmbuild.sandbox.orbits import sun_position
from mmbuild.sandbox.radar_scenes import radar_scenes_in

L1C, L2A = "COPERNICUS/S2_HARMONIZED", "COPERNICUS/S2_SR_HARMONIZED"
RADAR, DYNAMIC_WORLD = "COPERNICUS/S1_GRD", "GOOGLE/DYNAMICWORLD/V1"

WORLD = SyntheticWorld()
EARTH = Earth(WORLD)


def ms(date: str) -> int:
    return int(np.datetime64(date, "ms").astype(np.int64))


def scenes(asset: str, lon: float, lat: float, start: str, end: str) -> list[ImageInfo]:
    return list(WORLD.dataset(asset).images(bounds=(lon, lat, lon, lat), start_ms=ms(start), end_ms=ms(end)))


# --- tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epsg", "left", "top"),
    [
        ("31TCJ", 32631, 300000, 4900020),
        ("33UUP", 32633, 300000, 5400000),
        ("32UMD", 32632, 399960, 5900040),
        ("43RCP", 32643, 300000, 3400020),
        # Recorded from Earth Engine: [10, 0, 699960, 0, -10, 9800020] in EPSG:32718.
        ("18MYC", 32718, 699960, 9800020),
    ],
)
def test_tiles_have_their_real_names_zones_and_origins(name: str, epsg: int, left: int, top: int) -> None:
    tile = tile_named(name)
    assert (tile.name, tile.epsg, tile.left, tile.top) == (name, epsg, left, top)


@settings(max_examples=150, deadline=None)
@given(lon=st.floats(-180, 180), lat=st.floats(-79.5, 83.5))
def test_every_place_lies_on_a_tile_of_its_own_zone_on_the_sentinel2_lattice(lon: float, lat: float) -> None:
    found = tiles_at(lon, lat)
    assert zone_of(lon, lat) in {t.zone for t in found}
    assert len({t.name for t in found}) == len(found)
    for tile in found:
        assert tile.left % 60 == 0
        assert tile.top % 60 == (40 if tile.south else 0)
        assert tile_named(tile.name) == tile
        x, y = transformer(4326, tile.epsg).transform(lon, lat)
        assert tile.contains(x, y)


@pytest.mark.parametrize(
    ("lon", "lat", "zones"),
    [(12.0, 47.5, {32, 33}), (3.0, 60.0, {31, 32}), (179.999, -16.6, {60, 1}), (9.0, 78.0, {31, 33})],
)
def test_a_place_near_a_seam_lies_on_tiles_of_both_zones(lon: float, lat: float, zones: set[int]) -> None:
    found = {t.zone for t in tiles_in((lon - 0.3, lat - 0.3, lon + 0.3 - 360 * (lon > 179), lat + 0.3))}
    assert found == zones


def test_unknown_tiles_are_key_errors() -> None:
    for name in ("32VZZ", "00ABC", "61UAA", "junk"):
        with pytest.raises(KeyError):
            tile_named(name)


# --- optical ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lon", "lat"),
    [(11.35, 48.1), (-60.1, -3.2), (20.5, 69.8), (179.99, -16.6), (-179.9, 66.9), (23.5, 78.5), (12.0, 47.5)],
)
def test_scenes_are_found_again_by_their_index(lon: float, lat: float) -> None:
    for asset in (L1C, L2A, RADAR, DYNAMIC_WORLD):
        found = scenes(asset, lon, lat, "2019-06-01", "2019-07-01")
        assert len(found) >= 1, asset
        assert [i.index for i in found] == sorted({i.index for i in found})
        fresh = SyntheticWorld().dataset(asset)
        for image in (found[0], found[-1]):
            assert fresh.image(image.index) == image
            assert image.id == f"{asset}/{image.index}"


def test_indices_look_like_the_real_ones() -> None:
    optical, radar = (scenes(a, 11.35, 48.1, "2019-06-01", "2019-07-01")[0] for a in (L2A, RADAR))
    assert re.fullmatch(r"\d{8}T\d{6}_\d{8}T\d{6}_T\d{2}[C-X][A-Z]{2}", optical.index)
    assert optical.index.endswith(optical.properties["MGRS_TILE"])
    assert re.fullmatch(
        r"S1[AB]_IW_GRDH_1S(DV|DH|SV)_\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}", radar.index
    )


@pytest.mark.parametrize("index", ["20190605T104031_20190605T104025_T32VNH", "nonsense", "", "a_b_c"])
def test_an_unknown_index_is_a_key_error(index: str) -> None:
    for asset in (L1C, RADAR, DYNAMIC_WORLD, "ECMWF/ERA5_LAND/MONTHLY_AGGR", "COPERNICUS/DEM/GLO30"):
        with pytest.raises(KeyError):
            WORLD.dataset(asset).image(index)


def test_the_time_window_is_half_open() -> None:
    dataset = WORLD.dataset(L1C)
    at = (11.35, 48.1, 11.35, 48.1)
    image = scenes(L1C, 11.35, 48.1, "2019-06-01", "2019-07-01")[3]
    start = image.start_ms
    assert image in dataset.images(bounds=at, start_ms=start, end_ms=start + 1)
    assert image not in dataset.images(bounds=at, start_ms=start - 1000, end_ms=start)


def test_the_archive_begins_when_the_real_one_did() -> None:
    assert min(i.start_ms for i in scenes(L1C, 11.35, 48.1, "2015-01-01", "2016-06-01")) >= ms("2015-06-27")
    europe = scenes(L2A, 11.35, 48.1, "2016-01-01", "2018-06-01")
    assert ms("2017-03-28") <= min(i.start_ms for i in europe) < ms("2017-04-28")
    assert scenes(L2A, -60.1, -3.2, "2016-01-01", "2018-12-01") == []
    assert scenes(L2A, -60.1, -3.2, "2019-01-01", "2019-02-01")


def test_the_revisit_is_five_days_at_the_equator_and_shorter_towards_the_pole() -> None:
    def gap_days(lon: float, lat: float) -> float:
        times = sorted(
            {i.start_ms // 3_600_000 for i in scenes(L1C, lon, lat, "2020-05-01", "2020-08-01") if _sees(i, lon, lat)}
        )
        return float(np.mean(np.diff(times))) / 24

    assert 3.5 < gap_days(-59.9, -3.2) < 6.5
    assert 1.0 < gap_days(20.5, 69.8) < 2.8


def _sees(image: ImageInfo, lon: float, lat: float) -> bool:
    return bool(image.footprint.contains(Point(lon, lat)))


def test_one_scene_in_a_few_was_never_delivered() -> None:
    """One orbit of one tile would come every five days; some dates are missing."""
    found = [i for i in scenes(L1C, 11.35, 48.1, "2018-01-01", "2021-01-01") if i.properties["MGRS_TILE"] == "32UPU"]
    orbit = [
        i.start_ms for i in found if i.properties["SENSING_ORBIT_NUMBER"] == found[0].properties["SENSING_ORBIT_NUMBER"]
    ]
    gaps = {round((b - a) / 86_400_000) for a, b in pairwise(orbit)}
    assert 5 in gaps
    assert max(gaps) in (10, 15, 20)
    assert all(gap % 5 == 0 for gap in gaps)


def test_open_ocean_and_polar_night_have_no_scenes() -> None:
    assert scenes(L1C, -30.0, 25.0, "2020-01-01", "2020-03-01") == []
    assert scenes(L1C, 23.5, 78.5, "2020-12-01", "2021-01-15") == []


def test_a_search_without_a_region_or_over_a_continent_says_what_to_do() -> None:
    for asset in (L1C, RADAR):
        with pytest.raises(ValueError, match="region"):
            WORLD.dataset(asset).images()
        with pytest.raises(ValueError, match="region"):
            WORLD.dataset(asset).images(bounds=(-170, -50, 170, 70), start_ms=ms("2020-01-01"), end_ms=ms("2020-02-01"))


def test_a_search_over_a_region_finds_what_searches_over_its_places_find() -> None:
    for asset in (L2A, RADAR):
        region = {
            i.index
            for i in WORLD.dataset(asset).images(
                bounds=(11.0, 47.8, 11.9, 48.3), start_ms=ms("2020-06-01"), end_ms=ms("2020-06-08")
            )
        }
        for lon, lat in ((11.0, 47.8), (11.9, 48.3), (11.4, 48.0)):
            assert {i.index for i in scenes(asset, lon, lat, "2020-06-01", "2020-06-08")} <= region


@pytest.mark.parametrize("asset", [L2A, RADAR])
def test_footprints_outline_exactly_the_valid_pixels(asset: str) -> None:
    found = WORLD.dataset(asset).images(
        bounds=(11.35, 48.1, 11.35, 48.1), start_ms=ms("2020-06-01"), end_ms=ms("2020-06-20")
    )
    tile = {L2A: lambda i: i.footprint.area < 1.2, RADAR: lambda i: True}[asset]
    partial = next(i for i in found if tile(i))
    band = partial.bands[0]
    rng = np.random.default_rng(0)
    x = band.transform[2] + band.transform[0] * rng.uniform(0, band.width, 3000)
    y = band.transform[5] + band.transform[4] * rng.uniform(0, band.height, 3000)
    lon, lat = transformer(band.crs, 4326).transform(x, y)
    _, mask = EARTH.product(asset, partial.index, band.id, lon, lat)
    inside = shapely.contains_xy(partial.footprint, lon, lat)
    assert 0.05 < mask.mean() < 0.98
    assert (mask != inside).mean() < 0.003


def test_bands_have_the_native_lattices_of_the_mission() -> None:
    image = scenes(L1C, 11.35, 48.1, "2020-06-01", "2020-06-20")[0]
    sizes = {b.id: (b.transform[0], b.width, b.height) for b in image.bands}
    assert sizes["B2"] == (10.0, 10980, 10980)
    assert sizes["B8A"] == (20.0, 5490, 5490)
    assert sizes["B10"] == (60.0, 1830, 1830)
    assert len({b.transform[2::3] for b in image.bands}) == 1
    assert "B10" not in {b.id for b in scenes(L2A, 11.35, 48.1, "2020-06-01", "2020-06-20")[0].bands}


def test_probability_maps_are_missing_in_some_products() -> None:
    found = scenes(L2A, 11.35, 48.1, "2020-01-01", "2021-01-01")
    share = np.mean(["MSK_CLDPRB" in {b.id for b in i.bands} for i in found])
    assert 0.7 < share < 0.97


def test_cloud_percentages_spread_over_the_whole_range() -> None:
    cloud = [i.properties["CLOUDY_PIXEL_PERCENTAGE"] for i in scenes(L1C, 11.35, 48.1, "2020-01-01", "2021-01-01")]
    assert min(cloud) < 1
    assert max(cloud) > 95
    assert 0.1 < np.mean(np.array(cloud) < 10) < 0.6
    desert = [i.properties["CLOUDY_PIXEL_PERCENTAGE"] for i in scenes(L1C, 20.0, 23.0, "2020-01-01", "2021-01-01")]
    forest = [i.properties["CLOUDY_PIXEL_PERCENTAGE"] for i in scenes(L1C, -60.1, -3.2, "2020-01-01", "2021-01-01")]
    assert np.mean(desert) < np.mean(cloud) < np.mean(forest) + 15
    assert np.mean(desert) < 0.5 * np.mean(forest)


def test_threads_that_empty_what_is_remembered_do_not_lose_each_others_cloud_percentages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that has measured very many scenes begins again, while other requests are being answered."""
    monkeypatch.setattr("mmbuild.sandbox.scenes.cloud_shares.most", -1)
    places = [(11.35 + 1.5 * step, 48.1) for step in range(12)]

    def percentages(place: tuple[float, float]) -> list[float]:
        return [i.properties["CLOUDY_PIXEL_PERCENTAGE"] for i in scenes(L1C, *place, "2020-01-01", "2020-03-01")]

    alone = [percentages(place) for place in places]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(percentages, places)) == alone


def test_levels_and_derived_products_share_their_scenes() -> None:
    l1c, l2a, labels, scores = (
        {i.index: i for i in scenes(asset, 11.35, 48.1, "2020-01-01", "2021-01-01")}
        for asset in (L1C, L2A, DYNAMIC_WORLD, "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED")
    )
    assert set(l1c) == set(l2a) == set(scores)
    assert set(labels) == {k for k, v in l1c.items() if v.properties["CLOUDY_PIXEL_PERCENTAGE"] <= 35}
    assert 40 < len(labels) < len(l1c)


def test_the_sun_is_where_an_almanac_has_it() -> None:
    """Noon at Greenwich: zenith = latitude - declination; solstice declination 23.44 degrees, equinox 0."""
    zenith, azimuth = sun_position(0.0, 51.48, ms("2020-06-21T12:00"))
    assert zenith == pytest.approx(51.48 - 23.44, abs=0.5)
    assert azimuth == pytest.approx(180, abs=1)
    zenith, azimuth = sun_position(0.0, -35.0, ms("2020-12-21T09:00"))
    assert 30 < zenith < 50
    assert 80 < azimuth < 110
    zenith, _ = sun_position(0.0, 0.0, ms("2020-03-20T12:00"))
    assert zenith < 1.0


def test_scenes_are_taken_in_the_morning() -> None:
    for lon, lat in ((11.35, 48.1), (-60.1, -3.2), (139.6, 35.8)):
        for image in scenes(L1C, lon, lat, "2020-06-01", "2020-06-15"):
            hour = image.start_ms % 86_400_000 / 3_600_000 + lon / 15
            assert 9.5 < hour % 24 < 12.0


# --- radar --------------------------------------------------------------------------------------------------------


def test_a_radar_scene_falls_on_the_orbit_and_second_of_a_real_one() -> None:
    """S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457 over SSL4EO-S12 place 200 (tile 43RCP)."""
    found = radar_scenes_in((73.5, 30.2, 73.5, 30.2), ms("2020-06-07"), ms("2020-06-08"))
    assert [(s.satellite, s.orbit, s.frame.number, s.frame.is_ascending) for s in found] == [("A", 32904, 107, False)]
    assert abs(found[0].start_ms - ms("2020-06-07T01:08:00")) < 30_000


def test_passes_look_to_the_right_and_fly_at_dusk_and_dawn() -> None:
    found = radar_scenes_in((11.35, 48.1, 11.35, 48.1), ms("2020-06-01"), ms("2020-07-01"))
    assert {s.frame.is_ascending for s in found} == {True, False}
    for scene in found:
        hour = (scene.start_ms % 86_400_000 / 3_600_000 + 11.35 / 15) % 24
        assert abs(hour - (17.6 if scene.frame.is_ascending else 6.1)) < 1.0
        assert (scene.frame.beam_deg % 360 < 180) == scene.frame.is_ascending


def test_polarisations_are_vertical_on_land_and_horizontal_over_ice() -> None:
    for (lon, lat), expected in {(11.35, 48.1): ["VV", "VH"], (-45.0, 72.0): ["HH", "HV"]}.items():
        for image in scenes(RADAR, lon, lat, "2020-06-01", "2020-07-01"):
            assert image.properties["transmitterReceiverPolarisation"] == expected
            assert [b.id for b in image.bands] == [*expected, "angle"]


def test_some_early_scenes_have_one_polarisation_and_some_regions_one_direction() -> None:
    rng = np.random.default_rng(0)
    kinds, directions = set(), set()
    for lon, lat in zip(rng.uniform(-120, 140, 60), rng.uniform(-30, 55, 60), strict=True):
        found = scenes(RADAR, float(lon), float(lat), "2016-01-01", "2016-06-01")
        kinds |= {len(i.properties["transmitterReceiverPolarisation"]) for i in found}
        found = scenes(RADAR, float(lon), float(lat), "2020-01-01", "2020-06-01")
        directions |= {tuple(sorted({i.properties["orbitProperties_pass"] for i in found}))}
    assert kinds == {1, 2}
    assert {("ASCENDING", "DESCENDING"), ("DESCENDING",), ("ASCENDING",)} & directions > {("ASCENDING", "DESCENDING")}


def test_radar_lattices_are_not_the_optical_lattice() -> None:
    for image in scenes(RADAR, 11.35, 48.1, "2020-06-01", "2020-07-01"):
        vv = image.bands[0]
        assert vv.transform[0] == 10.0
        assert vv.transform[2] % 10 != 0
        assert vv.transform[5] % 10 != 0


def test_the_incidence_angle_grows_away_from_the_radar() -> None:
    image = scenes(RADAR, 11.35, 48.1, "2020-06-01", "2020-07-01")[0]
    angle, mask = WORLD.dataset(RADAR).window(image, "angle", 0, 0, image.bands[-1].height, image.bands[-1].width)
    frame = image.private.frame
    assert mask.all()
    assert 28 < np.percentile(angle, 20) < np.percentile(angle, 80) < 48
    towards = np.sign(np.sin(np.radians(frame.beam_deg)))
    assert (np.sign(np.diff(angle, axis=1)) == towards).all()


# --- other assets -------------------------------------------------------------------------------------------------


def test_degree_tiles_thin_out_towards_the_poles() -> None:
    dataset = WORLD.dataset("COPERNICUS/DEM/GLO30")
    widths = {
        lat: dataset.images(bounds=(25.5, lat, 25.6, lat + 0.1))[0].bands[0].width for lat in (10.5, 51.5, 62.5, 70.5)
    }
    assert widths == {10.5: 3600, 51.5: 2400, 62.5: 1800, 70.5: 1200}
    tile = dataset.images(bounds=(11.35, 48.1, 11.35, 48.1))[0]
    assert tile.index == "Copernicus_DSM_COG_10_N48_00_E011_00_DEM"
    assert dataset.image(tile.index) == tile
    assert tile.footprint.equals(box(11, 48, 12, 49))
    assert dataset.images(bounds=(-30.0, 25.0, -29.5, 25.5)) == []


def test_months_are_listed_in_order_and_start_on_the_first() -> None:
    dataset = WORLD.dataset("ECMWF/ERA5_LAND/MONTHLY_AGGR")
    found = dataset.images(start_ms=ms("2019-11-15"), end_ms=ms("2020-03-01"))
    assert [i.index for i in found] == ["201912", "202001", "202002"]
    assert [i.start_ms for i in found] == [ms(d) for d in ("2019-12-01", "2020-01-01", "2020-02-01")]
    assert (found[1].properties["year"], found[1].properties["month"]) == (2020, 1)
    assert dataset.images()[0].index == "195002"


def test_land_cover_is_a_collection_of_one_and_elevation_a_lone_image() -> None:
    assert [i.index for i in WORLD.dataset("ESA/WorldCover/v100").images()] == ["2020"]
    dem = WORLD.dataset("projects/sat-io/open-datasets/ASTER/GDEM")
    assert dem.kind == "image"
    assert dem.image("").id == dem.id


def test_aerial_photographs_cover_their_quarter_and_early_ones_lack_infrared() -> None:
    dataset = WORLD.dataset("USDA/NAIP/DOQQ")
    lon, lat = -121.772, 38.794
    found = dataset.images(bounds=(lon, lat, lon, lat))
    mine = [i for i in found if i.footprint.contains(Point(lon, lat))]
    assert all("_3812210_" in i.index for i in mine)
    assert {("N" in {b.id for b in i.bands}): i.index[0] for i in mine} == {True: "m", False: "n"}
    years = sorted({np.datetime64(i.start_ms, "ms").astype("datetime64[Y]").astype(int) + 1970 for i in mine})
    assert set(np.diff(years)) <= {2, 3}
    corners = shapely.get_coordinates(mine[-1].footprint)
    _, mask = EARTH.product(dataset.id, mine[-1].index, "R", *corners.T)
    assert mask.all()
    assert dataset.images(bounds=(10.0, 48.0, 10.1, 48.1)) == []
