"""Ways to choose places: one file is one way, and its name is the ``kind`` in the recipe.

What they share is here: randomness as a pure function of counters, and points drawn uniformly on the sphere
inside polygons. Nothing keeps state: row (slot, alternate) follows from (seed, slot, alternate) alone, so a
larger corpus keeps the first places of a smaller one.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from mmbuild.errors import UserError
from mmbuild.samplers._areas import (
    NORTH_LIMIT_DEG,
    SOUTH_LIMIT_DEG,
    Flags,
    Floats,
    Ints,
    ground_area,
    on_globe,
    sphere_area,
)

__all__ = [
    "NORTH_LIMIT_DEG",
    "SOUTH_LIMIT_DEG",
    "Flags",
    "Floats",
    "Ints",
    "ground_area",
    "on_globe",
    "sphere_area",
]

# Alternates 1 and 2 stay in the stratum of the slot, later ones leave it (rule 7: same ecoregion, then same
# biome). A fixed number, not a share of the recipe's `alternates`, so that (seed, slot, k) alone decides row
# (slot, k).
NEAR_ALTERNATES = 2


def kinds() -> list[str]:
    """Names of all samplers: the files of this folder, but for those that only help them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(kind: str) -> ModuleType:
    """The module of one sampler; it has ``candidates`` with the signature of the function below."""
    if kind not in kinds():
        raise UserError(f"there is no sampler {kind!r}", "sampler.kind", f"use one of {', '.join(kinds())}")
    return importlib.import_module(f"{__name__}.{kind}")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a sampler does with a recipe, for people: places in all and by stratum, and remarks."""

    places: int
    strata: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()


def candidates(
    spec: Any, *, n: int | None, start: int = 0, seed: int, alternates: int, **more: Any
) -> gpd.GeoDataFrame:
    """Places of the slots ``start`` .. ``n - 1`` with their alternates, by the sampler ``spec.kind``.

    Columns: slot, alternate (0 is the first choice), lon, lat (degrees), date (UTC or NaT), tags (dict),
    geometry (EPSG:4326 points); sorted by slot, then alternate. more: what the planner found for this kind, such as
    ``regions``, polygons that a source was asked for, or the ``grid`` that chips lie on.
    """
    places: gpd.GeoDataFrame = load(spec.kind).candidates(
        spec, n=n, start=start, seed=seed, alternates=alternates, **more
    )
    return places


def survey(spec: Any, *, n: int | None, seed: int, alternates: int, **more: Any) -> Survey:
    """What the sampler does with ``n`` slots, without the places; a sampler that says no more only counts them."""
    module = load(spec.kind)
    if hasattr(module, "survey"):
        told: Survey = module.survey(spec, n=n, seed=seed, alternates=alternates, **more)
        return told
    return Survey(places=module.candidates(spec, n=n, seed=seed, alternates=0, **more)["slot"].nunique())


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


# --- points in polygons
# ------------------------------------------------------------------------------------------


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
# polygons stop at the number of cuts, and merely need more draws. A sliver is cut on until a twentieth is filled.
COVERS = ((0.5, 2000), (0.05, 200_000))


def prepare(geometry: Any) -> Region:
    """Cover a polygon (from ``on_globe``) with boxes: the largest is halved until enough of all is filled.

    Boxes are looked at in batches: of those in hand, so many of the largest as none of their halves can overtake.
    """
    shapely.prepare(geometry)
    area = float(sphere_area([geometry])[0])
    done, waiting = np.empty((0, 4)), np.array([geometry.bounds], np.float64)
    total = float(_box_areas(waiting)[0])
    for fill, steps in COVERS:
        while len(waiting) and total > area / fill and steps:
            whole, cut, waiting, total, taken = _cut_largest(geometry, waiting, total, area / fill, steps)
            done, waiting, steps = np.concatenate([done, whole]), np.concatenate([waiting, cut]), steps - taken
    boxes = np.concatenate([done, waiting])
    boxes = boxes[_largest_first(boxes)]
    return Region(geometry=geometry, boxes=boxes, cumulative=np.cumsum(_box_areas(boxes)))


def _cut_largest(
    geometry: Any, waiting: Floats, total: float, goal: float, steps: int
) -> tuple[Floats, Floats, Floats, float, int]:
    """Halve the largest boxes in their order, until ``total``, the area of all, is down to ``goal``.

    The answer: boxes that lie inside whole and need no cut, halves that meet the polygon, boxes still waiting, the
    new total, and how many boxes were looked at.
    """
    waiting = waiting[_largest_first(waiting)]
    areas, halves = _box_areas(waiting), _halves(waiting)
    half_areas = _box_areas(halves)
    count = min(_not_overtaken(areas, half_areas), steps)
    whole = shapely.contains(geometry, shapely.box(*waiting[:count].T))
    meets = shapely.intersects(geometry, shapely.box(*halves[:count].T).T)
    change = np.where(meets, half_areas[:count], 0.0).sum(axis=1) - areas[:count]
    running = np.cumsum([total, *np.where(whole, 0.0, change)])
    enough = running[:count] <= goal
    taken = int(np.argmax(enough)) if enough.any() else count
    is_cut = ~whole[:taken]
    cut = halves[:taken][is_cut[:, None] & meets[:taken]]
    return waiting[:taken][~is_cut], cut, waiting[taken:], float(running[taken]), taken


def _box_areas(boxes: Floats) -> Floats:
    """Areas on the unit sphere of boxes (..., 4) in degrees."""
    radians = np.radians(boxes)
    width, sines = radians[..., 2] - radians[..., 0], np.sin(radians[..., 1::2])
    return np.asarray(width * (sines[..., 1] - sines[..., 0]))


def _largest_first(boxes: Floats) -> Ints:
    """Order by area, falling; equal ones by their corners."""
    return np.lexsort((*boxes.T[::-1], -_box_areas(boxes)))


def _not_overtaken(areas: Floats, half_areas: Floats) -> int:
    """How many of the largest boxes would be cut in this order before any of their own halves."""
    largest_half = np.maximum.accumulate(half_areas.max(axis=1))
    overtaken = areas[1:] <= largest_half[:-1]
    return int(np.argmax(overtaken)) + 1 if overtaken.any() else len(areas)


def _halves(boxes: Floats) -> Floats:
    """Cut boxes (box, 4) across their longer side, as measured on the ground: (box, 2, 4)."""
    west, south, east, north = boxes.T
    is_wide = (east - west) * np.cos(np.radians((south + north) / 2)) > north - south
    halves = np.repeat(boxes[:, None], 2, axis=1)
    halves[:, 0, 2] = np.where(is_wide, (west + east) / 2, east)
    halves[:, 1, 0] = np.where(is_wide, (west + east) / 2, west)
    halves[:, 0, 3] = np.where(is_wide, north, (south + north) / 2)
    halves[:, 1, 1] = np.where(is_wide, south, (south + north) / 2)
    return halves


# A polygon that fills only a twentieth of its boxes (the worst of 847 ecoregions fills a fifth) is missed this
# often in a row once in 10^22 points.
MAX_ATTEMPTS = 1000


def draw(region: Region, *, seed: int, slots: Ints, alternates: Ints) -> tuple[Floats, Floats]:
    """One point per (slot, alternate), uniform on the sphere inside the polygon: lon, lat in degrees.

    Uniform in longitude and sin(latitude) over the covering boxes, repeated until the polygon contains the
    point; each (slot, alternate) has its own counters, so a draw does not depend on its neighbours. Rounded
    to 1e-9 degrees (0.1 mm).
    """
    return _draw_all([region], np.zeros(len(slots), np.int64), seed, slots, alternates)


def draw_each(shapes: Sequence[Any], owner: Ints, seed: int, slots: Ints, alternates: Ints) -> tuple[Floats, Floats]:
    """As ``draw``, row r in polygon ``shapes[owner[r]]``; polygons that own no row cost nothing."""
    used, owner = np.unique(owner, return_inverse=True)
    return _draw_all([prepare(shapes[k]) for k in used], owner, seed, slots, alternates)


def _draw_all(
    regions: Sequence[Region], owner: Ints, seed: int, slots: Ints, alternates: Ints
) -> tuple[Floats, Floats]:
    """Draws for rows of many regions together, attempt by attempt."""
    lon, lat = np.empty(len(slots)), np.empty(len(slots))
    shapes = np.array([region.geometry for region in regions], dtype=object)
    left = np.argsort(owner, kind="stable")
    for attempt in range(MAX_ATTEMPTS):
        x, y = _draw_in_boxes(regions, owner[left], seed, (slots[left], alternates[left], np.int64(attempt)))
        hit = shapely.contains_xy(shapes[owner[left]], x, y)
        lon[left[hit]], lat[left[hit]] = x[hit], y[hit]
        left = left[~hit]
        if not len(left):
            return np.where(lon >= 180.0, lon - 360.0, lon), lat
    where = f"polygon {regions[owner[left[0]]].geometry.bounds}"
    raise UserError(f"no point found in {MAX_ATTEMPTS} draws", where, "its area is too thin")


def _draw_in_boxes(
    regions: Sequence[Region], owner: Ints, seed: int, counters: tuple[npt.ArrayLike, ...]
) -> tuple[Floats, Floats]:
    """A point in one of the boxes of each row's region; rows of one region stand together."""
    which, u, v = (uniform(seed, "place", *counters, axis) for axis in range(3))
    boxes = np.empty((len(owner), 4))
    edges = np.flatnonzero(np.diff(owner, prepend=-1, append=len(regions)))
    for first, stop in pairwise(edges):
        region = regions[owner[first]]
        index = np.searchsorted(region.cumulative, which[first:stop] * region.cumulative[-1], side="right")
        boxes[first:stop] = region.boxes[np.minimum(index, len(region.boxes) - 1)]
    west, south, east, north = boxes.T
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
            "tags": list(tags),
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
