"""The 100 km squares of the Military Grid Reference System as Sentinel-2 tiles: names, zones, lattice origins.

Pure arithmetic plus pyproj. Tiles are 109.8 km squares, so neighbours overlap, within a zone and across its seams.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

TILE_M = 109_800.0
SQUARE_M = 100_000
BAND_LETTERS = "CDEFGHJKLMNPQRSTUVWX"
COLUMN_LETTERS = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")
ROW_LETTERS = "ABCDEFGHJKLMNPQRSTUV"

_local = threading.local()


def transformer(source: str | int, target: str | int) -> Transformer:
    """A cached x/y (lon/lat) transformer of this thread; pyproj's are not to be shared between threads."""
    cache: dict[Any, Transformer] = _local.__dict__.setdefault("transformers", {})
    if (source, target) not in cache:
        cache[source, target] = Transformer.from_crs(source, target, always_xy=True)
    return cache[source, target]


def zone_of(lon: float, lat: float) -> int:
    """UTM zone with the exceptions of Norway (32V) and Svalbard (31X, 33X, 35X, 37X)."""
    lon = (lon + 180.0) % 360.0 - 180.0
    if 56.0 <= lat < 64.0 and 3.0 <= lon < 12.0:
        return 32
    if lat >= 72.0 and 0.0 <= lon < 42.0:
        return (31, 33, 35, 37)[int(np.searchsorted([9.0, 21.0, 33.0], lon, side="right"))]
    return min(int((lon + 180.0) // 6.0), 59) + 1


def band_of(lat: float) -> str:
    """Latitude band letter, C (80 S) to X (84 N)."""
    return BAND_LETTERS[min(max(int((lat + 80.0) // 8.0), 0), 19)]


@dataclass(frozen=True)
class Tile:
    """One tile: zone, hemisphere, and the lower left corner of the 100 km square it is named after."""

    zone: int
    south: bool
    east_m: int
    north_m: int

    @property
    def epsg(self) -> int:
        return (32700 if self.south else 32600) + self.zone

    @property
    def crs(self) -> str:
        return f"EPSG:{self.epsg}"

    @property
    def left(self) -> int:
        """Easting of the tile's left edge: 0 mod 60."""
        return self.east_m // 60 * 60

    @property
    def top(self) -> int:
        """Northing of the tile's upper edge: 0 mod 60 in the north, 40 mod 60 in the south."""
        phase = 40 if self.south else 0
        return -(-(self.north_m + SQUARE_M - phase) // 60) * 60 + phase

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the middle of the tile."""
        lon, lat = transformer(self.epsg, 4326).transform(self.left + TILE_M / 2, self.top - TILE_M / 2)
        return float(lon), float(lat)

    @cached_property
    def name(self) -> str:
        """For example 32VNH."""
        _, lat = transformer(self.epsg, 4326).transform(self.east_m + SQUARE_M / 2, self.north_m + SQUARE_M / 2)
        column = COLUMN_LETTERS[(self.zone - 1) % 3][self.east_m // SQUARE_M - 1]
        row = ROW_LETTERS[(self.north_m // SQUARE_M + (0 if self.zone % 2 else 5)) % 20]
        return f"{self.zone:02d}{band_of(float(lat))}{column}{row}"

    def contains(self, x: float, y: float) -> bool:
        """Whether a point in the tile's own coordinates lies on it."""
        return self.left <= x < self.left + TILE_M and self.top - TILE_M < y <= self.top

    @cached_property
    def exists(self) -> bool:
        """Whether the square has ground in its own zone, between 80 S and 84 N."""
        if not 100_000 <= self.east_m <= 800_000:
            return False
        steps = np.linspace(1.0, SQUARE_M - 1.0, 9)
        x, y = np.meshgrid(self.east_m + steps, self.north_m + steps)
        lon, lat = transformer(self.epsg, 4326).transform(x.ravel(), y.ravel())
        rows = zip(lon.tolist(), lat.tolist(), strict=True)
        return any(-80.0 <= b < 84.0 and (b < 0) == self.south and zone_of(a, b) == self.zone for a, b in rows)


@lru_cache(maxsize=8192)
def _tile(zone: int, south: bool, east_m: int, north_m: int) -> Tile:
    return Tile(zone, south, east_m, north_m)


def tiles_at(lon: float, lat: float) -> list[Tile]:
    """All tiles that have the point on them, of its own zone and of the neighbours, by name."""
    zone = zone_of(lon, lat)
    halves = [lat < 0] if abs(lat) > 1.0 else [False, True]
    found = []
    for z in range(zone - 2, zone + 3):
        for south in halves:
            number = (z - 1) % 60 + 1
            x, y = transformer(4326, (32700 if south else 32600) + number).transform(lon, lat)
            found += _tiles_over(number, south, x, y)
    return sorted(set(found), key=lambda tile: tile.name)


def _tiles_over(zone: int, south: bool, x: float, y: float) -> list[Tile]:
    if not 0.0 <= x <= 1_000_000.0:
        return []
    column, row = int(x // SQUARE_M), int(y // SQUARE_M)
    near = [_tile(zone, south, (column + i) * SQUARE_M, (row + j) * SQUARE_M) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [tile for tile in near if tile.contains(x, y) and tile.exists]


def tiles_in(bounds: Sequence[float], limit: int = 4000) -> list[Tile]:
    """Tiles that touch a box (west, south, east, north; west > east crosses the antimeridian), by name.

    Raises ValueError when the box would need more than `limit` look-ups (about a continent).
    """
    west, south, east, north = bounds
    east = east + 360.0 if west > east else east
    south, north = max(south, -80.0), min(north, 83.99)
    if south > north:
        return []
    rows = _steps(south, north, 0.4)
    columns = [_steps(west, east, 0.4 / max(float(np.cos(np.radians(lat))), 0.08)) for lat in rows]
    if sum(len(c) for c in columns) > limit:
        raise ValueError(f"the box {tuple(bounds)} covers more than about {limit} tiles; filter by a smaller region")
    found = {t for lat, lons in zip(rows, columns, strict=True) for lon in lons for t in tiles_at(lon, lat)}
    return sorted(found, key=lambda tile: tile.name)


def _steps(low: float, high: float, step: float) -> list[float]:
    count = max(int(np.ceil((high - low) / step)), 1) + 1 if high > low else 1
    return [float(v) for v in np.linspace(low, high, count)]


@lru_cache(maxsize=8192)
def tile_named(name: str) -> Tile:
    """The tile of a name such as 32VNH. Raises KeyError when there is none."""
    try:
        zone, letter = int(name[:2]), name[2]
        east = (COLUMN_LETTERS[(zone - 1) % 3].index(name[3]) + 1) * SQUARE_M
        row = (ROW_LETTERS.index(name[4]) - (0 if zone % 2 else 5)) % 20
        south = BAND_LETTERS.index(letter) < 10
    except (ValueError, IndexError):
        raise KeyError(name) from None
    for cycle in range(5):
        tile = _tile(zone, south, east, (row + 20 * cycle) * SQUARE_M)
        if tile.name == name and tile.exists:
            return tile
    raise KeyError(name)


def to_lonlat(epsg: int, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees of projected coordinates."""
    lon, lat = transformer(epsg, 4326).transform(x, y)
    return np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
