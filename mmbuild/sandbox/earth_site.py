"""A set of points and everything already computed at them; windows of a lattice share one site across bands and dates.

The cache only saves time: a site's values depend on its points alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_clouds import CELL_M, Cells, Sky, cells_at, clear_skies, cloud_bias, sky
from mmbuild.sandbox.earth_cover import Cover, cover
from mmbuild.sandbox.earth_ground import Ground, ground, yearly_rain
from mmbuild.sandbox.earth_mesh import Blocks
from mmbuild.sandbox.earth_noise import Bools, Floats, Ints, Points, points
from mmbuild.sandbox.earth_optics import Sun, Surface, day_temperature, surface
from mmbuild.sandbox.mgrs import transformer
from mmbuild.sandbox.scenes import OpticalScene

_T = TypeVar("_T")
Facts = TypeVar("Facts", Ground, Cover)

# Points kept between requests: about 400 bytes each, so 200 MB at most.
CACHE_POINTS = 500_000
# Per-date results kept per site.
MEMO_ENTRIES = 6
# Skies of cells that are worked out together, and kept per site: below a kilobyte each for a chip of 128 px.
SKIES_AT_ONCE, SKIES_KEPT = 32, 64


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which pixels of which lattice a site holds; counted from the coordinate origin, rows downwards from `top`."""

    lattice: tuple[Any, ...]
    left: int
    top: int
    width: int
    height: int

    def inside(self, other: Window) -> bool:
        """Whether the other window holds all of this one."""
        right, bottom = self.left + self.width, self.top - self.height
        return (
            self.lattice == other.lattice
            and other.left <= self.left and right <= other.left + other.width
            and self.top <= other.top and other.top - other.height <= bottom
        )  # fmt: skip

    def places_in(self, other: Window) -> Ints:
        """Where the pixels of this window are among those of the other, row by row."""
        rows = other.top - self.top + np.arange(self.height)
        return np.asarray(np.add.outer(rows * other.width, self.left - other.left + np.arange(self.width)).ravel())


class Site:
    """Points with their ground, cover and, per date, surface and sky; each computed at most once."""

    def __init__(self, p: Points, epsg: int | None = None, x: Floats | None = None, y: Floats | None = None) -> None:
        self.points, self.epsg, self._x, self._y = p, epsg, x, y
        self._memo: OrderedDict[Hashable, Any] = OrderedDict()
        self._lasting: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    @property
    def ground(self) -> Ground:
        return self.lasting("ground", lambda: ground(self.points))

    @property
    def cover(self) -> Cover:
        return self.lasting("cover", lambda: cover(self.points, self.ground))

    def part(self, places: Ints) -> Site:
        """The site of some of the points, with copies of the ground and cover that are known already."""
        x, y = (None if axis is None else axis[places] for axis in (self._x, self._y))
        site = Site(self.points.take(places), self.epsg, x, y)
        with self._lock:
            known = {name: self._lasting[name] for name in ("ground", "cover") if name in self._lasting}
        site._lasting |= {name: _taken(facts, places) for name, facts in known.items()}
        return site

    def projected(self, epsg: int) -> tuple[Floats, Floats]:
        """The points in a projected system."""
        if epsg == self.epsg and self._x is not None and self._y is not None:
            return self._x, self._y
        x, y = transformer(4326, epsg).transform(self.points.lon, self.points.lat)
        return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)

    def corners(self, epsg: int) -> tuple[Floats, Floats]:
        """The corners of the rectangle around the points in a projected system."""
        return self.lasting(("corners", epsg), lambda: _corners(*self.projected(epsg)))

    def memo(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The value under a key of one date, made at most once while it is among the last few."""
        with self._lock:
            if key not in self._memo:
                self._memo[key] = make()
                while len(self._memo) > MEMO_ENTRIES:
                    self._memo.popitem(last=False)
            self._memo.move_to_end(key)
            value: _T = self._memo[key]
            return value

    def lasting(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The value under a key of no date, made at most once."""
        with self._lock:
            value: _T = self._lasting[key] if key in self._lasting else self._lasting.setdefault(key, make())
            return value

    def surface(self, sun: Sun) -> Surface:
        """The surface on a day under a sun."""
        return self.memo(("surface", sun), lambda: surface(self.ground, self.cover, sun))

    def temperature(self, day: float) -> Floats:
        return day_temperature(self.ground, day)

    def is_clear(self, scene: OpticalScene, company: Sequence[OpticalScene] = ()) -> Bools:
        """Where the sky of an optical scene is clear, at less cost than the sky.

        company: scenes that will be asked for next; theirs are worked out along, some at a time.
        """
        epsg = scene.tile.epsg
        rain, hemisphere, cells, spread = self.lasting(("cells", epsg), lambda: self._cells(scene))
        known: OrderedDict[Hashable, Bools] = self.lasting(("clear", epsg), OrderedDict)
        with self._lock:
            if _pass_of(scene) not in known:
                others = (s for s in company if s.tile.epsg == epsg and _pass_of(s) not in known)
                batch = [scene, *islice(others, SKIES_AT_ONCE - 1)]
                bias = cloud_bias(rain, hemisphere, np.array([[s.day] for s in batch]))
                passes = np.array([s.passage for s in batch], dtype=np.int64)
                skies = clear_skies(cells, bias, passes, np.array([(s.zenith_deg, s.azimuth_deg) for s in batch]))
                known.update((_pass_of(s), clear) for s, clear in zip(batch, skies, strict=True))
                while len(known) > SKIES_KEPT:
                    known.popitem(last=False)
            return np.asarray(known[_pass_of(scene)][spread])

    def sky(self, scene: OpticalScene) -> Sky:
        """The sky of an optical scene, decided on its 60 m cells and spread to the points."""
        return self.memo(("sky", scene.passage, scene.start_ms, scene.tile.epsg), lambda: self._sky(scene))

    def _sky(self, scene: OpticalScene) -> Sky:
        rain, hemisphere, cells, spread = self.lasting(("cells", scene.tile.epsg), lambda: self._cells(scene))
        bias = cloud_bias(rain, hemisphere, scene.day)
        coarse = sky(cells, bias, scene.passage, scene.zenith_deg, scene.azimuth_deg)
        return Sky(**{name: getattr(coarse, name)[spread] for name in ("code", "depth", "veil", "score")})

    def _cells(self, scene: OpticalScene) -> tuple[Floats, Floats, Cells, NDArray[np.int64]]:
        """Rain and hemisphere of the 60 m cells that hold the points, and which cell each point is in."""
        x, y = self.projected(scene.tile.epsg)
        phase = scene.tile.top % CELL_M
        column, row = np.floor(x / CELL_M).astype(np.int64), np.floor((y - phase) / CELL_M).astype(np.int64)
        width = int(column.max() - column.min()) + 1
        keys, spread = np.unique((row - row.min()) * width + (column - column.min()), return_inverse=True)
        cx = (keys % width + column.min() + 0.5) * CELL_M
        cy = (keys // width + row.min() + 0.5) * CELL_M + phase
        cells = cells_at(scene.tile.epsg, cx, cy)
        rain, hemisphere = yearly_rain(cells.points)
        return rain, hemisphere, cells, spread.astype(np.int64)


def _corners(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    (west, east), (south, north) = ((axis.min(), axis.max()) for axis in (x, y))
    return np.array([west, west, east, east]), np.array([south, north, south, north])


def _pass_of(scene: OpticalScene) -> Hashable:
    return scene.passage, scene.start_ms


def site_at(lon: Any, lat: Any) -> Site:
    """An uncached site of degrees (any shape, flattened)."""
    return Site(points(*np.broadcast_arrays(np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64))))


def _taken(facts: Facts, places: Ints) -> Facts:
    """The same facts at some of the points."""
    return type(facts)(**{f.name: _at(getattr(facts, f.name), places) for f in fields(facts)})


def _at(values: Any, places: Ints) -> Any:
    return values.take(places) if isinstance(values, Points) else values[places]


class SiteCache:
    """The last sites, up to CACHE_POINTS points; safe to share between threads.

    A window that lies in a cached one is cut from it: what is interpolated asks for one row more than what is not.
    """

    def __init__(self, limit: int = CACHE_POINTS) -> None:
        self.blocks = Blocks()
        self._limit, self._count = limit, 0
        self._sites: OrderedDict[Hashable, Site] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Points kept."""
        return self._count

    def get(self, key: Hashable, make: Callable[[], Site]) -> Site:
        with self._lock:
            if key in self._sites:
                self._sites.move_to_end(key)
                return self._sites[key]
            around = self._around(key)
        site = make() if around is None else around
        with self._lock:
            if key not in self._sites:
                self._sites[key] = site
                self._count += site.points.size
            while self._count > self._limit and len(self._sites) > 1:
                _, old = self._sites.popitem(last=False)
                self._count -= old.points.size
            return self._sites.get(key, site)

    def _around(self, key: Hashable) -> Site | None:
        """The site cut from one that holds it."""
        if isinstance(key, Window):
            for other, site in self._sites.items():
                if isinstance(other, Window) and key.inside(other):
                    return site.part(key.places_in(other))
        return None
