"""Which samples train and which are held out: whole blocks of ground, kept apart by a strip that belongs to nobody.

A sample's split follows from its own place, the seed and the four numbers of the recipe, never from other samples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import shapely
from pyproj import Geod, Transformer

from mmbuild.samplers import Floats, Ints, uniform

if TYPE_CHECKING:
    from mmbuild.cube import Corpus

SPLITS = ("train", "val", "test")
_GEOD = Geod(ellps="WGS84")
# Smallest radius of curvature of WGS84 (along the meridian at the equator): distances turn into angles that are never
# too small with it.
_MIN_RADIUS_M = 6_335_439.0


def assign(
    lon: npt.ArrayLike, lat: npt.ArrayLike, *, val: float, test: float, block_km: float, buffer_m: float, seed: int
) -> npt.NDArray[np.str_]:
    """ "train", "val", "test" or "" of each place (degrees).

    Blocks are the squares of ``block_km`` of the equal-area grid EPSG:6933, so every block holds the same ground. A
    block is test or val when its number, drawn from (seed, column, row), is below ``test`` or ``test + val``. A train
    place within ``buffer_m`` of such a block gets "": the distance is geodesic, in true metres at any latitude, to the
    block's outline on the ellipsoid, so any train place is further than ``buffer_m`` from any held-out place.
    """
    x, y = np.atleast_1d(np.asarray(lon, float)), np.atleast_1d(np.asarray(lat, float))
    column, row = _blocks(x, y, block_km)
    fate = _fate(column, row, val, test, seed)
    split = np.array(SPLITS)[fate]
    train = np.flatnonzero(fate == 0)
    if buffer_m > 0 and val + test > 0 and len(train):
        near = _is_near_held_out(x[train], y[train], (val, test, seed), block_km, buffer_m)
        split[train[near]] = ""
    return split


@cache
def _to_grid() -> Transformer:
    return Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)


@cache
def _world_edge_m() -> float:
    """Easting of the antimeridian in EPSG:6933; westing is its negative."""
    return float(_to_grid().transform(180.0, 0.0)[0])


def _blocks(lon: Floats, lat: Floats, block_km: float) -> tuple[Ints, Ints]:
    """Column and row of the block that holds each place."""
    x, y = _to_grid().transform(lon, lat)
    size = block_km * 1000.0
    return np.floor(x / size).astype(np.int64), np.floor(y / size).astype(np.int64)


def _fate(column: Ints, row: Ints, val: float, test: float, seed: int) -> Ints:
    """Index into SPLITS of each block."""
    u = uniform(seed, "split", column, row)
    return np.where(u < test, 2, np.where(u < test + val, 1, 0))


def _is_near_held_out(
    lon: Floats, lat: Floats, rule: tuple[float, float, int], block_km: float, buffer_m: float
) -> npt.NDArray[np.bool_]:
    """True for places within ``buffer_m`` of a block whose fate is not train.

    A box of meridians and parallels around each place tells which blocks can be near; the held-out ones are measured,
    the nearest first. The Earth is tried at three turns, so that blocks beyond the antimeridian are seen.
    """
    d_lon, d_lat = reach_deg(lat, buffer_m)
    near = np.zeros(len(lon), bool)
    for turn in (0.0, -360.0, 360.0):
        west, east = np.maximum(lon + turn - d_lon, -180.0), np.minimum(lon + turn + d_lon, 180.0)
        rows = np.flatnonzero((west <= east) & ~near)
        if not len(rows):
            continue
        x, y = lon[rows] + turn, lat[rows]
        low = np.array(_blocks(west[rows], np.maximum(y - d_lat, -90.0), block_km))
        high = np.array(_blocks(east[rows], np.minimum(y + d_lat, 90.0), block_km))
        own = np.array(_blocks(np.clip(x, -180.0, 180.0), y, block_km))
        for step in _outwards(int((own - low).max(initial=0)), int((high - own).max(initial=0))):
            column, row = own + np.array(step)[:, None]
            inside = (low <= (column, row)).all(axis=0) & (high >= (column, row)).all(axis=0)
            asked = np.flatnonzero(inside & ~near[rows])
            held = asked[_fate(column[asked], row[asked], *rule) > 0]
            near[rows[held]] = _is_within(x[held], y[held], column[held], row[held], block_km, buffer_m)
            if near[rows].all():
                break
    return near


def _outwards(back: int, forth: int) -> Iterator[tuple[int, int]]:
    """Steps (column, row) from a block to those around it, ring by ring."""
    for ring in range(max(back, forth) + 1):
        span = range(max(-ring, -back), min(ring, forth) + 1)
        yield from ((i, j) for i in span for j in span if max(abs(i), abs(j)) == ring)


def _is_within(
    lon: Floats, lat: Floats, column: Ints, row: Ints, block_km: float, limit_m: float
) -> npt.NDArray[np.bool_]:
    """Whether each place is at most ``limit_m`` from a block; most are settled by one point of the block."""
    west, south, east, north = _outline(column, row, block_km)
    within = _geodesic(lon, lat, np.clip(lon, west, east), np.clip(lat, south, north)) <= limit_m
    rest = np.flatnonzero(~within)
    within[rest] = distance_to_block(lon[rest], lat[rest], column[rest], row[rest], block_km) <= limit_m
    return within


def reach_deg(lat: Floats, distance_m: float) -> tuple[Floats, float]:
    """Half width and half height, in degrees, of a box that surely holds all that is within ``distance_m``."""
    angle = distance_m / _MIN_RADIUS_M * 1.001
    ratio = np.sin(min(angle, np.pi / 2)) / np.maximum(np.cos(np.radians(lat)), 1e-12)
    holds_pole = np.abs(np.radians(lat)) + angle >= np.pi / 2
    half = np.degrees(np.arcsin(np.minimum(ratio, 1.0)))
    return np.where(holds_pole, 180.0, half), float(np.degrees(angle))


def distance_to_block(lon: Floats, lat: Floats, column: Ints, row: Ints, block_km: float) -> Floats:
    """Geodesic metres from each place to a block of the grid; 0 inside it.

    EPSG:6933 is cylindrical: a block is bounded by two meridians and two parallels. From a place between its meridians
    the way to it goes along the meridian; from elsewhere it ends on the nearer meridian side, where the distance has
    one minimum over latitude, found by golden section to less than a millimetre. Longitudes beyond 180 are welcome.
    """
    west, south, east, north = _outline(column, row, block_km)
    edge = np.clip(lon, west, east)
    low, high = south.copy(), north.copy()
    inside = edge == lon
    low[inside] = high[inside] = np.clip(lat, south, north)[inside]
    shrink = (np.sqrt(5) - 1) / 2
    for _ in range(60 if not inside.all() else 0):
        a, b = high - shrink * (high - low), low + shrink * (high - low)
        left = _geodesic(lon, lat, edge, a) <= _geodesic(lon, lat, edge, b)
        low, high = np.where(left, low, a), np.where(left, b, high)
    ends = [_geodesic(lon, lat, edge, at) for at in (south, north, (low + high) / 2)]
    return np.where(inside, ends[2], np.minimum.reduce(ends))


def _outline(column: Ints, row: Ints, block_km: float) -> tuple[Floats, Floats, Floats, Floats]:
    """West, south, east and north of blocks in degrees, cut at the antimeridian and the poles."""
    size, edge = block_km * 1000.0, _world_edge_m()
    top = float(_to_grid().transform(0.0, 90.0)[1])
    x = np.clip([column * size, (column + 1) * size], -edge, edge)
    y = np.clip([row * size, (row + 1) * size], -top, top)
    lon, lat = _to_grid().transform(x, y, direction="INVERSE")
    # PROJ may call the eastern edge of the world -180.
    lon = np.where(x >= edge, 180.0, np.where(x <= -edge, -180.0, lon))
    lat = np.where(y >= top, 90.0, np.where(y <= -top, -90.0, lat))
    return lon[0], lat[0], lon[1], lat[1]


def _geodesic(lon: Floats, lat: Floats, to_lon: Floats, to_lat: Floats) -> Floats:
    return np.asarray(_GEOD.inv(lon, lat, to_lon, to_lat)[2], dtype=np.float64)


def smallest_distance(
    lon: npt.ArrayLike, lat: npt.ArrayLike, split: npt.ArrayLike, other: str = "test"
) -> float | None:
    """Geodesic metres between the closest pair of a train place and an ``other`` place; None when either has none.

    Exact: a first pair bounds the distance, an index finds every pair within a box of that size, and all are measured.
    """
    x, y, names = np.asarray(lon, float), np.asarray(lat, float), np.asarray(split)
    train, held = np.flatnonzero(names == "train"), np.flatnonzero(names == other)
    if not len(train) or not len(held):
        return None
    # Held-out places stand three times in the index, once per turn of the Earth.
    turns = np.repeat([-360.0, 0.0, 360.0], len(held))
    tree = shapely.STRtree(shapely.points(np.tile(x[held], 3) + turns, np.tile(y[held], 3)))
    owner = np.tile(held, 3)
    pairs = train, owner[tree.nearest(shapely.points(x[train], y[train]))]
    bound = float(_geodesic(x[pairs[0]], y[pairs[0]], x[pairs[1]], y[pairs[1]]).min())
    d_lon, d_lat = reach_deg(y[train], bound)
    boxes = shapely.box(x[train] - d_lon, y[train] - d_lat, x[train] + d_lon, y[train] + d_lat)
    best = bound
    for part in np.array_split(np.arange(len(train)), max(1, len(train) // 20_000)):
        a, b = tree.query(boxes[part])
        i, j = train[part[a]], owner[b]
        best = min(best, float(_geodesic(x[i], y[i], x[j], y[j]).min(initial=best)))
    return best


def split_corpus(corpus: Corpus) -> dict[int, str]:
    """Write ``splits.json`` and answer slot -> split of every stored sample, by slot.

    The file has the rule, how many samples each split has, and how far train keeps from val and test.
    """
    slots, lon, lat = _places(corpus)
    rule = {**corpus.recipe.splits.model_dump(), "seed": corpus.recipe.seed}
    split = assign(lon, lat, **rule)
    counts = Counter(split.tolist())
    summary = {
        "rule": {"blocks": "EPSG:6933", **rule},
        "samples": len(slots),
        "counts": {name or "none": counts[name] for name in (*SPLITS, "")},
        "smallest_train_test_m": smallest_distance(lon, lat, split, "test"),
        "smallest_train_val_m": smallest_distance(lon, lat, split, "val"),
    }
    corpus.store.put("splits.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return dict(zip(slots.tolist(), split.tolist(), strict=True))


def _places(corpus: Corpus) -> tuple[Ints, Floats, Floats]:
    """Slot, longitude and latitude of every stored sample, by slot."""
    table = corpus.samples(["sample_status", "lon", "lat"])
    table = table.filter(pc.equal(table["sample_status"], "stored"))
    slots, lon, lat = (table[name].to_numpy() for name in ("slot", "lon", "lat"))
    return slots, lon, lat
