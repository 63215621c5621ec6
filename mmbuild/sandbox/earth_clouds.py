"""Clouds, cirrus and cloud shadows of one satellite pass, decided on the 60 m cells of the granule.

All bands of an acquisition share the cells, so the class map flags exactly the pixels that clouds and shadows changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_noise import (
    EARTH_RADIUS_M,
    Bools,
    Floats,
    Ints,
    Noise,
    Points,
    hash_cells,
    joined,
    noise,
    smoothstep,
)

CELL_M = 60.0
# Cumulus height: sets how far shadows fall.
CLOUD_HEIGHT_M = 1600.0
CLEAR, SHADOW, MEDIUM, HIGH, CIRRUS = 0, 3, 8, 9, 10
# From this cloud score on, a cloud throws a shadow.
SHADE_SCORE = 0.45
# Codes from here on are clouds.
FIRST_CLOUD = MEDIUM


@dataclass(frozen=True, kw_only=True, eq=False)
class Sky:
    """What is above each point: code (0 clear, else SCL 3, 8, 9 or 10), cloud depth, cirrus depth (0..1)."""

    code: Ints
    depth: Floats
    veil: Floats
    score: Floats


@dataclass(frozen=True, eq=False)
class _Fields:
    cloud: Noise
    cirrus: Noise


@cache
def _fields() -> _Fields:
    return _Fields(
        noise(51, 1300e3, 11, ratio=2.4, roughness=0.36, bend=1.6),
        noise(52, 1500e3, 8, ratio=2.9, roughness=0.4, bend=2.0),
    )


def pass_phases(field: Noise, passes: NDArray[np.int64]) -> Floats:
    """Phases (octave, wave, pass) of a noise for pass numbers: every pass has its own weather."""
    octaves, waves = field.phases.shape
    shape = (octaves, waves, passes.size)
    octave, wave, number = np.meshgrid(np.arange(octaves), np.arange(waves), passes, indexing="ij")
    return hash_cells(53, octave, wave, number).reshape(shape)


def cloud_bias(rain_mm: Floats, hemisphere: Floats, day: Floats | float) -> Floats:
    """How much cloud the climate gives: deserts clear, rain forests and westerlies grey, wet season greyer.

    A column of days gives (day, point).
    """
    season = 0.22 * hemisphere * (1.0 - smoothstep(rain_mm, 600.0, 1500.0))
    steady = -0.95 + 1.0 * smoothstep(np.log(rain_mm + 1.0), 4.6, 7.9)
    return np.asarray(steady + season * np.cos(2.0 * np.pi * (day - 210.0) / 365.25))


def towards_sun(p: Points, zenith_deg: float, azimuth_deg: float) -> Points:
    """The points under the clouds that shade the given points."""
    reach = CLOUD_HEIGHT_M * np.tan(np.radians(min(zenith_deg, 70.0))) / EARTH_RADIUS_M
    dx, dy = reach * np.sin(np.radians(azimuth_deg)), reach * np.cos(np.radians(azimuth_deg))
    across = np.sqrt(p.x * p.x + p.y * p.y) + 1e-12
    east = (-p.y / across, p.x / across, np.zeros_like(p.x))
    north = (-p.z * east[1], p.z * east[0], across)
    return Points(p.lon, p.lat, *(c + dx * e + dy * n for c, e, n in zip((p.x, p.y, p.z), east, north, strict=True)))


def cloud_codes(p: Points, bias: Floats, passes: NDArray[np.int64]) -> tuple[Ints, Floats, Floats, Floats]:
    """Codes without shadow, cloud depth, cirrus depth and cloud score over cell centres.

    One pass gives (point,), several give (pass, point), as bias must be.
    """
    fields = _fields()
    score = fields.cloud(p, _phases(fields.cloud, passes)) + bias
    veil = smoothstep(fields.cirrus(p, _phases(fields.cirrus, passes)) + 0.35 * bias, 0.95, 2.6)
    depth = smoothstep(score, 0.25, 1.35)
    code = np.where(depth > 0.30, HIGH, np.where(depth > 0.02, MEDIUM, np.where(veil > 0.06, CIRRUS, CLEAR)))
    return code, depth, veil, score


def _phases(field: Noise, passes: NDArray[np.int64]) -> Floats:
    phases = pass_phases(field, passes)
    return phases[..., 0] if passes.size == 1 else phases[..., None]


def sky(p: Points, bias: Floats, passage: int, zenith_deg: float, azimuth_deg: float) -> Sky:
    """The sky over cell centres in one pass, with the shadows of its clouds."""
    passes = np.array([passage], dtype=np.int64)
    code, depth, veil, score = cloud_codes(p, bias, passes)
    cloud = _fields().cloud
    shaded = cloud(towards_sun(p, zenith_deg, azimuth_deg), _phases(cloud, passes)) + bias > SHADE_SCORE
    return Sky(code=np.where((code == CLEAR) & shaded, SHADOW, code), depth=depth, veil=veil, score=score)


def clear_skies(p: Points, bias: Floats, passes: NDArray[np.int64], suns: Sequence[tuple[float, float]]) -> Bools:
    """Where the code of the sky is CLEAR in several passes, (pass, point), without working out the rest of it.

    bias: (pass, point). suns: zenith and azimuth in degrees.
    """
    code = np.reshape(cloud_codes(p, bias[0] if passes.size == 1 else bias, passes)[0], bias.shape)
    which, open_sky = np.nonzero(code == CLEAR)
    clear = np.zeros(bias.shape, dtype=bool)
    if which.size:
        moved = joined([towards_sun(p.take(open_sky[which == number]), *sun) for number, sun in enumerate(suns)])
        cloud = _fields().cloud
        shade = cloud(moved, pass_phases(cloud, passes)[:, :, which]) + bias[which, open_sky]
        clear[which, open_sky] = ~(shade > SHADE_SCORE)
    return clear
