"""Which places of an order an image covers, and when: asked in batches, of those alone that the order comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from mmbuild.samplers import Floats, Ints, uniform

Box = tuple[float, float, float, float]
Times = npt.NDArray[np.datetime64]
# Asks a source for the footprints and times of the images that meet boxes (west, south, east, north), each group of
# boxes in one request.
Footprints = Callable[[Sequence[Sequence[Box]]], gpd.GeoDataFrame]
# Places are asked for together by cells of so many degrees: some hundred photographs each.
CELL_DEG = 1.0
# A cell with more places than this is asked for whole, and never again.
PLACES_PER_REQUEST = 64
# At least so many places of the order are asked for at a time, and so many more than seem needed.
LEAST, SPARE = 16, 1.05


@dataclass(kw_only=True)
class Coverage:
    """Says when boxes were taken: at one of the times of the images that cover a box whole, drawn for the box.

    asked, covered: how many boxes it was asked about, and how many of them an image covers.
    """

    footprints: Footprints
    seed: int
    asked: int = 0
    covered: int = 0
    _shapes: list[Any] = field(default_factory=list)
    _times: list[Any] = field(default_factory=list)
    _whole: set[tuple[int, int]] = field(default_factory=set)

    def of(self, numbers: Ints, bounds: Floats) -> Times:
        """The time of each of these boxes (box, 4), which have numbers of their own; NaT where none covers it."""
        groups = list(self._groups(bounds))
        if groups:
            table = self.footprints(groups)
            self._shapes.extend(table.geometry)
            self._times.extend(np.asarray(table["time"], "datetime64[ms]"))
        tree = shapely.STRtree(np.array(self._shapes, dtype=object))
        box, image = tree.query(shapely.box(*bounds.T), predicate="covered_by")
        found = drawn(box, np.array(self._times, "datetime64[ms]")[image], numbers, self.seed)
        self.asked, self.covered = self.asked + len(found), self.covered + int((~np.isnat(found)).sum())
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


def drawn(box: Ints, times: Times, numbers: Ints, seed: int) -> Times:
    """One of the times of each box, each different time as likely as any other; NaT for a box without any.

    box: of which box each time is. The draw depends on the number of the box and its times alone.
    """
    found = np.full(len(numbers), np.datetime64("NaT", "ms"))
    pairs = np.unique(np.stack([box, times.astype(np.int64)]), axis=1)
    owner, first, count = np.unique(pairs[0], return_index=True, return_counts=True)
    pick = first + (uniform(seed, "flight", numbers[owner]) * count).astype(np.int64)
    found[owner] = pairs[1][pick].astype("datetime64[ms]")
    return found


def first_covered(
    ends: Sequence[tuple[int, Callable[[Ints], Ints]]], size: int, taken: Callable[[Ints], Times]
) -> tuple[list[tuple[Ints, Times]], int]:
    """The first covered places of orders of ``size`` with their times, and how many positions were looked at in all.

    ends: of each order, how many covered places are wanted, and the numbers of the places at its positions. taken:
    when the places of these numbers were taken, NaT where they are not covered; asked for all orders together. How many
    are asked for at a time moves no place, so a larger number keeps the first ones.
    """
    found = [(np.zeros(0, np.int64), np.zeros(0, "datetime64[ms]")) for _ in ends]
    seen = [0 for _ in ends]
    while True:
        open_ = [k for k, (count, _) in enumerate(ends) if len(found[k][0]) < count and seen[k] < size]
        if not open_:
            kept = [(own[:count], when[:count]) for (own, when), (count, _) in zip(found, ends, strict=True)]
            return kept, sum(seen)
        batches = []
        for k in open_:
            step = _step(ends[k][0] - len(found[k][0]), len(found[k][0]), seen[k])
            batches.append(ends[k][1](np.arange(seen[k], min(seen[k] + step, size))))
        times = np.split(taken(np.concatenate(batches)), np.cumsum([len(batch) for batch in batches])[:-1])
        for k, batch, when in zip(open_, batches, times, strict=True):
            own = ~np.isnat(when)
            found[k] = np.append(found[k][0], batch[own]), np.append(found[k][1], when[own])
            seen[k] += len(batch)


def _step(missing: int, got: int, seen: int) -> int:
    """How many positions to look at next, by the share that was covered until now; at most as many as before again."""
    likely = missing * SPARE * seen / max(got, 1) if seen else missing * SPARE
    return max(LEAST, math.ceil(min(likely, seen) if seen else likely))
