"""Chips lie on the Sentinel-2 lattice, cover their place and nest; tiles are the web's tiles."""

from __future__ import annotations

import math

import mercantile
import numpy as np
import pyproj
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from rasterio.transform import Affine, array_bounds

from mmbuild.grid import at_gsd, box_from_corner, tile_at, tile_grid, to_earthengine, utm_epsg, utm_grid

LON = st.floats(-180, 180, allow_nan=False)
LAT = st.floats(-79.9, 83.9, allow_nan=False)
CHIPS = st.sampled_from([(10.0, 64), (10.0, 128), (10.0, 264), (20.0, 32), (30.0, 100), (1.0, 512), (0.6, 100)])


def corner(box: object) -> tuple[float, float]:
    return box.affine.c, box.affine.f  # type: ignore[attr-defined]


# -- zones


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"),
    [
        (-180.0, 10.0, 32601),
        (180.0, 10.0, 32601),
        (179.999, 10.0, 32660),
        (-0.001, 10.0, 32630),
        (0.0, 0.0, 32631),
        (0.0, -0.001, 32731),
        (10.0, 84.0, 32633),
        (10.0, -80.0, 32732),
        # south-west Norway: zone 32 is widened over 31 (Bergen)
        (5.32, 60.39, 32632),
        (2.99, 60.0, 32631),
        (5.0, 55.999, 32631),
        (5.0, 64.0, 32631),
        # Svalbard: 32, 34 and 36 are not used (Longyearbyen is in 33)
        (15.63, 78.22, 32633),
        (8.9, 75.0, 32631),
        (9.1, 75.0, 32633),
        (20.9, 75.0, 32633),
        (21.1, 75.0, 32635),
        (33.1, 75.0, 32637),
        (41.9, 75.0, 32637),
        (42.1, 75.0, 32638),
        (9.1, 71.9, 32632),
    ],
)
def test_zones_follow_mgrs_with_its_exceptions(lon: float, lat: float, epsg: int) -> None:
    assert utm_epsg(lon, lat) == epsg


@settings(max_examples=15)  # each asks PROJ's database
@given(LON, LAT)
def test_zones_agree_with_proj_outside_the_exceptions(lon: float, lat: float) -> None:
    assume(not (56 <= lat < 64 and 0 <= lon < 12) and not (lat >= 72 and 0 <= lon < 42))
    assume(abs(lat) > 1e-6 and abs(lon / 6 - round(lon / 6)) > 1e-6)
    area = AreaOfInterest(lon, lat, lon, lat)
    found = {int(info.code) for info in query_utm_crs_info("WGS 84", area, contains=True)}
    assert utm_epsg(lon, lat) in found


@pytest.mark.parametrize("lat", [84.01, 90.0, -80.01, -90.0])
def test_places_beyond_utm_are_refused(lat: float) -> None:
    with pytest.raises(ValueError, match="outside UTM, which covers 80 S to 84 N"):
        utm_grid(0.0, lat, gsd=10, size=64)


# -- chips


@given(LON, LAT, CHIPS)
def test_a_chip_starts_on_the_sentinel2_lattice(lon: float, lat: float, chip: tuple[float, int]) -> None:
    box = utm_grid(lon, lat, gsd=chip[0], size=chip[1])
    x0, y0 = corner(box)
    assert x0 % 60 == 0
    assert y0 % 60 == (0 if lat >= 0 else 40)
    assert box.crs.to_epsg() == utm_epsg(lon, lat)
    assert box.shape == (chip[1], chip[1])


def test_the_lattice_is_that_of_real_granules() -> None:
    # The transform that Earth Engine reports for a granule of zone 18 south: [10, 0, 699960, 0, -10, 9800020].
    x0, y0 = corner(utm_grid(-75.0, -1.8, gsd=10, size=64))
    assert (x0 - 699960) % 60 == 0
    assert (9800020 - y0) % 60 == 0


@given(LON, LAT, CHIPS)
def test_a_chip_is_centred_within_half_a_lattice_cell_and_covers_its_place(
    lon: float, lat: float, chip: tuple[float, int]
) -> None:
    gsd, size = chip
    box = utm_grid(lon, lat, gsd=gsd, size=size)
    east, north = pyproj.Proj(f"EPSG:{utm_epsg(lon, lat)}")(lon, lat)
    x0, y0 = corner(box)
    half = gsd * size / 2
    assert abs(x0 + half - east) <= 30 + 1e-6
    assert abs(y0 - half - north) <= 30 + 1e-6
    assert math.hypot(x0 + half - east, y0 - half - north) <= 60 * 0.75
    assert x0 - 1e-6 <= east <= x0 + 2 * half + 1e-6
    assert y0 - 2 * half - 1e-6 <= north <= y0 + 1e-6


@given(LON, LAT)
def test_neighbouring_chips_share_one_pixel_lattice(lon: float, lat: float) -> None:
    first, second = (utm_grid(lon, lat, gsd=10, size=size) for size in (64, 130))
    for one, two in zip(corner(first), corner(second), strict=True):
        assert (one - two) % 10 == 0


def test_a_chip_smaller_than_a_lattice_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the 60 m lattice"):
        utm_grid(10.0, 50.0, gsd=10, size=5)


# -- other pixel sizes


@given(LON, LAT, st.sampled_from([5.0, 20.0, 30.0, 40.0, 60.0]))
def test_coarser_and_finer_grids_cover_the_same_ground_and_nest(lon: float, lat: float, gsd: float) -> None:
    box = utm_grid(lon, lat, gsd=10, size=120)
    other = at_gsd(box, gsd)
    assert array_bounds(*other.shape, other.affine) == array_bounds(*box.shape, box.affine)
    assert (other.affine.a, other.affine.e) == (gsd, -gsd)
    assert other.crs == box.crs
    edges, others = (np.arange(b.shape[1] + 1) * b.affine.a for b in (box, other))
    assert set(max(edges, others, key=len)) >= set(min(edges, others, key=len))


@given(st.integers(0, 16), st.sampled_from([1, 2, 4, 8]))
def test_tiles_coarsen_exactly(z: int, times: int) -> None:
    box = tile_grid(0, 0, z)
    other = at_gsd(box, box.affine.a * times)
    assert other.shape == (256 // times, 256 // times)
    assert array_bounds(*other.shape, other.affine) == pytest.approx(array_bounds(*box.shape, box.affine), abs=1e-6)


@pytest.mark.parametrize(
    ("gsd", "text"), [(30, "not a whole number of 30 m pixels"), (15, "do not nest"), (9.99, "do not nest")]
)
def test_a_pixel_size_that_does_not_divide_the_chip_is_refused(gsd: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        at_gsd(utm_grid(10.0, 50.0, gsd=10, size=64), gsd)


# -- tiles


@given(st.integers(0, 20).flatmap(lambda z: st.tuples(st.integers(0, 2**z - 1), st.integers(0, 2**z - 1), st.just(z))))
def test_tiles_are_those_of_mercantile(tile: tuple[int, int, int]) -> None:
    box = tile_grid(*tile)
    left, bottom, right, top = array_bounds(*box.shape, box.affine)
    assert (left, bottom, right, top) == pytest.approx(tuple(mercantile.xy_bounds(*tile)), abs=1e-6)
    assert box.crs.to_epsg() == 3857
    assert box.shape == (256, 256)


@example(179.99999999999994, 0.0, 0)
@given(LON.filter(lambda lon: lon < 180), st.floats(-85, 85), st.integers(0, 20))
def test_a_place_lies_in_its_tile(lon: float, lat: float, z: int) -> None:
    tile = tile_at(lon, lat, z)
    box = tile_grid(*tile, size=512)
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    left, bottom, right, top = array_bounds(*box.shape, box.affine)
    assert left - 1e-6 <= x <= right + 1e-6
    assert bottom - 1e-6 <= y <= top + 1e-6


@pytest.mark.parametrize("tile", [(1, 0, 0), (0, 1, 0), (-1, 0, 3), (0, 8, 3)])
def test_a_tile_that_does_not_exist_is_refused(tile: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="there is no tile"):
        tile_grid(*tile)


# -- the way to Earth Engine


def test_the_earth_engine_grid_says_the_same_as_the_geobox() -> None:
    box = box_from_corner(32632, 600000.0, 5500020.0, gsd=10, size=64)
    assert to_earthengine(box) == {
        "dimensions": {"width": 64, "height": 64},
        "affineTransform": {
            "scaleX": 10.0,
            "shearX": 0.0,
            "translateX": 600000.0,
            "shearY": 0.0,
            "scaleY": -10.0,
            "translateY": 5500020.0,
        },
        "crsCode": "EPSG:32632",
    }
    assert box.affine == Affine(10, 0, 600000, 0, -10, 5500020)
