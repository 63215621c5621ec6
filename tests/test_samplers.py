"""Randomness and the sphere under all samplers, and what every sampler promises."""

from __future__ import annotations

import hashlib
import heapq
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from mmbuild import samplers
from mmbuild.errors import UserError
from mmbuild.samplers import area, ground_area, on_globe, prepare, sphere_area, uniform
from tests.places import CHI2_63, REAL, many, needs_real, places, rows

# The first places of a published corpus must never move: these numbers do not change with a version.
PINNED_UNIFORM = [0.8423780054435147, 0.8231184981671879, 0.5161443548994615]
PINNED_DRAWS = [[11.559556858, 21.666894763], [12.683950593, 38.986238866], [22.808404677, 36.104412191]]


# --- randomness


def test_uniform_numbers_are_pinned() -> None:
    assert uniform(0, "place", [0, 1, 2]).tolist() == PINNED_UNIFORM


def slow_uniform(seed: int, purpose: str, *counters: int) -> float:
    """The same with Python's whole numbers."""
    full = 2**64
    state = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    for counter in counters:
        z = (state + (counter + 1) * 0x9E3779B97F4A7C15) % full
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % full
        state = z ^ (z >> 31)
    return (state >> 11) / 2**53


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63), st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4))
def test_uniform_numbers_agree_with_plain_python(seed: int, counters: list[int]) -> None:
    assert uniform(seed, "split", *counters).tolist() == [slow_uniform(seed, "split", *counters)]


def test_uniform_numbers_are_uniform_along_every_counter_and_uncorrelated_between_neighbours() -> None:
    n = 64_000
    for counters in (
        (np.arange(n), 0, 0, 0),
        (5, np.arange(n), 0, 0),
        (5, 0, np.arange(n), 0),
        (2**40 + np.arange(n), 1, 2, 2),
    ):
        u = uniform(3, "place", *counters)
        found = np.bincount((u * 64).astype(int), minlength=64)
        assert ((found - n / 64) ** 2 / (n / 64)).sum() < CHI2_63
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(n)


def test_another_seed_or_purpose_gives_other_numbers() -> None:
    a, b, c = (uniform(s, p, np.arange(1000)) for s, p in ((0, "place"), (1, "place"), (0, "split")))
    assert not np.isin(a, b).any()
    assert not np.isin(a, c).any()


# --- the sphere


@pytest.mark.parametrize(
    "polygon",
    [
        shapely.box(-10, 60, 30, 80),
        shapely.Polygon([(0, 0), (40, 10), (10, 60)]),
        shapely.Polygon([(0, -50), (40, -50), (40, -10), (0, -10)], [[(10, -40), (10, -20), (30, -20), (30, -40)]]),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 70, 6, 71)]),
    ],
)
def test_area_on_the_sphere_agrees_with_geographiclib(polygon: Any) -> None:
    dense = shapely.segmentize(polygon, 0.01)  # short geodesics approach straight lines in lon/lat
    truth, _ = Geod(a=1.0, b=1.0).geometry_area_perimeter(shapely.orient_polygons(dense))
    assert sphere_area([polygon])[0] == pytest.approx(abs(truth), rel=1e-6)


def test_area_on_the_ground_agrees_with_geographiclib_on_the_ellipsoid() -> None:
    for polygon in (shapely.box(-10, 60, 30, 80), shapely.box(0, -1, 1, 1), shapely.box(5, 45, 8, 50)):
        dense = shapely.segmentize(polygon, 0.01)
        truth, _ = Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(dense))
        assert ground_area([polygon])[0] == pytest.approx(abs(truth) / 1e6, rel=1e-6)


def test_places_in_a_slanted_strip_of_ten_metres_are_found_all_along_it() -> None:
    strip = shapely.Polygon([(0, 0), (10, 8), (10, 8.0001), (0, 0.0001)])
    lon, lat = many(strip, 2_000)
    assert shapely.contains_xy(strip.buffer(1e-9), lon, lat).all()
    found = np.bincount((lon / 10 * 20).astype(int), minlength=20)
    assert ((found - 100) ** 2 / 100).sum() < 43.8  # 99.9 % point, 19 degrees of freedom


@pytest.mark.parametrize(
    ("west", "south", "east", "north"), [(-20, 60, 60, 84), (-180, -60, 180, 75), (-80, -80, -10, -60)]
)
def test_points_are_uniform_on_the_sphere(west: float, south: float, east: float, north: float) -> None:
    lon, lat = many(shapely.box(west, south, east, north), 32_000)
    s = np.sin(np.radians([south, north]))
    i = ((lon - west) / (east - west) * 8).astype(int)
    j = ((np.sin(np.radians(lat)) - s[0]) / (s[1] - s[0]) * 8).astype(int)
    found = np.bincount(i * 8 + j, minlength=64)
    assert ((found - 500) ** 2 / 500).sum() < CHI2_63


def test_points_are_uniform_in_a_ragged_polygon_with_a_hole() -> None:
    angle = np.radians(np.arange(0, 360, 2))
    radius = np.where(np.arange(180) % 2, 8.0, 20.0)
    star = shapely.Polygon(np.c_[30 + radius * np.cos(angle), 60 + radius * np.sin(angle)])
    polygon = shapely.difference(star, shapely.box(25, 55, 33, 62))
    n = 32_000
    lon, lat = many(polygon, n)
    assert shapely.contains_xy(polygon, lon, lat).all()
    cells = [shapely.box(x, y, x + 5, y + 5) for x in range(10, 50, 5) for y in range(40, 80, 5)]
    expected = sphere_area(shapely.intersection(polygon, cells)) / sphere_area([polygon]) * n
    found = np.bincount(((lon - 10) // 5 * 8 + (lat - 40) // 5).astype(int), minlength=64)
    big = expected > 5
    assert found[~big].sum() <= expected[~big].sum() * 2 + 5
    assert ((found - expected) ** 2 / np.where(big, expected, np.inf)).sum() < CHI2_63


def test_a_polygon_across_the_antimeridian_is_one_place_however_it_is_written() -> None:
    beyond = many(shapely.box(170, -20, 190, 10), 2000)
    west = many(shapely.box(-190, -20, -170, 10), 2000)
    cut = many(shapely.MultiPolygon([shapely.box(170, -20, 180, 10), shapely.box(-180, -20, -170, 10)]), 2000)
    for lon, lat in (beyond, west, cut):
        assert ((lon >= 170) & (lon < 180) | (lon >= -180) & (lon <= -170)).all()
        assert 850 < (lon > 0).sum() < 1150
        np.testing.assert_array_equal((lon, lat), beyond)


def test_no_point_is_drawn_beyond_the_ends_of_utm() -> None:
    _, lat = many(shapely.box(-180, 60, 180, 90), 5000)
    assert lat.max() < 84
    assert lat.max() > 83.9
    _, lat = many(shapely.box(-180, -90, 180, -60), 5000)
    assert -80 < lat.min() < -79.9


def test_a_polygon_wholly_beyond_utm_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"cap\.geojson: row 1: lies beyond 80° S or 84° N, where UTM ends; leave it out"
    ):
        on_globe(shapely.box(-180, 85, 180, 90), "cap.geojson: row 1")


def test_an_edge_with_two_readings_is_refused_with_both_remedies() -> None:
    fiji = shapely.Polygon([(178, -19), (-179, -19), (-179, -16), (178, -16)])
    with pytest.raises(UserError) as error:
        on_globe(fiji, "fiji.geojson: row 1")
    assert str(error.value) == (
        "fiji.geojson: row 1: an edge runs from longitude 178 to -179, which can be read in two ways; "
        "across the antimeridian write longitudes beyond 180 (170 to 190) or cut the polygon there; "
        "otherwise add a vertex in between"
    )


@pytest.mark.parametrize("shape", [None, shapely.Polygon(), shapely.Point(1, 2)])
def test_what_is_not_a_polygon_is_refused(shape: Any) -> None:
    with pytest.raises(UserError, match=r"a: row 3: is not a polygon; give every row a Polygon or MultiPolygon"):
        on_globe(shape, "a: row 3")


def slow_cover(geometry: Any) -> list[tuple[float, float, float, float]]:
    """The boxes of ``prepare``, one cut at a time."""

    def size(box: tuple[float, float, float, float]) -> float:
        west, south, east, north = np.radians(box)
        return float((east - west) * (np.sin(north) - np.sin(south)))

    heap = [(-size(geometry.bounds), geometry.bounds)]
    total, whole = -heap[0][0], []
    fill, steps = samplers.COVERS[0]
    goal = float(sphere_area([geometry])[0]) / fill
    for _ in range(steps):
        if total <= goal or not heap:
            break
        area, (west, south, east, north) = heapq.heappop(heap)
        if shapely.contains(geometry, shapely.box(west, south, east, north)):
            whole.append((area, (west, south, east, north)))
            continue
        x, y = (west + east) / 2, (south + north) / 2
        is_wide = (east - west) * np.cos(np.radians(y)) > north - south
        halves = [(west, south, x, north), (x, south, east, north)] if is_wide else []
        halves = halves or [(west, south, east, y), (west, y, east, north)]
        halves = [half for half in halves if shapely.intersects(geometry, shapely.box(*half))]
        total += area + sum(map(size, halves))
        for half in halves:
            heapq.heappush(heap, (-size(half), half))
    return [box for _, box in sorted(whole + heap)]


@needs_real
def test_polygons_are_covered_by_the_same_boxes_as_one_cut_at_a_time_gives() -> None:
    for shape in area.read_polygons(REAL).geometry[::60]:
        geometry = on_globe(shape, "real")
        assert prepare(geometry).boxes.tolist() == [list(box) for box in slow_cover(geometry)]


def test_draws_are_pinned() -> None:
    lon, lat = many(shapely.Polygon([(0, 0), (40, 10), (10, 60)]), 3, seed=42)
    np.testing.assert_allclose(np.c_[lon, lat], PINNED_DRAWS, atol=2e-9)


# --- every sampler


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_a_larger_n_keeps_the_first_places(kind: str, tmp_path: Path) -> None:
    small, large = (places(kind, tmp_path, n=n) for n in (30, 97))
    assert rows(small) == rows(large)[: len(small)]


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_any_range_of_slots_equals_the_slice(kind: str, tmp_path: Path) -> None:
    whole, part = places(kind, tmp_path, n=60), places(kind, tmp_path, n=41, start=23)
    assert part.slot.unique().tolist() == list(range(23, 41))
    assert rows(part) == rows(whole[whole.slot.between(23, 40)])


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_a_place_does_not_depend_on_the_number_of_alternates(kind: str, tmp_path: Path) -> None:
    few, more = (places(kind, tmp_path, n=20, alternates=a) for a in (1, 6))
    assert rows(few) == rows(more[more.alternate <= 1])


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_the_order_of_the_rows_is_slot_then_alternate_and_all_places_differ(kind: str, tmp_path: Path) -> None:
    frame = places(kind, tmp_path, n=50)
    assert list(zip(frame.slot, frame.alternate, strict=True)) == [(i, k) for i in range(50) for k in range(5)]
    assert not frame.duplicated(["lon", "lat"]).any()


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_another_seed_gives_other_places(kind: str, tmp_path: Path) -> None:
    a, b = (places(kind, tmp_path, n=20, seed=s) for s in (0, 1))
    assert not (a.lon == b.lon).any()


def test_every_sampler_file_is_a_kind_and_others_are_refused_by_name() -> None:
    assert {"points", "area", "biome"} <= set(samplers.kinds())
    assert all(callable(samplers.load(k).candidates) for k in samplers.kinds())
    with pytest.raises(UserError, match=r"there is no sampler 'pionts'; use one of area, biome, cities, points, xyz"):
        samplers.load("pionts")
