"""What surprises people in the real collections happens offline too: scenes of satellites and aeroplanes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ee
import numpy as np
import pytest
from pyproj import Transformer

from mmbuild.sandbox.earth import Earth, SyntheticWorld
from tests.catalogue import (
    AMAZON,
    DYNAMIC_WORLD,
    EMBEDDING,
    FACTS,
    GREENLAND,
    HLS_LANDSAT,
    HLS_SENTINEL,
    L1C,
    L2A,
    MUNICH,
    NAIP,
    RADAR,
    RAW,
    SACRAMENTO,
    SCORE,
    an_image,
    chip,
    grid_like,
    images,
    indexes,
)
from tests.sandbox_worlds import connected, pixels


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    with connected(SyntheticWorld()):
        yield


# -- Sentinel-2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("span", "shift"), [(("2022-01-05", "2022-01-25"), 0), (("2022-01-25", "2022-02-20"), 1000)])
def test_the_old_collection_is_shifted_by_1000_from_2022_01_25_and_the_harmonised_is_not(
    span: tuple[str, str], shift: int
) -> None:
    for index in indexes(images(L1C, MUNICH, *span))[:3]:
        (raw, seen), (values, also) = (chip(ee.Image(f"{asset}/{index}"), "B4", MUNICH) for asset in (RAW, L1C))
        assert np.array_equal(seen, also)
        assert (raw[seen].astype(int) - values[seen] == shift).all()


@pytest.mark.parametrize("asset", [RAW, L1C, L2A])
@pytest.mark.parametrize(
    ("span", "made"),
    [
        (("2022-01-10", "2022-01-25"), True), (("2022-01-25", "2022-02-10"), False),
        (("2024-02-14", "2024-02-29"), False), (("2024-02-29", "2024-03-15"), True),
    ],
)  # fmt: skip
def test_qa60_is_masked_from_2022_01_25_to_2024_02_28(asset: str, span: tuple[str, str], made: bool) -> None:
    assert any_valid(asset, "QA60", span) == made


@pytest.mark.parametrize("band", ["MSK_CLASSI_OPAQUE", "MSK_CLASSI_CIRRUS", "MSK_CLASSI_SNOW_ICE"])
@pytest.mark.parametrize(
    ("span", "made"), [(("2024-01-15", "2024-02-01"), False), (("2024-02-01", "2024-02-15"), True)]
)
def test_classification_masks_are_masked_before_2024_02(band: str, span: tuple[str, str], made: bool) -> None:
    assert any_valid(L2A, band, span) == made


def any_valid(asset: str, band: str, span: tuple[str, str]) -> bool:
    """Whether any image over Munich has the band anywhere on a chip that the image sees."""
    found, seen = False, False
    for index in indexes(images(asset, MUNICH, *span)):
        image = ee.Image(f"{asset}/{index}")
        seen |= bool(chip(image, "B1", MUNICH, 4)[1].any())
        found |= bool(chip(image, band, MUNICH, 4)[1].any())
    assert seen
    return found


def test_two_quality_bands_are_always_empty() -> None:
    image = an_image(L1C)
    for band in ("QA10", "QA20"):
        assert not chip(image, band, MUNICH)[0].any()


def test_probability_maps_are_missing_in_some_level_2a_products() -> None:
    lists = images(L2A, MUNICH, "2020-01-01", "2020-07-01").toList(100).map(lambda i: ee.Image(i).bandNames()).getInfo()
    full = FACTS[L2A]["bands"]
    short = [band for band in full if band not in ("MSK_CLDPRB", "MSK_SNWPRB")]
    assert sorted({tuple(names) for names in lists}, key=len) == [tuple(short), tuple(full)]


def test_level_2a_is_not_global_in_2017_and_2018() -> None:
    assert images(L2A, AMAZON, "2017-03-28", "2018-12-01").size().getInfo() == 0
    assert images(L1C, AMAZON, "2017-03-28", "2018-12-01").size().getInfo() > 50
    assert images(L2A, MUNICH, "2017-03-28", "2018-12-01").size().getInfo() > 50


def test_tiles_have_the_recorded_lattice_in_the_south() -> None:
    """Recorded from Earth Engine: northings of southern tiles are 40 mod 60 m; sizes 10980, 5490 and 1830."""
    told = images(L2A, AMAZON, "2020-06-01", "2020-06-20").first().getInfo()["bands"]
    bands = {band["id"]: band for band in told}
    assert bands["B2"]["crs_transform"][5] % 60 == 40
    assert [bands[name]["dimensions"][0] for name in ("B2", "SCL", "B1")] == [10980, 5490, 1830]


def test_class_percentages_tell_what_the_class_map_shows() -> None:
    """Against 1500 random places of the granule."""
    mixed = ee.Filter.rangeContains("CLOUDY_PIXEL_PERCENTAGE", 5, 60)
    image = ee.Image(images(L2A, MUNICH, "2020-06-01", "2020-07-01").filter(mixed).first())
    told = image.getInfo()["properties"]
    rng = np.random.default_rng(3)
    native = image.select("SCL").projection().getInfo()
    x, y = (native["transform"][i] + sign * rng.uniform(0, 109_800, 1500) for i, sign in ((2, 1), (5, -1)))
    lon, lat = Transformer.from_crs(native["crs"], 4326, always_xy=True).transform(x, y)
    classes, _ = Earth().product(L2A, told["system:index"], "SCL", lon, lat)
    for name, code in (("VEGETATION_PERCENTAGE", 4), ("NOT_VEGETATED_PERCENTAGE", 5), ("CLOUDY_SHADOW_PERCENTAGE", 3)):
        assert told[name] == pytest.approx(100 * (classes == code).sum() / (classes > 0).sum(), abs=12), name
    clouds = sum(told[f"{k}_PERCENTAGE"] for k in ("HIGH_PROBA_CLOUDS", "MEDIUM_PROBA_CLOUDS", "THIN_CIRRUS"))
    assert clouds == pytest.approx(told["CLOUDY_PIXEL_PERCENTAGE"], abs=0.01)


def test_cloud_scores_and_probabilities_share_the_index_of_level_1c() -> None:
    span = ("2020-06-01", "2020-07-01")
    expected = indexes(images(L1C, MUNICH, *span))
    assert len(expected) > 10
    for asset in (SCORE, "COPERNICUS/S2_CLOUD_PROBABILITY"):
        assert indexes(images(asset, MUNICH, *span)) == expected
    told = images(SCORE, MUNICH, *span).first().toDictionary().getInfo()
    assert told["SOURCE_PRODUCT_ID"] == ee.Image(told["SOURCE_ASSET_ID"]).get("PRODUCT_ID").getInfo()


def test_dynamic_world_exists_at_35_percent_cloud_at_most_and_is_masked_where_cloudy() -> None:
    scenes = images(L1C, MUNICH, "2020-04-01", "2020-10-01")
    few = scenes.filter(ee.Filter.lte("CLOUDY_PIXEL_PERCENTAGE", 35))
    found = indexes(images(DYNAMIC_WORLD, MUNICH, "2020-04-01", "2020-10-01"))
    assert found == indexes(few)
    assert len(found) < scenes.size().getInfo()
    hidden = 0
    for index in found[:30]:
        label = ee.Image(f"{DYNAMIC_WORLD}/{index}").select("label")
        _, valid = chip(label, "label", MUNICH, 64)
        like = grid_like(label.projection().getInfo(), MUNICH, 64)
        classes = pixels(ee.Image(f"{L2A}/{index}").select("SCL").unmask(0), like)["SCL"]
        assert np.array_equal(valid, ~np.isin(classes, (0, 3, 8, 9, 10)))
        hidden += bool(np.isin(classes, (3, 8, 9, 10)).any())
    assert hidden


# -- Sentinel-1 ----------------------------------------------------------------------------------------------------


def test_polarisations_differ_between_scenes() -> None:
    """Two on land, horizontal over ice, and one alone in some early scenes; bands and property agree."""
    land = images(RADAR, MUNICH, "2020-06-01", "2020-08-01")
    ice = images(RADAR, GREENLAND, "2020-06-01", "2020-08-01").filter(ee.Filter.eq("instrumentMode", "IW"))
    assert set(map(tuple, names(land))) == {("VV", "VH", "angle")}
    assert set(map(tuple, names(ice))) == {("HH", "HV", "angle")}
    early = names(images(RADAR, (117.3, 27.1), "2016-01-01", "2016-03-01"))
    assert set(map(tuple, early)) == {("VV", "angle")}
    told = land.aggregate_array("transmitterReceiverPolarisation").getInfo()
    assert [[*polarisations, "angle"] for polarisations in told] == names(land)


def names(collection: ee.ImageCollection) -> list[list[str]]:
    return collection.toList(500).map(lambda image: ee.Image(image).bandNames()).getInfo()


def test_wide_scenes_of_the_ice_have_40_m_pixels() -> None:
    modes = images(RADAR, GREENLAND, "2020-01-01", "2021-01-01")
    assert set(modes.aggregate_array("instrumentMode").distinct().getInfo()) == {"IW", "EW"}
    wide = modes.filter(ee.Filter.eq("instrumentMode", "EW")).first()
    told = wide.getInfo()
    assert told["properties"]["resolution_meters"] == 40
    assert told["bands"][0]["crs_transform"][0] == 40
    assert ee.Image(told["id"]).get("system:index").getInfo().startswith(("S1A_EW_GRDM_1S", "S1B_EW_GRDM_1S"))
    assert set(images(RADAR, MUNICH, "2020-01-01", "2021-01-01").aggregate_array("instrumentMode").getInfo()) == {"IW"}


def test_radar_scenes_lie_on_no_optical_lattice() -> None:
    for image in images(RADAR, MUNICH, "2020-06-01", "2020-07-01").limit(4).getInfo()["features"]:
        left, top = image["bands"][0]["crs_transform"][2::3]
        assert left % 10 != 0
        assert top % 10 != 0


# -- aerial photographs --------------------------------------------------------------------------------------------


def photographs(place: tuple[float, float]) -> list[dict[str, Any]]:
    return images(NAIP, place, "2000-01-01", "2030-01-01").getInfo()["features"]


def test_the_prefix_of_a_photograph_tells_its_bands_and_old_ones_lack_some() -> None:
    expected = {"n": ["R", "G", "B"], "c": ["N", "R", "G"], "m": ["R", "G", "B", "N"]}
    seen = set()
    for place in (
        SACRAMENTO,
        (-93.1, 41.6),
        (-98.4, 35.3),
        (-104.9, 39.6),
        (-85.2, 32.1),
        (-89.4, 43.1),
        (-78.9, 36.0),
    ):
        for image in photographs(place):
            kind = image["properties"]["system:index"][0]
            seen.add(kind)
            assert [band["id"] for band in image["bands"]] == expected[kind]
            assert (image["properties"]["system:time_start"] < 1_230_768_000_000) == (kind != "m")
    assert seen == {"n", "c", "m"}


def test_photographs_come_every_two_or_three_years_at_1_m_and_then_60_cm() -> None:
    mine = {image["properties"]["system:time_start"]: image for image in photographs(SACRAMENTO)}
    years = sorted({int(np.datetime64(ms, "ms").astype("datetime64[Y]").astype(int)) + 1970 for ms in mine})
    assert {b - a for a, b in pairwise(years)} <= {2, 3}
    steps = {ms: image["bands"][0]["crs_transform"][0] for ms, image in mine.items()}
    assert {step for ms, step in steps.items() if ms < 1_451_606_400_000} == {1.0}
    assert {step for ms, step in steps.items() if ms >= 1_451_606_400_000} == {0.6}


# -- harmonised Landsat and Sentinel-2 -----------------------------------------------------------------------------


def test_harmonised_tiles_are_sentinel2s_at_30_m() -> None:
    for asset in (HLS_LANDSAT, HLS_SENTINEL):
        told = images(asset, MUNICH, "2020-06-01", "2020-07-01").first().getInfo()
        tile = told["properties"]["system:index"][1:6]
        optical = images(L1C, MUNICH, "2020-06-01", "2020-07-01").filter(ee.Filter.eq("MGRS_TILE", tile)).first()
        blue = optical.select("B2").getInfo()["bands"][0]
        assert all(band["dimensions"] == [3660, 3660] for band in told["bands"])
        assert told["bands"][0]["crs"] == blue["crs"]
        assert told["bands"][0]["crs_transform"][2::3] == blue["crs_transform"][2::3]


def test_a_landsat_scene_of_2014_is_found_with_its_real_path_row_and_tile() -> None:
    """LC08_044034_20140318, which Earth Engine's guides show, was taken over San Francisco Bay about 18:46 UTC."""
    told = images(HLS_LANDSAT, (-122.1, 37.5), "2014-03-18", "2014-03-19").first().getInfo()["properties"]
    assert told["LANDSAT_PRODUCT_ID"].startswith("LC08_L1TP_044034_20140318")
    assert told["system:index"].startswith("T10SEG_20140318T184")
    assert "MGRS_TILE_ID" not in told
    assert "MGRS_TILE_ID" in images(HLS_SENTINEL, MUNICH, "2020-06-01", "2020-07-01").first().propertyNames().getInfo()


def test_fmask_bits_are_the_clouds_of_the_sentinel2_scene_of_that_instant() -> None:
    """Bit 1 where SCL says 8, 9 or 10, bit 3 where it says 3, bit 5 on water; bit 0 never, 2 only beside clouds."""
    mixed = 0
    for image in images(HLS_SENTINEL, MUNICH, "2020-05-01", "2020-09-01").limit(60).getInfo()["features"]:
        moment, tile = image["properties"]["system:time_start"], image["properties"]["MGRS_TILE_ID"]
        if not 10 < image["properties"]["CLOUD_COVERAGE"] < 90 or mixed == 4:
            continue
        scene = images(L2A, MUNICH, moment, moment + 1).filter(ee.Filter.eq("MGRS_TILE", tile)).first()
        bits, seen = chip(ee.Image(image["id"]), "Fmask", MUNICH, 40)
        quality = ee.Image(image["id"]).select("Fmask").projection()
        classes = pixels(
            ee.Image(scene).select("SCL").unmask(0).rename("SCL"), grid_like(quality.getInfo(), MUNICH, 40)
        )["SCL"]
        if not seen.all():
            continue
        mixed += 1
        assert np.array_equal(bits & 2 > 0, np.isin(classes, (8, 9, 10)))
        assert np.array_equal(bits & 8 > 0, classes == 3)
        assert not (bits & 1).any()
        assert not (bits[bits & 4 > 0] & 2).any()
        assert ((bits & 32 > 0) == (classes == 6))[classes < 7][classes[classes < 7] != 3].all()
        assert ((bits >> 6) >= 1).all()
    assert mixed >= 2


def test_harmonised_values_are_reflectances_and_angles_in_degrees() -> None:
    """No scale is catalogued: values are reflectances already. The sun's zenith is the scene's own."""
    for asset, red in ((HLS_LANDSAT, "B4"), (HLS_SENTINEL, "B4")):
        image = next(
            ee.Image(i["id"])
            for i in images(asset, MUNICH, "2020-06-01", "2020-07-01").getInfo()["features"]
            if chip(ee.Image(i["id"]), "B4", MUNICH, 4)[1].all()
        )
        values, _ = chip(image, red, MUNICH)
        assert 0.0 < values.min() < values.max() < 1.6
        zenith, _ = chip(image, "SZA", MUNICH)
        assert zenith == pytest.approx(image.get("MEAN_SUN_ZENITH_ANGLE").getInfo(), abs=1.5)
        view, _ = chip(image, "VZA", MUNICH)
        assert 0 <= view.min() <= view.max() < (8 if asset == HLS_LANDSAT else 12)


def test_both_missions_see_the_same_clear_ground() -> None:
    """Within two weeks of one summer, red and near infrared of pixels that both Fmasks call clear differ little."""
    seen = {}
    for asset, infrared in ((HLS_LANDSAT, "B5"), (HLS_SENTINEL, "B8A")):
        found = images(asset, MUNICH, "2020-07-01", "2020-09-15").sort("CLOUD_COVERAGE").limit(12)
        for image in found.getInfo()["features"]:
            one = ee.Image(image["id"])
            bits, valid = chip(one, "Fmask", MUNICH, 32)
            clear = valid & (bits & 0b1110 == 0)
            if clear.mean() > 0.9 and image["id"][-22:-16] == "T32UPU":
                seen[asset] = clear, *(chip(one, band, MUNICH, 32)[0] for band in ("B4", infrared))
                break
    assert len(seen) == 2
    (clear, *landsat), (also, *sentinel) = seen[HLS_LANDSAT], seen[HLS_SENTINEL]
    for a, b in zip(landsat, sentinel, strict=True):
        a, b = a[clear & also], b[clear & also]
        assert np.corrcoef(a, b)[0, 1] > 0.9
        assert np.median(np.abs(a - b)) < 0.03


# -- every scene is found again ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asset", "place"),
    [(HLS_LANDSAT, MUNICH), (HLS_SENTINEL, MUNICH), (HLS_LANDSAT, (179.99, -16.6)), (HLS_SENTINEL, AMAZON),
     (RADAR, GREENLAND), (NAIP, SACRAMENTO), (NAIP, (-98.4, 35.3))],
)  # fmt: skip
def test_scenes_are_found_again_by_their_index(asset: str, place: tuple[float, float]) -> None:
    window = {"start_ms": 1_577_836_800_000, "end_ms": 1_590_969_600_000} if asset != NAIP else {}
    found = SyntheticWorld().dataset(asset).images(bounds=(*place, *place), **window)
    fresh = SyntheticWorld().dataset(asset)
    assert len(found) >= 5
    assert len({image.index for image in found}) == len(found)
    assert [fresh.image(image.index) for image in found] == list(found)


@pytest.mark.parametrize("asset", [HLS_LANDSAT, HLS_SENTINEL, EMBEDDING, NAIP])
@pytest.mark.parametrize(
    "index", ["T32UPU_20200601T000000", "x2020z32nc9r32", "x1999z32nc4r32", "nonsense", "", "a_b_c"]
)
def test_an_unknown_index_is_a_key_error(asset: str, index: str) -> None:
    with pytest.raises(KeyError):
        SyntheticWorld().dataset(asset).image(index)
