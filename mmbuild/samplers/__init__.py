"""Ways to choose places: one file is one way, and its name is the ``kind`` in the recipe.

What they share is here: randomness as a pure function of counters, and points drawn uniformly on the sphere
inside polygons. Nothing keeps state: row (slot, alternate) follows from (seed, slot, alternate) alone, so a
larger corpus keeps the first places of a smaller one.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from mmbuild.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Where UTM ends (MGRS): no sample grid exists beyond, so no point is drawn there.
SOUTH_LIMIT_DEG, NORTH_LIMIT_DEG = -80.0, 84.0
# Alternates 1 and 2 stay in the stratum of the slot, later ones leave it (rule 7: same ecoregion, then same
# biome). A fixed number, not a share of the recipe's `alternates`, so that (seed, slot, k) alone decides row
# (slot, k).
NEAR_ALTERNATES = 2


def kinds() -> list[str]:
    """Names of all samplers: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(kind: str) -> ModuleType:
    """The module of one sampler; it has ``candidates`` with the signature of the function below."""
    if kind not in kinds():
        raise UserError(f"there is no sampler {kind!r}", "sampler.kind", f"use one of {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}")


def candidates(
    spec: Any,
    *,
    n: int | None,
    start: int = 0,
    seed: int,
    alternates: int,
    regions: gpd.GeoDataFrame | None = None,
) -> gpd.GeoDataFrame:
    """Places of the slots ``start`` .. ``n - 1`` with their alternates, by the sampler ``spec.kind``.

    Columns: slot, alternate (0 is the first choice), lon, lat (degrees), date (UTC or NaT), tags (dict),
    geometry (EPSG:4326 points); sorted by slot, then alternate. ``regions``: polygons that the caller asked a
    source for.
    """
    module = load(spec.kind)
    return module.candidates(spec, n=n, start=start, seed=seed, alternates=alternates, regions=regions)


# --- randomness
# -------------------------------------------------------------------------------------------------


def uniform(seed: int, purpose: str, *counters: npt.ArrayLike) -> Floats:
    """Numbers in [0, 1) that depend on nothing but the arguments; counters are integers and broadcast.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014; Vigna's constants) chained over the counters,
    keyed by the SHA-256 of seed and purpose; the upper 53 bits make the number.
    """
    key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8]
    state = np.frombuffer(key, "<u8").copy()
    for counter in counters:
        word = np.atleast_1d(np.asarray(counter, np.int64)).view(np.uint64)
        state = _mix(state + (word + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# --- polygons on the sphere
# -------------------------------------------------------------------------------------


def sphere_area(geometries: npt.ArrayLike) -> Floats:
    """Area of each polygon on the unit sphere (steradians), its edges straight in longitude and latitude.

    Exact: along an edge the integral of sin(latitude) over longitude has a closed form, which is the
    longitude span times sin(mean latitude) times sinc(half the latitude span).
    """
    shapes = np.atleast_1d(np.asarray(geometries, dtype=object))
    parts, owner = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    if not len(rings):
        return np.zeros(len(shapes))
    is_hole = np.concatenate([[False], part[1:] == part[:-1]])
    areas = np.abs(_ring_areas(rings))
    return np.bincount(owner[part], np.where(is_hole, -areas, areas), minlength=len(shapes)).astype(np.float64)


def _ring_areas(rings: npt.NDArray[Any]) -> Floats:
    """Signed area of each closed ring, in steradians."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lon, lat = np.radians(points).T
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    middle, half = (lat[edge + 1] + lat[edge]) / 2, (lat[edge + 1] - lat[edge]) / 2
    parts = (lon[edge + 1] - lon[edge]) * np.sin(middle) * np.sinc(half / np.pi)
    return np.bincount(ring[edge], parts, minlength=len(rings)).astype(np.float64)


def on_globe(geometry: Any, where: str) -> Any:
    """A polygon in lon/lat as valid parts within -180 .. 180 and the latitudes that have UTM grids.

    Longitudes beyond 180 (an area written as 170 .. 190) are wrapped. An edge of more than 180 degrees of
    longitude has two readings and is refused, unless it runs along the antimeridian's two sides or along a
    pole. Raises UserError (``where`` says file and row) for anything that is not a polygon, or has no area
    that can be drawn.
    """
    if geometry is None or geometry.is_empty or shapely.get_type_id(geometry) not in (3, 6, 7):
        raise UserError("is not a polygon", where, "give every row a Polygon or MultiPolygon")
    _refuse_ambiguous_edges(geometry, where)
    flat = shapely.force_2d(geometry)
    flat = _polygons(flat if flat.is_valid else shapely.make_valid(flat))
    west, south, east, north = flat.bounds
    if west < -540 or east > 540 or south < -90.0001 or north > 90.0001:
        raise UserError(
            f"its bounds {flat.bounds} are not longitudes and latitudes",
            where,
            "say the right CRS in the file",
        )
    if west < -180 or east > 180 or south < SOUTH_LIMIT_DEG or north > NORTH_LIMIT_DEG:
        flat = _wrap(flat)
    if flat.is_empty:
        text = f"lies beyond {-SOUTH_LIMIT_DEG:g}° S or {NORTH_LIMIT_DEG:g}° N, where UTM ends"
        raise UserError(text, where, "leave it out or extend it")
    return flat


def _wrap(geometry: Any) -> Any:
    """Bring the parts beyond the antimeridian back and cut what lies beyond the UTM limits."""
    pieces = []
    for turn in (-360.0, 0.0, 360.0):
        window = shapely.box(turn - 180, SOUTH_LIMIT_DEG, turn + 180, NORTH_LIMIT_DEG)
        piece = _polygons(shapely.intersection(geometry, window))
        pieces.append(shapely.transform(piece, lambda xy, turn=turn: xy - (turn, 0.0)))
    return _polygons(shapely.union_all(pieces))


def _polygons(geometry: Any) -> Any:
    """Only the polygons of a geometry; lines and points left over from a cut have no area."""
    parts = shapely.get_parts(shapely.get_parts(shapely.get_parts(geometry)))
    return shapely.multipolygons(parts[shapely.get_type_id(parts) == 3])


def _refuse_ambiguous_edges(geometry: Any, where: str) -> None:
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    first, last = points[:-1], points[1:]
    on_seam = (np.abs(np.abs(first[:, 0]) - 180) < 1e-6) & (np.abs(np.abs(last[:, 0]) - 180) < 1e-6)
    at_pole = (np.abs(first[:, 1]) > 89) & (np.abs(last[:, 1]) > 89)
    long = (np.abs(last[:, 0] - first[:, 0]) > 180) & (ring[1:] == ring[:-1]) & ~on_seam & ~at_pole
    if long.any():
        (a, _), (b, _) = first[long][0], last[long][0]
        raise UserError(
            f"an edge runs from longitude {a:g} to {b:g}, which can be read in two ways",
            where,
            "across the antimeridian write longitudes beyond 180 (170 to 190) or cut the polygon there; "
            "otherwise add a vertex in between",
        )


@dataclass(frozen=True, kw_only=True)
class Region:
    """A polygon made ready for drawing: boxes that cover it and their areas on the sphere, summed up.

    boxes: (box, 4) west, south, east, north in degrees. They do not overlap, and the polygon fills a good
    part of them.
    """

    geometry: Any
    boxes: Floats
    cumulative: Floats


# A draw succeeds at least every second time once the polygon fills half of its boxes; thin and scattered
# polygons stop at the number of boxes, and merely need more draws.
COVER_FILL, COVER_STEPS = 0.5, 2000


def prepare(geometry: Any) -> Region:
    """Cover a polygon (from ``on_globe``) with boxes: the largest is halved until half of all is filled."""
    shapely.prepare(geometry)
    goal = float(sphere_area([geometry])[0]) / COVER_FILL
    heap = [(-_box_area(geometry.bounds), geometry.bounds)]
    total, inside = -heap[0][0], []
    for _ in range(COVER_STEPS):
        if total <= goal or not heap:
            break
        area, box = heapq.heappop(heap)
        if shapely.contains(geometry, shapely.box(*box)):
            inside.append((area, box))
            continue
        halves = [half for half in _halves(box) if shapely.intersects(geometry, shapely.box(*half))]
        total += area + sum(_box_area(half) for half in halves)
        for half in halves:
            heapq.heappush(heap, (-_box_area(half), half))
    found = sorted(inside + heap)
    boxes = np.array([box for _, box in found], np.float64)
    return Region(geometry=geometry, boxes=boxes, cumulative=np.cumsum([-area for area, _ in found]))


def _box_area(box: Sequence[float]) -> float:
    west, south, east, north = np.radians(box)
    return float((east - west) * (np.sin(north) - np.sin(south)))


def _halves(box: tuple[float, float, float, float]) -> Sequence[tuple[float, float, float, float]]:
    """Cut a box across its longer side, as measured on the ground."""
    west, south, east, north = box
    if (east - west) * np.cos(np.radians((south + north) / 2)) > north - south:
        middle = (west + east) / 2
        return (west, south, middle, north), (middle, south, east, north)
    middle = (south + north) / 2
    return (west, south, east, middle), (west, middle, east, north)


# A polygon that fills only a twentieth of its boxes (the worst of 847 ecoregions fills a fifth) is missed this
# often in a row once in 10^22 points.
MAX_ATTEMPTS = 1000


def draw(region: Region, *, seed: int, slots: Ints, alternates: Ints) -> tuple[Floats, Floats]:
    """One point per (slot, alternate), uniform on the sphere inside the polygon: lon, lat in degrees.

    Uniform in longitude and sin(latitude) over the covering boxes, repeated until the polygon contains the
    point; each (slot, alternate) has its own counters, so a draw does not depend on its neighbours. Rounded
    to 1e-9 degrees (0.1 mm).
    """
    lon, lat = np.empty(len(slots)), np.empty(len(slots))
    left = np.arange(len(slots))
    for attempt in range(MAX_ATTEMPTS):
        x, y = _draw_in_boxes(region, seed, (slots[left], alternates[left], np.int64(attempt)))
        hit = shapely.contains_xy(region.geometry, x, y)
        lon[left[hit]], lat[left[hit]] = x[hit], y[hit]
        left = left[~hit]
        if not len(left):
            return np.where(lon >= 180.0, lon - 360.0, lon), lat
    raise UserError(
        f"no point found in {MAX_ATTEMPTS} draws", f"polygon {region.geometry.bounds}", "its area is too thin"
    )


def draw_each(shapes: Sequence[Any], owner: Ints, seed: int, slots: Ints, alternates: Ints) -> tuple[Floats, Floats]:
    """As ``draw``, row r in polygon ``shapes[owner[r]]``; polygons that own no row cost nothing."""
    lon, lat = np.empty(len(slots)), np.empty(len(slots))
    order = np.argsort(owner, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        if len(rows):
            region = prepare(shapes[owner[rows[0]]])
            lon[rows], lat[rows] = draw(region, seed=seed, slots=slots[rows], alternates=alternates[rows])
    return lon, lat


def _draw_in_boxes(region: Region, seed: int, counters: tuple[npt.ArrayLike, ...]) -> tuple[Floats, Floats]:
    which, u, v = (uniform(seed, "place", *counters, axis) for axis in range(3))
    index = np.searchsorted(region.cumulative, which * region.cumulative[-1], side="right")
    west, south, east, north = region.boxes[np.minimum(index, len(region.boxes) - 1)].T
    low, high = np.sin(np.radians(south)), np.sin(np.radians(north))
    lat = np.degrees(np.arcsin(low + v * (high - low)))
    return np.round(west + u * (east - west), 9), np.round(lat, 9)


# --- tables
# -----------------------------------------------------------------------------------------------------


def frame(
    *,
    slots: Ints,
    alternates: Ints,
    lon: Floats,
    lat: Floats,
    tags: Sequence[Mapping[str, Any]],
    dates: Any = None,
) -> gpd.GeoDataFrame:
    """The table every sampler answers with, by slot and alternate; ``dates`` None: no row has a date."""
    when = pd.Series([pd.NaT] * len(slots)) if dates is None else pd.Series(dates)
    table = gpd.GeoDataFrame(
        {
            "slot": np.asarray(slots, np.int64),
            "alternate": np.asarray(alternates, np.int16),
            "lon": lon,
            "lat": lat,
            "date": pd.to_datetime(when, utc=True).astype("datetime64[ms, UTC]").array,
            "tags": [dict(t) for t in tags],
        },
        geometry=gpd.points_from_xy(lon, lat),
        crs="EPSG:4326",
    )
    return table.sort_values(["slot", "alternate"], ignore_index=True, kind="stable")


def counters(start: int, n: int, alternates: int) -> tuple[Ints, Ints]:
    """(slot, alternate) of the slots ``start`` .. ``n - 1``, each with alternates 0 .. ``alternates``."""
    slots = np.arange(start, n, dtype=np.int64)
    numbers = np.arange(alternates + 1, dtype=np.int64)
    return np.repeat(slots, len(numbers)), np.tile(numbers, len(slots))


def plain_tags(table: pd.DataFrame, leave_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One dict per row of what the columns say, in plain JSON values; empty cells are left out."""
    columns = sorted(str(c) for c in table.columns if str(c) not in leave_out)
    rows: list[dict[str, Any]] = [{} for _ in range(len(table))]
    for column in columns:
        for row, value in zip(rows, table[column], strict=True):
            if (tag := _plain(value)) is not None:
                row[column] = tag
    return rows


def _plain(value: Any) -> Any:
    """A cell as a JSON value; None for an empty one."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | dict) else getattr(value, "isoformat", value.__str__)()
