"""Smooth deterministic noise on the sphere: sums of plane waves through 3-D space, evaluated point by point.

Nothing here knows a grid, a window or a library's random generator: the same point gives the same bits whatever else is
asked with it, on every machine whose floats are IEEE, and the antimeridian and the poles are places like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

EARTH_RADIUS_M = 6_371_000.0
# sin(2 pi t) = t (1 - 4 t^2) q(t^2) on |t| <= 1/2: least-squares fit of q, largest error 3e-7.
_SINE = (6.283183779746203, -16.208654138527415, 16.759507799364254, -9.515905472302546, 3.0184153817013093)
# On |t| <= 1/2, t (a + b t^2 + c t^4) and its slope a + 3 b t^2 + 5 c t^4: the Bernoulli polynomial of degree five,
# moved and scaled to peaks of 1. Three derivatives fit where periods meet; its overtones are 1/32, 1/243, ...
_PEAK = 40.886
_WAVE = (_PEAK * 7.0 / 48.0, _PEAK * -5.0 / 6.0, _PEAK)
_MASK = (1 << 64) - 1
# Below this, the calls cost more than the arithmetic.
FEW_POINTS = 2500
# The n-th octave is smooth between the nodes of earth_mesh from n times this wavelength on: each is bent by all before.
SMOOTH_M = 280.0


def sine(turns: Floats) -> Floats:
    """sin(2 pi turns), by polynomial: five times faster than numpy's and equal on every machine. Destroys its input."""
    square, result = np.empty_like(turns), np.empty_like(turns)
    np.rint(turns, square)
    np.subtract(turns, square, turns)
    np.multiply(turns, turns, square)
    np.multiply(square, _SINE[4], result)
    for coefficient in _SINE[3:0:-1]:
        np.add(result, coefficient, result)
        np.multiply(result, square, result)
    np.add(result, _SINE[0], result)
    np.multiply(result, turns, result)
    np.multiply(square, -4.0, square)
    np.add(square, 1.0, square)
    return np.multiply(result, square, result)


def wave(turns: Floats) -> Floats:
    """A smooth wave of period 1 between -1 and 1 that is nearly a sine, at half its cost. Destroys its input."""
    return _wave(turns, np.empty_like(turns), np.empty_like(turns))


def _wave(turns: Floats, square: Floats, result: Floats) -> Floats:
    """The same into `result`; leaves turns of at most a half, and their squares, in the other two.

    Memory that is used again stays in the processor's cache.
    """
    np.rint(turns, square)
    np.subtract(turns, square, turns)
    np.multiply(turns, turns, square)
    np.multiply(square, _WAVE[2], result)
    np.add(result, _WAVE[1], result)
    np.multiply(result, square, result)
    np.add(result, _WAVE[0], result)
    return np.multiply(result, turns, result)


def _wave_slope(square: Floats, result: Floats) -> Floats:
    """The wave's slope per turn, from squares that `_wave` left."""
    np.multiply(square, 5.0 * _WAVE[2], result)
    np.add(result, 3.0 * _WAVE[1], result)
    np.multiply(result, square, result)
    return np.add(result, _WAVE[0], result)


def smoothstep(value: Floats, low: float, high: float) -> Floats:
    """0 below low, 1 above high, a cubic between."""
    t = np.asarray((value - low) / (high - low))
    np.maximum(t, 0.0, out=t)
    np.minimum(t, 1.0, out=t)
    rest = np.asarray(2.0 * t)
    np.subtract(3.0, rest, out=rest)
    rest *= t * t
    return rest


def unsmooth(share: Any, low: float, high: float) -> Any:
    """The value between low and high whose smoothstep is `share` (0..1). Source: the cubic's trigonometric root."""
    return low + (high - low) * (0.5 - np.sin(np.arcsin(1.0 - 2.0 * share) / 3.0))


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


class Mesh(Protocol):
    """Coarse nodes around points, from which smooth fields are interpolated (earth_mesh)."""

    def fields(self, key: Hashable, make: Callable[[Points], tuple[Floats, ...]]) -> list[Floats]:
        """The fields that `make` gives at points, known by `key`, interpolated to these points."""
        ...

    def take(self, index: Ints) -> Mesh: ...


@dataclass(frozen=True, eq=False)
class Points:
    """Places on the sphere: degrees and unit vectors, all one-dimensional and contiguous; and their mesh, if any."""

    lon: Floats
    lat: Floats
    x: Floats
    y: Floats
    z: Floats
    mesh: Mesh | None = None

    @property
    def size(self) -> int:
        return self.lon.size

    def take(self, index: Ints) -> Points:
        """These of the points, in this order."""
        mesh = None if self.mesh is None else self.mesh.take(index)
        x, y, z = (part[index] for part in (self.x, self.y, self.z))
        return Points(self.lon[index], self.lat[index], x, y, z, mesh)


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
    amplitudes: (octave,), squares sum to 1. smooth: how many octaves, from the first, a mesh may interpolate.
    """

    vectors: NDArray[np.float64]
    phases: NDArray[np.float64]
    bends: NDArray[np.float64]
    amplitudes: tuple[float, ...]
    smooth: int = 0

    def __call__(self, p: Points, phase: NDArray[np.float64] | None = None) -> Floats:
        """Values of about unit variance; `phase` (octave, wave, ...) replaces the phases and broadcasts."""
        if phase is None and p.mesh is not None and self.smooth:
            total, *last = p.mesh.fields((self, "value"), self._start)
            rest = range(self.smooth, len(self.amplitudes))
            return self.continued(p, rest, self.phases, total, *last)[0] if rest else total
        return self.started(p, len(self.amplitudes), self.phases if phase is None else phase)[0]

    def started(self, p: Points, octaves: int, phases: Floats) -> tuple[Floats, Floats]:
        """The sum of the first octaves, and the last of them; phases (octave, wave, ...) broadcast."""
        shape = np.broadcast_shapes(phases.shape[2:], (p.size,))
        return self.continued(p, range(octaves), phases, np.zeros(shape), np.empty(shape))

    def _start(self, p: Points) -> tuple[Floats, ...]:
        """The sum of the smooth octaves, and the last of them where one follows that it bends."""
        total, last = self.started(p, self.smooth, self.phases)
        return (total,) if self.smooth == len(self.amplitudes) else (total, last)

    def continued(
        self, p: Points, octaves: range, phases: Floats, total: Floats, before: Floats
    ) -> tuple[Floats, Floats]:
        """`total` with these octaves added, and the last of them; `before` is the one before the first."""
        scratch = [np.empty(total.shape) for _ in range(4)]
        for octave in octaves:
            before = self._octave(p, octave, before, phases, scratch)
            np.multiply(before, self.amplitudes[octave], scratch[0])
            np.add(total, scratch[0], total)
        return total, before

    @property
    def most(self) -> float:
        """No value is larger: each wave is at most 1; the rest is what rounding adds."""
        return self.rest(0)

    def rest(self, octave: int) -> float:
        """The octaves from this one on never add up to more."""
        return math.fsum(self.amplitudes[octave:]) * math.sqrt(2.0 * self.vectors.shape[1]) * 1.00001

    def basis(self, p: Points) -> Floats:
        """The waves of a noise without bends as sines, and the same a quarter of a turn on: (2 * octave * wave, point).

        What they add up to in any phases, `turned` tells at a fraction of the cost of waves.
        """
        octaves, waves = self.phases.shape
        turns = np.concatenate([self._all_turns(p, octave, None, np.zeros((waves, 1))) for octave in range(octaves)])
        return np.concatenate([sine(turns.copy()), sine(turns + 0.25)])

    def turned(self, basis: Floats, phases: Floats) -> Floats:
        """The noise with these phases (octave, wave) from its basis: sin(a + b) = sin a cos b + cos a sin b."""
        heights = np.repeat(np.array(self.amplitudes), phases.shape[1]) * math.sqrt(2.0 / phases.shape[1])
        weights = np.concatenate([sine(phases.ravel() + 0.25) * heights, sine(phases.ravel().copy()) * heights])
        # Adds term by term, which a dense product does not: see earth_mesh.
        row = csr_array((weights, np.arange(weights.size), [0, weights.size]), shape=(1, weights.size))
        total: Floats = row @ basis
        return total.ravel()

    def _octave(self, p: Points, octave: int, before: Floats, phases: Floats, scratch: list[Floats]) -> Floats:
        """One octave, in the last scratch array, whose place `before` takes; octave 0 has none before it."""
        waves = self.vectors.shape[1]
        total: Floats
        if p.size <= FEW_POINTS and phases.ndim == 2:
            terms = wave(self._all_turns(p, octave, before if octave else None, phases[octave, :, None]))
            total = np.add(terms[0], terms[1], scratch[3]) if waves > 1 else terms[0].copy()
            for term in terms[2:]:
                np.add(total, term, total)
        else:
            total = scratch[3]
            for number in range(waves):
                turns = self._turns(p, octave, number, before if octave else None, phases[octave, number], scratch)
                term = _wave(turns, scratch[1], total if number == 0 else scratch[2])
                if number:
                    np.add(total, term, total)
        scratch[3] = before
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

    def _turns(
        self, p: Points, octave: int, number: int, before: Floats | None, phase: Any, scratch: Sequence[Floats]
    ) -> Floats:
        """Into the first scratch array; destroys the second."""
        turns, other = scratch[:2]
        kx, ky, kz = self.vectors[octave, number]
        if turns.ndim > 1:
            np.add((p.x * kx + p.y * ky) + p.z * kz, phase, turns)
        else:
            np.multiply(p.x, kx, turns)
            for axis, k in ((p.y, ky), (p.z, kz)):
                np.multiply(axis, k, other)
                np.add(turns, other, turns)
            np.add(turns, phase, turns)
        if before is not None:
            np.multiply(before, self.bends[octave, number], other)
            np.add(turns, other, turns)
        return turns

    def with_gradient(
        self, p: Points, ridged: tuple[int, int] = (0, 0)
    ) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
        """Values and gradient (per metre, along x, y, z); octaves in `ridged` [first, last) peak in sharp crests."""
        first, state = 0, [np.zeros(p.size) for _ in range(8)]
        if p.mesh is not None and self.smooth:
            first = self.smooth
            state = p.mesh.fields((self, ridged), lambda nodes: self._start_gradient(nodes, ridged))
        self._climb(p, range(first, len(self.amplitudes)), ridged, state)
        return state[0], (state[1], state[2], state[3])

    def _start_gradient(self, p: Points, ridged: tuple[int, int]) -> tuple[Floats, ...]:
        """Value and gradient of the smooth octaves; and of the last of them alone, where one follows that it bends."""
        state = [np.zeros(p.size) for _ in range(8)]
        self._climb(p, range(self.smooth), ridged, state)
        return tuple(state[: 4 if self.smooth == len(self.amplitudes) else 8])

    def _climb(self, p: Points, octaves: range, ridged: tuple[int, int], state: list[Floats]) -> None:
        """Add octaves to a state: sum, its three slopes, the last octave, its three slopes."""
        scratch = [np.empty(p.size) for _ in range(4 if octaves else 0)]
        for octave in octaves:
            amplitude = self.amplitudes[octave]
            state[4], state[5:] = self._octave_gradient(p, octave, state[4] if octave else None, state[5:], scratch)
            before, value, factor = state[4], state[4], np.ones(1)
            if ridged[0] <= octave < ridged[1]:
                root = np.sqrt(before * before + 0.04)
                value, factor = 1.7 * (0.82 - root), -1.7 * before / root
            state[0] += amplitude * value
            for axis in range(3):
                state[1 + axis] += amplitude * factor * state[5 + axis]

    def _octave_gradient(
        self, p: Points, octave: int, before: Floats | None, before_slope: list[Floats], scratch: Sequence[Floats]
    ) -> tuple[Floats, list[Floats]]:
        norm = math.sqrt(2.0 / self.vectors.shape[1])
        total, bent, slope = np.zeros(p.size), np.zeros(p.size), [np.zeros(p.size) for _ in range(3)]
        turns, square, swing, term = scratch
        for number in range(self.vectors.shape[1]):
            self._turns(p, octave, number, before, self.phases[octave, number], scratch)
            np.add(total, _wave(turns, square, term), total)
            _wave_slope(square, swing)
            np.add(bent, np.multiply(swing, self.bends[octave, number], term), bent)
            for axis in range(3):
                np.multiply(swing, self.vectors[octave, number, axis] / EARTH_RADIUS_M, term)
                np.add(slope[axis], term, slope[axis])
        for axis in range(3):
            slope[axis] += bent * before_slope[axis]
            slope[axis] *= norm
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
    smooth_m: float = SMOOTH_M,
) -> Noise:
    """Noise with wavelengths longest_m, longest_m / ratio, ...; amplitudes fall as wavelength ** roughness.

    bend: up to how many cycles, over two, one octave bends the next: more looks wilder. smooth_m: see `SMOOTH_M`.
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
    smooth = sum(wavelength >= n * smooth_m for n, wavelength in enumerate(wavelengths, start=1))
    return Noise(vectors, phases, bends, tuple(a * scale for a in raw), smooth)


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
