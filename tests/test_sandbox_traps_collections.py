"""The semantic traps of Earth Engine, collections and data sets: rules with their sources, driven through the client.

Guides are under developers.google.com/earth-engine/guides, references under .../apidocs. "Assumed" marks a rule that no
public page states and that nobody has confirmed on the live service for this project.
"""

from __future__ import annotations

from collections.abc import Iterator

import ee
import numpy as np
import pytest
import shapely
from pyproj import Geod

from mmbuild.sandbox.assets import ImageInfo
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.transport import Transport
from tests.planet import WORLD
from tests.sandbox_worlds import (
    START_MS,
    FormulaDataset,
    FormulaWorld,
    band,
    connected,
    disconnect,
    grid,
    initialize,
    lonlat_box,
    pixels,
    sentinel_world,
)

LEFT, TOP, UTM = 600000.0, 5000040.0, "EPSG:32631"


def world() -> FormulaWorld:
    """sentinel_world and T/RADAR: images a, b, c of which b lacks VH; T/PART: valid data in half of its tile."""
    vv, vh = band("VV", dtype="float32"), band("VH", dtype="float32")
    radar = [
        ImageInfo(id=f"T/RADAR/{name}", index=name, bands=bands, start_ms=START_MS, properties={"offset": offset})
        for name, bands, offset in (("a", (vv, vh), 0), ("b", (vv,), 10), ("c", (vv, vh), 20))
    ]
    half = lonlat_box(UTM, LEFT, TOP - 1200, LEFT + 600, TOP)
    part = ImageInfo(id="T/PART/p", index="p", bands=(band("B4"),), start_ms=START_MS, footprint=half)
    formulas = {"VV": lambda r, c: 1.0 + r * 0 + c, "VH": lambda r, c: 5.0 + r * 0 + c}
    extra = [
        FormulaDataset("T/RADAR", "image_collection", radar, formulas),
        FormulaDataset("T/PART", "image_collection", [part], {"B4": lambda r, c: r * 0 + c}),
    ]
    return FormulaWorld([*sentinel_world().datasets, *extra])


@pytest.fixture(scope="module")
def _formulas() -> Iterator[None]:
    with connected(world()):
        yield


@pytest.fixture(scope="module")
def _earth() -> Iterator[None]:
    with connected(WORLD):
        yield


formulas, earth = pytest.mark.usefixtures("_formulas"), pytest.mark.usefixtures("_earth")


def images(*values: float) -> ee.ImageCollection:
    return ee.ImageCollection([ee.Image(value) for value in values])


def box(x0: float, y0: float, x1: float, y1: float) -> ee.Geometry:
    """A rectangle in metres right of and below the image's corner."""
    return ee.Geometry.Rectangle([LEFT + x0, TOP - y1, LEFT + x1, TOP - y0], UTM, False)


def row(image: ee.Image, size: int = 4) -> list[float]:
    found = pixels(image, grid(LEFT, TOP, size=(1, size)))
    return found[found.dtype.names[0]][0].tolist()


def one(image: ee.Image) -> float:
    return row(image, 1)[0]


def b4() -> ee.Image:
    return ee.Image("C/S2/S000").select("B4")


@formulas
class TestFormulas:
    # -- 4. composites -------------------------------------------------------------------------------------------------

    def test_04_the_last_image_of_a_mosaic_is_on_top_and_holes_show_the_one_below(self) -> None:
        """Source: reference ee.ImageCollection.mosaic (order of the collection, last on top)."""
        holed = ee.Image(9).updateMask(b4().gt(1))
        assert row(ee.ImageCollection([ee.Image(12), ee.Image(5), holed]).mosaic()) == [5, 5, 9, 9]

    def test_04_ties_of_the_mode_go_to_the_smallest_value(self) -> None:
        """Source: the example of ee.ImageCollection.mode."""
        assert one(images(7, 3, 7, 3, 1).mode()) == 3
        assert one(images(9, 2).reduce(ee.Reducer.mode())) == 2

    def test_04_the_median_of_an_even_number_is_the_mean_of_the_middle_two(self) -> None:
        """Source: REST reference "PyramidingPolicy" for MEDIAN; that reducers do the same is assumed."""
        assert one(images(1, 9, 4, 6).median()) == 5
        assert one(images(1, 4, 6).median()) == 4

    def test_04_counts_are_masked_where_there_is_nothing_to_count(self) -> None:
        """Source: the example of ee.ImageCollection.count."""
        holed = ee.ImageCollection([b4().updateMask(b4().gt(0)), b4().updateMask(b4().gt(1))])
        assert row(holed.count(), 3) == [0, 1, 2]
        assert row(holed.count().mask(), 3) == [0, 1, 1]

    def test_04_means_are_weighted_by_the_mask_and_counts_and_medians_are_not(self) -> None:
        """Source: guide "Weighted Reductions"; which reducers say "(weighted)" in their references."""
        partly = ee.ImageCollection([ee.Image(0).updateMask(0.25), ee.Image(10)])
        assert one(partly.mean()) == 8
        assert one(partly.sum()) == 10
        assert one(partly.median()) == 5
        assert one(partly.count()) == 2

    # -- 5. names -----------------------------------------------------------------------------------------------------

    def test_05_how_reductions_and_stacks_name_their_bands(self) -> None:
        """reduce() appends the output, the shorthands do not, toBands() puts the index first.

        Source: references ee.ImageCollection.reduce, .mean, .toBands.
        """
        s2 = ee.ImageCollection("C/S2").select(["B4", "SCL"]).limit(2)
        assert s2.reduce(ee.Reducer.mean()).bandNames().getInfo() == ["B4_mean", "SCL_mean"]
        assert s2.mean().bandNames().getInfo() == ["B4", "SCL"]
        both = ee.Reducer.minMax()
        assert s2.select("B4").reduce(both).bandNames().getInfo() == ["B4_min", "B4_max"]
        assert s2.toBands().bandNames().getInfo() == ["S000_B4", "S000_SCL", "S001_B4", "S001_SCL"]
        assert ee.Image([1, 2]).reduce(ee.Reducer.sum()).bandNames().getInfo() == ["sum"]

    def test_05_merging_and_adding_never_lose_a_name(self) -> None:
        """merge() prefixes 1_ and 2_, lists count from 0, addBands() appends _1 unless it may overwrite.

        Source: references ee.ImageCollection.merge, ee.Image.addBands; recorded answers for lists of images.
        """
        s2 = ee.ImageCollection("C/S2").limit(1)
        assert s2.merge(s2).aggregate_array("system:index").getInfo() == ["1_S000", "2_S000"]
        assert images(4, 5).aggregate_array("system:index").getInfo() == ["0", "1"]
        assert b4().addBands(b4()).addBands(b4()).bandNames().getInfo() == ["B4", "B4_1", "B4_2"]
        assert b4().addBands(b4().add(1), overwrite=True).bandNames().getInfo() == ["B4"]
        assert ee.Image.cat([ee.Image(1), ee.Image(2)]).bandNames().getInfo() == ["constant", "constant_1"]

    # -- 10. dates and order ------------------------------------------------------------------------------------------

    def test_10_the_end_of_a_date_filter_is_excluded_and_a_single_date_is_one_millisecond(self) -> None:
        """Source: references ee.ImageCollection.filterDate, ee.DateRange."""
        s2 = ee.ImageCollection("C/S2")
        assert s2.filterDate("2020-01-01", "2020-01-03").size().getInfo() == 2
        assert s2.filterDate("2020-01-02").aggregate_array("system:index").getInfo() == ["S001"]
        assert s2.filterDate("2020-01-02T00:00:01").size().getInfo() == 0
        listed = ee.ImageCollection(s2.toList(5))
        assert listed.filterDate("2020-01-01", "2020-01-03").size().getInfo() == 2
        dates = ee.DateRange("2020-01-02").getInfo()["dates"]
        assert dates[1] - dates[0] == 1

    def test_10_equal_keys_keep_the_natural_order_so_a_recipe_sorts_twice(self) -> None:
        """sort() has one key; the tie-break is a second sort before it (that sorting is stable is assumed)."""
        s2 = ee.ImageCollection("C/S2").limit(4).map(lambda i: i.set("same", 1))
        backwards = s2.sort("system:index", False).sort("same")
        assert backwards.aggregate_array("system:index").getInfo() == ["S003", "S002", "S001", "S000"]

    def test_10_the_first_of_nothing_fails_where_it_is_used(self) -> None:
        """Source: users' reports of the text; first() itself answers null."""
        none = ee.ImageCollection("C/S2").filterDate("1999-01-01", "1999-02-01").first()
        assert none.getInfo() is None
        with pytest.raises(ee.EEException, match=r"Parameter '\w+' is required and may not be null"):
            none.select("B4").getInfo()

    # -- 11. shapes ---------------------------------------------------------------------------------------------------

    def test_11_a_footprint_is_the_valid_area_and_not_the_tile(self) -> None:
        """Source: catalogue, COPERNICUS/S2 (system:footprint); contains() therefore depends on the orbit's edge."""
        part = ee.ImageCollection("T/PART")
        place = ee.Geometry.Point(part.first().geometry().centroid().coordinates().getInfo())
        assert part.filter(ee.Filter.contains(".geo", place.buffer(200))).size().getInfo() == 1
        across = place.buffer(400)
        assert part.filter(ee.Filter.contains(".geo", across)).size().getInfo() == 0
        assert part.filterBounds(across).size().getInfo() == 1

    def test_11_edges_in_degrees_are_geodesic_unless_planar(self) -> None:
        """At 60 N the shortest way between 0 and 30 E bulges north of the parallel.

        Source: guide "Geodesic vs. Planar Geometries".
        """
        ring = [[[0, 55], [30, 55], [30, 60], [0, 60]]]
        middle = Geod(ellps="WGS84").npts(0, 60, 30, 60, 1)[0]
        assert middle[1] > 60.8
        north = ee.Geometry.Point(15, 60.5)
        assert ee.Geometry.Polygon(ring).contains(north).getInfo()
        assert not ee.Geometry.Polygon(ring, None, False).contains(north).getInfo()

    def test_11_a_buffer_is_metres_on_the_ground(self) -> None:
        """Source: reference ee.Geometry.buffer (metres unless a projection is given)."""
        ring = ee.Geometry.Point(20, 65).buffer(5000).coordinates().getInfo()[0]
        lon, lat = np.array(ring).T
        metres = Geod(ellps="WGS84").inv([20] * len(lon), [65] * len(lat), lon, lat)[2]
        np.testing.assert_allclose(metres, 5000, rtol=2e-3)

    # -- 12. regions --------------------------------------------------------------------------------------------------

    def test_12_weighted_reducers_share_edge_pixels_and_the_others_take_centres(self) -> None:
        """Source: guide "Statistics of an Image Region" (0.5 % of a pixel counts; else the centroid)."""
        region = box(0, 0, 24, 10)
        assert b4().reduceRegion(ee.Reducer.sum(), region).getInfo() == {"B4": pytest.approx(0 + 1 + 0.4 * 2)}
        assert b4().reduceRegion(ee.Reducer.count(), region).getInfo() == {"B4": 2}
        assert b4().reduceRegion(ee.Reducer.sum().unweighted(), region).getInfo() == {"B4": 1}
        assert b4().reduceRegion(ee.Reducer.median(), box(0, 0, 26, 10)).getInfo() == {"B4": 1}
        sliver = b4().reduceRegion(ee.Reducer.sum(), box(0, 0, 20.02, 10)).getInfo()
        assert sliver == {"B4": 1}

    def test_12_the_weight_is_the_lesser_of_mask_and_share(self) -> None:
        """So clipping to the region that is then reduced does not weigh its edge twice.

        Source: guide "Statistics of an Image Region" ("the minimum of the image's mask and the fraction").
        """
        region = box(0, 0, 15, 10)
        once, twice = (i.reduceRegion(ee.Reducer.sum(), region).getInfo() for i in (b4(), b4().clip(region)))
        assert once == twice == {"B4": 0.5}

    def test_12_an_empty_region_gives_null_and_the_scale_is_the_first_bands(self) -> None:
        """Source: guide "Statistics of an Image Region"; reference ee.Image.reduceRegion."""
        outside = b4().reduceRegion(ee.Reducer.mean(), box(-50, 0, -10, 10)).getInfo()
        assert outside == {"B4": None}
        both = ee.Image("C/S2/S000").select(["B5", "B4"])
        assert both.reduceRegion(ee.Reducer.count(), box(0, 0, 40, 40)).getInfo()["B4"] == 4
        assert both.select(["B4", "B5"]).reduceRegion(ee.Reducer.count(), box(0, 0, 40, 40)).getInfo()["B4"] == 16

    def test_12_best_effort_coarsens_instead_of_refusing(self) -> None:
        """Source: reference ee.Image.reduceRegion; by how much it coarsens is assumed."""
        region = box(0, 0, 1200, 1200)
        with pytest.raises(ee.EEException, match="Found 14400, but maxPixels allows only 1000"):
            b4().reduceRegion(ee.Reducer.count(), region, maxPixels=1000).getInfo()
        found = b4().reduceRegion(ee.Reducer.count(), region, maxPixels=1000, bestEffort=True).getInfo()["B4"]
        assert 500 < found <= 1000
        mean = b4().reduceRegion(ee.Reducer.mean(), region, maxPixels=1000, bestEffort=True).getInfo()["B4"]
        assert mean == pytest.approx(1000 * 59.5 + 59.5, rel=0.02)

    # -- 13. sampleRectangle ------------------------------------------------------------------------------------------

    def test_13_each_band_of_a_rectangle_has_the_size_of_its_own_pixels(self) -> None:
        """Source: SSL4EO's code, which resizes 268 and 135 pixel arrays; reference ee.Image.sampleRectangle."""
        found = ee.Image("C/S2/S000").select(["B4", "B5"]).sampleRectangle(box(0, 0, 80, 60)).getInfo()["properties"]
        assert np.shape(found["B4"]) == (6, 8)
        assert np.shape(found["B5"]) == (3, 4)

    # -- 14. random ---------------------------------------------------------------------------------------------------

    def test_14_random_answers_follow_their_seed_and_only_their_distribution_is_asserted(self) -> None:
        """The service's generator is not documented: mmbuild draws its samples itself."""
        region = ee.Geometry.Rectangle([4, 44, 5, 45], "EPSG:4326", False)
        first, again, other = (
            ee.FeatureCollection.randomPoints(region, 400, seed).geometry().coordinates().getInfo()
            for seed in (1, 1, 2)
        )
        assert first == again != other
        inside = shapely.box(4, 44, 5, 45)
        assert all(inside.covers(shapely.Point(place)) for place in first)
        # Five standard deviations of the mean of a uniform number: 5 / sqrt(12 * 400).
        assert np.mean(first, axis=0) == pytest.approx([4.5, 44.5], abs=0.073)

    # -- 15. bands that come and go -----------------------------------------------------------------------------------

    def test_15_selecting_a_missing_band_fails_for_the_image_that_lacks_it(self) -> None:
        """Source: users' reports of the text."""
        radar = ee.ImageCollection("T/RADAR")
        with pytest.raises(ee.EEException, match=r"'VH' did not match any bands.*Available bands: \[VV\]"):
            radar.select(["VV", "VH"]).mean().getInfo()
        having = radar.map(lambda i: i.set("bands", i.bandNames())).filter(ee.Filter.listContains("bands", "VH"))
        assert having.aggregate_array("system:index").getInfo() == ["a", "c"]

    def test_15_composites_match_bands_by_name(self) -> None:
        """Source: reference ee.ImageCollection.reduce ("Bands are matched by name"); no error is assumed."""
        mean = ee.ImageCollection("T/RADAR").mean()
        assert mean.bandNames().getInfo() == ["VV", "VH"]
        found = pixels(mean, grid(LEFT, TOP, size=1))[0, 0]
        assert found.tolist() == (1 + (0 + 10 + 20) / 3, 5 + (0 + 20) / 2)

    # -- 18. dates ----------------------------------------------------------------------------------------------------

    def test_18_patterns_are_jodas_and_zones_matter(self) -> None:
        """Source: reference ee.Date.format, with Joda-Time's patterns: Y is the year of era, D the day of year."""
        date = ee.Date("2020-12-31T23:30:00")
        assert date.format("YYYY-MM-dd HH:mm").getInfo() == "2020-12-31 23:30"
        assert date.format("yyyy-D").getInfo() == "2020-366"
        assert date.format("YYYY-MM-dd HH", "Europe/Berlin").getInfo() == "2021-01-01 00"
        assert ee.Date("2019-2-01").millis().getInfo() == 1_548_979_200_000

    def test_18_differences_count_mean_months_and_years(self) -> None:
        """Source: reference ee.Date.difference (fractional, with the mean lengths of months and years)."""
        start, days = ee.Date("2021-01-01"), 365.2425
        assert ee.Date("2021-02-01").difference(start, "month").getInfo() == pytest.approx(31 / (days / 12), rel=1e-4)
        assert ee.Date("2022-01-01").difference(start, "year").getInfo() == pytest.approx(365 / days, rel=1e-4)
        assert ee.Date("2021-01-02").difference(start, "hour").getInfo() == 24

    # -- 20. trust nothing --------------------------------------------------------------------------------------------

    def test_20_any_request_may_fail_and_the_next_try_says_the_same(self) -> None:
        """Source: guide "Earth Engine quotas" (429, 500, 503 are to be retried); the sandbox repeats itself exactly."""
        disconnect()
        script = [{"fault": "unavailable", "endpoint": "*:computePixels", "requests": [2]}]
        try:
            initialize("http://sandbox.invalid", http_transport=Transport(Sandbox(world()), faults=script))
            first = row(b4())
            with pytest.raises(ee.EEException):
                row(b4())
            assert row(b4()) == first == [0, 1, 2, 3]
        finally:
            disconnect()
            initialize("http://sandbox.invalid", http_transport=Transport(Sandbox(world())))


# -- 19. quirks of the data sets -------------------------------------------------------------------------------------


PLACE = (10.5, 47.9)


@earth
class TestEarth:
    def _masks(self, collection: str, name: str, start: str, end: str) -> list[float]:
        place = ee.Geometry.Point(PLACE)
        found = ee.ImageCollection(collection).filterBounds(place).filterDate(start, end)
        means = found.map(
            lambda i: i.set("m", i.select(name).mask().reduceRegion(ee.Reducer.first(), place, 60).get(name))
        )
        return means.aggregate_array("m").getInfo()

    def test_19_qa60_is_masked_between_january_2022_and_february_2024(self) -> None:
        """Source: catalogue, COPERNICUS/S2_SR_HARMONIZED (band QA60)."""
        asset = "COPERNICUS/S2_SR_HARMONIZED"
        assert set(self._masks(asset, "QA60", "2022-01-05", "2022-01-25")) == {1}
        assert set(self._masks(asset, "QA60", "2022-01-25", "2022-02-10")) == {0}
        assert set(self._masks(asset, "QA60", "2024-03-01", "2024-03-15")) == {1}

    def test_19_a_planet_of_scenes_is_not_listed_without_a_region(self) -> None:
        """Not a rule of the service, which would list them: the synthetic Earth says so instead of listing."""
        with pytest.raises(ee.EEException, match=r"does not list this collection: .*add filterBounds\(region\)"):
            ee.ImageCollection("COPERNICUS/S2_HARMONIZED").filterDate("2021-01-01", "2021-02-01").size().getInfo()

    def test_19_the_monthly_reanalysis_ends_in_june_2020(self) -> None:
        """Source: catalogue, ECMWF/ERA5/MONTHLY."""
        months = ee.ImageCollection("ECMWF/ERA5/MONTHLY").filterDate("2020-05-01", "2021-01-01")
        assert months.aggregate_array("system:time_start").map(lambda t: ee.Date(t).format("YYYY-MM")).getInfo() == [
            "2020-05", "2020-06",
        ]  # fmt: skip

    def test_19_dynamic_world_has_no_image_of_a_cloudy_scene(self) -> None:
        """Source: catalogue, GOOGLE/DYNAMICWORLD/V1 (CLOUDY_PIXEL_PERCENTAGE of at most 35)."""
        place = ee.Geometry.Point(PLACE)
        window = ("2021-03-01", "2021-09-01")
        scenes = ee.ImageCollection("COPERNICUS/S2_HARMONIZED").filterBounds(place).filterDate(*window)
        found = ee.ImageCollection("GOOGLE/DYNAMICWORLD/V1").filterBounds(place).filterDate(*window)
        cover = scenes.aggregate_array("CLOUDY_PIXEL_PERCENTAGE").getInfo()
        assert max(cover) > 35
        assert found.size().getInfo() == sum(value <= 35 for value in cover)
        assert set(found.aggregate_array("system:index").getInfo()) <= set(
            scenes.aggregate_array("system:index").getInfo()
        )

    def test_19_only_the_raw_collection_is_shifted_by_a_thousand(self) -> None:
        """Source: catalogue, COPERNICUS/S2 and COPERNICUS/S2_HARMONIZED (processing baseline 04.00)."""
        place = ee.Geometry.Point(PLACE)

        def value(collection: str, start: str, end: str) -> list:
            scenes = ee.ImageCollection(collection).filterBounds(place).filterDate(start, end).select("B4")
            first = scenes.sort("system:index").first()
            return [first.get("system:index").getInfo(), first.reduceRegion(ee.Reducer.first(), place, 10).getInfo()]

        for dates, shift in ((("2021-06-01", "2021-06-20"), 0), (("2022-06-01", "2022-06-20"), 1000)):
            raw, harmonized = value("COPERNICUS/S2", *dates), value("COPERNICUS/S2_HARMONIZED", *dates)
            assert raw[0] == harmonized[0]
            assert raw[1]["B4"] - harmonized[1]["B4"] == shift
