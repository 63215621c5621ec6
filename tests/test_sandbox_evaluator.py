"""Collections, filters, lists, dates and geometry of the offline Earth Engine, asked through the genuine client."""

from __future__ import annotations

import math
from collections.abc import Iterator

import ee
import pytest
from pyproj import Geod, Transformer

from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import DAY_MS, START_MS, FormulaDataset, connected, sentinel_world

TO_LONLAT = Transformer.from_crs(32631, 4326, always_xy=True).transform


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with connected(sentinel_world()) as sandbox:
        yield sandbox


@pytest.fixture
def s2(sandbox: Sandbox) -> FormulaDataset:
    return sandbox.world.dataset("C/S2")


def indexes(collection: ee.ImageCollection) -> list[str]:
    return collection.aggregate_array("system:index").getInfo()


def inside() -> ee.Geometry:
    return ee.Geometry.Point(TO_LONLAT(600505.0, 4999505.0))


def outside() -> ee.Geometry:
    return ee.Geometry.Point(TO_LONLAT(601300.0, 4999505.0))


# -- collections and filters ------------------------------------------------------------------------------------------


def test_bounds_and_dates_reach_the_dataset_before_it_lists(s2: FormulaDataset) -> None:
    collection = ee.ImageCollection("C/S2").filterBounds(inside()).filterDate("2020-01-03", "2020-01-05")
    assert indexes(collection) == ["S002", "S003"]
    asked = s2.listed[-1]
    assert (asked["start_ms"], asked["end_ms"]) == (START_MS + 2 * DAY_MS, START_MS + 4 * DAY_MS)
    lon, lat = TO_LONLAT(600505.0, 4999505.0)
    assert asked["bounds"] == pytest.approx((lon, lat, lon, lat))


def test_filters_after_select_still_reach_the_dataset(s2: FormulaDataset) -> None:
    assert indexes(ee.ImageCollection("C/S2").select(["B4"]).filterDate("2020-01-02", "2020-01-03")) == ["S001"]
    assert s2.listed[-1]["start_ms"] == START_MS + DAY_MS


def test_a_date_filter_excludes_its_end(sandbox: Sandbox) -> None:
    assert indexes(ee.ImageCollection("C/S2").filterDate("2020-01-01", "2020-01-02")) == ["S000"]


def test_filter_bounds_is_exact(sandbox: Sandbox) -> None:
    assert ee.ImageCollection("C/S2").filterBounds(inside()).size().getInfo() == 10
    assert ee.ImageCollection("C/S2").filterBounds(outside()).size().getInfo() == 0


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 10), (200.0, 0)])
def test_contains_wants_the_whole_region(sandbox: Sandbox, margin: float, expected: int) -> None:
    box = [600100.0, 4998900.0, 601100.0 + margin, 4999900.0]
    region = ee.Geometry.Rectangle(box, "EPSG:32631", False)
    assert ee.ImageCollection("C/S2").filter(ee.Filter.contains(".geo", region)).size().getInfo() == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda: ee.Filter.eq("pass", "ASC"), [1, 3, 5, 7, 9]),
        (lambda: ee.Filter.neq("pass", "ASC"), [0, 2, 4, 6, 8]),
        (lambda: ee.Filter.lt("offset", 2), [0, 1]),
        (lambda: ee.Filter.lte("offset", 2), [0, 1, 2]),
        (lambda: ee.Filter.gt("offset", 8), [9]),
        (lambda: ee.Filter.gte("offset", 8), [8, 9]),
        (lambda: ee.Filter.inList("offset", [1, 5, 77]), [1, 5]),
        (lambda: ee.Filter.listContains("pols", "VV"), list(range(10))),
        (lambda: ee.Filter.listContains("pols", "HH"), []),
        (lambda: ee.Filter.rangeContains("offset", 3, 4), [3, 4]),
        (lambda: ee.Filter.stringContains("system:index", "00"), list(range(10))),
        (lambda: ee.Filter.stringEndsWith("system:index", "7"), [7]),
        (lambda: ee.Filter.And(ee.Filter.gt("offset", 2), ee.Filter.lt("offset", 5)), [3, 4]),
        (lambda: ee.Filter.Or(ee.Filter.lt("offset", 1), ee.Filter.gt("offset", 8)), [0, 9]),
        (lambda: ee.Filter.gt("offset", 3).Not(), [0, 1, 2, 3]),
        (lambda: ee.Filter.calendarRange(3, 4, "day_of_month"), [2, 3]),
        (lambda: ee.Filter.calendarRange(12, 1, "month"), list(range(10))),
        (lambda: ee.Filter.dayOfYear(1, 2), [0, 1]),
        (lambda: ee.Filter.eq("system:index", "S004"), [4]),
        (
            lambda: ee.Filter.Or(
                ee.Filter.date("2020-01-01", "2020-01-02"), ee.Filter.date("2020-01-09", "2020-01-10")
            ),
            [0, 8],
        ),
        (lambda: ee.Filter.notNull(["nothing"]), []),
        (lambda: ee.Filter.eq("nothing", 1), []),
        (lambda: ee.Filter.eq("nothing", 1).Not(), list(range(10))),
    ],
)
def test_a_filter_keeps_exactly_these_images(sandbox: Sandbox, condition, expected: list[int]) -> None:
    assert indexes(ee.ImageCollection("C/S2").filter(condition())) == [f"S{i:03d}" for i in expected]


def test_sort_limit_and_first_follow_the_property(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2").sort("CLOUDY")
    clouds = collection.aggregate_array("CLOUDY").getInfo()
    assert clouds == sorted(clouds)
    assert indexes(collection.limit(2)) == indexes(collection)[:2]
    assert collection.sort("CLOUDY", False).first().get("CLOUDY").getInfo() == 9
    assert indexes(ee.ImageCollection("C/S2").limit(3, "offset", False)) == ["S009", "S008", "S007"]


def test_the_first_of_nothing_is_null_and_fails_with_the_real_words(sandbox: Sandbox) -> None:
    empty = ee.ImageCollection("C/S2").filterDate("1999-01-01", "1999-01-02").first()
    assert empty.getInfo() is None
    with pytest.raises(ee.EEException, match=r"Image.select: Parameter 'input' is required and may not be null."):
        empty.select("B4").getInfo()


def test_reduce_columns_gives_a_table_in_one_request(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2").limit(2).map(lambda image: image.set("bands", image.bandNames()))
    columns = ["system:index", "system:time_start", "bands"]
    rows = collection.reduceColumns(ee.Reducer.toList(3), columns).get("list").getInfo()
    assert rows == [["S000", START_MS, ["B4", "B5", "SCL"]], ["S001", START_MS + DAY_MS, ["B4", "B5", "SCL"]]]
    lists = collection.reduceColumns(ee.Reducer.toList().repeat(2), columns[:2]).get("list").getInfo()
    assert lists == [["S000", "S001"], [START_MS, START_MS + DAY_MS]]


def test_a_row_with_a_null_is_dropped_unless_the_column_is_optional(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2").limit(1)
    columns = ["system:index", "nothing"]
    assert collection.reduceColumns(ee.Reducer.toList(2), columns).get("list").getInfo() == []
    assert collection.reduceColumns(ee.Reducer.toList(2, 1), columns).get("list").getInfo() == [["S000", None]]


def test_map_sees_outer_variables_and_nests(sandbox: Sandbox) -> None:
    shift = ee.Number(100)
    values = ee.List([1, 2]).map(lambda a: ee.List([10, 20]).map(lambda b: ee.Number(a).add(b).add(shift)))
    assert values.getInfo() == [[111, 121], [112, 122]]


def test_a_mapped_image_keeps_its_index(sandbox: Sandbox) -> None:
    made = ee.ImageCollection("C/S2").limit(2).map(lambda image: ee.Image(1).set("k", image.get("offset")))
    assert indexes(made) == ["S000", "S001"]
    assert made.aggregate_array("k").getInfo() == [0, 1]


def test_iterate_carries_its_value(sandbox: Sandbox) -> None:
    total = ee.ImageCollection("C/S2").iterate(lambda image, sum_: ee.Number(sum_).add(image.getNumber("offset")), 0)
    assert total.getInfo() == 45


def test_aggregates_are_those_of_the_column(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2")
    found = ee.Dictionary({
        "min": collection.aggregate_min("offset"), "max": collection.aggregate_max("offset"),
        "mean": collection.aggregate_mean("offset"), "sum": collection.aggregate_sum("offset"),
        "count": collection.aggregate_count("offset"), "histogram": collection.aggregate_histogram("pass"),
        "distinct": collection.aggregate_count_distinct("pass"),
    }).getInfo()  # fmt: skip
    assert found == {
        "min": 0, "max": 9, "mean": 4.5, "sum": 45, "count": 10, "histogram": {"ASC": 5, "DESC": 5}, "distinct": 2,
    }  # fmt: skip


def test_merge_and_lists_of_images(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2")
    assert indexes(collection.limit(1).merge(collection.limit(1))) == ["1_S000", "2_S000"]
    assert ee.Image(collection.toList(2, 3).get(1)).id().getInfo() == "S004"
    assert indexes(ee.ImageCollection([ee.Image(1), ee.Image(2)])) == ["0", "1"]


def test_link_collection_adds_bands_and_properties_of_the_match(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2")
    linked = collection.select("B4").linkCollection(collection, ["SCL"], ["pass"]).first()
    assert linked.bandNames().getInfo() == ["B4", "SCL"]
    assert linked.get("pass").getInfo() == "DESC"
    lonely = ee.Image("C/S2/S001").select("B4").linkCollection(collection.filter(ee.Filter.eq("offset", 2)), ["SCL"])
    found = lonely.select("SCL").reduceRegion(ee.Reducer.first(), inside())
    assert found.getInfo() == {"SCL": None}


def test_a_join_saves_the_first_match(sandbox: Sandbox) -> None:
    collection = ee.ImageCollection("C/S2")
    condition = ee.Filter.equals(leftField="offset", rightField="offset")
    joined = ee.Join.saveFirst("other").apply(
        collection.limit(2), collection.filter(ee.Filter.gt("offset", 0)), condition
    )
    assert joined.aggregate_array("system:index").getInfo() == ["S001"]


def test_a_table_is_filtered_and_paged(sandbox: Sandbox) -> None:
    table = ee.FeatureCollection("C/REGIONS")
    assert table.size().getInfo() == 2
    assert table.filterBounds(ee.Geometry.Point([2.5, 0.5])).first().get("name").getInfo() == "two"
    page = ee.data.computeFeatures({"expression": table, "pageSize": 1})
    assert [f["properties"]["ECO_ID"] for f in page["features"]] == [1]
    assert page["features"][0]["geometry"]["type"] == "Polygon"
    rest = ee.data.computeFeatures({"expression": table, "pageSize": 1, "pageToken": page["nextPageToken"]})
    assert [f["properties"]["ECO_ID"] for f in rest["features"]] == [2]
    assert "nextPageToken" not in rest


# -- images as metadata -----------------------------------------------------------------------------------------------


def test_get_info_describes_an_image_as_the_service_does(sandbox: Sandbox) -> None:
    info = ee.Image("C/S2/S003").getInfo()
    assert info["type"] == "Image"
    assert info["id"] == "C/S2/S003"
    assert info["bands"][1] == {
        "id": "B5",
        "data_type": {"type": "PixelType", "precision": "int", "min": 0, "max": 65535},
        "dimensions": [60, 60],
        "crs": "EPSG:32631",
        "crs_transform": [20, 0, 600000, 0, -20, 5000040],
    }
    assert info["properties"]["system:time_start"] == START_MS + 3 * DAY_MS
    assert info["properties"]["CLOUDY"] == 1


def test_constants_have_the_type_of_their_value(sandbox: Sandbox) -> None:
    types = [band["data_type"] for band in ee.Image([7, 0.5]).getInfo()["bands"]]
    assert types[0] == {"type": "PixelType", "precision": "int", "min": 7, "max": 7}
    assert types[1]["precision"] == "double"
    assert ee.Image(1).projection().getInfo() == {
        "type": "Projection",
        "crs": "EPSG:4326",
        "transform": [1, 0, 0, 0, 1, 0],
    }


def test_projection_wants_bands_that_agree(sandbox: Sandbox) -> None:
    image = ee.Image("C/S2/S000")
    assert image.select("B5").projection().nominalScale().getInfo() == 20
    with pytest.raises(ee.EEException, match=r"Use Image.select to pick a single band"):
        image.projection().getInfo()


def test_selecting_what_is_not_there_lists_what_is(sandbox: Sandbox) -> None:
    with pytest.raises(
        ee.EEException, match=r"Band pattern 'B99' did not match any bands. Available bands: \[B4, B5, SCL\]"
    ):
        ee.Image("C/S2/S000").select("B99").getInfo()
    assert ee.Image("C/S2/S000").select("B.*").bandNames().getInfo() == ["B4", "B5"]
    assert ee.Image("C/S2/S000").select([2], ["x"]).bandNames().getInfo() == ["x"]


def test_added_bands_never_collide(sandbox: Sandbox) -> None:
    image = ee.Image("C/S2/S000").select("B4")
    assert ee.Image.cat([image, image, image]).bandNames().getInfo() == ["B4", "B4_1", "B4_2"]
    assert image.addBands(ee.Image(1).rename("B4"), overwrite=True).bandNames().getInfo() == ["B4"]


def test_to_bands_prefixes_the_index(sandbox: Sandbox) -> None:
    assert ee.ImageCollection("C/S2").limit(2).select("B4").toBands().bandNames().getInfo() == ["S000_B4", "S001_B4"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ee.Image("C/S2/S999"), r"Image.load: Image asset 'C/S2/S999' not found"),
        (lambda: ee.ImageCollection("NO/SUCH").size(), r"ImageCollection asset 'NO/SUCH' not found"),
        (lambda: ee.FeatureCollection("NO/SUCH").size(), r"Collection asset 'NO/SUCH' not found"),
        (lambda: ee.Image(1).entropy(ee.Kernel.square(1)), r"does not implement the algorithm 'Kernel.square'"),
        (lambda: ee.List([1]).get(3), r"List index must be between 0 and 0, found 3"),
        (lambda: ee.Dictionary({"a": 1}).get("b"), r"Dictionary does not contain key: 'b'"),
        (lambda: ee.Date("yesterday"), r"Bad date/time 'yesterday'"),
        (lambda: ee.Image("C/S2/S000").resample("bicubic"), r"does not implement Image.resample with mode 'bicubic'"),
        (lambda: ee.Projection("EPSG:999999"), r"could not be parsed: 'EPSG:999999'"),
    ],
)
def test_a_refusal_says_what_is_wrong(sandbox: Sandbox, ask, message: str) -> None:
    with pytest.raises(ee.EEException, match=message) as caught:
        ask().getInfo()
    assert caught.value.__context__.resp.status == 400


def test_a_wrong_type_is_refused_with_both_types(sandbox: Sandbox) -> None:
    with pytest.raises(
        ee.EEException, match=r"argument 'input': Invalid type.\nExpected type: Image.\nActual type: String."
    ):
        ee.Image(ee.Image("C/S2/S000").get("pass")).select(0).getInfo()


# -- plain values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda: ee.Date("2019-2-01").format("YYYY-MM-dd"), "2019-02-01"),
        (lambda: ee.Date("2020-03-31").advance(-1, "month").format("yyyy/M/d"), "2020/2/29"),
        (lambda: ee.Date("2020-02-29T12:34:56Z").format(), "2020-02-29T12:34:56"),
        (lambda: ee.Date("2020-12-31").getRelative("day", "year"), 365),
        (lambda: ee.Date(START_MS).get("year"), 2020),
        (lambda: ee.Date("2020-01-02").millis(), START_MS + DAY_MS),
        (lambda: ee.Date("2020-01-02").difference(ee.Date("2020-01-01"), "hour"), 24),
        (lambda: ee.Date("2020-01-01").getRange("month").end().format("YYYY-MM-dd"), "2020-02-01"),
        (lambda: ee.Date("2020-01-01", "Asia/Tokyo").millis(), START_MS - 9 * 3_600_000),
        (lambda: ee.List.sequence(1, 10, 3), [1, 4, 7, 10]),
        (lambda: ee.List.sequence(0, 1, count=5), [0, 0.25, 0.5, 0.75, 1]),
        (lambda: ee.List([1, 2, 3, 4]).slice(1, -1), [2, 3]),
        (lambda: ee.List([1, [2, [3]]]).flatten(), [1, 2, 3]),
        (lambda: ee.List([1, 2]).zip(["a", "b"]), [[1, "a"], [2, "b"]]),
        (lambda: ee.Dictionary({"a": 1}).combine({"b": 2}).keys(), ["a", "b"]),
        (lambda: ee.Dictionary.fromLists(["x"], [5]).get("x"), 5),
        (lambda: ee.String("a").cat("b"), "ab"),
        (lambda: ee.Number(7).mod(4).add(0.5), 3.5),
        (lambda: ee.Number(1).divide(0), 0),
        (lambda: ee.Number(300).toUint8(), 255),
        (lambda: ee.Number(-2.5).round(), -2),
        (lambda: ee.Algorithms.If(ee.Number(0), ee.List([1]).get(9), "no"), "no"),
        (lambda: ee.List([3, 1, 2]).sort(), [1, 2, 3]),
        (lambda: ee.List([1, 2, 3]).reduce(ee.Reducer.mean()), 2),
    ],
)  # fmt: skip
def test_plain_values_are_computed_by_hand(sandbox: Sandbox, ask, expected) -> None:
    assert ask().getInfo() == expected


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_a_buffer_has_the_area_of_its_circle(sandbox: Sandbox) -> None:
    area = ee.Geometry.Point([10.0, 60.0]).buffer(1000).area().getInfo()
    # A polygon of 64 corners inside the circle: pi becomes 32 sin(pi / 32).
    assert area == pytest.approx(32 * math.sin(math.pi / 32) * 1000**2, rel=1e-3)


def test_bounds_of_a_buffer_reach_its_radius(sandbox: Sandbox) -> None:
    ring = ee.Geometry.Point([10.0, 60.0]).buffer(1000).bounds().coordinates().getInfo()[0]
    west, north = min(x for x, _ in ring), max(y for _, y in ring)
    assert Geod(ellps="WGS84").inv(10.0, 60.0, west, 60.0)[2] == pytest.approx(1000, abs=0.2)
    assert Geod(ellps="WGS84").inv(10.0, 60.0, 10.0, north)[2] == pytest.approx(1000, abs=0.2)


def test_a_projected_rectangle_keeps_its_crs(sandbox: Sandbox) -> None:
    box = ee.Geometry.Rectangle([600000, 4999000, 601000, 5000000], "EPSG:32631", False)
    assert ee.Geometry(box.bounds(1, "EPSG:32631")).coordinates().getInfo()[0][2] == [601000, 5000000]
    assert box.area().getInfo() == pytest.approx(1e6, rel=2e-3)


def test_a_box_across_the_antimeridian_is_small(sandbox: Sandbox) -> None:
    box = ee.Geometry.Polygon([[[179.5, 0], [-179.5, 0], [-179.5, 1], [179.5, 1]]])
    assert box.contains(ee.Geometry.Point([180, 0.5])).getInfo() is True
    assert box.contains(ee.Geometry.Point([0, 0.5])).getInfo() is False
    assert box.area().getInfo() == pytest.approx(111_000 * 110_600, rel=0.02)


def test_intersection_tests_agree_with_the_picture(sandbox: Sandbox) -> None:
    a, b = ee.Geometry.BBox(0, 0, 2, 2), ee.Geometry.BBox(1, 1, 3, 3)
    assert a.intersects(b).getInfo() is True
    assert a.contains(b).getInfo() is False
    assert a.intersection(b).bounds().coordinates().getInfo() == [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]]
    assert a.disjoint(ee.Geometry.Point([5, 5])).getInfo() is True


def test_a_planar_centroid_is_the_middle(sandbox: Sandbox) -> None:
    middle = ee.Geometry.Rectangle([600000, 4999000, 601000, 5000000], "EPSG:32631", False).centroid(1)
    assert middle.getInfo()["coordinates"] == [600500, 4999500]
