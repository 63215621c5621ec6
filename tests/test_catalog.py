"""The catalogue as others read it: STAC's own schemas, pystac, stac-geoparquet and geopandas, all offline."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
import stac_geoparquet.arrow as sga
from jsonschema import Draft7Validator, FormatChecker
from pyproj import CRS, Transformer
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from mmbuild.catalog import build_collection, build_items, item_dict, read_items, tag_column, write_catalog
from mmbuild.cube import Corpus, open_corpus
from mmbuild.recipe import recipe_from_resolved
from mmbuild.records import write_record
from mmbuild.registry import load_modalities
from mmbuild.store.local import LocalStore

# One of each way to get a date: scene, companion, composite of a year and of months, static, derived from the sample.
NAMES = ("sentinel2_l2a", "sentinel2_scl", "sentinel1_asc", "dynamic_world", "era5", "copernicus_dem", "biome", "naip")
SIZE, GSD = 128, 10.0
PLACES = [
    # slot, lon, lat, tags; slot 1 is rejected, slot 3 lies on the antimeridian, slot 4 is far south
    (0, 8.55, 47.37, {"biome": 4, "realm": "Palearctic", "title": "my field", "score": 0.5}),
    (1, 8.60, 47.40, {"biome": 4, "realm": "Palearctic"}),
    (2, -60.0, -3.1, {"biome": 1, "realm": "Neotropic", "score": 2, "split": "mine", "flag": True}),
    (3, 179.9995, -16.5, {"biome": 1, "realm": "Oceania", "flag": False}),
    (4, 25.0, -71.0, {"biome": 11, "realm": None}),
]
SPLITS = {0: "train", 2: "test", 3: "", 4: "train"}
ANCHOR = datetime(2020, 6, 30, 10, 31, 2, 345000, tzinfo=UTC)


def stamp(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


def grid_of(lon: float, lat: float) -> tuple[int, float, float]:
    """EPSG code and outer top-left corner of a chip, by pyproj alone."""
    epsg = (32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    return epsg, round(x / 60) * 60.0 - SIZE * GSD / 2, round(y / 60) * 60.0 + SIZE * GSD / 2


def chip_row(name: str, slot: int) -> dict[str, Any]:
    """The columns of a commit record that say how a chip was dated."""
    scene = {"scene_ids": [f"S/{name}/{slot}"], "scene_count": 1, "datetime": ANCHOR, "delta_days": 0.0}
    return {
        "sentinel2_l2a": scene | {"clear_fraction": 0.75},
        "sentinel2_scl": scene,
        "sentinel1_asc": scene | {"datetime": stamp(2020, 7, 2, 5), "delta_days": 1.75},
        "dynamic_world": {
            "scene_ids": ["DW/a", "DW/b"], "scene_count": 2, "window_start": stamp(2020, 1, 1),
            "window_end": stamp(2021, 1, 1), "first": stamp(2020, 2, 3), "last": stamp(2020, 11, 12),
        },
        "era5": {
            "scene_ids": ["E/202005", "E/202006"], "scene_count": 2, "window_start": stamp(2019, 7, 1),
            "window_end": stamp(2020, 7, 1), "first": stamp(2020, 5, 1), "last": stamp(2020, 6, 1),
        },
        "copernicus_dem": {"scene_ids": ["DEM"], "scene_count": 1},
        "biome": {"scene_ids": [], "scene_count": 0},
        "naip": {},
    }[name]  # fmt: skip


def is_stored(name: str, slot: int) -> bool:
    """NAIP nowhere; Sentinel-1 not at slot 2."""
    return slot != 1 and name != "naip" and (name, slot) != ("sentinel1_asc", 2)


def record_rows(
    slot: int, lon: float, lat: float, tags: dict[str, Any], anchor: datetime | None
) -> list[dict[str, Any]]:
    epsg, x0, y0 = grid_of(lon, lat)
    known = load_modalities()
    rows = []
    for name in NAMES:
        stored = is_stored(name, slot)
        pixel = known[name].level == "pixel"
        rows.append(
            {
                "slot": slot, "sample_id": f"{slot:06d}", "alternate": slot % 2, "lon": lon, "lat": lat, "epsg": epsg,
                "sample_status": "rejected" if slot == 1 else "stored", "x0": x0, "y0": y0, "anchor_time": anchor,
                "gsd": GSD if pixel else None, "height": SIZE if pixel else None, "width": SIZE if pixel else None,
                "tags": json.dumps(tags, sort_keys=True), "modality": name, "time": 0,
                "status": "stored" if stored else "no_data", "reason": "" if stored else "nothing there",
                "valid_fraction": 1.0 if stored else None, "offset": -1, "length": -1,
                **(chip_row(name, slot) if stored else {"scene_ids": []}),
            }
        )  # fmt: skip
    return rows


def make_corpus(
    path: Path,
    *,
    places: Sequence[tuple[int, float, float, dict[str, Any]]] = PLACES,
    synthetic: bool = False,
    licence: str = "CC-BY-4.0",
    anchor: datetime | None = ANCHOR,
) -> Corpus:
    """A lock and commit records; the catalogue reads nothing else."""
    known = load_modalities()
    written = {
        "name": "handmade", "title": "Hand-made", "description": "For the tests.", "licence": licence, "samples": 5,
        "sampler": {"kind": "biome"}, "grid": {"kind": "utm", "gsd": GSD, "size": SIZE},
        "anchor": {"modality": "sentinel2_l2a", "years": [2019, 2020]}, "modalities": {name: {} for name in NAMES},
        "store": {"samples_per_shard": 8},
    }  # fmt: skip
    recipe = recipe_from_resolved(written, known)
    lock = {
        "digest": recipe.digest, "samples": 5, "source": {"name": "earthengine", "synthetic": synthetic},
        "recipe": recipe.resolved(), "modalities": {n: known[n].model_dump(mode="json") for n in NAMES},
    }  # fmt: skip
    store = LocalStore(path)
    store.put("recipe.lock.json", json.dumps(lock).encode())
    write_record(store, 0, [row for place in places for row in record_rows(*place, anchor)])
    return open_corpus(path)


STATS: dict[str, Any] = {
    "modalities": {
        "sentinel1_asc": {
            "bands": {
                "VV": {"count": 90, "nodata_count": 10, "valid_fraction": 0.9}
                | {"mean": -11.5, "std": 2.0, "min": -30.0, "max": 3.0},
                "HH": {"count": 0, "nodata_count": 100, "valid_fraction": 0.0}
                | {"mean": None, "std": None, "min": None, "max": None},
            }
        },
        "dynamic_world": {
            "bands": {"label": {"count": 7, "nodata_count": 0, "valid_fraction": 1.0, "classes": {"0": 3, "1": 4}}}
        },
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = make_corpus(tmp_path_factory.mktemp("catalog") / "corpus")
    write_catalog(corpus, SPLITS, STATS, records="abc")
    return corpus


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> list[dict[str, Any]]:
    """What stac-geoparquet makes of the file, untouched by mmbuild."""
    table = pq.read_table(io.BytesIO(corpus.store.get("items.parquet")))
    return list(sga.stac_table_to_items(table))


@pytest.fixture(scope="module")
def collection(corpus: Corpus) -> dict[str, Any]:
    return json.loads(corpus.store.get("collection.json"))  # type: ignore[no-any-return]


def stac_errors(kind: str, document: dict[str, Any]) -> list[str]:
    """Complaints of the STAC 1.1 core schema that pystac carries, with formats checked, without a network."""
    cache = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(s)) for uri, s in cache.items()])
    schema = cache[f"https://schemas.stacspec.org/v1.1.0/{kind}-spec/json-schema/{kind}.json"]
    validator = Draft7Validator(schema, registry=registry, format_checker=FormatChecker())
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(document)]


# -- items


def test_stac_core_schemas_accept_items_and_collection(items: list[dict[str, Any]], collection: dict[str, Any]) -> None:
    assert len(items) == 4
    for item in items:
        assert stac_errors("item", json.loads(json.dumps(item))) == []
    assert stac_errors("collection", collection) == []


def test_the_schemas_do_refuse(items: list[dict[str, Any]], collection: dict[str, Any]) -> None:
    assert stac_errors("item", items[0] | {"bbox": None})
    assert stac_errors("collection", collection | {"license": "with blanks"})


def test_pystac_reads_them(items: list[dict[str, Any]], collection: dict[str, Any]) -> None:
    read = pystac.Collection.from_dict(collection)
    assert read.id == "handmade"
    assert read.item_assets["sentinel2_l2a"].title == "Sentinel-2 Level-2A, surface reflectance"
    for item in items:
        again = pystac.Item.from_dict(item)
        assert again.datetime == ANCHOR
        assert set(again.assets) <= set(NAMES)


def test_there_is_one_row_per_stored_sample_with_split_index_and_tags(items: list[dict[str, Any]]) -> None:
    shown = [(i["id"], *(i["properties"][k] for k in ("mmbuild:index", "split", "biome", "realm"))) for i in items]
    assert shown == [
        ("000000", 0, "train", 4, "Palearctic"),
        ("000002", 2, "test", 1, "Neotropic"),
        ("000003", 3, "", 1, "Oceania"),
        ("000004", 4, "train", 11, None),
    ]
    assert [i["properties"]["score"] for i in items] == [0.5, 2.0, None, None]
    assert [i["properties"]["flag"] for i in items] == [None, True, False, None]


def test_a_tag_never_hides_a_field_of_stac(items: list[dict[str, Any]]) -> None:
    assert items[0]["properties"]["tag:title"] == "my field"
    assert items[1]["properties"]["tag:split"] == "mine"
    assert [tag_column(n) for n in ("realm", "created", "mmbuild:x")] == ["realm", "tag:created", "tag:mmbuild:x"]


def test_assets_are_the_stored_chips_and_nothing_else(items: list[dict[str, Any]]) -> None:
    for item in items:
        slot = item["properties"]["mmbuild:index"]
        assert {k for k, a in item["assets"].items() if a} == {n for n in NAMES if is_stored(n, slot)}
        for name, asset in item["assets"].items():
            assert (asset["href"], asset["type"]) == (f"./cube.zarr/{name}", "application/vnd+zarr")


def test_every_stored_chip_names_its_scenes_and_dates(corpus: Corpus) -> None:
    table = read_items(corpus)
    assets = item_dict(table.slice(0, 1))["assets"]
    common = {"href", "type", "roles", "title", "gsd", "proj:code", "proj:transform", "proj:shape"}
    shown = {n: {k: v for k, v in a.items() if k not in common} for n, a in assets.items()}
    valid = {"mmbuild:valid_fraction": 1.0}
    when = {"datetime": "2020-06-30T10:31:02.345Z", "mmbuild:delta_days": 0.0}
    assert shown == {
        "sentinel2_l2a": {"mmbuild:scenes": ["S/sentinel2_l2a/0"], "mmbuild:clear_fraction": 0.75, **when, **valid},
        "sentinel2_scl": {"mmbuild:scenes": ["S/sentinel2_scl/0"], **when, **valid},
        "sentinel1_asc": {
            "mmbuild:scenes": ["S/sentinel1_asc/0"], "datetime": "2020-07-02T05:00:00.000Z",
            "mmbuild:delta_days": 1.75, **valid,
        },
        "dynamic_world": {
            "mmbuild:scenes": ["DW/a", "DW/b"], "mmbuild:scene_count": 2,
            "mmbuild:window": ["2020-01-01T00:00:00.000Z", "2021-01-01T00:00:00.000Z"],
            "mmbuild:first": "2020-02-03T00:00:00.000Z", "mmbuild:last": "2020-11-12T00:00:00.000Z", **valid,
        },
        "era5": {
            "mmbuild:scenes": ["E/202005", "E/202006"], "mmbuild:scene_count": 2,
            "mmbuild:window": ["2019-07-01T00:00:00.000Z", "2020-07-01T00:00:00.000Z"],
            "mmbuild:first": "2020-05-01T00:00:00.000Z", "mmbuild:last": "2020-06-01T00:00:00.000Z", **valid,
        },
        "copernicus_dem": {"mmbuild:scenes": ["DEM"], "mmbuild:scene_count": 1, **valid},
        "biome": {"mmbuild:scenes": [], "mmbuild:scene_count": 0, **valid},
    }  # fmt: skip


def test_an_item_as_json_has_no_nulls_but_a_datetime(corpus: Corpus) -> None:
    for i in range(4):
        item = item_dict(read_items(corpus).slice(i, 1))
        assert stac_errors("item", json.loads(json.dumps(item))) == []
        assert None not in item["properties"].values()
        assert all(None not in asset.values() for asset in item["assets"].values())


def test_the_grid_of_every_pixel_asset_is_that_of_the_record(items: list[dict[str, Any]]) -> None:
    for item, (_, lon, lat, _) in zip(items, [p for p in PLACES if p[0] != 1], strict=True):
        epsg, x0, y0 = grid_of(lon, lat)
        assert item["properties"]["proj:code"] == f"EPSG:{epsg}"
        for name, asset in item["assets"].items():
            if name in ("era5", "biome"):
                assert not {"proj:code", "proj:transform", "proj:shape", "gsd"} & asset.keys()
            else:
                assert asset["proj:code"] == f"EPSG:{epsg}"
                assert asset["proj:transform"] == [GSD, 0.0, x0, 0.0, -GSD, y0]
                assert (asset["proj:shape"], asset["gsd"]) == ([SIZE, SIZE], GSD)


def test_the_outline_is_the_ground_of_the_chip(items: list[dict[str, Any]]) -> None:
    for item, (slot, lon, lat, _) in zip(items, [p for p in PLACES if p[0] != 1], strict=True):
        shape = shapely.geometry.shape(item["geometry"])
        epsg, x0, y0 = grid_of(lon, lat)
        side = SIZE * GSD
        back = gpd.GeoSeries([shape], crs=4326).to_crs(epsg).iloc[0]
        truth = shapely.box(x0, y0 - side, x0 + side, y0)
        assert back.symmetric_difference(truth).area < 50  # of 1.6 million square metres
        assert shape.is_valid
        assert shape.geom_type == ("MultiPolygon" if slot == 3 else "Polygon")
        assert all(part.exterior.is_ccw for part in shapely.get_parts(shape))
        if slot != 3:
            np.testing.assert_allclose(item["bbox"], shape.bounds, atol=1e-12)


def test_an_outline_across_the_antimeridian_is_cut_there(items: list[dict[str, Any]]) -> None:
    item = items[2]
    west, south, east, north = item["bbox"]
    assert 179.9 < west < 180
    assert -180 < east < -179.9  # RFC 7946: west > east says that the box crosses
    assert south < north
    parts = shapely.get_parts(shapely.geometry.shape(item["geometry"]))
    assert sorted(round(v) for part in parts for v in (part.bounds[0], part.bounds[2])) == [-180, -180, 180, 180]
    assert sum(p.bounds[2] == 180.0 for p in parts) == sum(p.bounds[0] == -180.0 for p in parts) == 1


def test_a_wide_chip_keeps_its_bent_edges(tmp_path: Path) -> None:
    """100 km at 71 degrees: four corners alone would cut off hundreds of metres."""
    corpus = make_corpus(tmp_path / "c", places=[(0, 27.0, 71.0, {})])
    recipe = corpus.recipe.model_copy(update={"grid": corpus.recipe.grid.model_copy(update={"size": 10_000})})
    recipe._known.update(corpus.recipe.known_modalities)
    corpus.recipe = recipe
    shape = shapely.from_wkb(build_items(corpus, {0: "train"})["geometry"][0].as_py())
    epsg, x0, y0 = grid_of(27.0, 71.0)
    back = gpd.GeoSeries([shapely.segmentize(shape, 0.001)], crs=4326).to_crs(epsg).iloc[0]
    truth = shapely.box(x0, y0 - 100_000, x0 + 100_000, y0)
    assert shapely.hausdorff_distance(back, truth, densify=0.01) < 20


def test_geopandas_finds_geometry_and_crs(corpus: Corpus) -> None:
    table = gpd.read_parquet(io.BytesIO(corpus.store.get("items.parquet")))
    assert table.crs == CRS.from_epsg(4326) or table.crs.to_authority() == ("OGC", "CRS84")
    assert table.geometry.iloc[0].contains(shapely.Point(8.55, 47.37))
    assert table["split"].tolist() == ["train", "test", "", "train"]


def test_the_file_says_it_is_stac_geoparquet_and_carries_the_collection(
    corpus: Corpus, collection: dict[str, Any]
) -> None:
    metadata = pq.read_metadata(io.BytesIO(corpus.store.get("items.parquet"))).metadata
    own = json.loads(metadata[b"stac-geoparquet"])
    assert own["collections"] == {"handmade": collection}
    geo = json.loads(metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    kept = []
    for name in "ab":
        corpus = make_corpus(tmp_path / name)
        write_catalog(corpus, SPLITS, STATS, records="abc")
        kept.append([corpus.store.get(key) for key in ("items.parquet", "collection.json")])
    assert kept[0] == kept[1]


def test_a_sample_without_an_anchor_gets_the_interval_that_stac_asks_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", anchor=None)
    table = build_items(corpus, SPLITS)
    item = item_dict(table.slice(0, 1))
    assert item["properties"]["datetime"] is None
    assert item["properties"]["start_datetime"] == "2019-01-01T00:00:00.000Z"
    assert item["properties"]["end_datetime"] == "2020-12-31T23:59:59.999Z"
    assert stac_errors("item", json.loads(json.dumps(item))) == []
    collection = build_collection(corpus, table, STATS)
    assert collection["extent"]["temporal"]["interval"] == [["2019-01-01T00:00:00.000Z", "2020-12-31T23:59:59.999Z"]]


def test_a_corpus_without_samples_has_a_valid_catalogue(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", places=PLACES[1:2])
    write_catalog(corpus, {}, {"modalities": {}}, records="abc")
    assert len(read_items(corpus)) == 0
    collection = json.loads(corpus.store.get("collection.json"))
    assert stac_errors("collection", collection) == []
    assert (collection["item_assets"], collection["mmbuild:licences"], collection["providers"]) == ({}, [], [])


# -- the collection


def test_licences_and_providers_are_those_of_what_is_inside(collection: dict[str, Any]) -> None:
    known = load_modalities()
    inside = [name for name in NAMES if name != "naip"]
    assert list(collection["item_assets"]) == inside
    named = {(e["licence"], e["attribution"]): e["modalities"] for e in collection["mmbuild:licences"]}
    for name in inside:
        assert name in named[known[name].licence, known[name].attribution]
    assert sorted(n for names in named.values() for n in names) == sorted(inside)
    assert not any("NAIP" in json.dumps(part) for part in (collection["providers"], collection["mmbuild:licences"]))
    names = [(p["name"], p.get("url")) for p in collection["providers"]]
    assert set(names) == {(p.name, p.url) for name in inside for p in known[name].providers}
    assert len(set(names)) == len(names)
    pages = {link["href"] for link in collection["links"] if link["rel"] == "license"}
    assert pages == {known[name].licence_url for name in inside} - {None}


def test_bands_say_name_wavelength_unit_type_nodata_and_scale(collection: dict[str, Any]) -> None:
    red = next(b for b in collection["item_assets"]["sentinel2_l2a"]["bands"] if b["name"] == "B4")
    assert red == {
        "name": "B4", "description": "red", "gsd": 10.0, "data_type": "uint16", "nodata": 65535, "unit": "1",
        "eo:center_wavelength": 0.6645, "eo:full_width_half_max": 0.038, "raster:scale": 0.0001, "raster:offset": 0.0,
        "mmbuild:valid_range": [0.0, 65534.0],
    }  # fmt: skip


def test_statistics_are_in_the_bands_and_absent_where_nothing_was_seen(collection: dict[str, Any]) -> None:
    bands = {b["name"]: b for b in collection["item_assets"]["sentinel1_asc"]["bands"]}
    assert bands["VV"]["statistics"] == {
        "minimum": -30.0, "maximum": 3.0, "mean": -11.5, "stddev": 2.0, "count": 100, "valid_percent": 90.0,
    }  # fmt: skip
    assert "statistics" not in bands["HH"]


def test_classes_have_codes_names_colours_and_counts(collection: dict[str, Any]) -> None:
    classes = collection["item_assets"]["dynamic_world"]["classification:classes"]
    assert [c["value"] for c in classes] == list(range(9))
    assert (classes[0]["name"], classes[0]["count"], classes[1]["count"], classes[2]["count"]) == ("water", 3, 4, 0)
    assert all(len(c["color_hint"]) == 6 for c in classes)
    assert all(set(c["name"]) <= set("abcdefghijklmnopqrstuvwxyz-") for c in classes)


def test_extent_links_and_counts(collection: dict[str, Any], items: list[dict[str, Any]]) -> None:
    assert collection["extent"]["temporal"]["interval"] == [["2020-06-30T10:31:02.345Z", "2020-06-30T10:31:02.345Z"]]
    (west, south, east, north) = collection["extent"]["spatial"]["bbox"][0]
    boxes = np.array([i["bbox"] for i in items])
    # The widest empty gap lies between 25 E and 180 E: the extent runs east from Fiji over the Amazon to 25 E.
    assert (west, east) == (boxes[2, 0], boxes[3, 2])
    assert (south, north) == (boxes[:, 1].min(), boxes[:, 3].max())
    assert {"rel": "items", "href": "./items.parquet"}.items() <= collection["links"][0].items()
    assert collection["assets"]["items"]["roles"] == ["stac-items"]
    assert collection["assets"]["cube"]["href"] == "./cube.zarr"
    assert collection["mmbuild:splits"] == {"none": 1, "test": 1, "train": 2}
    assert collection["mmbuild:samples"] == {"slots": 5, "stored": 4}
    assert (collection["license"], collection["mmbuild:records"]) == ("CC-BY-4.0", "abc")
    assert collection["item_assets"]["sentinel1_asc"]["mmbuild:chips"] == 3
    assert collection["summaries"]["split"] == ["", "test", "train"]


def test_the_extent_of_places_on_one_side_is_the_plain_box(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", places=[PLACES[0], PLACES[2]])
    (west, _, east, _) = build_collection(corpus, build_items(corpus, SPLITS), STATS)["extent"]["spatial"]["bbox"][0]
    assert -60.1 < west < -60
    assert 8.5 < east < 8.6


def test_a_licence_in_words_becomes_other_and_is_kept(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", licence="ask the owner")
    collection = build_collection(corpus, build_items(corpus, SPLITS), STATS)
    assert (collection["license"], collection["mmbuild:licence"]) == ("other", "ask the owner")
    assert stac_errors("collection", collection) == []


def test_synthetic_is_called_synthetic_and_claims_no_product(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", synthetic=True)
    table = build_items(corpus, SPLITS)
    collection = build_collection(corpus, table, STATS)
    assert collection["mmbuild:synthetic"] is True
    assert table["mmbuild:synthetic"].to_pylist() == [True] * 4
    assert collection["description"].startswith("Synthetic values from an offline Earth, no observations. ")
    assert "synthetic" in collection["keywords"]
    text = json.dumps([collection["providers"], collection["mmbuild:licences"]])
    assert "Copernicus" not in text
    assert "ESA" not in text
    assert (
        collection["mmbuild:licences"][0]["attribution"] == "Synthetic values from an offline Earth, no observations."
    )


def test_a_real_corpus_says_that_it_is_not_synthetic(collection: dict[str, Any], items: list[dict[str, Any]]) -> None:
    assert collection["mmbuild:synthetic"] is False
    assert not any(item["properties"]["mmbuild:synthetic"] for item in items)


def test_no_wall_clock_time_is_written(corpus: Corpus, items: list[dict[str, Any]], collection: dict[str, Any]) -> None:
    text = json.dumps([items, collection])
    assert '"created"' not in text
    assert '"updated"' not in text


def test_several_time_steps_are_several_assets(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", places=PLACES[:1])
    records = corpus.records().to_pylist()
    later = [row | {"time": 1, "scene_ids": ["later"]} for row in records if row["modality"] == "sentinel2_l2a"]
    write_record(corpus.store, 0, [*records, *later])

    class TwoSteps(Corpus):
        def shape(self, modality: str) -> tuple[int, ...]:
            return (2 if modality == "sentinel2_l2a" else 1, *super().shape(modality)[1:])

    item = item_dict(build_items(TwoSteps(corpus.store), {0: "train"}))
    scenes = {key: (a["mmbuild:time"], a["mmbuild:scenes"]) for key, a in item["assets"].items() if "l2a" in key}
    assert scenes == {"sentinel2_l2a.0": (0, ["S/sentinel2_l2a/0"]), "sentinel2_l2a.1": (1, ["later"])}
