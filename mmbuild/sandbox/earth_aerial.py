"""Aerial photographs of the contiguous United States: quarter quadrangles of 3.75 minutes, one summer in two or three.

Early flights have no infrared band, or have it instead of blue; the sampling distance falls from 1 m to 0.6 m in 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import box

from mmbuild.sandbox.assets import BandInfo, Bounds, ImageInfo
from mmbuild.sandbox.earth_ground import coast_distance
from mmbuild.sandbox.earth_noise import Floats, hash_floats, points
from mmbuild.sandbox.earth_photograph import Camera
from mmbuild.sandbox.earth_site import Site
from mmbuild.sandbox.earth_world import SyntheticDataset, band_info, required_bounds, square_transform
from mmbuild.sandbox.mgrs import transformer, zone_of
from mmbuild.sandbox.orbits import day_of_year

STEP = 0.0625
WEST, SOUTH, EAST, NORTH = -124.84, 24.42, -66.9, 49.0
# Photographs reach beyond their quarter quadrangle. Source: NAIP specification, 300 m.
BUFFER_M = 300.0
QUARTERS = {(0, 0): "nw", (0, 1): "ne", (1, 0): "sw", (1, 1): "se"}
SEARCH_LIMIT = 5000
# The archive begins on 2002-06-15. Source: Earth Engine catalogue, USDA/NAIP/DOQQ.
FIRST_MS = int(datetime(2002, 6, 15, tzinfo=UTC).timestamp() * 1000)
# Prefix of the id to the bands: natural colour, false colour (infrared film), and all four.
BANDS = {"n": ("R", "G", "B"), "c": ("N", "R", "G"), "m": ("R", "G", "B", "N")}


def _name(row: int, col: int) -> str:
    """7-digit quadrangle and quarter, for example 4212305_se: degrees, number 1..64 from the north-west, quarter."""
    north, west = 90.0 - row * STEP, -180.0 + col * STEP
    degree_lat, degree_lon = math.ceil(north) - 1, math.ceil(-west - STEP / 2)
    down, right = round((degree_lat + 1 - north) / STEP), round((west + degree_lon) / STEP)
    return f"{degree_lat:02d}{degree_lon:03d}{down // 2 * 8 + right // 2 + 1:02d}_{QUARTERS[down % 2, right % 2]}"


def _block(row: int, col: int) -> int:
    """Blocks of two degrees are flown together."""
    return (row // 32) * 1000 + col // 32


@lru_cache(maxsize=1024)
def _flights(block: int, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Year and milliseconds of each flight over a block."""
    return tuple(_flown(block, first, last))


def _flown(block: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    cycle, phase, *days = hash_floats(block, 2 + last - first + 1)
    for year in range(first, last + 1):
        if (year + int(phase * 6)) % (2 if cycle < 0.5 or year > 2012 else 3) == 0:
            # Draws are counted from 2003; the year before that takes the last.
            day = int(150 + 110 * days[year - 2003])
            ms = int(datetime(year, 1, 1, 15, tzinfo=UTC).timestamp() * 1000) + day * 86_400_000
            yield year, max(ms, FIRST_MS)


def _prefix(row: int, col: int, year: int) -> str:
    """From 2009 on, four bands; before, one block of two degrees in six was flown on infrared film."""
    if year >= 2009:
        return "m"
    return "c" if hash_floats(_block(row, col) + 7_000_000, 1)[0] < 1 / 6 else "n"


@lru_cache(maxsize=65536)
def _extent(row: int, col: int) -> tuple[int, float, float, float, float]:
    """UTM zone, left, top, height and width in metres of the photographs of a quarter quadrangle."""
    west, north = -180.0 + col * STEP, 90.0 - row * STEP
    zone = zone_of(west + STEP / 2, north)
    lon, lat = np.meshgrid([west, west + STEP / 2, west + STEP], [north, north - STEP])
    x, y = transformer(4326, 26900 + zone).transform(lon.ravel(), lat.ravel())
    left, top = math.floor((x.min() - BUFFER_M) / 6) * 6.0, math.ceil((y.max() + BUFFER_M) / 6) * 6.0
    return zone, left, top, float(top - y.min() + BUFFER_M), float(x.max() + BUFFER_M - left)


def _day(image: ImageInfo) -> float:
    return float(day_of_year(image.start_ms or 0))


def _share(first: int, count: int, n: int, size: int | None) -> Floats:
    """Of each row (or column) of a level, the share of its n native ones that a band of a size has."""
    start = (first + np.arange(count)) * n
    end = start + n if size is None else np.minimum(start + n, size)
    return np.asarray(np.clip(end - np.maximum(start, 0), 0, n) / n)


def _is_land(row: int, col: int) -> bool:
    return bool(_land(row // 16, col // 16)[row % 16, col % 16])


@cache
def _land(rows: int, cols: int) -> NDArray[np.bool_]:
    """Which of 16 x 16 quarter quadrangles hold land, at sixteen places of each (row, column)."""
    row, col, down, across = np.ix_(rows * 16 + np.arange(16), cols * 16 + np.arange(16), np.arange(4), np.arange(4))
    lon, lat = np.broadcast_arrays(-180 + (col + across / 3) * STEP, 90 - (row + down / 3) * STEP)
    land = coast_distance(points(lon, lat)) > 0.0
    return np.asarray(land.reshape(16, 16, 16).any(axis=2))


class AerialDataset(SyntheticDataset):
    """The photographs that touch a region."""

    @cached_property
    def _camera(self) -> Camera:
        return Camera(self.sites)

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        west, south, east, north = required_bounds(self.id, bounds)
        west, east, south, north = max(west, WEST), min(east, EAST), max(south, SOUTH), min(north, NORTH)
        if west > east or south > north:
            return []
        margin = 0.005
        rows = range(int((90 - north - margin) // STEP), int((90 - south + margin) // STEP) + 1)
        cols = range(int((west + 180 - margin) // STEP), int((east + 180 + margin) // STEP) + 1)
        if len(rows) * len(cols) > SEARCH_LIMIT:
            raise ValueError(f"{self.id}: the region has more than {SEARCH_LIMIT} photographs; use a smaller one")
        low, high = start_ms or 0, 1 << 62 if end_ms is None else end_ms
        flown = ((r, c, flight) for r in rows for c in cols if _is_land(r, c) for flight in self._flights(r, c))
        found = [self._info(r, c, *flight) for r, c, flight in flown if low <= flight[1] < high]
        return sorted(found, key=lambda i: i.index)

    def image(self, index: str) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        try:
            quad, quarter = index.split("_")[1:3]
            number = int(quad[5:]) - 1
            down, right = next(k for k, v in QUARTERS.items() if v == quarter)
            row = round((90 - int(quad[:2]) - 1) / STEP) + number // 8 * 2 + down
            col = round((180 - int(quad[2:5])) / STEP) + number % 8 * 2 + right
        except (ValueError, IndexError, StopIteration):
            raise KeyError(index) from None
        for flight in self._flights(row, col) if _is_land(row, col) else ():
            info = self._info(row, col, *flight)
            if info.index == index:
                return info
        raise KeyError(index)

    def pixels(self, image: ImageInfo, band: BandInfo, site: Site) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values = self._camera.places(band, site, _day(image))
        return values.astype(band.dtype), np.ones(values.size, dtype=bool)

    def window(
        self, image: ImageInfo, band: str, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        values, mask = self.level_window(image, band, 1, row0, col0, height, width)
        return values, mask > 0.0

    def level_window(
        self, image: ImageInfo, band: str, n: int, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `assets.DrawsLevels`. The mask is the share of a pixel's native pixels that the image has."""
        info = next(b for b in image.bands if b.id == band)
        a, _, left, _, e, top = info.transform
        level = replace(info, transform=(a * n, 0.0, left, 0.0, e * n, top))
        down, across = _share(row0, height, n, info.height), _share(col0, width, n, info.width)
        rows, columns = np.flatnonzero(down), np.flatnonzero(across)
        values = np.zeros((height, width), dtype=info.dtype)
        if rows.size and columns.size:
            seen = self._camera.window(level, row0 + rows, col0 + columns, _day(image))
            values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = seen
        return values, np.multiply.outer(down, across)

    def _flights(self, row: int, col: int) -> Sequence[tuple[int, int]]:
        return _flights(_block(row, col), self.spec["first_year"], self.spec["last_year"])

    def _info(self, row: int, col: int, year: int, ms: int) -> ImageInfo:
        gsd = 1.0 if year < 2016 else 0.6
        west, north, zone = -180.0 + col * STEP, 90.0 - row * STEP, _extent(row, col)[0]
        kind = _prefix(row, col, year)
        day = datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y%m%d")
        index = f"{kind}_{_name(row, col)}_{zone}_{'1' if gsd == 1.0 else '060'}_{day}"
        if index in self._infos:
            return self._infos[index]
        bands = tuple(self._bands(row, col, gsd, BANDS[kind]))
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{index}",
                index=index,
                bands=bands,
                start_ms=ms,
                end_ms=ms + 86_400_000,
                footprint=box(west, north - STEP, west + STEP, north),
                properties={"synthetic": 1},
            )
        )

    def _bands(self, row: int, col: int, gsd: float, names: Sequence[str]) -> Iterator[BandInfo]:
        zone, left, top, height, width = _extent(row, col)
        shape = math.ceil(height / gsd), math.ceil(width / gsd)
        for name in names:
            yield band_info(name, self.fields[name], f"EPSG:{26900 + zone}", square_transform(gsd, left, top), shape)
