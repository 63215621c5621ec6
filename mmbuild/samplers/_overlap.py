"""Which chips share ground, and places that do not: each is compared with those of earlier slots only.

Chips of one CRS are compared as the exact squares that they are; over a zone border a chip keeps a distance at which
no two squares can meet.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mmbuild.errors import UserError
from mmbuild.grid import MERCATOR_EDGE_M, corners
from mmbuild.published import EARTH_RADIUS_KM, km_to_degrees, nearest_km
from mmbuild.samplers._areas import Flags, Floats, Ints

# Slots settled together; the answer does not depend on it.
BLOCK = 1024
# A city quarter that is full is left soon, for every attempt draws another city.
MAX_ATTEMPTS = 1000
# Distances on a sphere and in UTM differ by less than 1 %, and a chip's centre moves by up to 42 m when it is snapped.
SCALE, SNAP_M = 1.01, 90.0


@dataclass(frozen=True, kw_only=True)
class Chips:
    """Places and the squares around them: centre, CRS, outer top-left corner, and the place in space (km)."""

    lon: Floats
    lat: Floats
    epsg: Ints
    x0: Floats
    y0: Floats
    space: Floats

    def at(self, rows: Any) -> Chips:
        return Chips(**{name: values[rows] for name, values in vars(self).items()})

    def put(self, rows: Ints, other: Chips) -> None:
        for name, values in vars(self).items():
            values[rows] = getattr(other, name)


def chips_of(lon: Floats, lat: Floats, grid: Any) -> Chips:
    """The chips of places; one whose latitude is NaN is nowhere."""
    safe = np.nan_to_num(lat)
    epsg, x0, y0 = corners(lon, safe, grid)
    x, y = np.radians(lon), np.radians(safe)
    space = EARTH_RADIUS_KM * np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=1)
    return Chips(lon=lon, lat=lat, epsg=epsg, x0=x0, y0=y0, space=space)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When two chips clash: ``name`` as in the recipe, ``side_m`` of a chip in metres of its CRS."""

    name: str
    side_m: float

    @property
    def reach_km(self) -> float:
        """Chips farther apart never clash."""
        if self.name == "published":
            return nearest_km(self.side_m / 1000) * SCALE
        return (self.side_m * math.sqrt(2) * SCALE + SNAP_M) / 1000

    def clash(self, one: Chips, other: Chips) -> Flags:
        """Pair by pair; chips are given as arrays of one length."""
        if self.name == "published":
            return self._published(one, other)
        same = one.epsg == other.epsg
        on_grid = (np.abs(one.x0 - other.x0) < self.side_m * (1 - 1e-9)) & (
            np.abs(one.y0 - other.y0) < self.side_m * (1 - 1e-9)
        )
        near = ((one.space - other.space) ** 2).sum(axis=1) < self.reach_km**2
        return np.where(same, on_grid, near)

    def _published(self, one: Chips, other: Chips) -> Flags:
        """SSL4EO-S12: nearer than allowed in one cell of a degree, a degree of longitude counted in full."""
        apart = np.hypot(one.lon - other.lon, one.lat - other.lat) / km_to_degrees(1.0)
        same_cell = (np.floor(one.lon) == np.floor(other.lon)) & (np.floor(one.lat) == np.floor(other.lat))
        return np.asarray((apart < nearest_km(self.side_m / 1000)) & same_cell)


@dataclass(frozen=True, kw_only=True)
class Index:
    """Chips by the cube of space that they lie in; cubes are as wide as a rule reaches."""

    rule: Rule
    chips: Chips
    keys: Ints
    order: Ints

    @classmethod
    def of(cls, chips: Chips, rule: Rule) -> Index:
        keys = _keys(chips.space, rule.reach_km)
        order = np.argsort(keys, kind="stable")
        return cls(rule=rule, chips=chips, keys=keys[order], order=order)

    def clashes(self, chips: Chips) -> tuple[Ints, Ints]:
        """Pairs (row of ``chips``, row of the index) that clash; a chip clashes with itself."""
        keys = _keys(chips.space, self.rule.reach_km)
        rows, others = [], []
        for x in (-1, 0, 1):
            for y in (-1, 0, 1):
                # Cubes that differ in z alone have consecutive keys.
                middle = keys + x * _STEP**2 + y * _STEP
                first, last = np.searchsorted(self.keys, middle - 1), np.searchsorted(self.keys, middle + 1, "right")
                counts = last - first
                rows.append(np.repeat(np.arange(len(keys)), counts))
                ends = np.cumsum(counts)
                others.append(np.arange(counts.sum()) + np.repeat(first - ends + counts, counts))
        row, other = np.concatenate(rows), self.order[np.concatenate(others)]
        hit = self.rule.clash(chips.at(row), self.chips.at(other))
        return row[hit], other[hit]


# Cubes along one axis: enough for chips of 10 m.
_STEP = 2**21


def _keys(space: Floats, width_km: float) -> Ints:
    x, y, z = (np.floor(space / width_km).astype(np.int64) + _STEP // 2).T
    return np.asarray((x * _STEP + y) * _STEP + z)


Draw = Callable[[Ints, Ints], Chips]


def settle(draw: Draw, slots: Ints, *, rule: str, grid: Any) -> tuple[Chips, int]:
    """The first attempt of each row that clashes with no row of an earlier slot, and how many were refused.

    draw: (rows, attempts) -> chips; one with latitude NaN is refused. slots: rising. Rows of one slot may clash: only
    one of them is built. The answer is that of taking the rows one by one; blocks only make it fast.
    """
    first = np.zeros(len(slots), np.int64)
    chips = draw(np.arange(len(slots)), first)
    attempts = first
    law = Rule(name=rule, side_m=side_of(grid))
    edges = np.searchsorted(slots, np.arange(0, int(slots.max(initial=-1)) + 1 + BLOCK, BLOCK))
    for begin, end in pairwise(edges.tolist()):
        earlier = Index.of(chips.at(slice(0, begin)), law) if rule != "allow" else None
        rows = np.arange(begin, end)
        _leave_earlier(draw, chips, attempts, rows, earlier)
        if earlier is not None:
            _leave_each_other(draw, chips, attempts, rows, slots, earlier)
    return chips, int(attempts.sum())


def side_of(grid: Any) -> float:
    """Side of a chip in metres of its CRS; a web-mercator tile is as wide as the next one is away."""
    if grid.kind == "utm":
        return float(grid.gsd * grid.size)
    return float(2 * MERCATOR_EDGE_M / 2**grid.zoom)


def _leave_earlier(draw: Draw, chips: Chips, attempts: Ints, rows: Ints, earlier: Index | None) -> None:
    """Redraw rows until none clashes with a settled chip or is nowhere."""
    while len(rows):
        bad = np.isnan(chips.lat[rows])
        if earlier is not None and len(earlier.keys):
            bad[earlier.clashes(chips.at(rows))[0]] = True
        rows = rows[bad]
        if len(rows):
            attempts[rows] += 1
            _refuse_full(attempts[rows])
            chips.put(rows, draw(rows, attempts[rows]))


def _leave_each_other(draw: Draw, chips: Chips, attempts: Ints, rows: Ints, slots: Ints, earlier: Index) -> None:
    """Settle the rows of a block in their order: whoever clashes with an earlier slot of the block is drawn again."""
    if not len(rows):
        return
    law = earlier.rule
    a, b = Index.of(chips.at(rows), law).clashes(chips.at(rows))
    heap = sorted(set(rows[a[slots[rows[a]] > slots[rows[b]]]].tolist()))
    while heap:
        row = heapq.heappop(heap)
        own = np.array([row])
        before = rows[: np.searchsorted(slots[rows], slots[row])]
        after = rows[np.searchsorted(slots[rows], slots[row], "right") :]
        moved = False
        while _meets(law, chips, row, before).any():
            attempts[row] += 1
            _refuse_full(attempts[own])
            chips.put(own, draw(own, attempts[own]))
            _leave_earlier(draw, chips, attempts, own, earlier)
            moved = True
        if moved:
            for other in after[_meets(law, chips, row, after)].tolist():
                heapq.heappush(heap, other)


def _meets(law: Rule, chips: Chips, row: int, others: Ints) -> Flags:
    """Which of ``others`` clash with a row."""
    near = np.flatnonzero(((chips.space[others] - chips.space[row]) ** 2).sum(axis=1) < law.reach_km**2)
    found = np.zeros(len(others), bool)
    found[near] = law.clash(chips.at(np.full(len(near), row)), chips.at(others[near]))
    return found


def _refuse_full(attempts: Ints) -> None:
    if attempts.max() >= MAX_ATTEMPTS:
        raise UserError(
            f"no free ground found in {MAX_ATTEMPTS} draws", "sampler.overlap",
            "ask for fewer samples, use more cities (top) or a larger std_km, or set overlap: allow",
        )  # fmt: skip
