"""Which Landsat 8 and 9 scenes exist, cut to Sentinel-2's tiles as the harmonised product cuts them.

Paths and rows are the real ones; dates follow from the 16-day cycle. The weather of a pass is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from mmbuild.sandbox.earth_noise import hash_floats
from mmbuild.sandbox.mgrs import Tile, tiles_at, tiles_in
from mmbuild.sandbox.orbits import DAY_MS, Orbit, sun_position
from mmbuild.sandbox.scenes import END_MS, OpticalScene, Strip, is_near_land, orbit_strips

# LC08_044034_20140318 (path 44, row 34) was taken at 18:46 UTC; the ascending node lay 40 minutes before it.
LANDSAT = Orbit(
    cycle_days=16, cycle_orbits=233, inclination_deg=98.2, node_hour=22.18, node_ms=1_395_165_930_000, node_number=193
)
SWATH_KM = 92.5
HEIGHT_M = 705_000.0
# First day and days behind Landsat 8 on the same path. Sources: catalogue (HLSL30), USGS (Landsat 9 operations).
SATELLITES = {
    "8": (int(datetime(2013, 4, 11, tzinfo=UTC).timestamp() * 1000), 0),
    "9": (int(datetime(2021, 10, 31, tzinfo=UTC).timestamp() * 1000), 8),
}
# The harmonised product is not made with the sun lower than this. Source: HLS user guide.
MAX_ZENITH_DEG = 76.0
ROWS = 248


@lru_cache(maxsize=2048)
def landsat_strips(tile: Tile) -> tuple[Strip, ...]:
    """The orbits whose swath touches the tile, by number; none over the open ocean."""
    return orbit_strips(tile, LANDSAT, SWATH_KM) if is_near_land(tile) else ()


def path_row(strip: Strip) -> tuple[int, int]:
    """WRS-2 path and row of where an orbit passes a tile. The next orbit flies 16 paths on; row 60 is the equator."""
    argument = strip.delay_ms / LANDSAT.period_ms * 360.0
    return (strip.number - 1) * 16 % 233 + 1, round(60 + (argument - 180.0) / 360.0 * ROWS)


def landsat_tile_scenes(tile: Tile, start_ms: int, end_ms: int) -> list[OpticalScene]:
    """Scenes over a tile in [start_ms, end_ms), in time order."""
    found = [s for strip in landsat_strips(tile) for s in _strip_scenes(tile, strip, start_ms, min(end_ms, END_MS))]
    return sorted(found, key=lambda s: s.start_ms)


def _strip_scenes(tile: Tile, strip: Strip, start_ms: int, end_ms: int) -> list[OpticalScene]:
    found = []
    for satellite, (first, lag_days) in SATELLITES.items():
        base = int(LANDSAT.node_time(strip.number) + strip.delay_ms) // 1000 * 1000 + lag_days * DAY_MS
        for k in LANDSAT.cycles(base, max(start_ms, first), end_ms):
            ms = base + k * LANDSAT.cycle_ms
            zenith, azimuth = (float(angle) for angle in sun_position(*tile.centre, ms))
            # Far from every number of Sentinel-2, so that no two missions share their clouds.
            orbit = int(satellite) * 10_000_000 + strip.number + k * LANDSAT.cycle_orbits
            if zenith <= MAX_ZENITH_DEG and not _is_missing(tile, orbit):
                found.append(OpticalScene(tile=tile, strip=strip, satellite=satellite, start_ms=ms, datatake_ms=ms,
                                          orbit=orbit, zenith_deg=zenith, azimuth_deg=azimuth))  # fmt: skip
    return found


def _is_missing(tile: Tile, orbit: int) -> bool:
    """One scene in 25 was never delivered."""
    seed = orbit * 1_000_003 + tile.zone * 65_537 + tile.east_m // 100_000 * 257 + tile.north_m // 100_000
    return hash_floats(seed, 1)[0] < 0.04


def landsat_scenes_in(bounds: Sequence[float], start_ms: int, end_ms: int) -> list[OpticalScene]:
    """Scenes whose tiles touch the box, by tile and time."""
    west, south, east, north = bounds
    tiles = tiles_at(west, south) if (west, south) == (east, north) else tiles_in(bounds)
    return [scene for tile in tiles for scene in landsat_tile_scenes(tile, start_ms, end_ms)]
