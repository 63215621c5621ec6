"""The noise that the synthetic Earth is made of is smooth, exact in its slopes and the same for few and many points."""

from __future__ import annotations

import numpy as np

from mmbuild.sandbox.earth_noise import EARTH_RADIUS_M, Points, noise, points, sine


def test_the_polynomial_sine_is_a_sine() -> None:
    turns = np.linspace(-3.2, 3.2, 100_001)
    assert np.abs(sine(turns.copy()) - np.sin(2 * np.pi * turns)).max() < 4e-7


def test_the_slope_of_a_noise_is_its_derivative() -> None:
    """Against central differences in space."""
    field = noise(3, 20e3, 6, bend=1.5)
    p = points(np.linspace(-170, 170, 50), np.linspace(-80, 80, 50))
    _, slope = field.with_gradient(p)
    step = 1e-8
    for axis in range(3):
        moved = []
        for sign in (1, -1):
            place = [p.x, p.y, p.z]
            place[axis] = place[axis] + sign * step
            moved.append(field(Points(p.lon, p.lat, *place)))
        measured = (moved[0] - moved[1]) / (2 * step * EARTH_RADIUS_M)
        assert np.abs(measured - slope[axis]).max() < 1e-3 * np.abs(slope[axis]).max()


def test_few_and_many_points_give_the_same_bits() -> None:
    field = noise(5, 50e3, 7, waves=4)
    p = points(np.linspace(-170, 170, 9000), np.linspace(-80, 80, 9000))
    few = Points(*(getattr(p, name)[4000:4100] for name in ("lon", "lat", "x", "y", "z")))
    assert np.array_equal(field(p)[4000:4100], field(few))


def test_unit_vectors_are_unit_vectors() -> None:
    p = points(np.linspace(-180, 180, 1001), np.linspace(-90, 90, 1001))
    assert np.abs(p.x**2 + p.y**2 + p.z**2 - 1).max() < 2e-6
