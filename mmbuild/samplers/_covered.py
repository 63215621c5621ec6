"""Which places of an order images cover: asked of a source in batches, for those alone that the order comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from mmbuild.samplers import Flags, Floats, Ints

Box = tuple[float, float, float, float]
# Asks a source for the footprints that meet boxes (west, south, east, north), each group of boxes in one request.
Footprints = Callable[[Sequence[Sequence[Box]]], gpd.GeoDataFrame]
# Places are asked for together by cells of so many degrees: some hundred photographs each.
CELL_DEG = 1.0
# A cell with more places than this is asked for whole, and never again.
PLACES_PER_REQUEST = 64
# At least so many places of the order are asked for at a time, and so many more than seem needed.
LEAST, SPARE = 16, 1.05


@dataclass(kw_only=True)
class Coverage:
    """Says which boxes are covered whole by footprints together.

    asked, covered: how many boxes it was asked about, and how many of them were covered.
    """

    footprints: Footprints
    asked: int = 0
    covered: int = 0
    _known: list[Any] = field(default_factory=list)
    _whole: set[tuple[int, int]] = field(default_factory=set)

    def of(self, bounds: Floats) -> Flags:
        """Which of these boxes (box, 4) are covered."""
        groups = list(self._groups(bounds))
        if groups:
            self._known.extend(self.footprints(groups).geometry)
        found = are_covered(shapely.box(*bounds.T), np.array(self._known, dtype=object))
        self.asked, self.covered = self.asked + len(found), self.covered + int(found.sum())
        return found

    def _groups(self, bounds: Floats) -> Iterator[list[Box]]:
        """The boxes by the cell that holds their middle; cells with many are asked for whole, once."""
        cells = np.floor((bounds[:, :2] + bounds[:, 2:]) / 2.0 / CELL_DEG).astype(np.int64)
        for x, y in np.unique(cells, axis=0).tolist():
            mine = bounds[(cells == (x, y)).all(axis=1)]
            if (x, y) in self._whole:
                continue
            if len(mine) <= PLACES_PER_REQUEST:
                yield [tuple(box) for box in mine.tolist()]
                continue
            self._whole.add((x, y))
            # Boxes reach over the edge of their cell by at most their own width and height.
            right, up = np.max(mine[:, 2:] - mine[:, :2], axis=0).tolist()
            yield [(x * CELL_DEG - right, y * CELL_DEG - up, (x + 1) * CELL_DEG + right, (y + 1) * CELL_DEG + up)]


def are_covered(boxes: Any, shapes: Any) -> Flags:
    """Which boxes lie whole in the shapes together; most lie in one."""
    tree = shapely.STRtree(shapes)
    found = np.zeros(len(boxes), dtype=bool)
    found[tree.query(boxes, predicate="covered_by")[0]] = True
    open_ = np.flatnonzero(~found)
    place, shape = tree.query(boxes[open_], predicate="intersects")
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], len(place)), strict=False):
        box = open_[place[start]]
        found[box] = shapely.covers(shapely.union_all(shapes[shape[start:stop]]), boxes[box])
    return found


def first_covered(
    ends: Sequence[tuple[int, Callable[[Ints], Ints]]], size: int, covers: Callable[[Ints], Flags]
) -> tuple[list[Ints], int]:
    """The first covered places of orders of ``size``, and how many positions of all orders were looked at.

    ends: of each order, how many covered places are wanted, and the numbers of the places at its positions. covers:
    which numbers are covered; asked for all orders together. How many are asked for at a time moves no place, so a
    larger number keeps the first ones.
    """
    found = [np.zeros(0, np.int64) for _ in ends]
    seen = [0 for _ in ends]
    while True:
        open_ = [k for k, (count, _) in enumerate(ends) if len(found[k]) < count and seen[k] < size]
        if not open_:
            return [numbers[:count] for numbers, (count, _) in zip(found, ends, strict=True)], sum(seen)
        batches = []
        for k in open_:
            step = _step(ends[k][0] - len(found[k]), len(found[k]), seen[k])
            batches.append(ends[k][1](np.arange(seen[k], min(seen[k] + step, size))))
        flags = np.split(covers(np.concatenate(batches)), np.cumsum([len(batch) for batch in batches])[:-1])
        for k, batch, covered in zip(open_, batches, flags, strict=True):
            found[k], seen[k] = np.append(found[k], batch[covered]), seen[k] + len(batch)


def _step(missing: int, got: int, seen: int) -> int:
    """How many positions to look at next, by the share that was covered until now; at most as many as before again."""
    likely = missing * SPARE * seen / max(got, 1) if seen else missing * SPARE
    return max(LEAST, math.ceil(min(likely, seen) if seen else likely))
