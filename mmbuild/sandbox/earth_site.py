"""A set of points and everything already computed at them; windows of a lattice share one site across bands and dates.

The cache only saves time: a site's values depend on its points alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_clouds import CELL_M, Sky, cloud_bias, sky
from mmbuild.sandbox.earth_cover import Cover, cover
from mmbuild.sandbox.earth_ground import Ground, ground, yearly_rain
from mmbuild.sandbox.earth_noise import Floats, Points, points
from mmbuild.sandbox.earth_optics import Sun, Surface, day_temperature, surface
from mmbuild.sandbox.mgrs import to_lonlat, transformer
from mmbuild.sandbox.scenes import OpticalScene

_T = TypeVar("_T")

# Points kept between requests: about 400 bytes each, so 200 MB at most.
CACHE_POINTS = 500_000
# Per-date results kept per site.
MEMO_ENTRIES = 6


class Site:
    """Points with their ground, cover and, per date, surface and sky; each computed at most once."""

    def __init__(self, p: Points, epsg: int | None = None, x: Floats | None = None, y: Floats | None = None) -> None:
        self.points, self.epsg, self._x, self._y = p, epsg, x, y
        self._memo: OrderedDict[Hashable, Any] = OrderedDict()
        self._lasting: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    @cached_property
    def ground(self) -> Ground:
        return ground(self.points)

    @cached_property
    def cover(self) -> Cover:
        return cover(self.points, self.ground)

    def projected(self, epsg: int) -> tuple[Floats, Floats]:
        """The points in a projected system."""
        if epsg == self.epsg and self._x is not None and self._y is not None:
            return self._x, self._y
        x, y = transformer(4326, epsg).transform(self.points.lon, self.points.lat)
        return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)

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

    def sky(self, scene: OpticalScene) -> Sky:
        """The sky of an optical scene, decided on its 60 m cells and spread to the points."""
        return self.memo(("sky", scene.passage, scene.start_ms, scene.tile.epsg), lambda: self._sky(scene))

    def _sky(self, scene: OpticalScene) -> Sky:
        rain, hemisphere, cells, spread = self.lasting(("cells", scene.tile.epsg), lambda: self._cells(scene))
        bias = cloud_bias(rain, hemisphere, scene.day)
        coarse = sky(cells, bias, scene.passage, scene.zenith_deg, scene.azimuth_deg)
        return Sky(**{name: getattr(coarse, name)[spread] for name in ("code", "depth", "veil", "score")})

    def _cells(self, scene: OpticalScene) -> tuple[Floats, Floats, Points, NDArray[np.int64]]:
        """Rain, hemisphere and places of the 60 m cells that hold the points, and which cell each point is in."""
        x, y = self.projected(scene.tile.epsg)
        phase = scene.tile.top % CELL_M
        column, row = np.floor(x / CELL_M).astype(np.int64), np.floor((y - phase) / CELL_M).astype(np.int64)
        width = int(column.max() - column.min()) + 1
        keys, spread = np.unique((row - row.min()) * width + (column - column.min()), return_inverse=True)
        cx = (keys % width + column.min() + 0.5) * CELL_M
        cy = (keys // width + row.min() + 0.5) * CELL_M + phase
        p = points(*to_lonlat(scene.tile.epsg, cx, cy))
        rain, hemisphere = yearly_rain(p)
        return rain, hemisphere, p, spread.astype(np.int64)


def site_at(lon: Any, lat: Any) -> Site:
    """An uncached site of degrees (any shape, flattened)."""
    return Site(points(*np.broadcast_arrays(np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64))))


class SiteCache:
    """The last sites, up to CACHE_POINTS points; safe to share between threads."""

    def __init__(self, limit: int = CACHE_POINTS) -> None:
        self._limit, self._count = limit, 0
        self._sites: OrderedDict[Hashable, Site] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Site]) -> Site:
        with self._lock:
            if key in self._sites:
                self._sites.move_to_end(key)
                return self._sites[key]
        site = make()
        with self._lock:
            if key not in self._sites:
                self._sites[key] = site
                self._count += site.points.size
            while self._count > self._limit and len(self._sites) > 1:
                _, old = self._sites.popitem(last=False)
                self._count -= old.points.size
            return self._sites.get(key, site)
