"""Pixels of the offline Earth Engine against closed forms: which native pixel, which weights, which level and type."""

from __future__ import annotations

import io
from collections.abc import Iterator

import ee
import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.io import MemoryFile

from mmbuild.sandbox.assets import BandInfo, ImageInfo
from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import FormulaDataset, FormulaWorld, band, connected, grid, pixels, sentinel_world

LEFT, TOP = 600000.0, 5000040.0


def globe(name: str = "lon") -> FormulaDataset:
    """A 0.25 degree image of the whole globe whose value is the native column."""
    info = BandInfo(
        id=name,
        dtype="float32",
        crs="EPSG:4326",
        transform=(0.25, 0.0, -180.0, 0.0, -0.25, 90.0),
        width=1440,
        height=720,
    )
    return FormulaDataset(
        "C/GLOBE", "image", [ImageInfo(id="C/GLOBE", index="", bands=(info,))], {name: lambda r, c: c}
    )


def blocks() -> FormulaDataset:
    """One image with the same 0..3 x 0..3 pattern in bands of every pyramiding policy, and a band with a hole."""
    policies = tuple(band(p, dtype="int16", size=64, pyramiding=p) for p in ("MEAN", "SAMPLE", "MODE"))
    bands = (*policies, band("HOLE", dtype="int16", size=64))
    formula = {b.id: (lambda r, c: 10 * (r % 4) + (c % 4) // 2) for b in bands}
    mask = {"HOLE": lambda r, c: (r % 2 == 0) | (c % 2 == 0)}
    return FormulaDataset("C/BLOCKS", "image", [ImageInfo(id="C/BLOCKS", index="", bands=bands)], formula, mask)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    world = sentinel_world()
    with connected(FormulaWorld([*world.datasets, globe(), blocks()])) as sandbox:
        yield sandbox


@pytest.fixture
def s2(sandbox: Sandbox) -> FormulaDataset:
    dataset = sandbox.world.dataset("C/S2")
    dataset.calls.clear()
    return dataset


def scene(*bands: str) -> ee.Image:
    return ee.Image("C/S2/S000").select(list(bands))


# -- nearest ----------------------------------------------------------------------------------------------------------


def test_on_its_own_lattice_an_image_comes_back_as_stored_and_only_the_window_is_read(s2: FormulaDataset) -> None:
    answer = pixels(scene("B4"), grid(LEFT + 30, TOP - 20, size=(4, 5)))
    assert answer.dtype == np.dtype([("B4", "<u2")])
    np.testing.assert_array_equal(answer["B4"], 1000 * np.arange(2, 6)[:, None] + np.arange(3, 8))
    assert s2.calls == [("S000", "B4", 2, 3, 4, 5)]


def test_a_coarse_band_repeats_its_pixel_on_a_finer_grid(sandbox: Sandbox) -> None:
    answer = pixels(scene("B5"), grid(LEFT, TOP, size=4))["B5"]
    np.testing.assert_array_equal(answer, np.repeat(np.repeat([[0, 1], [100, 101]], 2, axis=0), 2, axis=1))


def test_a_centre_on_a_pixel_edge_belongs_to_the_next_pixel(sandbox: Sandbox) -> None:
    answer = pixels(scene("B4"), grid(LEFT + 5, TOP - 5, size=3))["B4"]
    np.testing.assert_array_equal(answer, 1000 * np.arange(1, 4)[:, None] + np.arange(1, 4))


def test_outside_an_image_pixels_are_masked_and_come_back_as_zero(sandbox: Sandbox) -> None:
    image = scene("B4").add(5).addBands(scene("B4").mask().rename("mask"))
    answer = pixels(image, grid(LEFT - 20, TOP, size=(1, 4)))
    np.testing.assert_array_equal(answer["B4"], [[0, 0, 5, 6]])
    np.testing.assert_array_equal(answer["mask"], [[0, 0, 1, 1]])


@pytest.mark.parametrize(("crs", "place"), [("EPSG:32632", (4.2, 45.1)), ("EPSG:3857", (4.28, 45.145))])
def test_another_crs_reads_the_pixel_under_each_centre(sandbox: Sandbox, crs: str, place: tuple[float, float]) -> None:
    to_grid = Transformer.from_crs("EPSG:32631", crs, always_xy=True).transform
    left, top = (round(v) for v in to_grid(LEFT + 300, TOP - 300))
    answer = pixels(scene("B4"), grid(left, top, size=32, crs=crs, gsd=11.0))["B4"]
    x, y = np.meshgrid(left + 11.0 * (np.arange(32) + 0.5), top - 11.0 * (np.arange(32) + 0.5))
    back_x, back_y = Transformer.from_crs(crs, "EPSG:32631", always_xy=True).transform(x, y)
    row, column = np.floor((TOP - back_y) / 10).astype(int), np.floor((back_x - LEFT) / 10).astype(int)
    np.testing.assert_array_equal(answer, 1000 * row + column)


def test_moving_the_grid_by_pixels_moves_the_answer(sandbox: Sandbox) -> None:
    image = ee.Image.cat([scene("B4"), scene("B5").resample("bilinear").toFloat()])
    whole = pixels(image, grid(LEFT + 100, TOP - 100, size=16))
    part = pixels(image, grid(LEFT + 130, TOP - 150, size=8))
    np.testing.assert_array_equal(whole[5:13, 3:11], part)


@pytest.mark.parametrize(("crs", "left"), [("EPSG:32660", 830000.0), ("EPSG:32601", 166000.0)])
def test_a_global_image_wraps_around_the_antimeridian(sandbox: Sandbox, crs: str, left: float) -> None:
    """Either UTM zone at 180 degrees sees columns 1439 and 0 side by side, without reading all between."""
    dataset = sandbox.world.dataset("C/GLOBE")
    dataset.calls.clear()
    answer = pixels(ee.Image("C/GLOBE"), grid(left - 30000, 100000.0, size=(2, 60), gsd=1000.0, crs=crs))["lon"]
    x, y = np.meshgrid(left - 30000 + 1000.0 * (np.arange(60) + 0.5), 100000.0 - 1000.0 * (np.arange(2) + 0.5))
    lon, _ = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    assert lon.min() < -179 < 179 < lon.max()
    np.testing.assert_array_equal(answer, np.floor((lon + 180) / 0.25))
    assert sum(width for *_, width in dataset.calls) < 10


# -- bilinear ---------------------------------------------------------------------------------------------------------


def test_bilinear_reproduces_a_linear_field_exactly(sandbox: Sandbox) -> None:
    answer = pixels(scene("B5").resample("bilinear").toDouble(), grid(LEFT + 103, TOP - 107, size=9, gsd=7.0))["B5"]
    x, y = LEFT + 103 + 7 * (np.arange(9) + 0.5), TOP - 107 - 7 * (np.arange(9) + 0.5)
    column, row = (x - LEFT) / 20 - 0.5, (TOP - y) / 20 - 0.5
    np.testing.assert_allclose(answer, 100 * row[:, None] + column, rtol=0, atol=1e-9)


def test_bilinear_on_the_own_lattice_changes_nothing(sandbox: Sandbox) -> None:
    same = grid(LEFT, TOP, size=6)
    np.testing.assert_array_equal(pixels(scene("B4").resample("bilinear"), same), pixels(scene("B4"), same))


def test_bilinear_at_the_edge_keeps_the_value_and_shares_the_mask(sandbox: Sandbox) -> None:
    """A quarter pixel outside the first centre: 3/4 of the weight is on pixels that exist."""
    image = scene("B5").resample("bilinear")
    both = image.toDouble().addBands(image.mask().rename("mask"))
    answer = pixels(both, grid(LEFT - 5, TOP - 20, gsd=10.0, size=(2, 2)))
    assert answer["mask"][1, 0] == pytest.approx(0.5)
    assert answer["B5"][0, 1] == pytest.approx(
        pixels(scene("B5").toDouble(), grid(LEFT, TOP - 20, size=2))["B5"][0, 0] - 25
    )


def test_bilinear_across_crs_is_the_four_pixel_formula(sandbox: Sandbox) -> None:
    image = ee.Image("C/DEM").resample("bilinear").toDouble()
    answer = pixels(image, grid(LEFT, TOP, size=16))["z"]
    x, y = np.meshgrid(LEFT + 10 * (np.arange(16) + 0.5), TOP - 10 * (np.arange(16) + 0.5))
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    np.testing.assert_allclose(
        answer, 2 * ((46 - lat) / 0.001 - 0.5) + 3 * ((lon - 4) / 0.001 - 0.5), rtol=0, atol=1e-8
    )


def test_reproject_fixes_the_lattice_that_nearest_then_reads(sandbox: Sandbox) -> None:
    image = scene("B5").resample("bilinear").reproject("EPSG:32631", [30, 0, LEFT, 0, -30, TOP])
    coarse = pixels(image.toDouble(), grid(LEFT, TOP, gsd=30.0, size=4))["B5"]
    fine = pixels(image.toDouble(), grid(LEFT, TOP, gsd=10.0, size=12))["B5"]
    np.testing.assert_array_equal(fine, np.repeat(np.repeat(coarse, 3, axis=0), 3, axis=1))
    assert coarse[1, 1] == pytest.approx(100 * (45 / 20 - 0.5) + 45 / 20 - 0.5)


def test_resample_without_a_lattice_has_no_effect(sandbox: Sandbox) -> None:
    mosaic = ee.ImageCollection("C/S2").select("B5").mosaic()
    same = grid(LEFT, TOP, size=4)
    np.testing.assert_array_equal(pixels(mosaic.resample("bilinear"), same), pixels(mosaic, same))
    placed = mosaic.setDefaultProjection(scene("B5").projection()).resample("bilinear").toDouble()
    assert pixels(placed, grid(LEFT + 20, TOP - 20, size=2))["B5"][0, 0] == pytest.approx(9 + 100 * 0.75 + 0.75)


# -- levels -----------------------------------------------------------------------------------------------------------


def test_a_coarser_request_reads_a_level_by_the_pyramiding_policy(sandbox: Sandbox) -> None:
    """The pattern of a 4 x 4 block: rows 0, 10, 20, 30; columns 0, 0, 1, 1. Means of integers are rounded: 15.5."""
    answer = pixels(
        ee.Image("C/BLOCKS").select(["MEAN", "SAMPLE", "MODE"]).toDouble(), grid(LEFT, TOP, gsd=40.0, size=3)
    )
    np.testing.assert_array_equal(answer["MEAN"], np.full((3, 3), 16))
    np.testing.assert_array_equal(answer["SAMPLE"], np.zeros((3, 3)))
    np.testing.assert_array_equal(answer["MODE"], np.zeros((3, 3)))


def test_below_twice_the_native_pixel_no_level_is_used(sandbox: Sandbox) -> None:
    answer = pixels(ee.Image("C/BLOCKS").select("MEAN").toDouble(), grid(LEFT, TOP, gsd=19.0, size=4))["MEAN"]
    centre = np.floor((np.arange(4) + 0.5) * 1.9).astype(int)
    np.testing.assert_array_equal(answer, 10 * (centre[:, None] % 4) + (centre % 4) // 2)


def test_a_level_averages_what_is_valid_and_the_mask(sandbox: Sandbox) -> None:
    image = ee.Image("C/BLOCKS").select("HOLE")
    answer = pixels(image.toDouble().addBands(image.mask().rename("m")), grid(LEFT, TOP, gsd=20.0, size=1))
    assert answer["m"][0, 0] == 0.75
    assert answer["HOLE"][0, 0] == round((0 + 0 + 10) / 3)


# -- composites -------------------------------------------------------------------------------------------------------


def test_mosaic_puts_the_last_on_top_and_fills_from_below(sandbox: Sandbox) -> None:
    last = scene("B4").updateMask(scene("B4").mod(2).eq(0))
    mosaic = ee.ImageCollection([ee.Image(7).rename("B4").toUint16(), last]).mosaic()
    np.testing.assert_array_equal(pixels(mosaic, grid(LEFT, TOP, size=(1, 4)))["B4"], [[0, 7, 2, 7]])


def test_mode_ties_go_to_the_smallest_value(sandbox: Sandbox) -> None:
    images = ee.ImageCollection([ee.Image(v).toInt16() for v in (5, 3, 5, 3, 9)])
    assert pixels(images.mode(), grid(LEFT, TOP, size=1))["constant"][0, 0] == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mean", 4.5), ("median", 4.5), ("min", 0), ("max", 9), ("sum", 45), ("count", 10), ("mode", 0)],
)
def test_reducing_a_collection_per_pixel(sandbox: Sandbox, name: str, expected: float) -> None:
    """Scene i adds i to every pixel, so at the corner the values are 0 to 9."""
    image = getattr(ee.ImageCollection("C/S2").select("B4"), name)()
    assert pixels(image, grid(LEFT, TOP, size=1))["B4"][0, 0] == expected
    named = ee.ImageCollection("C/S2").select("B4").reduce(getattr(ee.Reducer, name)())
    assert named.bandNames().getInfo() == [f"B4_{name}"]


def test_quality_mosaic_takes_all_bands_of_the_best_image(sandbox: Sandbox) -> None:
    def scored(image: ee.Image) -> ee.Image:
        return image.select("B4").addBands(ee.Image.constant(image.getNumber("CLOUDY")).rename("q"))

    best = ee.ImageCollection("C/S2").map(scored).qualityMosaic("q")
    # CLOUDY is 7 * day mod 10: its maximum 9 is on day 7.
    assert pixels(best, grid(LEFT, TOP, size=1))["B4"][0, 0] == 7


def test_count_is_masked_where_there_is_nothing(sandbox: Sandbox) -> None:
    count = ee.ImageCollection("C/S2").select("B4").count()
    answer = pixels(count.unmask(99, False), grid(LEFT - 10, TOP, size=(1, 2)))["B4"]
    np.testing.assert_array_equal(answer, [[99, 10]])


# -- masks, casts, arithmetic -----------------------------------------------------------------------------------------


def test_unmask_fills_beyond_the_footprint_only_when_told_to(sandbox: Sandbox) -> None:
    window = grid(LEFT - 20, TOP - 100, size=(1, 4))
    both = scene("B4").unmask(77).rename("inside").addBands(scene("B4").unmask(77, False).rename("all"))
    answer = pixels(both.toInt32(), window)
    np.testing.assert_array_equal(answer["inside"], [[0, 0, 10000, 10001]])
    np.testing.assert_array_equal(answer["all"], [[77, 77, 10000, 10001]])


@pytest.mark.parametrize(
    ("cast", "dtype", "expected"),
    [
        ("toUint8", "u1", [0, 0, 3, 255]), ("toInt8", "i1", [-128, 0, 3, 127]), ("toUint16", "<u2", [0, 0, 3, 65535]),
        ("toInt16", "<i2", [-1000, 0, 3, 32767]), ("toInt32", "<i4", [-1000, 0, 3, 70000]),
        ("toFloat", "<f4", [-1000.5, -0.5, 3.75, 70000.25]), ("toDouble", "<f8", [-1000.5, -0.5, 3.75, 70000.25]),
    ],
)  # fmt: skip
def test_casts_clamp_and_truncate(sandbox: Sandbox, cast: str, dtype: str, expected: list[float]) -> None:
    image = ee.Image([-1000.5, -0.5, 3.75, 70000.25])
    answer = pixels(getattr(image, cast)(), grid(LEFT, TOP, size=1))
    assert [answer.dtype[name].str.lstrip("|") for name in answer.dtype.names] == [dtype] * 4
    assert [answer[name][0, 0] for name in answer.dtype.names] == expected


def test_round_goes_up_at_a_half(sandbox: Sandbox) -> None:
    answer = pixels(ee.Image([-2.5, -0.5, 0.5, 2.5, 2.4]).round().toInt16(), grid(LEFT, TOP, size=1))
    assert [int(answer[name][0, 0]) for name in answer.dtype.names] == [-2, 0, 1, 3, 2]


def test_arithmetic_matches_bands_and_keeps_integer_ranges(sandbox: Sandbox) -> None:
    image = scene("B4", "B5")
    answer = pixels(image.add(image).subtract(1), grid(LEFT + 10, TOP, size=1))
    assert answer.dtype["B4"] == np.dtype("<i4")
    assert (answer["B4"][0, 0], answer["B5"][0, 0]) == (1, -1)
    divided = pixels(image.divide(ee.Image(0)), grid(LEFT + 10, TOP, size=1))
    assert divided["B4"][0, 0] == 0
    assert ee.Image(6).gt(5).And(ee.Image(0).Not()).getInfo()["bands"][0]["data_type"]["max"] == 1


def test_bits_of_a_quality_band(sandbox: Sandbox) -> None:
    assert pixels(ee.Image(0b1100).bitwiseAnd(1 << 2).neq(0), grid(LEFT, TOP, size=1))["constant"][0, 0] == 1


def test_remap_masks_or_defaults_what_is_not_listed(sandbox: Sandbox) -> None:
    scl, window = scene("SCL"), grid(LEFT, TOP, gsd=20.0, size=(1, 4))
    masked = scl.remap([0, 2], [10, 12])
    np.testing.assert_array_equal(pixels(masked, window)["remapped"], [[10, 0, 12, 0]])
    np.testing.assert_array_equal(pixels(masked.mask(), window)["remapped"], [[1, 0, 1, 0]])
    np.testing.assert_array_equal(pixels(scl.remap([0, 2], [10, 12], 99), window)["remapped"], [[10, 99, 12, 99]])


def test_where_and_clip_work_pixel_by_pixel(sandbox: Sandbox) -> None:
    image, window = scene("B4"), grid(LEFT, TOP, size=(1, 4))
    np.testing.assert_array_equal(pixels(image.where(image.gte(2), 50), window)["B4"], [[0, 1, 50, 50]])
    half = ee.Geometry.Rectangle([LEFT + 10, TOP - 50, LEFT + 30, TOP], "EPSG:32631", False)
    np.testing.assert_array_equal(pixels(image.clip(half), window)["B4"], [[0, 1, 2, 0]])


def test_pixel_lon_lat_is_where_the_centres_are(sandbox: Sandbox) -> None:
    answer = pixels(ee.Image.pixelLonLat(), grid(LEFT, TOP, size=1))
    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 5, TOP - 5)
    assert (answer["longitude"][0, 0], answer["latitude"][0, 0]) == (lon, lat)


def test_slope_of_a_plane_is_its_angle(sandbox: Sandbox) -> None:
    """z falls 2 per row and rises 3 per column of 0.001 degree, at 45.15 N."""
    slope = pixels(ee.Terrain.slope(ee.Image("C/DEM")), grid(LEFT, TOP, size=4))["slope"]
    lat = np.radians(45.147)
    e2, a = 6.69437999014e-3, 6378137.0
    n = a / np.sqrt(1 - e2 * np.sin(lat) ** 2)
    per_column = n * np.cos(lat) * np.radians(0.001)
    per_row = a * (1 - e2) / (1 - e2 * np.sin(lat) ** 2) ** 1.5 * np.radians(0.001)
    expected = np.degrees(np.arctan(np.hypot(3 / per_column, 2 / per_row)))
    np.testing.assert_allclose(slope, expected, atol=0.01)
    utm = pixels(ee.Terrain.slope(scene("B4")), grid(LEFT + 20, TOP - 20, size=2))["slope"]
    np.testing.assert_allclose(utm, np.degrees(np.arctan(np.hypot(0.1, 100.0))), atol=1e-5)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_one_answer_carries_bands_of_different_types(sandbox: Sandbox) -> None:
    image = ee.Image.cat([scene("B4"), scene("SCL"), scene("B5").toFloat(), scene("B4").toInt32().rename("n")])
    answer = pixels(image, grid(LEFT, TOP, size=(2, 3)))
    assert answer.dtype == np.dtype([("B4", "<u2"), ("SCL", "u1"), ("B5", "<f4"), ("n", "<i4")])
    assert answer.shape == (2, 3)


def test_a_band_used_twice_is_read_once(s2: FormulaDataset) -> None:
    image = scene("B4")
    pixels(ee.Image.cat([image, image.add(1).rename("x"), image.mask().rename("m")]), grid(LEFT, TOP, size=4))
    assert len(s2.calls) == 1


def test_a_geotiff_answer_opens_with_rasterio_on_the_asked_grid(sandbox: Sandbox) -> None:
    image = scene("B4").add(3).toUint16()
    raw = ee.data.computePixels(
        {"expression": image, "fileFormat": "GEO_TIFF", "grid": grid(LEFT - 10, TOP, size=(2, 3))}
    )
    with MemoryFile(raw) as file, file.open() as found:
        assert found.crs.to_epsg() == 32631
        assert found.transform == rasterio.Affine(10, 0, LEFT - 10, 0, -10, TOP)
        assert found.descriptions == ("B4",)
        np.testing.assert_array_equal(found.read(1), [[0, 3, 4], [0, 1003, 1004]])
        np.testing.assert_array_equal(found.read_masks(1) > 0, [[False, True, True]] * 2)


def test_band_ids_choose_and_order_the_bands(sandbox: Sandbox) -> None:
    answer = pixels(ee.Image("C/S2/S000"), grid(LEFT, TOP, size=1), bandIds=["SCL", "B4"])
    assert answer.dtype.names == ("SCL", "B4")


def test_an_asset_is_read_directly_with_get_pixels(sandbox: Sandbox) -> None:
    raw = ee.data.getPixels(
        {"assetId": "C/S2/S000", "fileFormat": "NPY", "bandIds": ["B4"], "grid": grid(LEFT, TOP, size=2)}
    )
    np.testing.assert_array_equal(np.load(io.BytesIO(raw))["B4"], [[0, 1], [1000, 1001]])


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (lambda: ee.Image.constant([0] * 9).toDouble(), (256, 2427), None),
        (lambda: ee.Image.constant([0] * 9).toDouble(), (512, 2428),
         r"Total request size \(100694016 bytes\) must be less than or equal to 50331648 bytes."),
        (lambda: ee.Image(0), (1, 32769), r"must be less than or equal to 32768"),
        (lambda: ee.Image.constant([0] * 1025), (1, 1), r"Too many bands: 1025; at most 1024"),
        (lambda: ee.Image(0), (0, 5), r"Grid dimensions must be positive"),
    ],
)  # fmt: skip
def test_the_limits_of_an_answer(sandbox: Sandbox, image, size: tuple[int, int], message: str | None) -> None:
    """48 MiB counted with one mask byte per value: 9 bands of 9 bytes."""
    if message is None:
        assert pixels(image(), grid(LEFT, TOP, size=size)).shape == size
        return
    with pytest.raises(ee.EEException, match=message):
        pixels(image(), grid(LEFT, TOP, size=size))


def test_an_unknown_file_format_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ee.EEException, match="does not write the file format 'PNG'"):
        ee.data.computePixels({"expression": ee.Image(1), "fileFormat": "PNG", "grid": grid(LEFT, TOP)})


def test_counters_tell_requests_and_bytes(sandbox: Sandbox) -> None:
    before, size = sandbox.requests["image:computePixels"], sandbox.pixel_bytes
    raw = ee.data.computePixels({"expression": scene("B4"), "fileFormat": "NPY", "grid": grid(LEFT, TOP)})
    assert sandbox.requests["image:computePixels"] == before + 1
    assert sandbox.pixel_bytes == size + len(raw)
