"""Formulas of published corpora, drawn exactly as their code draws, so that a faithful recipe can repeat them.

Nothing here is how mmbuild draws by itself; each function names the file it restates.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

# Most features that Earth Engine hands out at once; MMEarth drew its points in batches of this size.
POINTS_PER_BATCH = 5000
# Their seeds are hashes modulo this.
SEEDS = 10**5
# SSL4EO-S12 takes the Earth as a sphere of this radius and one degree, of either axis, as 111.19 km.
EARTH_RADIUS_KM = 6371.0
# Two SSL4EO-S12 patches may not be nearer than this times half a patch.
NEAREST_HALVES = 1.5


def _hashed(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % SEEDS


def point_seed(index: int, ecoregion: str, points: int, batch: int) -> int:
    """Seed of one batch of random points in an ecoregion.

    index: the ecoregion's place in its biome, from 0. points: how many this batch has.
    Source: MMEarth-data, create_tiles_polygon.py (as corrected for v001).
    """
    return _hashed(f"{index}{ecoregion}{points}{batch}")


def batches(count: int) -> list[int]:
    """Sizes of the batches in which an ecoregion's points are drawn: full ones first, the rest last."""
    full, rest = divmod(count, POINTS_PER_BATCH)
    return [POINTS_PER_BATCH] * full + [rest] * (rest > 0)


def floor_allocation(samples: int, areas: Sequence[Sequence[float]]) -> list[list[int]]:
    """Places of each ecoregion, biome by biome: its share of the biome's part, rounded down.

    Rounding loses up to one place for every ecoregion, and small recipes lose most: of 1,000 places 702 are left.
    Source: MMEarth-data, create_tiles_polygon.py, uniform_type 0.
    """
    each = samples // len(areas)
    return [[int(each * area / total) for area in biome] for biome, total in zip(areas, map(sum, areas), strict=True)]


@dataclass(frozen=True, kw_only=True)
class TileDraws:
    """What MMEarth draws for one tile, in its order; ``image`` goes on with the same stream."""

    seed: int
    year: int
    is_l1c: bool
    stream: random.Random

    def image(self, count: int) -> int:
        """Index of the image that is taken of ``count``; each call draws anew, as each one there does."""
        return self.stream.randint(0, count - 1)


def tile_draws(lon: float, lat: float, *, first_year: int = 2017, last_year: int = 2020) -> TileDraws:
    """Year and product level of a tile from the hash of its centre.

    Source: MMEarth-data, ee_utils/ee_data.py: the text is latitude first, as Python writes floats.
    """
    seed = _hashed(f"{float(lat)!r}_{float(lon)!r}")
    stream = random.Random(seed)
    year = stream.randint(first_year, last_year)
    return TileDraws(seed=seed, year=year, is_l1c=stream.randint(0, 1) == 1, stream=stream)


def km_to_degrees(km: float) -> float:
    """Kilometres as degrees of a great circle; SSL4EO-S12 uses it for both axes, so its patches spread less
    to the east and west the farther they are from the equator. Source: SSL4EO-S12, src/download_data."""
    return km / (2 * math.pi * EARTH_RADIUS_KM / 360)


def grid_key(lon: float, lat: float) -> tuple[int, int]:
    """The cell of one degree in which SSL4EO-S12 looks for overlapping patches; it does not look next door."""
    return math.floor(lon + 180), math.floor(lat + 90)


def nearest_km(patch_km: float) -> float:
    """How near two SSL4EO-S12 patches may be, by a distance that takes degrees of longitude for full ones."""
    return NEAREST_HALVES * patch_km / 2
