"""What an aerial photograph shows: the ground in cells of 3 m, and over it the grain of crowns, cars and furrows.

Cells and grain depend on the place alone, never on the window. A coarse pixel is drawn where its centre lies, without
the octaves of the grain that it is too coarse to show; no finer pixel is drawn for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox import earth_optics as optics
from mmbuild.sandbox.assets import BandInfo
from mmbuild.sandbox.earth_noise import Floats, Ints, Noise, Points, noise, smoothstep
from mmbuild.sandbox.earth_site import Site, SiteCache, Window
from mmbuild.sandbox.earth_world import BLOCK_POINTS, lattice_axes, lattice_site, places_site

# Ground pixels: 5 or 3 pixels of a photograph wide, a third of what a satellite sees. Lattices start at multiples of 6.
CELL_M = 3.0
_LONGEST_M, _OCTAVES = 40.0, 5
_GRAIN = noise(91, _LONGEST_M, _OCTAVES, waves=5, roughness=0.35, bend=2.6)
BANDS = {"R": "B4", "G": "B3", "B": "B2", "N": "B8"}
# A clear summer morning; reflectance of WHITE is the brightest number.
ZENITH_DEG, AZIMUTH_DEG, WHITE = 38.0, 130.0, 0.55
# Windows of cells grow to whole multiples of so many: requests of other scales find theirs.
ROUNDED = 16
# Points whose grain is kept between bands, 8 bytes each.
KEPT_POINTS = 2_000_000


@cache
def _octaves(step: float) -> Noise:
    """The octaves that pixels of so many metres can show: waves of two pixels and more."""
    shown = sum(_LONGEST_M / 2.0**octave >= 2.0 * step for octave in range(_OCTAVES))
    if shown == _OCTAVES:
        return _GRAIN
    vectors, phases, bends = _GRAIN.vectors[:shown], _GRAIN.phases[:shown], _GRAIN.bends[:shown]
    return Noise(vectors, phases, bends, _GRAIN.amplitudes[:shown])


def _grain(p: Points, step: float) -> Floats:
    """The grain at the centres of pixels of a width, about unit variance where all of it shows."""
    return _octaves(step)(p) if step < _LONGEST_M / 2.0 else np.zeros(p.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """What cells show before the grain: the root of their brightness in 0..255 and how rough they are."""

    brightness: Floats
    roughness: Floats

    def at(self, *places: Any) -> Base:
        return Base(brightness=self.brightness[places], roughness=self.roughness[places])

    def numbers(self, grained: Floats) -> Floats:
        """8-bit numbers of pixels whose cells these are."""
        return np.asarray(np.minimum(np.rint(self.brightness * np.exp(self.roughness * grained)), 255.0))


def base(site: Site, day: float, band: str) -> Base:
    """The ground of a site whose points are centres of cells."""
    sun = optics.Sun(day=day, zenith_deg=ZENITH_DEG, azimuth_deg=AZIMUTH_DEG)
    seen = optics.ground_reflectance(site.surface(sun), optics.BANDS.index(BANDS[band]))
    brightness = 255.0 * np.sqrt(np.maximum(seen / WHITE, 0.0))
    return Base(brightness=brightness, roughness=site.lasting("roughness", lambda: _roughness(site)))


def _roughness(site: Site) -> Floats:
    """The grain multiplies reflectance, and numbers are roots of it: half the exponent."""
    dry = site.cover.kind != kinds.WATER
    return np.asarray(0.5 * (0.05 + 0.30 * smoothstep(site.cover.canopy_m, 0.0, 20.0) * dry))


class Camera:
    """Draws windows of photographs; ground and grain are kept for the next band, and for the next scale."""

    def __init__(self, sites: SiteCache) -> None:
        self._sites = sites
        self._kept: OrderedDict[Hashable, Floats] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def window(self, band: BandInfo, rows: Ints, cols: Ints, day: float) -> Floats:
        """8-bit numbers of the pixels in these rows and columns of a lattice, which follow each other."""
        x, y, _ = lattice_axes(band, rows, cols)
        ground, left, top = self._ground(band, day, _cell(x), _cell(y))
        step = max(BLOCK_POINTS // cols.size, 1)
        parts = []
        for first in range(0, rows.size, step):
            some = slice(first, first + step)
            cells = ground.at(*np.ix_(top - _cell(y[some]), _cell(x) - left))
            parts.append(cells.numbers(self._grain(band, rows[some], cols)))
        return np.concatenate(parts)

    def places(self, band: BandInfo, site: Site, day: float) -> Floats:
        """The same of pixels in no order, whose centres are the points of a site."""
        columns, rows = (_cell(axis) for axis in site.projected(int(band.crs.split(":")[1])))
        low, span = (int(columns.min()), int(np.ptp(columns)) + 1) if columns.size else (0, 1)
        keys, where = np.unique(rows * span + (columns - low), return_inverse=True)
        cells = places_site(band.crs, CELL_M, _middle(keys % span + low), _middle(keys // span))
        return base(cells, day, band.id).at(where).numbers(_grain(site.points, band.transform[0]))

    def _ground(self, band: BandInfo, day: float, columns: Ints, rows: Ints) -> tuple[Base, int, int]:
        """The cells of these columns and rows and some more; and the first column and the uppermost row of them."""
        left, right = (int(columns.min()) // ROUNDED * ROUNDED, -(-(int(columns.max()) + 1) // ROUNDED) * ROUNDED)
        top, bottom = (-(-(int(rows.max()) + 1) // ROUNDED) * ROUNDED - 1, int(rows.min()) // ROUNDED * ROUNDED)
        width, step = right - left, max(BLOCK_POINTS // (right - left), 1)
        parts = []
        for first in range(top, bottom - 1, -step):
            down = np.arange(first, max(first - step, bottom - 1), -1)
            window = Window(lattice=(band.crs, CELL_M), left=left, top=first, width=width, height=down.size)
            x, y = _middle(np.arange(left, right)), _middle(down)
            site = self._sites.get(window, partial(lattice_site, band.crs, CELL_M, x, y, self._sites.blocks))
            parts.append(base(site, day, band.id))
        whole = (np.concatenate([getattr(part, name) for part in parts]).reshape(-1, width)
                 for name in ("brightness", "roughness"))  # fmt: skip
        return Base(**dict(zip(("brightness", "roughness"), whole, strict=True))), left, top

    def _grain(self, band: BandInfo, rows: Ints, cols: Ints) -> Floats:
        x, y, key = lattice_axes(band, rows, cols)
        key = (*key, rows.size, cols.size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        step = band.transform[0]
        made = _grain(lattice_site(band.crs, step, x, y, self._sites.blocks).points, step).reshape(rows.size, cols.size)
        with self._lock:
            self._count += 0 if key in self._kept else made.size
            self._kept[key] = made
            while self._count > KEPT_POINTS and len(self._kept) > 1:
                self._count -= self._kept.popitem(last=False)[1].size
        return made


def _cell(coordinate: Floats) -> Ints:
    return np.floor(coordinate / CELL_M).astype(np.int64)


def _middle(cell: Ints) -> Floats:
    return np.asarray((cell + 0.5) * CELL_M, dtype=np.float64)
