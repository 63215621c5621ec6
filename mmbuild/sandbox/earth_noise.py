"""Smooth deterministic noise on the sphere: sums of plane waves through 3-D space, evaluated point by point.

Nothing here knows a grid, a window or a library's random generator: the same point gives the same bits whatever else is
asked with it, on every machine whose floats are IEEE, and the antimeridian and the poles are places like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

EARTH_RADIUS_M = 6_371_000.0
# sin(2 pi t) = t (1 - 4 t^2) q(t^2) on |t| <= 1/2: least-squares fit of q, largest error 3e-7.
_SINE = (6.283183779746203, -16.208654138527415, 16.759507799364254, -9.515905472302546, 3.0184153817013093)
_MASK = (1 << 64) - 1
# Below this, the calls cost more than the arithmetic.
FEW_POINTS = 2500


def sine(turns: Floats) -> Floats:
    """sin(2 pi turns), by polynomial: five times faster than numpy's and equal on every machine. Destroys its input."""
    turns -= np.rint(turns)
    square = turns * turns
    result = square * _SINE[4]
    for coefficient in _SINE[3:0:-1]:
        result += coefficient
        result *= square
    result += _SINE[0]
    result *= turns
    square *= -4.0
    square += 1.0
    result *= square
    return result


def smoothstep(value: Floats, low: float, high: float) -> Floats:
    """0 below low, 1 above high, a cubic between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def hash_floats(seed: int, count: int) -> list[float]:
    """`count` numbers in [0, 1), a function of the seed alone. Source: SplitMix64 (Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & _MASK
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        numbers.append(((z ^ (z >> 31)) >> 11) / (1 << 53))
    return numbers


def hash_cells(seed: int, *cells: NDArray[np.int64]) -> Floats:
    """Numbers in [0, 1), a function of the seed and the integer cell coordinates of each point."""
    state = np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & _MASK)
    z = np.full(np.broadcast_shapes(*(c.shape for c in cells)), state, dtype=np.uint64)
    for cell in cells:
        z = z ^ cell.astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


@dataclass(frozen=True, eq=False)
class Points:
    """Places on the sphere: degrees and unit vectors, all one-dimensional and contiguous."""

    lon: Floats
    lat: Floats
    x: Floats
    y: Floats
    z: Floats

    @property
    def size(self) -> int:
        return self.lon.size


def points(lon: Floats, lat: Floats) -> Points:
    """Points of degrees (any shape, flattened). Longitudes may lie outside +-180."""
    lon = np.ascontiguousarray(np.asarray(lon, dtype=np.float64).ravel())
    lat = np.ascontiguousarray(np.asarray(lat, dtype=np.float64).ravel())
    wrapped = lon - 360.0 * np.rint(lon / 360.0)
    across = sine(lat / 360.0 + 0.25)
    return Points(wrapped, lat, across * sine(lon / 360.0 + 0.25), across * sine(lon / 360.0), sine(lat / 360.0))


@dataclass(frozen=True, eq=False)
class Noise:
    """Octaves of plane waves, each octave's phase bent by the octave before (so nothing looks periodic).

    vectors: (octave, wave, 3) cycles per Earth radius. phases, bends: (octave, wave).
    amplitudes: (octave,), squares sum to 1.
    """

    vectors: NDArray[np.float64]
    phases: NDArray[np.float64]
    bends: NDArray[np.float64]
    amplitudes: tuple[float, ...]

    def __call__(self, p: Points, phase: NDArray[np.float64] | None = None) -> Floats:
        """Values of about unit variance; `phase` (octave, wave, ...) replaces the phases and broadcasts."""
        total = np.zeros(p.size)
        before: Floats | None = None
        for octave, amplitude in enumerate(self.amplitudes):
            before = self._octave(p, octave, before, self.phases if phase is None else phase)
            total = total + amplitude * before
        return total

    def _octave(self, p: Points, octave: int, before: Floats | None, phases: NDArray[np.float64]) -> Floats:
        waves = self.vectors.shape[1]
        if p.size <= FEW_POINTS and phases.ndim == 2:
            terms = iter(sine(self._all_turns(p, octave, before, phases[octave, :, None])))
        else:
            terms = (sine(self._turns(p, octave, wave, before, phases[octave, wave])) for wave in range(waves))
        total: Floats = next(terms)
        for term in terms:
            total += term
        total *= math.sqrt(2.0 / waves)
        return total

    def _all_turns(self, p: Points, octave: int, before: Floats | None, phases: Floats) -> Floats:
        """Every wave at once, (wave, point): the same operations on the same numbers, for few points."""
        kx, ky, kz = self.vectors[octave].T[:, :, None]
        turns: Floats = p.x * kx
        turns += p.y * ky
        turns += p.z * kz
        turns += phases
        if before is not None:
            turns += self.bends[octave, :, None] * before
        return turns

    def _turns(self, p: Points, octave: int, wave: int, before: Floats | None, phase: Any) -> Floats:
        kx, ky, kz = self.vectors[octave, wave]
        turns = p.x * kx
        turns += p.y * ky
        turns += p.z * kz
        bent: Floats = turns + phase
        if before is not None:
            bent += self.bends[octave, wave] * before
        return bent

    def with_gradient(
        self, p: Points, ridged: tuple[int, int] = (0, 0)
    ) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
        """Values and gradient (per metre, along x, y, z); octaves in `ridged` [first, last) peak in sharp crests."""
        total, slope = np.zeros(p.size), [np.zeros(p.size) for _ in range(3)]
        before: Floats | None = None
        before_slope = [np.zeros(p.size) for _ in range(3)]
        for octave, amplitude in enumerate(self.amplitudes):
            before, before_slope = self._octave_gradient(p, octave, before, before_slope)
            value, factor = before, np.ones(1)
            if ridged[0] <= octave < ridged[1]:
                root = np.sqrt(before * before + 0.04)
                value, factor = 1.7 * (0.82 - root), -1.7 * before / root
            total += amplitude * value
            for axis in range(3):
                slope[axis] += amplitude * factor * before_slope[axis]
        return total, (slope[0], slope[1], slope[2])

    def _octave_gradient(
        self, p: Points, octave: int, before: Floats | None, before_slope: list[Floats]
    ) -> tuple[Floats, list[Floats]]:
        norm = math.sqrt(2.0 / self.vectors.shape[1])
        total, bent, slope = np.zeros(p.size), np.zeros(p.size), [np.zeros(p.size) for _ in range(3)]
        for wave in range(self.vectors.shape[1]):
            turns = self._turns(p, octave, wave, before, self.phases[octave, wave])
            swing = sine(turns + 0.25)
            total += sine(turns)
            bent += self.bends[octave, wave] * swing
            for axis in range(3):
                slope[axis] += (self.vectors[octave, wave, axis] / EARTH_RADIUS_M) * swing
        for axis in range(3):
            slope[axis] += bent * before_slope[axis]
            slope[axis] *= 2.0 * math.pi * norm
        total *= norm
        return total, slope


def noise(
    seed: int,
    longest_m: float,
    octaves: int,
    *,
    waves: int = 3,
    ratio: float = 2.0,
    roughness: float = 0.8,
    bend: float = 1.1,
) -> Noise:
    """Noise with wavelengths longest_m, longest_m / ratio, ...; amplitudes fall as wavelength ** roughness.

    bend: up to how many cycles, over two, one octave bends the next: more looks wilder.
    """
    wavelengths = [longest_m / ratio**i for i in range(octaves)]
    draws = iter(hash_floats(seed, octaves * waves * 8))
    vectors, phases, bends = np.zeros((octaves, waves, 3)), np.zeros((octaves, waves)), np.zeros((octaves, waves))
    for octave, wavelength in enumerate(wavelengths):
        for wave in range(waves):
            if wave % 3 == 0:
                triad = _triad([next(draws) for _ in range(3)])
            vectors[octave, wave] = triad[wave % 3] * (EARTH_RADIUS_M / wavelength * (0.8 + 0.4 * next(draws)))
            phases[octave, wave] = next(draws)
            bends[octave, wave] = bend * (next(draws) - 0.5)
    raw = [(w / longest_m) ** roughness for w in wavelengths]
    scale = 1.0 / math.sqrt(math.fsum(a * a for a in raw))
    return Noise(vectors, phases, bends, tuple(a * scale for a in raw))


def _triad(draws: Sequence[float]) -> NDArray[np.float64]:
    """Three directions at right angles, turned at random: anywhere, at least two lie along the ground."""
    roll, tilt, spin = draws
    a, b = math.sqrt(1.0 - roll), math.sqrt(roll)
    s, c = 2.0 * math.pi * tilt, 2.0 * math.pi * spin
    x, y, z, w = a * math.sin(s), a * math.cos(s), b * math.sin(c), b * math.cos(c)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True, eq=False)
class SphereGrid:
    """A coarse global field (north-up, cell centres), read by cubic B-splines: twice differentiable."""

    cells: NDArray[np.float64]
    step: float

    def __call__(self, p: Points) -> Floats:
        """The field at the points."""
        cols = self.cells.shape[1]
        row = (90.0 - p.lat) / self.step - 0.5 + 2.0
        col = (p.lon + 180.0) / self.step - 0.5 + 2.0
        row0, col0 = np.floor(row), np.floor(col)
        wr, wc = _bspline(row - row0), _bspline(col - col0)
        base = (row0.astype(np.int64) - 1) * cols + col0.astype(np.int64) - 1
        flat = self.cells.ravel()
        total = np.zeros(p.size)
        for i in range(4):
            line = np.zeros(p.size)
            for j in range(4):
                line += wc[j] * flat[base + (i * cols + j)]
            total += wr[i] * line
        return total


def sphere_grid(cells: NDArray[np.float64]) -> SphereGrid:
    """A grid of (rows, 2 rows) cells, made constant at the poles and padded around them and the antimeridian."""
    step = 180.0 / cells.shape[0]
    cells = cells.astype(np.float64)
    edge = np.arange(cells.shape[0]) + 0.5
    from_pole = np.minimum(edge, edge[::-1]) * step
    keep = np.clip((from_pole - 3 * step) / (4 * step), 0.0, 1.0)[:, None]
    cells = cells.mean(axis=1, keepdims=True) * (1 - keep) + cells * keep
    half = cells.shape[1] // 2
    over = np.roll(cells, half, axis=1)
    cells = np.concatenate([over[1::-1], cells, over[:-3:-1]], axis=0)
    return SphereGrid(np.ascontiguousarray(np.concatenate([cells[:, -2:], cells, cells[:, :3]], axis=1)), step)


def _bspline(t: Floats) -> Sequence[Floats]:
    """Weights of the four cells around a fraction t of the way from the second to the third."""
    u = 1.0 - t
    return (
        u * u * u / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        t * t * t / 6.0,
    )
