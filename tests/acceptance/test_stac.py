"""Issue 2: STAC's core schemas accept the catalogue, and every stored chip names its scenes and dates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pystac
import pytest
import shapely
import stac_geoparquet.arrow as sga
from jsonschema import Draft7Validator, FormatChecker
from pyproj import Transformer
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from mmbuild.catalog import item_dict, read_items
from mmbuild.cube import open_corpus
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine.session import connect
from tests.truth import record_rows

# How the modalities of recipes/tiny.yaml get their dates.
SCENES = ("sentinel2_l2a", "sentinel2_l1c", "sentinel2_scl", "sentinel1_asc", "sentinel1_desc")
STATIC = ("aster_gdem", "canopy_height", "esa_worldcover")
YEARLY, MONTHLY = ("dynamic_world",), ("era5",)
DERIVED = ("biome", "ecoregion", "geolocation", "month")

Named = tuple[dict[str, Any], dict[str, Any]]
"""A stored chip's record row and its asset in the catalogue."""


@pytest.fixture(scope="module")
def items(tiny64: Path) -> list[dict[str, Any]]:
    """The items as JSON has them."""
    table = read_items(open_corpus(tiny64))
    return [item_dict(table.slice(row, 1)) for row in range(len(table))]


@pytest.fixture(scope="module")
def collection(tiny64: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny64 / "collection.json").read_text(), parse_constant=refuse)
    return found


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture(scope="module")
def named(tiny64: Path, items: list[dict[str, Any]]) -> list[Named]:
    """Every stored chip with its asset."""
    by_slot = {item["properties"]["mmbuild:index"]: item for item in items}
    stored = [row for row in record_rows(tiny64) if row["status"] == "stored"]
    return [(row, by_slot[row["slot"]]["assets"][row["modality"]]) for row in stored]


def of(named: list[Named], modalities: tuple[str, ...]) -> Iterator[Named]:
    """The chips of some modalities, of each at least one."""
    found = [pair for pair in named if pair[0]["modality"] in modalities]
    assert {row["modality"] for row, _ in found} == set(modalities)
    yield from found


def errors(kind: str, document: dict[str, Any]) -> list[str]:
    """What STAC 1.1's own schema, shipped with pystac, says against a document; its references stay offline."""
    cache = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(s)) for uri, s in cache.items()])
    schema = cache[f"https://schemas.stacspec.org/v1.1.0/{kind}-spec/json-schema/{kind}.json"]
    validator = Draft7Validator(schema, registry=registry, format_checker=FormatChecker())
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(document)]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- the schemas --------------------------------------------------------------------------------------------------


def test_the_core_schema_accepts_the_collection(collection: dict[str, Any]) -> None:
    assert collection["stac_version"] == "1.1.0"
    assert errors("collection", collection) == []
    assert pystac.Collection.from_dict(collection).id == "tiny"


def test_the_core_schema_accepts_every_item(items: list[dict[str, Any]]) -> None:
    assert len(items) == 64
    for item in items:
        document = json.loads(json.dumps(item, allow_nan=False), parse_constant=refuse)
        assert errors("item", document) == []
        assert pystac.Item.from_dict(document).collection_id == "tiny"


def test_the_schemas_do_refuse(items: list[dict[str, Any]], collection: dict[str, Any]) -> None:
    assert errors("item", {key: value for key, value in items[0].items() if key != "geometry"})
    assert errors("collection", {key: value for key, value in collection.items() if key != "license"})


def test_the_catalogue_reads_as_stac_geoparquet(tiny64: Path) -> None:
    table = pq.read_table(tiny64 / "items.parquet")
    assert len(table) == 64
    assert [item["id"] for item in sga.stac_table_to_items(table)] == table["id"].to_pylist()
    assert {"geo", "stac-geoparquet"} & {key.decode() for key in table.schema.metadata}


# -- items and chips ----------------------------------------------------------------------------------------------


def test_an_item_has_the_assets_of_its_stored_chips_and_no_others(tiny64: Path, items: list[dict[str, Any]]) -> None:
    stored: dict[int, set[str]] = {}
    for row in record_rows(tiny64):
        if row["status"] == "stored":
            stored.setdefault(row["slot"], set()).add(row["modality"])
    assert {item["properties"]["mmbuild:index"]: set(item["assets"]) for item in items} == stored


def test_an_asset_says_where_its_pixels_lie(named: list[Named], items: list[dict[str, Any]]) -> None:
    """The outline of each item, and the affine transform of each chip, hold the sample's place."""
    outlines = {
        item["properties"]["mmbuild:index"]: shapely.from_geojson(json.dumps(item["geometry"])) for item in items
    }
    for row, asset in named:
        assert outlines[row["slot"]].buffer(1e-6).contains(shapely.Point(row["lon"], row["lat"]))
        if row["gsd"] is None:
            continue
        a, b, c, d, e, f = asset["proj:transform"][:6]
        height, width = asset["proj:shape"]
        x, y = Transformer.from_crs(4326, asset["proj:code"], always_xy=True).transform(row["lon"], row["lat"])
        # The sample's place is the centre of the chip, moved to the 60 m lattice: by 30 m at most in each direction.
        assert b == d == 0.0
        assert abs((x - c) / a - width / 2) * a <= 30.0 + 1e-6
        assert abs((y - f) / e - height / 2) * a <= 30.0 + 1e-6


def test_a_chip_of_a_scene_names_it_and_its_date(named: list[Named]) -> None:
    for row, asset in of(named, SCENES):
        (scene,) = asset["mmbuild:scenes"]
        assert scene in row["scene_ids"]
        taken = moment(asset["datetime"])
        # Scene names carry the time: 20200604T054639_20200604T054831_T43RCP, S1A_IW_GRDH_1SDV_20200607T010800_...
        stamps = [datetime.strptime(s, "%Y%m%dT%H%M%S").replace(tzinfo=UTC) for s in re.findall(r"\d{8}T\d{6}", scene)]
        assert any(abs(stamp - taken) < timedelta(seconds=2) for stamp in stamps), (scene, taken)
        assert asset["mmbuild:delta_days"] == pytest.approx((taken - row["anchor_time"]).total_seconds() / 86_400)


def test_the_scenes_exist_and_were_taken_then(named: list[Named]) -> None:
    """Asked through the genuine client, a few of each modality."""
    import ee

    connect(SourceSpec(name="sandbox"))
    asked = {name: [pair for pair in named if pair[0]["modality"] == name][:3] for name in SCENES}
    pairs = [pair for some in asked.values() for pair in some]
    assert all(asked.values())
    told = ee.List([ee.Image(asset["mmbuild:scenes"][0]).get("system:time_start") for _, asset in pairs]).getInfo()
    assert told == [round(moment(asset["datetime"]).timestamp() * 1000) for _, asset in pairs]


def test_a_composite_names_its_window_and_the_first_and_last_of_its_images(named: list[Named]) -> None:
    for row, asset in of(named, YEARLY):
        start, end = (moment(text) for text in asset["mmbuild:window"])
        year = row["anchor_time"].year
        assert (start, end) == (datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))
        check_images(asset, r"_(\d{8}T\d{6})_T", "%Y%m%dT%H%M%S")


def test_climate_names_its_months(named: list[Named]) -> None:
    for row, asset in of(named, MONTHLY):
        start, end = (moment(text) for text in asset["mmbuild:window"])
        last = row["anchor_time"].year * 12 + row["anchor_time"].month - 1
        assert start == datetime((last - 11) // 12, (last - 11) % 12 + 1, 1, tzinfo=UTC)
        assert end == datetime((last + 1) // 12, (last + 1) % 12 + 1, 1, tzinfo=UTC)
        assert asset["mmbuild:scene_count"] == 12
        check_images(asset, r"/(\d{6})$", "%Y%m")


def check_images(asset: dict[str, Any], pattern: str, form: str) -> None:
    """Count, first and last date of a composite are those of the images it names, and lie in its window."""
    scenes = asset["mmbuild:scenes"]
    times = sorted(datetime.strptime(re.findall(pattern, s)[-1], form).replace(tzinfo=UTC) for s in scenes)
    assert asset["mmbuild:scene_count"] == len(scenes) == len(set(scenes)) > 0
    first, last = moment(asset["mmbuild:first"]), moment(asset["mmbuild:last"])
    assert abs(first - times[0]) < timedelta(seconds=2)
    assert abs(last - times[-1]) < timedelta(seconds=2)
    start, end = (moment(text) for text in asset["mmbuild:window"])
    assert start <= first <= last < end


def test_a_timeless_product_names_its_images(named: list[Named]) -> None:
    for row, asset in of(named, STATIC):
        assert asset["mmbuild:scenes"] == row["scene_ids"]
        assert asset["mmbuild:scene_count"] == len(row["scene_ids"]) >= 1


def test_every_stored_chip_is_one_of_those(named: list[Named]) -> None:
    dated = {*SCENES, *STATIC, *YEARLY, *MONTHLY}
    assert {row["modality"] for row, _ in named} - {*DERIVED} == dated
    assert all(asset["mmbuild:scenes"] for row, asset in named if row["modality"] in dated)


# -- the collection -----------------------------------------------------------------------------------------------


def test_the_collection_holds_what_is_inside(tiny64: Path, collection: dict[str, Any], named: list[Named]) -> None:
    assert collection["mmbuild:synthetic"] is True
    counts: dict[str, int] = {}
    for row, _ in named:
        counts[row["modality"]] = counts.get(row["modality"], 0) + 1
    assert {name: about["mmbuild:chips"] for name, about in collection["item_assets"].items()} == counts
    for link in (*collection["links"], *collection["assets"].values()):
        if not link["href"].startswith("http"):
            assert (tiny64 / link["href"]).exists(), link["href"]
