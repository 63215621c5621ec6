"""Resampling by closed formulas: what a pixel is worth follows from where its centre lies and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from mmbuild.align import FULLY_VALID, Pixels, Raster, layered, level, on_grid
from mmbuild.errors import SourceError
from mmbuild.grid import box_from_corner

X0, Y0 = 500_040.0, 4_000_020.0


def raster(
    values: np.ndarray, *, gsd: float = 10.0, x0: float = X0, y0: float = Y0, valid: np.ndarray | None = None,
    crs: str = "EPSG:32631", **about: bool,
) -> Raster:  # fmt: skip
    own = np.ones(values.shape) if valid is None else valid.astype(float)

    def read(row: int, col: int, height: int, width: int) -> Pixels:
        part = slice(row, row + height), slice(col, col + width)
        assert values[part].shape == (height, width), "a window leaves the raster"
        return values[part].astype(float), own[part]

    height, width = values.shape
    return Raster(
        crs=crs, transform=Affine(gsd, 0, x0, 0, -gsd, y0), height=height, width=width, read=read, **about
    )  # fmt: skip


def field(size: int, gsd: float, x0: float = X0, y0: float = Y0) -> np.ndarray:
    """A plane in metres at pixel centres: bilinear interpolation has to return it exactly."""
    step = gsd * (np.arange(size) + 0.5)
    found: np.ndarray = 0.25 * (x0 + step - X0)[None, :] - 0.5 * (y0 - step - Y0)[:, None] + 7.0
    return found


def grid(size: int, gsd: float, x0: float = X0, y0: float = Y0) -> GeoBox:
    return box_from_corner(32631, x0, y0, gsd=gsd, size=size)


def test_on_its_own_lattice_nothing_is_resampled() -> None:
    values = np.arange(64.0).reshape(8, 8)
    found, valid = on_grid(raster(values), grid(4, 10, X0 + 20, Y0 - 10), bilinear=True)
    np.testing.assert_array_equal(found, values[1:5, 2:6])
    assert (valid == 1).all()


def test_outside_the_raster_nothing_is_valid() -> None:
    found, valid = on_grid(raster(np.ones((4, 4))), grid(6, 10, X0 - 10, Y0 + 10), bilinear=False)
    assert valid[1:5, 1:5].all()
    assert valid.sum() == found.sum() == 16
    away, nothing = on_grid(raster(np.ones((4, 4))), grid(4, 7, X0 + 9000, Y0), bilinear=True)
    assert not nothing.any()
    assert not away.any()


@given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([4.0, 5.0, 10.0, 13.0]))
def test_bilinear_returns_a_plane_exactly(dx: float, dy: float, gsd: float) -> None:
    target = grid(5, gsd, X0 + 40 + dx, Y0 - 40 - dy)
    found, valid = on_grid(raster(field(20, 10)), target, bilinear=True)
    assert (valid >= FULLY_VALID).all()
    np.testing.assert_allclose(found, field(5, gsd, X0 + 40 + dx, Y0 - 40 - dy), atol=1e-6)


# Whole millimetres: coordinates of millions of metres cannot tell on which side of a pixel's edge 1e-12 m lie.
MILLIMETRES = st.integers(-30_000, 30_000).map(lambda shift: shift / 1000)


@given(MILLIMETRES, MILLIMETRES, st.sampled_from([3.0, 7.0, 10.0, 12.0]))
def test_nearest_takes_the_pixel_that_holds_the_centre(dx: float, dy: float, gsd: float) -> None:
    values = np.arange(100.0).reshape(10, 10)
    found, valid = on_grid(raster(values), grid(3, gsd, X0 + 40 + dx, Y0 - 40 - dy), bilinear=False)
    for (i, j), value in np.ndenumerate(found):
        col = np.floor((40 + dx + (j + 0.5) * gsd) / 10)
        row = np.floor((40 + dy + (i + 0.5) * gsd) / 10)
        if 0 <= row < 10 and 0 <= col < 10:
            assert value == values[int(row), int(col)]
        else:
            assert valid[i, j] == 0


def test_a_pixel_with_an_invalid_neighbour_is_not_fully_valid() -> None:
    hole = np.ones((8, 8), bool)
    hole[3, 3] = False
    _, valid = on_grid(raster(np.ones((8, 8)), valid=hole), grid(6, 10, X0 + 5, Y0 - 5), bilinear=True)
    assert np.argwhere(valid < FULLY_VALID).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    np.testing.assert_allclose(valid[2, 2], 0.75)


def test_a_coarser_grid_reads_the_mean_of_whole_blocks() -> None:
    values = np.random.default_rng(0).integers(0, 1000, (16, 16)).astype(float)
    fine = raster(values)
    assert [level(fine, grid(2, gsd)) for gsd in (10, 19, 20, 39, 40, 80)] == [0, 0, 1, 1, 2, 3]
    found, _ = on_grid(fine, grid(4, 40), bilinear=False)
    np.testing.assert_allclose(found, values.reshape(4, 4, 4, 4).mean(axis=(1, 3)))
    whole, _ = on_grid(raster(values, whole=True), grid(4, 40), bilinear=True)
    np.testing.assert_array_equal(whole, np.floor(values.reshape(4, 4, 4, 4).mean(axis=(1, 3)) + 0.5))


def test_a_block_of_classes_has_its_most_frequent_one_and_the_lowest_of_several() -> None:
    codes = np.array([[1, 2, 5, 5], [2, 2, 4, 4], [9, 9, 7, 3], [0, 9, 3, 7]], float)
    valid = np.ones((4, 4), bool)
    valid[0, 2:] = False
    found, share = on_grid(raster(codes, classes=True, valid=valid), grid(2, 20), bilinear=False)
    np.testing.assert_array_equal(found, [[2, 4], [9, 3]])
    np.testing.assert_array_equal(share, [[1, 0.5], [1, 1]])


def test_another_crs_is_looked_up_at_each_pixels_centre() -> None:
    step, west, north = 1e-4, 2.99, 36.16
    values = np.add.outer(np.arange(400.0) * 1000, np.arange(400.0))
    source = Raster(
        crs="EPSG:4326", transform=Affine(step, 0, west, 0, -step, north), height=400, width=400,
        read=raster(values).read,
    )  # fmt: skip
    x, y = Transformer.from_crs(4326, 32631, always_xy=True).transform(3.01, 36.14)
    target = grid(8, 10, round(x), round(y))
    found, valid = on_grid(source, target, bilinear=False)
    assert valid.all()
    back = Transformer.from_crs(32631, 4326, always_xy=True)
    for (i, j), value in np.ndenumerate(found):
        lon, lat = back.transform(round(x) + 10 * (j + 0.5), round(y) - 10 * (i + 0.5))
        assert value == 1000 * np.floor((north - lat) / step) + np.floor((lon - west) / step)


def test_a_raster_beyond_the_antimeridian_is_found_from_the_other_side() -> None:
    values = np.arange(400.0).reshape(20, 20)
    source = Raster(
        crs="EPSG:4326", transform=Affine(0.01, 0, 179.9, 0, -0.01, 10.1), height=20, width=20,
        read=raster(values).read,
    )  # fmt: skip
    same = GeoBox((2, 2), Affine(0.01, 0, -179.98, 0, -0.01, 10.0), "EPSG:4326")
    found, valid = on_grid(source, same, bilinear=False)
    assert valid.all()
    np.testing.assert_array_equal(found, values[10:12, 12:14])
    x, y = Transformer.from_crs(4326, 32601, always_xy=True).transform(-179.955, 10.005)
    seen, there = on_grid(source, box_from_corner(32601, x - 5, y + 5, gsd=10, size=1), bilinear=False)
    assert there.all()
    assert seen[0, 0] == values[9, 14]


def test_layers_cover_each_other_where_they_are_fully_valid() -> None:
    left, right = np.ones((4, 4)), np.full((4, 4), 2.0)
    gap = np.ones((4, 4), bool)
    gap[:, :2] = False
    found, valid = layered([raster(left), raster(right, valid=gap)], grid(4, 10), bilinear=False)
    np.testing.assert_array_equal(found, [[1, 1, 2, 2]] * 4)
    assert valid.all()


def test_tiles_that_touch_are_interpolated_across_their_seam() -> None:
    whole = field(8, 10)
    tiles = [raster(whole[:, :4]), raster(whole[:, 4:], x0=X0 + 40)]
    target = grid(5, 10, X0 + 15, Y0 - 15)
    found, valid = layered(tiles, target, bilinear=True)
    assert (valid >= FULLY_VALID).all()
    np.testing.assert_allclose(found, field(5, 10, X0 + 15, Y0 - 15), atol=1e-6)


def test_a_window_that_no_chip_needs_is_refused() -> None:
    far = Raster(
        crs="EPSG:32631", transform=Affine(0.001, 0, X0, 0, -0.001, Y0), height=10**8, width=10**8,
        read=raster(np.ones((1, 1))).read,
    )  # fmt: skip
    with pytest.raises(SourceError, match="native pixels is too large for one chip"):
        on_grid(far, grid(100, 1000), bilinear=False)
