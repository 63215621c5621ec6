"""The items of a corpus as a stac-geoparquet table, column by column; it reads commit records and no pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pystac
import shapely
from pyproj import Transformer

from mmbuild.modality import Modality

if TYPE_CHECKING:
    from mmbuild.cube import Corpus

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
# Names with a meaning of their own in an item (STAC 1.1 core and common metadata, stac-geoparquet's timestamps, ours):
# a tag of such a name is called ``tag:<name>``.
RESERVED = frozenset({
    "type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "collection", "links", "assets",
    "properties", "datetime", "start_datetime", "end_datetime", "created", "updated", "expires", "published",
    "unpublished", "title", "description", "keywords", "roles", "bands", "data_type", "nodata", "statistics",
    "unit", "platform", "instruments", "constellation", "mission", "gsd", "license", "providers", "split",
})  # fmt: skip
# Longest edge of an outline: a straight line in degrees strays at most 5 m from a UTM edge of this length (at 84 N).
_EDGE_M = 5000.0
# What a commit record says of a chip that an asset repeats.
_PROVENANCE = [
    "epsg", "lat", "x0", "y0", "gsd", "height", "width", "scene_ids", "datetime", "window_start", "window_end", "first",
    "last", "scene_count", "delta_days", "clear_fraction", "valid_fraction",
]  # fmt: skip
# STAC wants an interval where a date is not known: imported files may not even tell the years.
_ANY_YEAR = [1970, 2099]
# What the columns but the assets are made of.
_OF_SAMPLES = [
    "slot", "sample_id", "alternate", "sample_status", "lon", "lat", "epsg", "x0", "y0", "anchor_time", "tags",
    "datetime", "window_start", "window_end",
]  # fmt: skip
WEB_MERCATOR = 3857
Dates = Callable[[Modality, pa.Table], dict[str, pa.Array]]
_TIMESTAMP = pa.timestamp("ms", tz="UTC")
_LINK = pa.struct([("href", pa.string()), ("rel", pa.string()), ("type", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the columns of all items depend on: the tags of any sample with their types, and whether one is undated."""

    tags: Mapping[str, pa.DataType]
    is_undated: bool


def build_items(corpus: Corpus, splits: Mapping[int, str]) -> pa.Table:
    """One row per stored sample in the order of the slots, in the columns of stac-geoparquet.

    splits: slot -> split; "" for samples in none. An asset is null where the chip is not stored.
    """
    return pa.concat_tables(item_parts(corpus, splits)).combine_chunks()


def item_parts(corpus: Corpus, splits: Mapping[int, str], *, with_assets: bool = True) -> Iterator[pa.Table]:
    """The same a few shards at a time, with the same columns in every part; at least one part, maybe of no rows."""
    shape = _shape(corpus)
    for records in corpus.record_parts(None if with_assets else _OF_SAMPLES):
        records = records.filter(pc.equal(records["sample_status"], "stored"))
        yield _items(corpus, records, splits, shape, with_assets)


def _shape(corpus: Corpus) -> Shape:
    samples = corpus.samples(["sample_status", "anchor_time", "tags"])
    samples = samples.filter(pc.equal(samples["sample_status"], "stored"))
    kinds: dict[str, set[type]] = {}
    for text in samples["tags"].unique().to_pylist():
        for name, value in json.loads(text).items():
            kinds.setdefault(name, set()).update([type(value)] if value is not None else [])
    tags = {name: _type_of(kinds[name]) for name in sorted(kinds)}
    return Shape(tags=tags, is_undated=bool(samples["anchor_time"].null_count))


def _items(corpus: Corpus, records: pa.Table, splits: Mapping[int, str], shape: Shape, with_assets: bool) -> pa.Table:
    samples = _first_of_each(records)
    slots = samples["slot"].to_numpy()
    n = len(samples)
    geometry, bbox = _outlines(samples, corpus.recipe.gsd_of_grid * corpus.recipe.grid.size)
    link = {"href": "./collection.json", "rel": "collection", "type": "application/json"}
    columns: dict[str, pa.Array] = {
        "type": _constant("Feature", n, pa.string()),
        "stac_version": _constant(pystac.get_stac_version(), n, pa.string()),
        "stac_extensions": _constant([PROJECTION], n, pa.list_(pa.string())),
        "id": samples["sample_id"],
        "geometry": geometry,
        "bbox": bbox,
        **_times(samples["anchor_time"], corpus, shape.is_undated),
        **(_reach(records, slots) if corpus.recipe.steps > 1 else {}),
        "collection": _constant(corpus.recipe.name, n, pa.string()),
        "links": _constant([link], n, pa.list_(_LINK)),
        **({"assets": _assets(corpus, records, slots)} if with_assets else {}),
        "split": pa.array([splits[slot] for slot in slots.tolist()], pa.string()),
        "mmbuild:index": samples["slot"],
        "mmbuild:alternate": samples["alternate"],
        "mmbuild:synthetic": _constant(corpus.synthetic, n, pa.bool_()),
        "proj:code": _codes(samples["epsg"]),
        **_tags(samples["tags"].to_pylist(), shape.tags),
    }
    fields = [pa.field(name, column.type, metadata=_field_metadata(name)) for name, column in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields)).combine_chunks()


def _first_of_each(records: pa.Table) -> pa.Table:
    """One record per slot: what they say of the sample is the same in all of them."""
    _, first = np.unique(records["slot"].to_numpy(), return_index=True)
    return records.take(pa.array(first))


def _constant(value: Any, n: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), n) if n else pa.array([], kind)


def _codes(epsg: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise("EPSG:", epsg.cast(pa.string()), "")


def _field_metadata(name: str) -> dict[str, str] | None:
    """The geometry column is tagged as GeoArrow does, so that readers find it without the Parquet metadata."""
    return {"ARROW:extension:name": "geoarrow.wkb"} if name == "geometry" else None


def _times(anchor: pa.ChunkedArray, corpus: Corpus, is_undated: bool) -> dict[str, pa.Array]:
    """datetime, and where a sample has none also the interval STAC then asks for: the years the recipe allows."""
    if not is_undated:
        return {"datetime": anchor.cast(_TIMESTAMP)}
    years = corpus.recipe.anchor.years or _ANY_YEAR
    first, last = datetime(min(years), 1, 1, tzinfo=UTC), datetime(max(years) + 1, 1, 1, tzinfo=UTC)
    return {
        "datetime": anchor.cast(_TIMESTAMP),
        "start_datetime": anchor.fill_null(pa.scalar(first, _TIMESTAMP)),
        "end_datetime": anchor.fill_null(pa.scalar(last - timedelta(milliseconds=1), _TIMESTAMP)),
    }


def _reach(records: pa.Table, slots: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
    """start_datetime and end_datetime of samples with several time steps: the first and last moment of any chip."""
    place = np.searchsorted(slots, records["slot"].to_numpy())
    found = {}
    for name, columns, earlier in (
        ("start_datetime", ("datetime", "window_start"), np.minimum),
        ("end_datetime", ("datetime", "window_end"), np.maximum),
    ):
        whole = np.full(len(slots), np.datetime64("NaT"), "datetime64[ms]")
        for column in columns:
            moments = records[column].to_numpy().astype("datetime64[ms]")
            dated = ~np.isnat(moments)
            known, first = np.unique(place[dated], return_index=True)
            fresh = np.isnat(whole[known])
            whole[known[fresh]] = moments[dated][first][fresh]
            earlier.at(whole, place[dated], moments[dated])
        found[name] = pa.array(whole).cast(_TIMESTAMP)
    return found


def _outlines(samples: pa.Table, side: float) -> tuple[pa.Array, pa.Array]:
    """WKB outline in degrees and bbox (RFC 7946) of each sample's ground, ``side`` metres of its CRS wide.

    An imported sample whose grid is not known is a point, its centre.
    """
    shapes = shapely.points(samples["lon"].to_numpy(), samples["lat"].to_numpy())
    sides = [samples[name].to_numpy().copy() for name in ("lon", "lat", "lon", "lat")]
    is_placed = pc.and_(samples["x0"].is_valid(), samples["epsg"].is_valid()).to_numpy(zero_copy_only=False)
    if is_placed.any():
        shapes[is_placed], found = _boxes(samples.filter(pa.array(is_placed)), side)
        for values, own in zip(sides, found, strict=True):
            values[is_placed] = own
    bbox = pa.StructArray.from_arrays([pa.array(values) for values in sides], names=["xmin", "ymin", "xmax", "ymax"])
    return pa.array(shapely.to_wkb(shapes, flavor="iso"), pa.binary()), bbox


def _boxes(samples: pa.Table, side: float) -> tuple[npt.NDArray[np.object_], tuple[npt.NDArray[np.float64], ...]]:
    """Outlines and west, south, east, north of samples on known grids.

    An outline across the antimeridian is cut there into a MultiPolygon, and its bbox has west > east.
    """
    ring = _unit_ring(max(1, min(32, int(np.ceil(side / _EDGE_M)))))
    x = samples["x0"].to_numpy()[:, None] + side * ring[:, 0]
    y = samples["y0"].to_numpy()[:, None] - side * (1 - ring[:, 1])
    epsg, centre = samples["epsg"].to_numpy(), samples["lon"].to_numpy()[:, None]
    lon, lat = np.empty_like(x), np.empty_like(y)
    for code in np.unique(epsg):
        own = epsg == code
        to_degrees = Transformer.from_crs(f"EPSG:{code}", "EPSG:4326", always_xy=True)
        lon[own], lat[own] = to_degrees.transform(x[own], y[own])
    # The turn of the Earth nearest to the centre; beyond 180 means across the antimeridian. 1e-7 degrees are 1 cm.
    lon, lat = np.round(centre + (lon - centre + 180.0) % 360.0 - 180.0, 7), np.round(lat, 7)
    shapes = shapely.polygons(np.stack([lon, lat], axis=-1))
    west, east = lon.min(axis=1, initial=np.inf), lon.max(axis=1, initial=-np.inf)
    crossing = np.flatnonzero((west < -180.0) | (east > 180.0))
    shapes[crossing] = [_cut(shape) for shape in shapes[crossing]]
    west, east = np.where(west < -180.0, west + 360.0, west), np.where(east > 180.0, east - 360.0, east)
    return shapes, (west, lat.min(axis=1, initial=np.inf), east, lat.max(axis=1, initial=-np.inf))


def _unit_ring(edges: int) -> npt.NDArray[np.float64]:
    """Counter-clockwise around the unit square from its lower left, each side in ``edges`` pieces, closed."""
    t = np.arange(edges) / edges
    zero, one = np.zeros(edges), np.ones(edges)
    xy = np.concatenate([np.c_[t, zero], np.c_[one, t], np.c_[1 - t, one], np.c_[zero, 1 - t]])
    return np.vstack([xy, xy[:1]])


def _cut(shape: Any) -> Any:
    parts = []
    for turn in (-360.0, 0.0, 360.0):
        piece = shapely.intersection(shape, shapely.box(turn - 180, -90, turn + 180, 90))
        if piece.area > 0:
            parts.append(shapely.transform(piece, lambda xy, turn=turn: np.round(xy - (turn, 0.0), 7)))
    return shapely.multipolygons(shapely.orient_polygons(parts))


def _tags(texts: Sequence[str], kinds: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """A column per tag of any sample, by name."""
    rows = [json.loads(text) for text in texts]
    return {tag_column(name): _typed([row.get(name) for row in rows], kind) for name, kind in kinds.items()}


def tag_column(name: str) -> str:
    """The property under which a tag is found in an item."""
    return f"tag:{name}" if name in RESERVED or name.startswith(("mmbuild:", "proj:")) else name


def _type_of(kinds: set[type]) -> pa.DataType:
    """Whole numbers, numbers, booleans, else text."""
    for allowed, kind in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds <= allowed:
            return kind
    return pa.string()


def _typed(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind != pa.string():
        return pa.array(values, kind)
    texts = [value if isinstance(value, str | None) else json.dumps(value, sort_keys=True) for value in values]
    return pa.array(texts, kind)


def _assets(corpus: Corpus, records: pa.Table, slots: npt.NDArray[np.int64]) -> pa.Array:
    """One asset per modality and time step, null in the rows of samples that lack it."""
    modality = records["modality"].to_numpy()
    time, place = records["time"].to_numpy(), np.searchsorted(slots, records["slot"].to_numpy())
    is_stored = pc.equal(records["status"], "stored").to_numpy(zero_copy_only=False)
    fields = {}
    for name, definition in corpus.modalities.items():
        times = corpus.shape(name)[0]
        for step in range(times):
            own = np.flatnonzero(is_stored & (modality == name) & (time == step))
            row = np.full(len(slots), -1)
            row[place[own]] = own
            key = name if times == 1 else f"{name}.{step}"
            is_window = corpus.recipe.modalities[name].composite is not None or definition.count_of is not None
            dates = _windows if is_window or definition.time in ("year", "months") else _dates
            fields[key] = _asset(definition, records, row, step if times > 1 else None, dates)
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))


def _asset(
    modality: Modality, records: pa.Table, row: npt.NDArray[np.int64], step: int | None, dates: Dates
) -> pa.Array:
    """The asset of each item; ``row`` is its place in ``records``, -1 for none."""
    n, is_missing = len(row), row < 0
    rows = records.select(_PROVENANCE).take(pa.array(row, mask=is_missing))
    columns = {
        "href": _constant(f"./cube.zarr/{modality.name}", n, pa.string()),
        "type": _constant(pystac.MediaType.ZARR.value, n, pa.string()),
        "roles": _constant(["data"], n, pa.list_(pa.string())),
        "title": _constant(modality.title, n, pa.string()),
        **({} if step is None else {"mmbuild:time": _constant(step, n, pa.int64())}),
        **(_grid(rows) if modality.level == "pixel" else {}),
        "mmbuild:scenes": rows["scene_ids"],
        **dates(modality, rows),
        "mmbuild:clear_fraction": rows["clear_fraction"].cast(pa.float64()),
        "mmbuild:valid_fraction": rows["valid_fraction"].cast(pa.float64()),
    }
    arrays = [_one_chunk(column) for column in columns.values()]
    return pa.StructArray.from_arrays(arrays, names=list(columns), mask=pa.array(is_missing))


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _grid(rows: pa.Table) -> dict[str, pa.Array]:
    """Where the pixels lie: CRS, affine of the outer corner (row by row), shape (height, width), and their size.

    gsd is in metres on the ground: web-mercator metres shrink with the cosine of the latitude.
    """
    gsd, zero = rows["gsd"], pc.multiply(rows["gsd"], 0.0)
    shrink = pc.if_else(pc.equal(rows["epsg"], WEB_MERCATOR), pc.cos(pc.multiply(rows["lat"], np.pi / 180)), 1.0)
    return {
        "gsd": pc.multiply(gsd, shrink),
        "proj:code": _codes(rows["epsg"]),
        # The corner first: where it is not known there is no transform.
        "proj:transform": _zipped([rows["x0"], gsd, zero, rows["x0"], zero, pc.negate(gsd), rows["y0"]], skip=1),
        "proj:shape": _zipped([rows["height"].cast(pa.int64()), rows["width"].cast(pa.int64())]),
    }


def _zipped(columns: Sequence[pa.ChunkedArray], *, skip: int = 0) -> pa.Array:
    """A list per row with one value of each column but the first ``skip``; null where the first column is null."""
    first, *parts = [_one_chunk(column) for column in (columns[0], *columns[skip:])]
    n, width = len(first), len(parts)
    values = pa.concat_arrays(parts).take(pa.array(np.arange(n * width).reshape(width, n).T.ravel()))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, values, mask=first.is_null())


def _dates(modality: Modality, rows: pa.Table) -> dict[str, pa.Array]:
    """When it was seen: the scene's time and its distance from the anchor."""
    if modality.time == "static":
        return {"mmbuild:scene_count": rows["scene_count"]}
    return {"datetime": _stamp(rows["datetime"]), "mmbuild:delta_days": rows["delta_days"]}


def _windows(modality: Modality, rows: pa.Table) -> dict[str, pa.Array]:
    """The window of a composite, and what fed it."""
    return {
        "mmbuild:window": _zipped([_stamp(rows["window_start"]), _stamp(rows["window_end"])]),
        "mmbuild:scene_count": rows["scene_count"],
        "mmbuild:first": _stamp(rows["first"]),
        "mmbuild:last": _stamp(rows["last"]),
    }


def _stamp(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """RFC 3339 in UTC with milliseconds."""
    text = column.cast(pa.timestamp("ms")).cast(pa.string())  # 2020-06-30 10:31:02.345; strftime is many times slower
    return pc.binary_join_element_wise(pc.replace_substring(text, " ", "T"), "Z", "")


def without_nulls(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value."""
    return {key: value for key, value in mapping.items() if value is not None}
