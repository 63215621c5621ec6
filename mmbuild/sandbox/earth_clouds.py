"""Clouds, cirrus and cloud shadows of one satellite pass, decided on the 60 m cells of the granule.

All bands of an acquisition share the cells, so the class map flags exactly the pixels that clouds and shadows changed.
What is long in the weather of a pass is worked out at nodes some cells apart and interpolated, for most places need a
year of passes; the finer octaves are added where they can still decide something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_mesh import Scattered
from mmbuild.sandbox.earth_noise import (
    EARTH_RADIUS_M,
    Bools,
    Floats,
    Ints,
    Noise,
    Points,
    hash_cells,
    noise,
    points,
    smoothstep,
    unsmooth,
)
from mmbuild.sandbox.mgrs import to_lonlat

CELL_M = 60.0
# Metres between the nodes of long octaves.
NODES_M = 240.0
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
class Cells:
    """Cell centres: the mesh of nodes around them, and their points."""

    mesh: Scattered
    points: Points


def cells_at(epsg: int, x: Floats, y: Floats) -> Cells:
    """The cells whose centres are at these coordinates of a projected system."""
    return Cells(Scattered(epsg, x, y, NODES_M), points(*to_lonlat(epsg, x, y)))


@dataclass(frozen=True, eq=False)
class _Fields:
    cloud: Noise
    cirrus: Noise


@cache
def _fields() -> _Fields:
    return _Fields(
        noise(51, 1300e3, 11, ratio=2.4, roughness=0.36, bend=1.6, smooth_m=900.0),
        noise(52, 1500e3, 8, ratio=2.9, roughness=0.4, bend=2.0, smooth_m=900.0),
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


def sun_steps(zenith_deg: Floats, azimuth_deg: Floats) -> tuple[Floats, Floats]:
    """How far east and north of a place the clouds are that shade it, in Earth radii."""
    reach = CLOUD_HEIGHT_M * np.tan(np.radians(np.minimum(zenith_deg, 70.0))) / EARTH_RADIUS_M
    return reach * np.sin(np.radians(azimuth_deg)), reach * np.cos(np.radians(azimuth_deg))


def moved(p: Points, dx: Floats, dy: Floats) -> Points:
    """The points moved east and north by Earth radii; columns of both give every point in every pass, flattened."""
    across = np.sqrt(p.x * p.x + p.y * p.y) + 1e-12
    east_x, east_y = -p.y / across, p.x / across
    x = p.x + (dx * east_x + dy * (-p.z * east_y))
    y = p.y + (dx * east_y + dy * (p.z * east_x))
    z = p.z + dy * across
    return Points(x.ravel(), y.ravel(), x.ravel(), y.ravel(), z.ravel())


def cloud_codes(p: Points, bias: Floats, passes: NDArray[np.int64]) -> Ints:
    """Codes without shadow at places far apart, (pass, point), as bias; next to exactly those of their cells' `sky`."""
    fields = _fields()
    score = fields.cloud(p, pass_phases(fields.cloud, passes)[..., None]) + bias
    haze = fields.cirrus(p, pass_phases(fields.cirrus, passes)[..., None]) + 0.35 * bias
    return _codes(_depth(score), _veil(haze))


def _depth(score: Floats) -> Floats:
    return smoothstep(score, 0.25, 1.35)


def _veil(haze: Floats) -> Floats:
    return smoothstep(haze, 0.95, 2.6)


# Depth and veil from which on the sky is not clear, and where their scores reach them.
_THIN_DEPTH, _THIN_VEIL = 0.02, 0.06
_THIN_SCORE, _THIN_HAZE = unsmooth(_THIN_DEPTH, 0.25, 1.35), unsmooth(_THIN_VEIL, 0.95, 2.6)


def _codes(depth: Floats, veil: Floats) -> Ints:
    thin = np.where(depth > _THIN_DEPTH, MEDIUM, np.where(veil > _THIN_VEIL, CIRRUS, CLEAR))
    return np.where(depth > 0.30, HIGH, thin)


@dataclass(frozen=True, eq=False)
class _Weather:
    """One noise in several passes over cells: phases, and the sum of its long octaves and the last, (pass, cell)."""

    field: Noise
    phases: Floats
    total: Floats
    last: Floats

    def at(self, which: Ints, cell: Ints, places: Points) -> Floats:
        """The noise in pass number `which` over a cell, one per entry; places: the points of the entries."""
        octaves = range(self.field.smooth, len(self.field.amplitudes))
        total, last = self.total[which, cell], self.last[which, cell]
        return self.field.continued(places, octaves, self.phases[:, :, which], total, last)[0]


def _weather(field: Noise, cells: Cells, passes: NDArray[np.int64], above: Points | None = None) -> _Weather:
    """above: the nodes of the cells' mesh moved for each pass, flattened; None: where they are."""
    phases, nodes = pass_phases(field, passes), cells.mesh.nodes
    if above is None:
        start = field.started(nodes, field.smooth, phases[..., None])
    else:
        start = field.started(above, field.smooth, phases[:, :, np.repeat(np.arange(passes.size), nodes.size)])
    both = np.concatenate(start).reshape(-1, nodes.size)
    total, last = np.split(cells.mesh.spread(both), 2)
    return _Weather(field, phases, total, last)


def sky(cells: Cells, bias: Floats, passage: int, zenith_deg: float, azimuth_deg: float) -> Sky:
    """The sky over cells in one pass, with the shadows of its clouds."""
    fields, passes, p = _fields(), np.array([passage], dtype=np.int64), cells.points
    cell, which = np.arange(p.size), np.zeros(p.size, dtype=np.int64)
    step = sun_steps(np.array([[zenith_deg]]), np.array([[azimuth_deg]]))
    score = _weather(fields.cloud, cells, passes).at(which, cell, p) + bias
    veil = _veil(_weather(fields.cirrus, cells, passes).at(which, cell, p) + 0.35 * bias)
    shade = _weather(fields.cloud, cells, passes, moved(cells.mesh.nodes, *step))
    shaded = shade.at(which, cell, moved(p, *step)) + bias > SHADE_SCORE
    depth = _depth(score)
    code = _codes(depth, veil)
    return Sky(code=np.where((code == CLEAR) & shaded, SHADOW, code), depth=depth, veil=veil, score=score)


def clear_skies(cells: Cells, bias: Floats, passes: NDArray[np.int64], suns: Floats) -> Bools:
    """Where the code of the sky is CLEAR in several passes, (pass, cell), without working out the rest of it.

    bias: (pass, cell). suns: zenith and azimuth in degrees, (pass, 2).
    """
    fields, p = _fields(), cells.points
    dx, dy = sun_steps(suns[:, :1], suns[:, 1:])

    def stay(which: Ints, cell: Ints) -> Points:
        return p.take(cell)

    def move(which: Ints, cell: Ints) -> Points:
        return moved(p.take(cell), dx[which, 0], dy[which, 0])

    clear = np.ones(bias.shape, dtype=bool)
    cloud = _weather(fields.cloud, cells, passes)
    clear &= ~_exceeds(cloud, bias, _THIN_SCORE, lambda score: _depth(score) > _THIN_DEPTH, stay, clear)
    cirrus = _weather(fields.cirrus, cells, passes)
    clear &= ~_exceeds(cirrus, 0.35 * bias, _THIN_HAZE, lambda haze: _veil(haze) > _THIN_VEIL, stay, clear)
    shade = _weather(fields.cloud, cells, passes, moved(cells.mesh.nodes, dx, dy))
    return clear & ~_exceeds(shade, bias, SHADE_SCORE, lambda score: score > SHADE_SCORE, move, clear)


def _exceeds(
    weather: _Weather,
    bias: Floats,
    limit: float,
    judge: Callable[[Floats], Bools],
    places: Callable[[Ints, Ints], Points],
    wanted: Bools,
) -> Bools:
    """Where the noise with its bias is judged to be over a limit; right wherever `wanted`, (pass, cell).

    The octaves that are left are only worked out where they could lift it over the limit or pull it below.
    """
    start = weather.total + bias
    room = weather.field.rest(weather.field.smooth) + 1e-5
    over: Bools = start > limit
    which, cell = np.nonzero(wanted & (np.abs(start - limit) <= room))
    if which.size:
        over[which, cell] = judge(weather.at(which, cell, places(which, cell)) + bias[which, cell])
    return over
