"""What covers the ground: WorldCover classes, Dynamic World classes, crop parcels, cities, canopy height.

A class is the largest of eleven scores: how much of it the climate wants, shaken by patchy noise, so that borders are
sharp, patches have all sizes and neighbouring classes fit together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_ground import Ground
from mmbuild.sandbox.earth_noise import EARTH_RADIUS_M, Floats, Ints, Noise, Points, hash_cells, noise, smoothstep

TREE, SHRUB, GRASS, CROP, BUILT, BARE, SNOW, WATER, WETLAND, MANGROVE, MOSS = range(11)
WORLDCOVER_CODES = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], dtype=np.int64)
# Dynamic World: 0 water, 1 trees, 2 grass, 3 flooded vegetation, 4 crops, 5 shrub, 6 built, 7 bare, 8 snow and ice.
DYNAMIC_WORLD = np.array([1, 5, 2, 4, 6, 7, 8, 0, 3, 3, 2], dtype=np.int64)
TOWNSHIP_M = 2600.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Cover:
    """What covers each point.

    kind: 0..10, index into WORLDCOVER_CODES. second: the runner-up. margin: by how much the first won.
    canopy_m: height of the tallest plants. density: 0..1 how full of plants.
    parcel: 0..1, one number per field, meadow or city block; 0.5 on wild ground.
    texture: fine noise, vigour: slow noise, both of about unit variance. town: 0..1, how built-up the surroundings are.
    """

    kind: Ints
    second: Ints
    margin: Floats
    canopy_m: Floats
    density: Floats
    parcel: Floats
    texture: Floats
    vigour: Floats
    town: Floats


@dataclass(frozen=True, eq=False)
class _Fields:
    patches: tuple[Noise, Noise, Noise]
    texture: Noise
    people: Noise
    bend: tuple[Noise, Noise]


@cache
def _fields() -> _Fields:
    return _Fields(
        patches=(
            noise(31, 14e3, 8, roughness=0.55),
            noise(32, 9e3, 8, roughness=0.55),
            noise(33, 6e3, 7, roughness=0.5),
        ),
        texture=noise(34, 700.0, 5, roughness=0.4, bend=2.2),
        people=noise(35, 420e3, 8, ratio=1.9, roughness=0.5),
        bend=(noise(36, 30e3, 2), noise(37, 30e3, 2)),
    )


def cover(p: Points, g: Ground) -> Cover:
    """The cover at the points, whose ground is g."""
    fields = _fields()
    patches = [field(p) for field in fields.patches]
    real = np.clip(2.5 * g.people, 0.0, 1.0)
    people = fields.people(p) + 0.35 * _habitable(g) * (1.0 - real) + 0.3 * real + 4.6 * g.people
    parcel, block, street = _parcels(fields, p)
    wants = _wants(g, people)
    shakes = _shakes(patches, parcel)
    scores = np.stack([np.log(wants[k] + 1e-9) + 1.05 * shakes[k] for k in range(11)])
    built = smoothstep(people, 2.3, 3.9)
    scores[BUILT] = np.where(built > 0.02, 9.0 * (built - block) + 1.3 * (1.0 - street) * (built > block), -20.0)
    scores[WATER] = np.where(_water(g, patches[1]), 60.0, -60.0)
    kind, second, margin = _winners(scores)
    texture, vigour = fields.texture(p), 0.8 * patches[0] - 0.4 * patches[2]
    density, canopy = _canopy(g, kind, vigour, texture)
    return Cover(
        kind=kind,
        second=second,
        margin=margin,
        canopy_m=canopy,
        density=density,
        parcel=np.where(kind == BUILT, block, np.where((kind == CROP) | (kind == GRASS), parcel, 0.5)),
        texture=texture,
        vigour=vigour,
        town=built,
    )


def _habitable(g: Ground) -> Floats:
    """-4..1: where people build: mild, wet enough, low, flat, near the sea."""
    mild = smoothstep(g.temperature_c, -3.0, 9.0) * smoothstep(g.moisture, 0.1, 0.7)
    near = np.exp(-np.maximum(g.coast_km, 0.0) / 250.0)
    steep = np.hypot(g.slope_east, g.slope_north)
    return mild + 0.6 * near - 4.0 * (1.0 - mild) - 8.0 * steep - 0.0006 * np.maximum(g.elevation_m, 0.0)


def _water(g: Ground, patch: Floats) -> NDArray[np.bool_]:
    """Sea, lakes, and rivers 30 to 500 m wide in wet lowlands."""
    wet = smoothstep(g.moisture, 0.25, 1.6) * (1.0 - smoothstep(g.elevation_m, 900.0, 2600.0))
    width = (20.0 + 170.0 * smoothstep(patch, -2.0, 2.0)) * wet
    frozen = g.temperature_c + np.abs(g.season_c) < 0.0
    return (~g.land) | (((g.lake > 0.0) & (g.moisture > 0.35) | (g.flow_m < width)) & ~frozen)


def _wants(g: Ground, people: Floats) -> list[Floats]:
    """How much of each kind the climate wants, 0..1, in the order of WORLDCOVER_CODES."""
    m, warmest = g.moisture, g.temperature_c + np.abs(g.season_c)
    grows = smoothstep(warmest, 6.5, 12.5)
    steep = np.hypot(g.slope_east, g.slope_north)
    flat = 1.0 - smoothstep(steep, 0.05, 0.2)
    farm = smoothstep(people, -1.1, 1.3) * smoothstep(g.temperature_c, 1.0, 7.0) * flat
    near_water = np.exp(-g.flow_m / 900.0) + 0.9 * smoothstep(g.lake, -0.35, 0.0)
    cold = smoothstep(warmest, 1.5, 5.0) * (1.0 - smoothstep(warmest, 8.0, 12.5))
    rock = smoothstep(steep, 0.35, 0.9)
    shore = np.exp(-np.maximum(g.coast_km, 0.0) / 2.2) * smoothstep(g.temperature_c, 20.0, 23.5)
    return [
        0.02 * grows + 0.98 * grows * smoothstep(m, 0.55, 1.8),
        0.42 * smoothstep(m, 0.12, 0.5) * (1.0 - 0.8 * smoothstep(m, 1.0, 2.2)) * grows + 0.05 * grows,
        (0.5 * smoothstep(m, 0.2, 0.8) * (1.0 - 0.65 * smoothstep(m, 1.3, 2.4))) * smoothstep(warmest, 3.0, 9.0),
        1.1 * farm * smoothstep(m, 0.4, 0.9) * (1.0 - 0.7 * smoothstep(m, 2.2, 4.5)),
        np.zeros_like(m),
        1.4 * (1.0 - smoothstep(m, 0.1, 0.6)) + 0.5 * (1.0 - smoothstep(warmest, 1.0, 7.0)) + 0.4 * rock + 0.012,
        6.0 * (1.0 - smoothstep(warmest, -4.0, 1.0)),
        np.zeros_like(m),
        0.75 * near_water * flat * smoothstep(m, 0.5, 1.3) * smoothstep(warmest, 5.0, 10.0),
        2.4 * shore * flat * smoothstep(m, 0.5, 1.4) * (1.0 - smoothstep(g.elevation_m, 15.0, 60.0)),
        0.9 * cold * smoothstep(m, 0.3, 0.9),
    ]


def _shakes(patches: list[Floats], parcel: Floats) -> list[Floats]:
    """One unit-variance noise per kind, mixed from three so that they are cheap and differ."""
    a, b, c = patches
    return [
        a,
        (b - a) * 0.707,
        b,
        0.55 * c + 2.2 * (parcel - 0.5) - 0.35 * a,
        c,
        (c - b) * 0.707,
        (a + c) * 0.707,
        b,
        (a + b - c) * 0.577,
        (c - a) * 0.707,
        (b + c) * 0.707,
    ]


def _winners(scores: Floats) -> tuple[Ints, Ints, Floats]:
    """Index of the best score, of the runner-up, and the distance between them."""
    kind = np.argmax(scores, axis=0)
    column = np.arange(scores.shape[1])
    best = scores[kind, column]
    scores[kind, column] = -np.inf
    second = np.argmax(scores, axis=0)
    return kind.astype(np.int64), second.astype(np.int64), best - scores[second, column]


def _parcels(fields: _Fields, p: Points) -> tuple[Floats, Floats, Floats]:
    """One number per field and per city block, and how much of a point is street (0..1).

    Land is cut into bands of latitude, bands into townships, a township into a grid of its own size and turn.
    A whole number of townships goes around the Earth, so the antimeridian is a border like any other.
    """
    metres = np.pi * EARTH_RADIUS_M / 180.0
    shift = fields.bend[0](p), fields.bend[1](p)
    north = p.lat * metres + 700.0 * shift[0]
    band = np.floor(north / TOWNSHIP_M)
    middle = np.clip((band + 0.5) * TOWNSHIP_M / metres, -89.9, 89.9)
    around = np.maximum(np.rint(360.0 * metres * np.cos(np.radians(middle)) / TOWNSHIP_M), 1.0)
    turn = (p.lon + 180.0) / 360.0 * around + 0.25 * shift[1]
    column = np.floor(turn)
    cell = np.mod(column, around).astype(np.int64), band.astype(np.int64)
    u, v = (turn - column - 0.5) * TOWNSHIP_M, north - (band + 0.5) * TOWNSHIP_M
    pick, angle = hash_cells(41, *cell), hash_cells(42, *cell) * 0.25
    c, s = sine_cosine(angle)
    u, v = c * u + s * v, c * v - s * u
    wide = 120.0 + 500.0 * pick * pick
    parcel = hash_cells(43, *cell, *_grid(u, v, wide, 0.6 * wide))
    across, down = u / 92.0, v / 68.0
    block = hash_cells(44, *cell, *_grid(u, v, np.float64(92.0), np.float64(68.0)))
    edge = np.maximum(np.abs(across - np.floor(across) - 0.5), np.abs(down - np.floor(down) - 0.5))
    return parcel, block, smoothstep(edge, 0.38, 0.44)


def sine_cosine(turns: Floats) -> tuple[Floats, Floats]:
    """cos and sin of 2 pi turns."""
    return np.cos(2.0 * np.pi * turns), np.sin(2.0 * np.pi * turns)


def _grid(u: Floats, v: Floats, wide: Floats | np.float64, tall: Floats | np.float64) -> tuple[Ints, Ints]:
    return np.floor(u / wide).astype(np.int64), np.floor(v / tall).astype(np.int64)


# Canopy height in metres where nothing grows well, and how much more where everything does.
_CANOPY = np.array([[7, 26], [1, 3], [0, 0.8], [0, 1.6], [0.5, 5], [0, 0], [0, 0], [0, 0], [0.3, 2.5], [5, 12], [0, 0]])


def _canopy(g: Ground, kind: Ints, vigour: Floats, texture: Floats) -> tuple[Floats, Floats]:
    """How full of plants (0..1), and canopy height in metres."""
    warmest = g.temperature_c + np.abs(g.season_c)
    site = smoothstep(g.moisture, 0.3, 2.6) * smoothstep(warmest, 4.0, 17.0)
    density = np.clip(0.25 + 0.6 * site + 0.16 * vigour + 0.05 * texture, 0.02, 1.0)
    full = np.clip(0.75 * density + 0.35 * site * site + 0.10 * texture, 0.0, 1.3)
    return density, _CANOPY[kind, 0] * smoothstep(density, 0.0, 0.5) + _CANOPY[kind, 1] * full
