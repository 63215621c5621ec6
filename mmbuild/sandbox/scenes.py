"""Which Sentinel-2 scenes exist: granules on MGRS tiles, their dates, footprints, sun and clouds.

Scenes are computed from the orbit when asked for, never listed in advance; the same question gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.ops import unary_union

from mmbuild.sandbox.earth_clouds import CELL_M, FIRST_CLOUD, cloud_bias, cloud_codes
from mmbuild.sandbox.earth_ground import coast_distance, yearly_rain
from mmbuild.sandbox.earth_noise import hash_floats, points
from mmbuild.sandbox.mgrs import TILE_M, Tile, tile_named, tiles_at, tiles_in, to_lonlat, transformer
from mmbuild.sandbox.orbits import DAY_MS, EARTH_RADIUS_KM, Orbit, day_of_year, lonlat, sun_position, turned
from mmbuild.sandbox.remembered import Remembered

# Relative orbit 8 crossed its descending node at 11:01 UTC on 2019-06-05 (it serves tile 32VNH that morning).
SENTINEL2 = Orbit(
    cycle_days=10,
    cycle_orbits=143,
    inclination_deg=98.62,
    node_hour=22.5,
    node_ms=1559732460000 - 3020979,
    node_number=8,
)
SWATH_KM = 145.0
FIRST_L1C_MS = int(datetime(2015, 6, 27, tzinfo=UTC).timestamp() * 1000)
FIRST_L2A_MS = int(datetime(2017, 3, 28, tzinfo=UTC).timestamp() * 1000)
GLOBAL_L2A_MS = int(datetime(2018, 12, 13, tzinfo=UTC).timestamp() * 1000)
FIRST_TWIN_MS = int(datetime(2017, 7, 1, tzinfo=UTC).timestamp() * 1000)
END_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
# Europe and the Mediterranean, where level-2A began.
EARLY_L2A = (-25.0, 30.0, 45.0, 72.0)
SEARCH_MAX_ZENITH_DEG = 82.0


@dataclass(frozen=True, kw_only=True)
class Strip:
    """How one relative orbit passes a tile: time since its node, and |a x + b y + c| <= half_m in tile metres."""

    number: int
    node_lon: float
    delay_ms: float
    a: float
    b: float
    c: float
    half_m: float = SWATH_KM * 1000.0

    def covers(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """Which points (in the tile's coordinates) lie within the swath."""
        return np.asarray(np.abs(self.a * x + self.b * y + self.c) <= self.half_m)


@dataclass(frozen=True, kw_only=True)
class OpticalScene:
    """One granule: tile, strip, satellite (A or B), acquisition time, orbit (weather seed) and sun."""

    tile: Tile
    strip: Strip
    satellite: str
    start_ms: int
    datatake_ms: int
    orbit: int
    zenith_deg: float
    azimuth_deg: float

    @cached_property
    def index(self) -> str:
        """The system:index, for example 20190605T104031_20190605T104025_T32VNH."""
        return f"{stamp(self.datatake_ms)}_{stamp(self.start_ms)}_T{self.tile.name}"

    @property
    def passage(self) -> int:
        """A number that all granules of one overpass share."""
        return self.orbit * 2 + (self.satellite == "B")

    @cached_property
    def day(self) -> float:
        return float(day_of_year(self.start_ms))

    @property
    def cloud_percent(self) -> float:
        """Share of the granule's pixels under cloud or cirrus, in percent, from a 11 x 11 sample of the cloud field."""
        return cloud_shares([self])[0]

    @property
    def footprint(self) -> Any:
        """The granule's valid area, lon/lat degrees."""
        return footprint(self.tile, self.strip)


def stamp(ms: int) -> str:
    """20190605T104031 of milliseconds."""
    day, seconds = divmod(ms // 1000, 86_400)
    return f"{_date(day)}T{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


@lru_cache(maxsize=8192)
def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, tz=UTC).strftime("%Y%m%d")


@lru_cache(maxsize=4096)
def strips(tile: Tile) -> tuple[Strip, ...]:
    """Sentinel-2's relative orbits whose swath touches the tile, by number; none over open ocean, beyond 83 N, 56 S."""
    if not -56.0 < tile.centre[1] < 83.0 or not is_near_land(tile):
        return ()
    return orbit_strips(tile, SENTINEL2, SWATH_KM)


def orbit_strips(tile: Tile, orbit: Orbit, half_km: float) -> tuple[Strip, ...]:
    """The relative orbits whose descending swath, half_km to each side, touches the tile, by number."""
    lon, lat = tile.centre
    # Descending half, as far as the tile can see it.
    u = np.arange(96.0, 264.0, 0.05)
    position, motion = orbit.track(u)
    near = np.abs(np.degrees(np.arcsin(position[2])) - lat) < 3.0
    u, position, motion = u[near], position[:, near], motion[:, near]
    flat = math.cos(math.radians(lat))
    east = math.radians(lon)
    centre = np.array([flat * math.cos(east), flat * math.sin(east), math.sin(math.radians(lat))])
    if not u.size:
        return ()
    # The centre turned back to each orbit's node, for one position of all: cosines, (orbit, u).
    back = turned(centre[:, None], -orbit.node_lons)
    cosines = back[0][:, None] * position[0] + back[1][:, None] * position[1] + back[2][:, None] * position[2]
    nearest = np.argmax(cosines, axis=1)
    reach = math.cos((half_km + 85.0) / EARTH_RADIUS_KM)
    found = []
    for place in np.flatnonzero(cosines[np.arange(nearest.size), nearest] > reach).tolist():
        node, best = float(orbit.node_lons[place]), int(nearest[place])
        at, moves = (turned(part[:, best], node) for part in (position, motion))
        a, b, c = _centre_line(tile, at, moves)
        found.append(Strip(number=place + 1, node_lon=node, delay_ms=float(u[best]) / 360.0 * orbit.period_ms,
                           a=a, b=b, c=c, half_m=half_km * 1000.0))  # fmt: skip
    return tuple(s for s in found if valid_area(tile, s).area > 0.01 * TILE_M**2)


def _centre_line(tile: Tile, at: NDArray[Any], motion: NDArray[Any]) -> tuple[float, float, float]:
    """a, b, c of the track's line a x + b y + c = 0 in the tile's metres."""
    ends = np.stack([at - 0.006 * motion, at + 0.006 * motion], axis=1)
    x, y = transformer(4326, tile.epsg).transform(*lonlat(ends / np.sqrt(np.sum(ends * ends, axis=0))))
    dx, dy = x[1] - x[0], y[1] - y[0]
    length = math.hypot(dx, dy)
    a, b = dy / length, -dx / length
    return a, b, -(a * x[0] + b * y[0])


def is_near_land(tile: Tile) -> bool:
    """Whether land, or the sea within 12 km of it, lies on the tile."""
    steps = np.linspace(0.0, TILE_M, 12)
    x, y = np.meshgrid(tile.left + steps, tile.top - steps)
    return bool((coast_distance(points(*to_lonlat(tile.epsg, x.ravel(), y.ravel()))) > -12.0).any())


def valid_area(tile: Tile, strip: Strip) -> Any:
    """Square and swath, in the tile's coordinates."""
    square = box(tile.left, tile.top - TILE_M, tile.left + TILE_M, tile.top)
    half, far = strip.half_m, 400_000.0
    cx, cy = tile.left + TILE_M / 2, tile.top - TILE_M / 2
    off = strip.a * cx + strip.b * cy + strip.c
    fx, fy = cx - strip.a * off, cy - strip.b * off
    sides = [(fx + strip.a * s * half - strip.b * t * far, fy + strip.b * s * half + strip.a * t * far)
             for s, t in ((-1, -1), (-1, 1), (1, 1), (1, -1))]  # fmt: skip
    return square.intersection(Polygon(sides))


@lru_cache(maxsize=8192)
def footprint(tile: Tile, strip: Strip) -> Any:
    """Valid area as a lon/lat polygon with points every 5 km; split in two at the antimeridian."""
    return lonlat_polygon(tile.epsg, valid_area(tile, strip))


def lonlat_polygon(epsg: int, area: Any) -> Any:
    """A projected polygon in degrees, split where it crosses the antimeridian."""
    ring = np.array(area.segmentize(5000.0).exterior.coords)
    lon, lat = to_lonlat(epsg, ring[:, 0], ring[:, 1])
    lon = np.degrees(np.unwrap(np.radians(lon)))
    whole = Polygon(np.stack([lon, lat], axis=1))
    if lon.min() >= -180.0 and lon.max() <= 180.0:
        return whole
    parts = []
    for turn in (-360.0, 0.0, 360.0):
        moved = Polygon(np.stack([lon + turn, lat], axis=1)).intersection(box(-180.0, -90.0, 180.0, 90.0))
        parts += [] if moved.is_empty else [moved]
    joined = unary_union(parts)
    return joined if isinstance(joined, Polygon | MultiPolygon) else whole


def tile_scenes(tile: Tile, start_ms: int, end_ms: int, level: str) -> list[OpticalScene]:
    """Scenes of a tile in [start_ms, end_ms) at level "L1C" or "L2A", in time order."""
    lon, lat = tile.centre
    west, south, east, north = EARLY_L2A
    early = west <= lon <= east and south <= lat <= north
    first = FIRST_L1C_MS if level == "L1C" else FIRST_L2A_MS if early else GLOBAL_L2A_MS
    start_ms, end_ms = max(start_ms, first), min(end_ms, END_MS)
    found = [s for strip in strips(tile) for s in _strip_scenes(tile, strip, start_ms, end_ms)]
    return sorted(found, key=lambda s: s.index)


@lru_cache(maxsize=512)
def _strip_scenes(tile: Tile, strip: Strip, start_ms: int, end_ms: int) -> tuple[OpticalScene, ...]:
    """In time order of each satellite; remembered, for a search lists the same granules for several products."""
    found: list[tuple[str, int, int]] = []
    for satellite, lag_days, first in (("A", 0, FIRST_L1C_MS), ("B", 5, FIRST_TWIN_MS)):
        # Whole seconds, as the names of the scenes tell.
        base = int(SENTINEL2.node_time(strip.number) + strip.delay_ms) // 1000 * 1000 + lag_days * DAY_MS
        cycles = SENTINEL2.cycles(base, max(start_ms, first), end_ms)
        found += [(satellite, k, base + k * SENTINEL2.cycle_ms) for k in cycles]
    if not found:
        return ()
    times = np.array([t for _, _, t in found], dtype=np.int64)
    zenith, azimuth = sun_position(*tile.centre, times)
    scenes = []
    for (satellite, k, ms), z, a in zip(found, zenith.tolist(), azimuth.tolist(), strict=True):
        orbit = 20640 + k * 143 + (strip.number - 8) + (0 if satellite == "A" else -8909)
        if z <= SEARCH_MAX_ZENITH_DEG and not _is_missing(tile, orbit, ms):
            scenes.append(OpticalScene(tile=tile, strip=strip, satellite=satellite, start_ms=ms,
                                       datatake_ms=(ms - int(strip.delay_ms) + 1_560_000) // 1000 * 1000, orbit=orbit,
                                       zenith_deg=z, azimuth_deg=a))  # fmt: skip
    return tuple(scenes)


def _is_missing(tile: Tile, orbit: int, ms: int) -> bool:
    """One scene in 25 was never delivered; before the second satellite, one in five."""
    seed = orbit * 1_000_003 + tile.zone * 65_537 + tile.east_m // 100_000 * 257 + tile.north_m // 100_000
    return hash_floats(seed, 1)[0] < (0.04 if ms >= FIRST_TWIN_MS else 0.2)


def find_scene(index: str, level: str) -> OpticalScene:
    """The scene of a system:index. Raises KeyError when there is none."""
    try:
        _, when, name = index.split("_")
        ms = int(datetime.strptime(when, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp() * 1000)
        tile = tile_named(name[1:])
    except (ValueError, IndexError):
        raise KeyError(index) from None
    for scene in tile_scenes(tile, ms - 1000, ms + 2000, level):
        if scene.index == index:
            return scene
    raise KeyError(index)


def scenes_in(bounds: Sequence[float], start_ms: int, end_ms: int, level: str) -> list[OpticalScene]:
    """Scenes whose tiles touch the box, by index."""
    west, south, east, north = bounds
    tiles = tiles_at(west, south) if (west, south) == (east, north) else tiles_in(bounds)
    found = [scene for tile in tiles for scene in tile_scenes(tile, start_ms, end_ms, level)]
    return sorted(found, key=lambda s: s.index)


@lru_cache(maxsize=2048)
def sample_cells(tile: Tile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the 11 x 11 cloud cells a tile's cloud share is measured at."""
    steps = (np.floor((np.arange(11) + 0.5) * TILE_M / 11 / CELL_M) + 0.5) * CELL_M
    x, y = np.meshgrid(tile.left + steps, tile.top - steps)
    return x.ravel(), y.ravel()


def _tile_and_pass(scene: OpticalScene) -> tuple[str, int]:
    return scene.tile.name, scene.passage


def _measure_all(scenes: Sequence[OpticalScene]) -> list[float]:
    shares: dict[tuple[str, int], float] = {}
    for tile in {scene.tile for scene in scenes}:
        shares |= _measure(tile, [scene for scene in scenes if scene.tile == tile])
    return [shares[_tile_and_pass(scene)] for scene in scenes]


# Cloudy percentage of each scene; measured once per tile and pass, many passes at a time.
cloud_shares = Remembered(_measure_all, key=_tile_and_pass, most=200_000)


def _measure(tile: Tile, scenes: list[OpticalScene]) -> dict[tuple[str, int], float]:
    shares = {}
    x, y = sample_cells(tile)
    p = points(*to_lonlat(tile.epsg, x, y))
    rain, hemisphere = yearly_rain(p)
    swaths = {strip: np.flatnonzero(strip.covers(x, y)) for strip in {scene.strip for scene in scenes}}
    for group in (scenes[i : i + 64] for i in range(0, len(scenes), 64)):
        days = np.array([s.day for s in group])
        passes = np.array([s.passage for s in group], dtype=np.int64)
        codes = cloud_codes(p, cloud_bias(rain, hemisphere, days[:, None]), passes)
        cloudy = codes >= FIRST_CLOUD
        for scene, row in zip(group, cloudy, strict=True):
            valid = swaths[scene.strip]
            share = float(np.count_nonzero(row[valid]) / max(valid.size, 1))
            shares[_tile_and_pass(scene)] = round(share * 100.0, 4)
    return shares
