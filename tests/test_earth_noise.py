"""The noise that the synthetic Earth is made of is smooth, exact in its slopes and the same for few and many points."""

from __future__ import annotations

import numpy as np
import pytest

from mmbuild.sandbox.earth_ground import ground
from mmbuild.sandbox.earth_mesh import Blocks, Lattice, Scattered, has_nodes, points_on, weights
from mmbuild.sandbox.earth_noise import EARTH_RADIUS_M, Points, noise, points, sine
from mmbuild.sandbox.mgrs import to_lonlat


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


# --- what is interpolated between nodes -----------------------------------------------------------------------------

# Systems, and a first pixel in each; the last straddles the antimeridian.
LATTICES = [
    (32633, 271_980.0, 5_210_100.0, 10.0),
    (32719, 500_003.7, 6_900_006.1, 10.0),
    (4326, 86.9, 28.0, 1 / 12_000),
    (32601, 166_500.0, 7_000_000.0, 20.0),
    (4326, 179.998, -16.7, 1 / 12_000),
]


def on_lattice(epsg: int, x: float, y: float, step: float, count: int = 64) -> Points:
    axes = (first + step * np.arange(count) for first in (x, y))
    return points_on(Lattice(epsg, *axes, Blocks()))


def bare(p: Points) -> Points:
    """The same points, at which everything is worked out."""
    return Points(p.lon, p.lat, p.x, p.y, p.z)


def test_six_nodes_give_polynomials_of_degree_five_back() -> None:
    t = np.linspace(0.0, 1.0, 11)
    for degree in range(6):
        found = sum(w * float(k - 2) ** degree for k, w in enumerate(weights(t)))
        assert np.abs(found - t**degree).max() < 1e-12


@pytest.mark.parametrize(("epsg", "x", "y", "step"), LATTICES)
def test_points_between_nodes_are_where_the_projection_has_them(epsg: int, x: float, y: float, step: float) -> None:
    p = on_lattice(epsg, x, y, step)
    across, down = (a.ravel() for a in np.meshgrid(x + step * np.arange(64), y + step * np.arange(64)))
    exact = points(across, down) if epsg == 4326 else points(*to_lonlat(epsg, across, down))
    for name in ("lon", "lat", "x", "y", "z"):
        turn = 360.0 if name == "lon" else np.inf
        off = np.abs(getattr(p, name) - getattr(exact, name))
        assert np.minimum(off, turn - off).max() < 1e-12


@pytest.mark.parametrize(("epsg", "x", "y", "step"), LATTICES)
def test_interpolated_ground_is_the_ground_far_below_what_products_store(
    epsg: int, x: float, y: float, step: float
) -> None:
    assert has_nodes(epsg, step)
    p = on_lattice(epsg, x, y, step)
    found, exact = ground(p), ground(bare(p))
    for name, most in (("elevation_m", 0.02), ("slope_east", 5e-4), ("slope_north", 5e-4), ("coast_km", 2e-4),
                       ("lake", 1e-4), ("temperature_c", 2e-4), ("rain_mm", 1e-3), ("people", 1e-6)):  # fmt: skip
        error = np.abs(getattr(found, name) - getattr(exact, name))
        assert error.max() < most, name
        assert np.median(error) < most / 100, name


def test_a_place_between_nodes_has_the_same_bits_in_a_lattice_alone_and_picked() -> None:
    epsg, x, y, step = LATTICES[1]
    p, field = on_lattice(epsg, x, y, step), noise(5, 50e3, 9, waves=4)
    assert 0 < field.smooth < 9
    index = np.array([0, 17, 64 * 20 + 5, 64 * 64 - 1])
    alone = points_on(Scattered(epsg, x + step * (index % 64), y + step * (index // 64)))
    for some in (p.take(index), alone):
        assert np.array_equal(field(some), field(p)[index])
        assert np.array_equal(field.with_gradient(some, (1, 4))[1][2], field.with_gradient(p, (1, 4))[1][2][index])
