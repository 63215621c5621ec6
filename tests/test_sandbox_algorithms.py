"""Algorithms with a meaning of their own, by hand through the genuine client: samples, painted features, joins."""

from __future__ import annotations

from collections.abc import Iterator

import ee
import numpy as np
import pytest
import shapely
from pyproj import Geod, Transformer

from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import connected, grid, pixels, sentinel_world

LEFT, TOP, UTM = 600000.0, 5000040.0, "EPSG:32631"


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[Sandbox]:
    with connected(sentinel_world()) as sandbox:
        yield sandbox


def scene(*bands: str, day: int = 0) -> ee.Image:
    return ee.Image(f"C/S2/S{day:03d}").select(list(bands) or ["B4"])


def box(x0: float, y0: float, x1: float, y1: float) -> ee.Geometry:
    """A rectangle in metres right of and below the image's corner."""
    return ee.Geometry.Rectangle([LEFT + x0, TOP - y1, LEFT + x1, TOP - y0], UTM, False)


def row(image: ee.Image, size: int = 4, **more) -> list[float]:
    """The first row of the only band."""
    found = pixels(image, grid(LEFT, TOP, size=(1, size), **more))
    return found[found.dtype.names[0]][0].tolist()


# -- samples ----------------------------------------------------------------------------------------------------------


def test_sample_gives_a_feature_per_pixel_with_its_centre() -> None:
    found = scene().sample(box(0, 0, 20, 20), geometries=True).getInfo()["features"]
    assert [f["properties"]["B4"] for f in found] == [0, 1, 1000, 1001]
    assert [f["id"] for f in found] == ["0", "1", "2", "3"]
    centre = Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 15, TOP - 5)
    np.testing.assert_allclose(found[1]["geometry"]["coordinates"], centre, atol=1e-12)


def test_sample_drops_masked_pixels_unless_told_otherwise() -> None:
    masked = scene().updateMask(scene().neq(1))
    assert masked.sample(box(0, 0, 30, 10)).aggregate_array("B4").getInfo() == [0, 2]
    assert masked.sample(box(0, 0, 30, 10), dropNulls=False).size().getInfo() == 3


def test_a_subsample_is_as_large_as_asked_on_average_and_follows_its_seed() -> None:
    def drawn(**more) -> list[int]:
        return scene().sample(box(0, 0, 400, 400), **more).aggregate_array("B4").getInfo()

    assert drawn(factor=0.25, seed=1) == drawn(factor=0.25, seed=1) != drawn(factor=0.25, seed=2)
    # 1,600 pixels: five standard deviations of a binomial count are 87 and 50.
    assert abs(len(drawn(factor=0.25)) - 400) < 87
    assert abs(len(drawn(numPixels=100)) - 100) < 50
    with pytest.raises(ee.EEException, match="mutually exclusive"):
        drawn(factor=0.5, numPixels=10)


def test_sample_regions_copies_properties_and_numbers_the_pixels_of_each_region() -> None:
    regions = ee.FeatureCollection(
        [ee.Feature(box(0, 0, 20, 10), {"k": 1, "n": 5}), ee.Feature(box(20, 0, 30, 10), {"k": 2, "n": 6})]
    )
    found = scene().sampleRegions(regions, ["k"]).getInfo()["features"]
    assert [(f["id"], f["properties"]) for f in found] == [
        ("0_0", {"k": 1, "B4": 0}), ("0_1", {"k": 1, "B4": 1}), ("1_0", {"k": 2, "B4": 2}),
    ]  # fmt: skip
    assert scene().sampleRegions(regions).first().toDictionary().getInfo() == {"k": 1, "n": 5, "B4": 0}


def test_sample_regions_takes_the_pixel_under_a_point_at_another_scale() -> None:
    at = Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 39.0, TOP - 1.0)
    found = scene().sampleRegions(ee.FeatureCollection([ee.Feature(ee.Geometry.Point(at))]), scale=20)
    # Level 1 of the pyramid: the mean of 2, 3, 1002 and 1003 in the band's integers.
    assert found.aggregate_array("B4").getInfo() == [503]


def test_a_stratified_sample_has_so_many_of_each_class() -> None:
    """SCL is (row + column) mod 11 at 20 m: 100 pixels, of which class 10 has ten (the anti-diagonal and none else)."""
    scl, region = scene("SCL"), box(0, 0, 200, 200)
    found = scl.stratifiedSample(3, region=region, seed=4).aggregate_histogram("SCL").getInfo()
    assert found == {str(value): 3 for value in range(11)}
    rare = scl.stratifiedSample(0, "SCL", region, classValues=[10, 3], classPoints=[99, 2])
    truth = sum((r + c) % 11 == 10 for r in range(10) for c in range(10))
    assert rare.aggregate_histogram("SCL").getInfo() == {"10": truth, "3": 2}
    with pytest.raises(ee.EEException, match="must contain integer values"):
        scene("SCL").divide(2).stratifiedSample(1, region=region).getInfo()


# -- random points ----------------------------------------------------------------------------------------------------


def test_random_points_are_uniform_on_the_sphere() -> None:
    """Between the equator and 60 N half of the area lies below asin(sin(60) / 2) = 25.66 N."""
    region = ee.Geometry.Rectangle([0, 0, 40, 60], "EPSG:4326", False)
    found = ee.FeatureCollection.randomPoints(region, 2000, 7).geometry().coordinates().getInfo()
    lon, lat = np.array(found).T
    assert len(found) == 2000
    assert [*(lon > 0) & (lon < 40), *(lat > 0) & (lat < 60)].count(False) == 0
    # Five standard deviations of a fair count of 2,000 are 112.
    assert abs((lat < 25.66).sum() - 1000) < 112
    assert abs((lon < 20).sum() - 1000) < 112


def test_random_points_follow_the_seed_and_stay_inside() -> None:
    triangle = ee.Geometry.Polygon([[[10, 40], [12, 40], [10, 43]]], None, False)

    def points(seed: int) -> list:
        return ee.FeatureCollection.randomPoints(triangle, 50, seed).geometry().coordinates().getInfo()

    assert points(1) == points(1) != points(2)
    shape = shapely.Polygon([(10, 40), (12, 40), (10, 43)])
    assert all(shape.covers(shapely.Point(place)) for place in points(1))


def test_random_points_cross_the_antimeridian_and_follow_lines() -> None:
    across = ee.Geometry.Rectangle([179, 0, 183, 2], "EPSG:4326", False)
    lon = np.array(ee.FeatureCollection.randomPoints(across, 800).geometry().coordinates().getInfo())[:, 0]
    # A quarter of the box lies west of the antimeridian; five standard deviations are 61.
    assert abs((lon > 0).sum() - 200) < 61
    line = ee.Geometry.LineString([[0, 0], [1, 0], [1, 3]], None, False)
    on = np.array(ee.FeatureCollection.randomPoints(line, 800).geometry().coordinates().getInfo())
    assert ((on[:, 0] == 1) | (on[:, 1] == 0)).all()
    assert abs((on[:, 1] == 0).sum() - 200) < 61


def test_a_random_column_depends_on_the_row_and_the_seed() -> None:
    rows = ee.FeatureCollection([ee.Feature(None, {"i": i}) for i in range(300)])
    first = rows.randomColumn(seed=3).aggregate_array("random").getInfo()
    kept = rows.filter(ee.Filter.gte("i", 290)).randomColumn(seed=3).aggregate_array("random").getInfo()
    assert kept == first[290:]
    assert 0 <= min(first) <= max(first) < 1
    assert abs(np.mean(first) - 0.5) < 5 * 0.2887 / 300**0.5


# -- coarser pixels and painted features ------------------------------------------------------------------------------


def test_reduce_resolution_takes_all_pixels_by_the_share_they_cover() -> None:
    """API reference of ee.Image.reduceResolution: weights are the mask times the covered share of the output pixel."""
    coarse = scene().toFloat().reduceResolution(ee.Reducer.mean()).reproject(UTM, [20, 0, LEFT, 0, -20, TOP])
    assert row(coarse, 2, gsd=20.0) == [500.5, 502.5]
    # 15 m pixels: the first takes all of column 0 and half of column 1, likewise rows; shares 4/9, 2/9, 2/9, 1/9.
    uneven = scene().toFloat().reduceResolution(ee.Reducer.mean()).reproject(UTM, [15, 0, LEFT, 0, -15, TOP])
    expected = (0 * 4 + 1 * 2 + 1000 * 2 + 1001 * 1) / 9
    np.testing.assert_allclose(row(uneven, 1, gsd=15.0), [expected], rtol=1e-6)


def test_reduce_resolution_weighs_by_the_mask_and_keeps_the_share_of_valid_area() -> None:
    holed = scene().toFloat().updateMask(scene().neq(1001))
    coarse = holed.reduceResolution(ee.Reducer.mean()).reproject(UTM, [20, 0, LEFT, 0, -20, TOP])
    np.testing.assert_allclose(row(coarse, 1, gsd=20.0), [(0 + 1 + 1000) / 3], rtol=1e-6)
    assert row(coarse.mask(), 1, gsd=20.0) == [0.75]


def test_reduce_resolution_across_projections_agrees_with_areas_of_polygons() -> None:
    """A tilted quadrangle of Web Mercator on the UTM lattice, by shapely."""
    x, y = Transformer.from_crs(32631, 3857, always_xy=True).transform(LEFT + 333.0, TOP - 444.0)
    window = grid(x, y, gsd=60.0, size=1, crs="EPSG:3857")
    found = pixels(scene().toDouble().reduceResolution(ee.Reducer.mean(), False, 64), window)["B4"][0, 0]
    back = Transformer.from_crs(3857, 32631, always_xy=True).transform
    ring = [back(x + dx, y - dy) for dx, dy in ((0, 0), (60, 0), (60, 60), (0, 60))]
    quad = shapely.Polygon([((px - LEFT) / 10, (TOP - py) / 10) for px, py in ring])
    area = total = 0.0
    for r in range(40, 60):
        for c in range(30, 45):
            share = quad.intersection(shapely.box(c, r, c + 1, r + 1)).area
            area, total = area + share, total + share * (1000 * r + c)
    assert found == pytest.approx(total / area, rel=1e-9)


def test_reduce_resolution_counts_its_pixels_unless_best_effort() -> None:
    def at_100_m(**more) -> ee.Image:
        image = scene().toFloat().reduceResolution(ee.Reducer.mean(), **more)
        return image.reproject(UTM, [100, 0, LEFT, 0, -100, TOP])

    with pytest.raises(ee.EEException, match="pixels per output pixel: 100, but maxPixels allows only 64"):
        row(at_100_m(), 1, gsd=100.0)
    assert row(at_100_m(maxPixels=100), 1, gsd=100.0) == pytest.approx([4504.5], rel=1e-9)
    assert row(at_100_m(bestEffort=True), 1, gsd=100.0) == pytest.approx([4504.5], rel=1e-3)


def test_reduce_resolution_names_several_outputs_after_the_band() -> None:
    image = scene().reduceResolution(ee.Reducer.mean().combine(ee.Reducer.max(), "", True))
    assert image.bandNames().getInfo() == ["B4_mean", "B4_max"]
    assert scene().reduceResolution(ee.Reducer.max()).bandNames().getInfo() == ["B4"]


def test_features_are_painted_where_they_meet_a_pixel() -> None:
    table = ee.FeatureCollection([ee.Feature(box(0, 0, 12, 10), {"v": 3}), ee.Feature(box(10, 0, 30, 10), {"v": 5})])
    painted = table.reduceToImage(["v"], ee.Reducer.sum())
    assert row(painted) == [3, 8, 5, 0]
    assert row(painted.mask()) == [1, 1, 1, 0]
    points = ee.FeatureCollection([ee.Feature(ee.Geometry.Point([LEFT + x, TOP], UTM), {"v": x}) for x in (10, 35)])
    assert row(points.reduceToImage(["v"], ee.Reducer.max())) == [0, 10, 0, 35]
    globe = ee.FeatureCollection([ee.Feature(ee.Geometry.BBox(-180, -90, 180, 90), {"v": 4})])
    assert row(globe.reduceToImage(["v"], ee.Reducer.max())) == [4, 4, 4, 4]
    assert table.reduceToImage(["v"], ee.Reducer.first()).bandNames().getInfo() == ["first"]


# -- joins ------------------------------------------------------------------------------------------------------------


def _numbers(*values: int) -> ee.FeatureCollection:
    return ee.FeatureCollection([ee.Feature(None, {"t": value}) for value in values])


def test_save_best_keeps_the_nearest_match_and_says_how_near() -> None:
    near = ee.Filter.maxDifference(4, leftField="t", rightField="t")
    joined = ee.Join.saveBest("best", "apart").apply(_numbers(10, 20, 90), _numbers(7, 9, 22, 23), near).getInfo()
    found = [(f["properties"]["t"], f["properties"]["best"]["properties"]) for f in joined["features"]]
    assert found == [(10, {"t": 9, "apart": 1}), (20, {"t": 22, "apart": 2})]
    outer = ee.Join.saveBest("best", "apart", outer=True).apply(_numbers(10, 90), _numbers(9), near)
    assert outer.size().getInfo() == 2


def test_save_best_measures_metres_and_sees_through_and_and_or() -> None:
    here, places = ee.Feature(ee.Geometry.Point(5, 50), {"k": 1}), [(5.01, 50.0, 1), (5.0, 50.003, 1), (5.0, 50.0, 2)]
    others = ee.FeatureCollection([ee.Feature(ee.Geometry.Point(x, y), {"k": k}) for x, y, k in places])
    close = ee.Filter.withinDistance(2000, leftField=".geo", rightField=".geo")
    both = ee.Filter.And(ee.Filter.equals(leftField="k", rightField="k"), close)
    joined = ee.Join.saveBest("best", "m").apply(ee.FeatureCollection([here]), others, both).first()
    metres = Geod(ellps="WGS84").inv(5, 50, 5.0, 50.003)[2]
    assert ee.Feature(joined.get("best")).getNumber("m").getInfo() == pytest.approx(metres, rel=1e-6)


def test_a_join_that_needs_a_measure_says_which_filters_give_one() -> None:
    same = ee.Filter.equals(leftField="t", rightField="t")
    with pytest.raises(ee.EEException, match=r"only Filter\.maxDifference and Filter\.withinDistance"):
        ee.Join.saveBest("best", "apart").apply(_numbers(1), _numbers(1), same).getInfo()


def test_inner_joins_pair_and_save_all_collects_in_order() -> None:
    near = ee.Filter.maxDifference(5, leftField="t", rightField="t")
    pairs = ee.Join.inner("a", "b", "d").apply(_numbers(10), _numbers(12, 7, 99), near).getInfo()["features"]
    assert [(f["id"], f["properties"]["b"]["properties"]["t"], f["properties"]["d"]) for f in pairs] == [
        ("0_0", 12, 2), ("0_1", 7, 3),
    ]  # fmt: skip
    joined = ee.Join.saveAll("all", "t", True, "d").apply(_numbers(10), _numbers(12, 7, 99), near).first()
    assert [f["properties"] for f in ee.List(joined.get("all")).getInfo()] == [{"t": 7, "d": 3}, {"t": 12, "d": 2}]


# -- terrain ----------------------------------------------------------------------------------------------------------


def test_terrain_products_adds_slope_aspect_and_a_hillshade_in_closed_form() -> None:
    """A plane that rises 0.1 m per metre to the east: slope atan(0.1), facing west (270), lit from there at 45 deg."""
    plane = scene().multiply(0).add(ee.Image.pixelCoordinates(UTM).select("x").multiply(0.1)).rename("elevation")
    plane = plane.reproject(UTM, [10, 0, LEFT, 0, -10, TOP])
    found = pixels(ee.Terrain.products(plane), grid(LEFT + 100, TOP - 100, size=1))[0, 0]
    assert found.dtype.names == ("elevation", "slope", "aspect", "hillshade")
    tilt = np.arctan(0.1)
    assert found["slope"] == pytest.approx(np.degrees(tilt), rel=1e-5)
    assert found["aspect"] == pytest.approx(270)
    assert found["hillshade"] == round(255 * np.cos(np.pi / 4 - tilt))
    assert found.dtype["hillshade"] == np.uint8


def test_a_pixel_has_the_area_of_its_quadrangle_on_the_ellipsoid() -> None:
    found = pixels(ee.Image.pixelArea(), grid(10.0, 50.0, gsd=0.01, size=1, crs="EPSG:4326"))["area"][0, 0]
    ring = [10.0, 10.01, 10.01, 10.0], [49.99, 49.99, 50.0, 50.0]
    assert found == pytest.approx(abs(Geod(ellps="WGS84").polygon_area_perimeter(*ring)[0]), rel=1e-6)
    globe = pixels(ee.Image.pixelArea(), grid(-180.0, 90.0, gsd=60.0, size=(3, 6), crs="EPSG:4326"))["area"]
    assert globe.sum() == pytest.approx(5.100656217e14, rel=1e-8)
    # On UTM the pixel's map area differs from its true area by the square of the scale factor, under 0.1 % here.
    assert row(ee.Image.pixelArea(), 1)[0] == pytest.approx(100.0, rel=1e-3)


def test_terrain_wants_one_band_or_one_called_elevation() -> None:
    with pytest.raises(ee.EEException, match=r"Need a single band or a band named 'elevation', found \[B4, B5\]"):
        ee.Terrain.slope(scene("B4", "B5")).getInfo()


# -- reducers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        ("sampleStdDev", 7**0.5), ("sampleVariance", 7.0), ("allNonZero", 1), ("anyNonZero", 1),
    ],
)  # fmt: skip
def test_a_reducer_says_the_same_of_a_column_and_of_a_stack(reducer: str, expected: float) -> None:
    """Of 1, 2 and 6: mean 3, squares 4 + 1 + 9 = 14, divided by n - 1 = 2."""
    make = getattr(ee.Reducer, reducer)
    assert ee.List([1, 2, 6]).reduce(make()).getInfo() == pytest.approx(expected)
    stack = ee.ImageCollection([ee.Image(1), ee.Image(2), ee.Image(6)]).reduce(make())
    np.testing.assert_allclose(row(stack, 1), [expected])


def test_percentiles_of_a_stack_are_those_of_numpy() -> None:
    stack = ee.ImageCollection([ee.Image(value) for value in (5, 1, 9, 2)]).reduce(ee.Reducer.percentile([25, 90]))
    found = pixels(stack, grid(LEFT, TOP, size=1))[0, 0].tolist()
    np.testing.assert_allclose(found, np.percentile([5, 1, 9, 2], [25, 90]))


def test_the_maximum_of_a_stack_brings_the_other_bands_of_its_image() -> None:
    """Reference ee.ImageCollection.reduce: with an input per band the outputs keep the reducer's names."""
    first = scene().multiply(-1).rename("score").addBands(ee.Image(1)).updateMask(scene().neq(3))
    second = ee.Image([-2, 2]).rename(["score", "constant"])
    best = ee.ImageCollection([first, second]).reduce(ee.Reducer.max(2))
    assert best.bandNames().getInfo() == ["max", "max1"]
    assert row(best.select("max")) == [0, -1, -2, -2]
    assert row(best.select("max1")) == [1, 1, 1, 2]
    with pytest.raises(ee.EEException, match="The reducer has 3 inputs, the images have 2, 2 bands"):
        ee.ImageCollection([first, second]).reduce(ee.Reducer.max(3)).getInfo()


def test_the_minimum_brings_the_other_inputs_of_its_row() -> None:
    found = ee.List([[3, 30], [1, 10], [2, 20]]).reduce(ee.Reducer.min(2)).getInfo()
    assert found == {"min": 1, "min1": 10}
