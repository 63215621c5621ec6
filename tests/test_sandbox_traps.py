"""The semantic traps of Earth Engine, pixels: each test states the rule and where it is written, and drives the client.

Guides are under developers.google.com/earth-engine/guides, references under .../apidocs. "Assumed" marks a rule that no
public page states and that nobody has confirmed on the live service for this project.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import ee
import numpy as np
import pytest
import rasterio

from mmbuild.sandbox.assets import ImageInfo
from tests.sandbox_worlds import (
    FormulaDataset,
    FormulaWorld,
    band,
    connected,
    grid,
    lonlat_box,
    pixels,
    sentinel_world,
)

LEFT, TOP, UTM = 600000.0, 5000040.0, "EPSG:32631"
COARSE = [20, 0, LEFT, 0, -20, TOP]
FOOTPRINT = lonlat_box(UTM, LEFT, TOP - 640, LEFT + 640, TOP)


def world() -> FormulaWorld:
    """sentinel_world and T/LEVELS: three pyramiding policies over 64 x 64 pixels of 10 m, every fourth pixel masked.

    T/PHOTO: 0.6 m pixels that are 0 and 100 in turn.
    """
    bands = [
        band("mean", dtype="float32", size=64),
        band("sample", dtype="uint16", size=64, pyramiding="SAMPLE"),
        band("mode", dtype="uint8", size=64, pyramiding="MODE"),
    ]
    formulas = {
        "mean": lambda r, c: 1000.0 * r + c,
        "sample": lambda r, c: 100 * r + c,
        "mode": lambda r, c: np.where((r % 2 == 1) & (c % 2 == 1), 7, c % 2 + 3),
    }
    third = {name: lambda r, c: (r % 2 == 1) | (c % 2 == 0) for name in ("mean", "mode")}
    levels = ImageInfo(id="T/LEVELS", index="", bands=tuple(bands), footprint=FOOTPRINT)
    photo = ImageInfo(id="T/PHOTO", index="", bands=(band("N", dtype="uint8", gsd=0.6, size=1024),))
    extra = [
        FormulaDataset("T/LEVELS", "image", [levels], formulas, third),
        FormulaDataset("T/PHOTO", "image", [photo], {"N": lambda r, c: 100 * ((r + c) % 2)}),
    ]
    return FormulaWorld([*sentinel_world().datasets, *extra])


@pytest.fixture(scope="module", autouse=True)
def _connected() -> Iterator[None]:
    with connected(world()):
        yield


def levels(name: str) -> ee.Image:
    return ee.Image("T/LEVELS").select(name)


def scene(*names: str, day: int = 0) -> ee.Image:
    return ee.Image(f"C/S2/S{day:03d}").select(list(names) or ["B4"])


def box(x0: float, y0: float, x1: float, y1: float) -> ee.Geometry:
    """A rectangle in metres right of and below the image's corner."""
    return ee.Geometry.Rectangle([LEFT + x0, TOP - y1, LEFT + x1, TOP - y0], UTM, False)


def row(image: ee.Image, size: int = 4, gsd: float = 10.0, left: float = LEFT, top: float = TOP) -> list[float]:
    """The first row of the only band."""
    found = pixels(image, grid(left, top, gsd=gsd, size=(1, size)))
    return found[found.dtype.names[0]][0].tolist()


def types(image: ee.Image) -> list[dict]:
    return [entry["data_type"] for entry in image.getInfo()["bands"]]


# -- 1. pull, nearest, pyramids ---------------------------------------------------------------------------------------


def test_01_the_output_asks_and_nearest_answers() -> None:
    """The grid of the request is pulled through the computation; without resample() the nearest pixel is taken.

    Source: guides "Scale", "Projections", "Resampling and Reducing Resolution".
    """
    assert row(scene(), 4, gsd=5.0) == [0, 0, 1, 1]
    assert row(scene().add(1), 2, left=LEFT + 4.0) == [1, 2]


def test_01_a_coarse_request_reads_the_closest_level_that_is_not_coarser_and_then_nearest() -> None:
    """35 m of a 10 m band comes from the 20 m level: pixel centres at 17.5 m and 52.5 m fall in its pixels 0 and 2.

    Source: guide "Scale" ("the closest pyramid level with a scale less than or equal to the scale specified").
    """
    # Means of 2 x 2 pixels of 1000 row + column with the masked upper right one left out.
    block = [np.mean([0, 1000, 1001]) + 2 * i for i in (0, 2)]
    np.testing.assert_allclose(row(levels("mean"), 2, gsd=35.0), block, rtol=1e-6)


def test_01_the_pyramiding_policy_decides_value_and_mask() -> None:
    """MEAN: mean of what is valid, mask = mean of the masks; MODE: most frequent valid value; SAMPLE: the upper left.

    Source: REST reference "PyramidingPolicy".
    """
    at = grid(LEFT, TOP, gsd=20.0, size=1)
    found = pixels(ee.Image("T/LEVELS"), at)[0, 0]
    mask = pixels(ee.Image("T/LEVELS").mask(), at)[0, 0]
    assert found["mean"] == pytest.approx((0 + 1000 + 1001) / 3)
    assert found["sample"] == 0
    # Valid are 3, 3 and 7.
    assert found["mode"] == 3
    assert mask.tolist() == (0.75, 1.0, 0.75)


def test_01_a_fine_photograph_at_ten_metres_is_an_average_first() -> None:
    """0.6 m pixels asked for at 10 m come from the 9.6 m level, so a chequerboard of 0 and 100 is 50 everywhere.

    Source: guides "Scale" and REST reference "PyramidingPolicy".
    """
    assert row(ee.Image("T/PHOTO"), 6) == [50] * 6


# -- 2. resample ------------------------------------------------------------------------------------------------------


def test_02_resample_works_at_the_next_reprojection_only() -> None:
    """Interpolation happens when the image first changes its grid; what follows is nearest again.

    Source: guide "Resampling and Reducing Resolution" ("at the next reprojection").
    """
    smooth = scene().toFloat().resample("bilinear")
    # Centres lie 1.25 and 1.75 columns and 1.25 rows behind the first native centre.
    np.testing.assert_allclose(row(smooth, 2, gsd=5.0, left=LEFT + 15, top=TOP - 15), [1251.25, 1251.75])
    fixed = smooth.reproject(UTM, [10, 0, LEFT + 5, 0, -10, TOP - 5])
    # 5 m pixels of the 10 m lattice that was interpolated to: pairs of equal values.
    assert row(fixed, 4, gsd=5.0, left=LEFT + 5, top=TOP - 5) == [500.5, 500.5, 501.5, 501.5]


def test_02_resample_has_no_effect_on_a_composite() -> None:
    """A composite has no lattice to interpolate on.

    Source: guide "Resampling and Reducing Resolution"; that nothing happens instead of an error is from users' reports.
    """
    mosaic = ee.ImageCollection([scene().toFloat()]).mosaic()
    assert row(mosaic.resample("bilinear"), 4, gsd=5.0) == row(mosaic, 4, gsd=5.0) == [0, 0, 1, 1]


# -- 3. the projection of composites ----------------------------------------------------------------------------------


def test_03_a_composite_is_one_degree_in_wgs84() -> None:
    """Composites, mosaics and constants have the default projection EPSG:4326 with pixels of one degree.

    Source: guide "Projections" ("the default projection").
    """
    images = ee.ImageCollection([scene(), scene(day=1)])
    expected = {"type": "Projection", "crs": "EPSG:4326", "transform": [1, 0, 0, 0, 1, 0]}
    for image in (images.mosaic(), images.mean(), images.reduce(ee.Reducer.max()), ee.Image(1)):
        assert image.projection().getInfo() == expected
    assert scene().projection().getInfo()["crs"] == UTM


def test_03_the_slope_of_a_mosaic_needs_a_projection_first() -> None:
    """Terrain algorithms difference neighbours of the default projection; those of a mosaic are a degree apart.

    Source: reference ee.Image.reproject (its example reprojects before ee.Terrain); guide "Projections".
    """
    dem = ee.Image("C/DEM")
    mosaic = ee.ImageCollection([dem]).mosaic()
    at = grid(4.5, 45.5, gsd=0.001, size=3, crs="EPSG:4326")
    good = pixels(ee.Terrain.slope(dem), at)["slope"]
    assert (good > 0.5).all()
    # A degree further there is no elevation at all.
    assert (pixels(ee.Terrain.slope(mosaic).mask(), at)["slope"] == 0).all()
    fixed = ee.Terrain.slope(mosaic.setDefaultProjection(dem.projection()))
    np.testing.assert_array_equal(pixels(fixed, at)["slope"], good)


def test_03_a_default_projection_is_a_label_and_reproject_changes_pixels() -> None:
    """setDefaultProjection() says what later steps take for granted; it moves no pixel.

    Source: references ee.Image.setDefaultProjection and ee.Image.reproject.
    """
    assert row(scene().setDefaultProjection(UTM, COARSE)) == [0, 1, 2, 3]
    assert scene().setDefaultProjection(UTM, COARSE).projection().getInfo()["transform"] == COARSE
    # The 20 m level: means of 2 x 2 pixels, 500.5 and 502.5, rounded to the integers of the band.
    assert row(scene().reproject(UTM, COARSE)) == [501, 501, 503, 503]
    # On a lattice moved by half a pixel every centre lies on a corner, which belongs to the pixel behind it.
    assert row(scene().reproject(UTM, [10, 0, LEFT + 5, 0, -10, TOP - 5])) == [1001, 1002, 1003, 1004]


# -- 6. masks ---------------------------------------------------------------------------------------------------------


def test_06_interpolation_makes_fractional_masks_at_an_edge() -> None:
    """A quarter pixel inside the outermost centres, three quarters of the weight are there; the value is theirs.

    Source: guide "Projections" (masks are numbers from 0 to 1); that the value is not drawn towards 0 is assumed.
    """
    smooth = scene().toFloat().resample("bilinear")
    at = {"gsd": 10.0, "left": LEFT - 7.5, "top": TOP - 10.0}
    assert row(smooth.mask(), 2, **at) == [0.25, 1]
    assert row(smooth, 1, **at) == [1000]


def test_06_a_clipped_edge_is_covered_in_part() -> None:
    """Clipping leaves the share of each pixel that the geometry covers as its mask.

    Source: guide "Weighted Reductions" ("fractional pixels created through operations such as clip()").
    """
    cut = scene().clip(box(5, 0, 24, 10))
    np.testing.assert_allclose(row(cut.mask()), [0.5, 1, 0.4, 0], atol=1e-9)
    assert row(cut) == [0, 1, 2, 0]
    triangle = ee.Geometry.Polygon([[[LEFT, TOP], [LEFT + 20, TOP], [LEFT, TOP - 20]]], UTM, False)
    found = pixels(scene().clip(triangle).mask(), grid(LEFT, TOP, size=2))["B4"]
    np.testing.assert_allclose(found, [[1, 0.5], [0.5, 0]], atol=1e-9)


def test_06_clipping_in_another_projection_covers_the_same_ground() -> None:
    """A lon/lat polygon cuts UTM pixels by the area that lies inside it (geodesic edges short enough to be straight).

    Source: as above; the sum of the shares is the polygon's area in pixels, here by shapely in UTM.
    """
    shape = lonlat_box(UTM, LEFT + 203, TOP - 407, LEFT + 511, TOP - 101)
    polygon = ee.Geometry.Polygon([list(map(list, shape.exterior.coords))], None, False)
    found = pixels(scene().clip(polygon).mask(), grid(LEFT, TOP, size=64))["B4"]
    assert float(found.sum()) == pytest.approx(30.8 * 30.6, rel=1e-4)
    assert ((found > 0) & (found < 1)).sum() > 60


def test_06_zero_is_ambiguous_so_validity_needs_a_band_of_its_own() -> None:
    """NPY carries 0 where the mask is 0 and the value wherever it is above; a masked 0 looks like a valid one.

    Source: REST reference image.getPixels; that any mask above 0 shows the value is assumed.
    """
    image = scene().updateMask(scene().gt(0).multiply(0.5))
    assert row(image, 3) == [0, 1, 2]
    assert row(image.mask(), 3) == [0, 0.5, 0.5]
    assert row(image.unmask(9999, False), 3) == [9999, 1, 2]


@pytest.mark.parametrize(
    ("cast", "nodata", "dtype"),
    [("toUint16", 0, "uint16"), ("toInt16", -32768, "int16"), ("toFloat", -np.inf, "float32"),
     ("toInt64", -np.inf, "float64")],
)  # fmt: skip
def test_06_a_geotiff_says_which_value_is_masked(cast: str, nodata: float, dtype: str) -> None:
    """0 for unsigned, the minimum for signed, -inf for floating types; 64-bit integers come as doubles.

    Source: geedim 2's documentation and tests of the live service's GeoTIFF downloads.
    """
    image = getattr(scene().updateMask(scene().neq(1)), cast)()
    request = {"expression": image, "fileFormat": "GEO_TIFF", "grid": grid(LEFT, TOP, size=(1, 3))}
    with rasterio.open(io.BytesIO(ee.data.computePixels(request))) as file:
        assert (file.nodata, file.dtypes[0]) == (nodata, dtype)
        assert file.read(1)[0].tolist() == [0, nodata, 2]


# -- 7. unmask --------------------------------------------------------------------------------------------------------


def test_07_unmask_stays_inside_the_footprint_unless_told_otherwise() -> None:
    """sameFootprint=True fills holes only; False fills the plane and the value's mask decides.

    Source: reference ee.Image.unmask.
    """
    holed, start = scene().updateMask(scene().neq(0)), {"left": LEFT - 20.0}
    assert row(holed.unmask(7), 4, **start) == [0, 0, 7, 1]
    assert row(holed.unmask(7).mask(), 4, **start) == [0, 0, 1, 1]
    assert row(holed.unmask(7, False), 4, **start) == [7, 7, 7, 1]
    # A constant has no edge: everything is inside its footprint.
    assert row(ee.Image(1).updateMask(0).unmask(5)) == [5] * 4


def test_07_unmask_takes_value_and_mask_only_where_the_mask_is_exactly_zero() -> None:
    """Partly valid pixels stay as they are, and a masked filler leaves a hole.

    Source: reference ee.Image.unmask ("at all positions where the input mask is zero").
    """
    partly = scene().updateMask(scene().gt(0).multiply(0.25))
    assert row(partly.unmask(9).mask(), 2) == [1, 0.25]
    assert row(partly.unmask(ee.Image(9).updateMask(0)).mask(), 2) == [0, 0.25]


# -- 8. types ---------------------------------------------------------------------------------------------------------


def test_08_ranges_of_integers_propagate() -> None:
    """Comparisons give [0, 1], a constant [v, v], sums and products the range they can reach.

    Source: recorded getInfo answers (eerepr, geetools tests) and the references of the operators.
    """
    assert types(scene().eq(3)) == [{"type": "PixelType", "precision": "int", "min": 0, "max": 1}]
    assert types(ee.Image(4)) == [{"type": "PixelType", "precision": "int", "min": 4, "max": 4}]
    assert types(ee.Image(0.5)) == [{"type": "PixelType", "precision": "double", "min": 0.5, "max": 0.5}]
    assert types(scene().add(1)) == [{"type": "PixelType", "precision": "int", "min": 1, "max": 65536}]
    assert types(scene().toByte()) == [{"type": "PixelType", "precision": "int", "min": 0, "max": 255}]


@pytest.mark.parametrize(
    ("build", "dtype"),
    [
        (lambda i: i.eq(3), "u1"), (lambda i: i, "u2"), (lambda i: i.add(1), "u4"), (lambda i: i.subtract(1), "i4"),
        (lambda i: i.toInt8(), "i1"), (lambda i: i.toFloat(), "f4"), (lambda i: i.toDouble(), "f8"),
        (lambda i: i.toInt64(), "i8"),
    ],
)  # fmt: skip
def test_08_npy_has_the_smallest_type_that_covers_the_range(build, dtype: str) -> None:
    """The numpy type follows the pixel type's range, not the kind of the source.

    Source: the client's own use of computePixels; the exact narrowing is assumed.
    """
    assert pixels(build(scene()), grid(LEFT, TOP, size=1)).dtype[0] == np.dtype(dtype)


def test_08_dividing_by_zero_gives_zero_and_casts_clamp() -> None:
    """Source: reference ee.Image.divide ("division by 0 returns 0"); ee.Image.toByte and kin (clamped, truncated)."""
    assert row(ee.Image(6).divide(scene()), 3) == [0, 6, 3]
    assert row(scene().subtract(2).toByte(), 4) == [0, 0, 0, 1]
    assert row(scene().multiply(300).toByte(), 3) == [0, 255, 255]


# -- 9. one projection per band ---------------------------------------------------------------------------------------


def test_09_an_image_with_bands_on_different_lattices_has_no_projection() -> None:
    """projection() fails when bands differ; defaults that need one take the first band's.

    Source: reference ee.Image.projection ("raises an error if the bands don't all have the same projection").
    """
    mixed = scene("B5", "B4")
    with pytest.raises(ee.EEException, match="different projections"):
        mixed.projection().getInfo()
    assert mixed.select(0).projection().nominalScale().getInfo() == 20
    # The first band is the 20 m one: a reduction without a scale counts its pixels for both.
    assert mixed.reduceRegion(ee.Reducer.count(), box(0, 0, 40, 40)).getInfo() == {"B5": 4, "B4": 4}


# -- 16. grids --------------------------------------------------------------------------------------------------------


def test_16_a_grid_starts_at_the_outer_corner_and_runs_south_with_a_negative_scale() -> None:
    """affineTransform.translate is the corner, not the centre, of the first pixel.

    Source: REST reference "PixelGrid" and "AffineTransform".
    """
    lonlat = pixels(ee.Image.pixelLonLat(), grid(5.0, 45.0, gsd=0.5, size=2, crs="EPSG:4326"))
    assert lonlat["longitude"].tolist() == [[5.25, 5.75]] * 2
    assert lonlat["latitude"].tolist() == [[44.75, 44.75], [44.25, 44.25]]


def test_16_without_a_grid_the_whole_image_comes_on_its_own_lattice() -> None:
    """Source: REST reference projects.image.computePixels (an omitted grid is the image's own)."""
    raw = ee.data.computePixels({"expression": scene(), "fileFormat": "NPY"})
    whole = np.load(io.BytesIO(raw))["B4"]
    assert whole.shape == (120, 120)
    assert whole[3, 5] == 3005


# -- 17. clipToBoundsAndScale -----------------------------------------------------------------------------------------


def test_17_a_download_is_rounded_outwards_to_multiples_of_the_scale() -> None:
    """getDownloadURL puts a 1 m lattice at the CRS's origin, then clips outwards: edges lie on multiples of 10 m.

    Source: the client's ee.data.getDownloadId; the outward rounding is what MMEarth's 132 x 133 pixel chips show.
    """
    region = ee.Geometry.Rectangle([LEFT + 3, TOP - 1283, LEFT + 1283, TOP - 3], UTM, False)
    image = scene().setDefaultProjection(UTM, [1, 0, 0, 0, -1, 0]).clipToBoundsAndScale(region, scale=10)
    info = image.getInfo()["bands"][0]
    a, _, c, _, e, f = info["crs_transform"]
    width, height = info["dimensions"]
    col, line = info.get("origin", [0, 0])
    assert (a, e) == (10, -10)
    assert (width, height) == (129, 129)
    assert ((c + a * col) % 10, (f + e * line) % 10) == (0, 0)
    assert c + a * col == LEFT
    assert f + e * line == TOP
