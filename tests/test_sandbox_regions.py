"""Image.reduceRegion by hand: points, exact shares of partly covered pixels, masks as weights."""

from __future__ import annotations

from collections.abc import Iterator

import ee
import numpy as np
import pytest
from pyproj import Transformer

from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import connected, sentinel_world

LEFT, TOP = 600000.0, 5000040.0
NATIVE = [10, 0, LEFT, 0, -10, TOP]


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[Sandbox]:
    with connected(sentinel_world()) as sandbox:
        yield sandbox


def b4() -> ee.Image:
    return ee.Image("C/S2/S000").select("B4")


def box(x0: float, y0: float, x1: float, y1: float) -> ee.Geometry:
    """A rectangle in metres right of and below the image's corner."""
    return ee.Geometry.Rectangle([LEFT + x0, TOP - y1, LEFT + x1, TOP - y0], "EPSG:32631", False)


def reduced(reducer: ee.Reducer, region: ee.Geometry, image: ee.Image | None = None, **more) -> dict:
    return (image or b4()).reduceRegion(reducer, region, crs="EPSG:32631", crsTransform=NATIVE, **more).getInfo()


def test_a_point_takes_the_pixel_that_contains_it() -> None:
    point = ee.Geometry.Point(Transformer.from_crs(32631, 4326, always_xy=True).transform(LEFT + 39.9, TOP - 20.1))
    assert b4().reduceRegion(ee.Reducer.first(), point).getInfo() == {"B4": 2003}


def test_several_points_and_lines_take_the_pixels_they_meet() -> None:
    places = [[LEFT + 5, TOP - 5], [LEFT + 30, TOP - 20], [LEFT + 7, TOP - 7]]
    assert reduced(ee.Reducer.toList(), ee.Geometry.MultiPoint(places, "EPSG:32631")) == {"B4": [0, 2003]}
    line = ee.Geometry.LineString(
        [[LEFT + 5, TOP - 5], [LEFT + 25, TOP - 5], [LEFT + 25, TOP - 12]], "EPSG:32631", False
    )
    assert reduced(ee.Reducer.toList(), line) == {"B4": [0, 1, 2, 1002]}


def test_a_region_on_the_lattice_takes_its_pixels_whole() -> None:
    assert reduced(ee.Reducer.mean(), box(0, 0, 20, 20)) == {"B4": 500.5}
    assert reduced(ee.Reducer.sum(), box(0, 0, 20, 20)) == {"B4": 2002}
    assert reduced(ee.Reducer.count(), box(0, 0, 20, 20)) == {"B4": 4}


def test_partly_covered_pixels_weigh_by_their_share() -> None:
    # 0..15 m of row 0: pixel 0 whole, pixel 1 half.
    assert reduced(ee.Reducer.mean(), box(0, 0, 15, 10)) == {"B4": pytest.approx(0.5 / 1.5)}
    assert reduced(ee.Reducer.sum(), box(0, 0, 15, 10)) == {"B4": 0.5}


def test_a_triangle_weighs_by_the_area_it_cuts() -> None:
    triangle = ee.Geometry.Polygon([[[LEFT, TOP], [LEFT + 20, TOP], [LEFT, TOP - 20]]], "EPSG:32631", False)
    # Shares: (0,0) 1, (0,1) 1/2, (1,0) 1/2, (1,1) 0.
    assert reduced(ee.Reducer.mean(), triangle) == {"B4": pytest.approx((0 + 0.5 * 1 + 0.5 * 1000) / 2)}


def test_unweighted_reducers_take_pixels_by_their_centre() -> None:
    region = box(0, 0, 24, 6)
    assert reduced(ee.Reducer.max(), region) == {"B4": 1}
    assert reduced(ee.Reducer.toList(), region) == {"B4": [0, 1]}
    assert reduced(ee.Reducer.median(), box(0, 0, 40, 10)) == {"B4": 1.5}


def test_masked_pixels_do_not_count() -> None:
    even = b4().updateMask(b4().mod(2).eq(0))
    assert reduced(ee.Reducer.mean(), box(0, 0, 40, 10), even) == {"B4": 1}
    assert reduced(ee.Reducer.first(), box(-30, 0, -10, 10)) == {"B4": None}


def test_combined_reducers_name_their_outputs() -> None:
    both = ee.Reducer.mean().combine(ee.Reducer.minMax(), "", True)
    assert reduced(both, box(0, 0, 20, 10)) == {"B4_mean": 0.5, "B4_min": 0, "B4_max": 1}


def test_a_histogram_counts_by_area() -> None:
    scl = ee.Image("C/S2/S000").select("SCL")
    found = scl.reduceRegion(ee.Reducer.frequencyHistogram(), box(0, 0, 40, 40)).getInfo()
    assert found == {"SCL": {"0": 1, "1": 2, "2": 1}}


def test_scale_without_a_crs_keeps_the_native_origin() -> None:
    found = b4().reduceRegion(ee.Reducer.toList(), box(0, 0, 40, 20), scale=20).getInfo()
    # Level 1 of the pyramid: means of 2 x 2 pixels, 500.5 and 502.5, rounded to the integers of the band.
    np.testing.assert_allclose(found["B4"], [501, 503])


def test_too_many_pixels_are_refused_with_the_real_text() -> None:
    with pytest.raises(ee.EEException, match=r"Found 14400, but maxPixels allows only 100\.\nEnsure that you are not"):
        reduced(ee.Reducer.mean(), box(0, 0, 1200, 1200), maxPixels=100)


def test_reduce_regions_adds_the_outputs_to_the_features() -> None:
    features = ee.FeatureCollection(
        [ee.Feature(box(0, 0, 20, 10), {"id": 1}), ee.Feature(box(20, 0, 40, 10), {"id": 2})]
    )
    found = b4().reduceRegions(features, ee.Reducer.mean(), crs="EPSG:32631", crsTransform=NATIVE)
    assert found.aggregate_array("mean").getInfo() == [0.5, 2.5]


def test_sample_rectangle_gives_rows_of_values() -> None:
    found = b4().sampleRectangle(box(0, 0, 30, 20)).get("B4").getInfo()
    assert found == [[0, 1, 2], [1000, 1001, 1002]]
    with pytest.raises(ee.EEException, match="with no default value set"):
        b4().sampleRectangle(box(-30, 0, 30, 20)).getInfo()
