"""How much of a pixel a shape covers: the fast way against shapely on every pixel, across projections, at edges."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from mmbuild.sandbox.algorithms.aggregating import _overlap
from mmbuild.sandbox.covering import LEAST_COVER, Covered, in_pixels, shares, touched
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.raster import Grid, Reader

HEIGHT, WIDTH = 30, 40
X, Y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
SQUARES = shapely.box(X, Y, X + 1, Y + 1)


def star(rng: np.random.Generator, *, x: float, y: float, radius: float) -> shapely.Polygon:
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    reach = radius * rng.uniform(0.3, 1.0, 12)
    return shapely.Polygon(np.column_stack([x + reach * np.cos(angle), y + reach * np.sin(angle)]))


def shapes(seed: int) -> list[shapely.Geometry]:
    """A star, one with a hole, two apart, one that leaves the picture, a box and a mixed collection."""
    rng = np.random.default_rng(seed)
    one = star(rng, x=18, y=14, radius=11)
    two = star(rng, x=33, y=22, radius=9)
    return [
        one,
        one.difference(shapely.Point(18, 14).buffer(1.7)),
        shapely.union(one, two),
        star(rng, x=39, y=1, radius=14),
        shapely.box(*rng.uniform(0, 15, 2), *rng.uniform(16, 29, 2)),
        shapely.GeometryCollection([two, shapely.LineString([(0, 0), (9, 7)]), shapely.Point(3.5, 2.5)]),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_the_areas_of_the_intersections(seed: int) -> None:
    for shape in shapes(seed):
        truth = sum(shapely.area(shapely.intersection(part, SQUARES)) for part in shapely.get_parts(shape))
        found = shares(shape, HEIGHT, WIDTH)
        np.testing.assert_allclose(found, np.where(truth > LEAST_COVER, truth, 0.0), atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_touched_pixels_are_those_that_share_more_than_an_edge(seed: int) -> None:
    inner = shapely.box(X + 1e-6, Y + 1e-6, X + 1 - 1e-6, Y + 1 - 1e-6)
    for shape in shapes(seed):
        truth = np.logical_or.reduce([shapely.intersects(part, inner) for part in shapely.get_parts(shape)])
        np.testing.assert_array_equal(touched(shape, HEIGHT, WIDTH), truth)


def test_a_point_on_a_corner_touches_the_pixel_it_begins() -> None:
    found = touched(shapely.MultiPoint([(3, 2), (WIDTH, 5), (0, 0)]), HEIGHT, WIDTH)
    assert [tuple(map(int, place)) for place in np.argwhere(found)] == [(0, 0), (2, 3)]


def test_a_tilted_grid_sees_the_same_ground() -> None:
    """Rotating grid and shape together changes nothing."""
    cos, sin = np.cos(0.4), np.sin(0.4)
    grid = Grid("EPSG:32631", (10 * cos, 10 * sin, 5e5, 10 * sin, -10 * cos, 5e6), WIDTH, HEIGHT)
    pixels = star(np.random.default_rng(3), x=20, y=15, radius=12)
    ground = shapely.transform(pixels, lambda xy: np.column_stack(grid.at(xy[:, 0], xy[:, 1])))
    assert in_pixels(ground, grid).equals_exact(pixels, 1e-6)


@pytest.mark.parametrize(
    ("crs", "place"),
    [("EPSG:32633", (16.0, 48.0)), ("EPSG:3857", (-70.0, 60.0)), ("EPSG:32760", (179.99, -20.0))],
)
def test_a_circle_in_degrees_keeps_its_area_in_another_projection(crs: str, place: tuple[float, float]) -> None:
    forth = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = forth.transform(*place)
    circle = shapely.Point(x, y).buffer(170.0, quad_segs=64)
    back = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    degrees = shapely.transform(circle, lambda xy: np.column_stack(back(xy[:, 0], xy[:, 1])))
    grid = Grid(crs, (10.0, 0.0, x - 200.0, 0.0, -10.0, y + 200.0), 40, 40)
    found, mask = Covered(Geometry(degrees, geodesic=False)).read(Reader(), grid)
    assert found.sum() * 100 == pytest.approx(circle.area, rel=1e-3)
    assert (mask == 1).all()
    assert found[20, 20] == 1
    assert found[0, 0] == 0


def test_the_whole_globe_covers_every_grid_and_nothing_covers_what_is_far() -> None:
    globe, island = Geometry(shapely.box(-180, -90, 180, 90), geodesic=False), Geometry(shapely.box(0, 0, 1, 1))
    for grid in (
        Grid("EPSG:32633", (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), 8, 8),
        Grid("EPSG:4326", (1.0, 0.0, -180.0, 0.0, -1.0, 90.0), 360, 180),
        Grid("EPSG:3995", (1e5, 0.0, -4e5, 0.0, -1e5, 4e5), 8, 8),
    ):
        assert (Covered(globe).read(Reader(), grid)[0] == 1).all()
        assert Covered(island).read(Reader(), grid)[0].sum() == (1 if grid.width == 360 else 0)


def test_quadrangles_overlap_pixels_as_shapely_says() -> None:
    rng = np.random.default_rng(5)
    cols, rows = np.array([0.0, 1, 1, 0])[:, None], np.array([0.0, 0, 1, 1])[:, None]
    stretch, shift = rng.uniform(0.3, 2.5, (2, 1, 200)), rng.uniform(-2, 1.5, (2, 1, 200))
    turn = rng.uniform(0, 2 * np.pi, 200)
    x, y = cols * stretch[0], rows * stretch[1]
    x, y = x * np.cos(turn) - y * np.sin(turn) + shift[0], x * np.sin(turn) + y * np.cos(turn) + shift[1]
    quads = [shapely.Polygon(np.column_stack([x[:, i], y[:, i]])) for i in range(200)]
    truth = shapely.area(shapely.intersection(quads, shapely.box(0, 0, 1, 1)))
    np.testing.assert_allclose(_overlap(y, x), truth, atol=1e-9)
    assert (truth > 0).sum() > 50
