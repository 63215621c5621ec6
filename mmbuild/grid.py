"""The ground of a sample as a pixel grid: UTM chips on the Sentinel-2 lattice, and exact web-mercator tiles.

All grids are north-up ``odc.geo`` GeoBoxes; nothing here clips, crops or resamples.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import mercantile
import numpy as np
import numpy.typing as npt
from affine import Affine

# odc-geo and pyproj are imported where a grid is made: who only reads a corpus needs neither their 30 MB nor their
# quarter of a second.
if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

# Every Sentinel-2 band of 10, 20 and 60 m starts on this lattice: eastings = 0 mod 60; northings = 0 mod 60 in
# the north and 40 mod 60 in the south, because the false northing of 10,000,000 m is 40 mod 60.
LATTICE_M = 60.0
SOUTH_NORTHING_M = 40.0
# Half the circumference of the web-mercator sphere of radius 6378137 m: the edge of tile 0/0/0.
MERCATOR_EDGE_M = 20037508.342789244
UTM_NORTH_DEG, UTM_SOUTH_DEG = 84.0, -80.0

_SVALBARD = ((0.0, 9.0, 31), (9.0, 21.0, 33), (21.0, 33.0, 35), (33.0, 42.0, 37))


def utm_epsg(lon: float, lat: float) -> int:
    """EPSG code of the UTM zone of a place, with the MGRS exceptions of south-west Norway and Svalbard.

    Raises ValueError beyond 84 N and 80 S, where UTM ends.
    """
    if not UTM_SOUTH_DEG <= lat <= UTM_NORTH_DEG:
        raise ValueError(f"latitude {lat:g} is outside UTM, which covers 80 S to 84 N")
    lon = (lon + 180.0) % 360.0 - 180.0
    zone = min(int((lon + 180.0) // 6.0) + 1, 60)
    if 56.0 <= lat < 64.0 and 3.0 <= lon < 12.0:
        zone = 32
    if lat >= 72.0:
        zone = next((z for west, east, z in _SVALBARD if west <= lon < east), zone)
    return (32600 if lat >= 0 else 32700) + zone


@cache
def _to_projected(epsg: int) -> Transformer:
    from pyproj import Transformer

    return Transformer.from_crs("EPSG:4326", f"EPSG:{epsg}", always_xy=True)


def utm_grid(lon: float, lat: float, *, gsd: float, size: int) -> GeoBox:
    """A square UTM chip centred on a place, its corner on the Sentinel-2 lattice.

    The centre moves by at most 30 m in each axis. ``gsd`` in metres, ``size`` in pixels.
    Raises ValueError outside UTM, and for a chip smaller than a lattice cell, which could miss the place.
    """
    if gsd * size < LATTICE_M:
        raise ValueError(
            f"a chip of {size} px at {gsd:g} m is smaller than the {LATTICE_M:g} m lattice it is snapped to"
        )
    epsg = utm_epsg(lon, lat)
    east, north = _to_projected(epsg).transform(lon, lat)
    half = gsd * size / 2
    shift = 0.0 if lat >= 0 else SOUTH_NORTHING_M
    return box_from_corner(epsg, _snap(east - half, 0.0), _snap(north + half, shift), gsd=gsd, size=size)


def _snap(value: float, shift: float) -> float:
    """The nearest lattice line, lines lying at ``shift`` modulo the lattice."""
    return round((value - shift) / LATTICE_M) * LATTICE_M + shift


def box_from_corner(epsg: int, x0: float, y0: float, *, gsd: float, size: int) -> GeoBox:
    """A square grid from its outer top-left corner (metres in the CRS)."""
    from odc.geo.geobox import GeoBox

    return GeoBox((size, size), Affine(gsd, 0.0, x0, 0.0, -gsd, y0), f"EPSG:{epsg}")


def tile_grid(x: int, y: int, z: int, *, size: int = 256) -> GeoBox:
    """The XYZ tile as a grid of ``size`` x ``size`` pixels in EPSG:3857, exactly.

    Raises ValueError when there is no such tile.
    """
    if not (0 <= x < 2**z and 0 <= y < 2**z):
        raise ValueError(f"there is no tile {z}/{x}/{y}: at zoom {z} columns and rows go from 0 to {2**z - 1}")
    side = 2 * MERCATOR_EDGE_M / 2**z
    return box_from_corner(3857, x * side - MERCATOR_EDGE_M, MERCATOR_EDGE_M - y * side, gsd=side / size, size=size)


def tile_bounds(x: int, y: int, z: int) -> tuple[float, float, float, float]:
    """West, south, east and north of an XYZ tile in degrees."""
    west, south, east, north = mercantile.bounds(x, y, z)
    return west, south, east, north


def corners(lon: npt.ArrayLike, lat: npt.ArrayLike, grid: Any) -> tuple[Any, Any, Any]:
    """EPSG code and outer top-left corner (metres in the CRS) of the chips of many places at once.

    grid: a recipe's, ``kind`` utm with ``gsd`` and ``size``, or webmercator with ``zoom``. The same chips as
    ``utm_grid`` and ``tile_grid`` give one by one.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    if grid.kind != "utm":
        side = 2 * MERCATOR_EDGE_M / 2**grid.zoom
        tiles = [tile_at(a, b, grid.zoom) for a, b in zip(lon.tolist(), lat.tolist(), strict=True)]
        x, y, _ = np.array(tiles, np.int64).reshape(-1, 3).T
        return np.full(len(lon), 3857), x * side - MERCATOR_EDGE_M, MERCATOR_EDGE_M - y * side
    epsg = np.fromiter(map(utm_epsg, lon.tolist(), lat.tolist()), np.int64, len(lon))
    x0, y0 = np.empty(len(lon)), np.empty(len(lon))
    half = grid.gsd * grid.size / 2
    for zone in np.unique(epsg).tolist():
        own = epsg == zone
        east, north = _to_projected(zone).transform(lon[own], lat[own])
        shift = 0.0 if zone < 32700 else SOUTH_NORTHING_M
        x0[own] = np.round((east - half) / LATTICE_M) * LATTICE_M
        y0[own] = np.round((north + half - shift) / LATTICE_M) * LATTICE_M + shift
    return epsg, x0, y0


def tile_at(lon: float, lat: float, z: int) -> tuple[int, int, int]:
    """The XYZ tile (x, y, z) that holds a place."""
    tile = mercantile.tile(lon, lat, z)
    # A place the width of an atom west of 180 rounds to the column beyond the last one.
    last = 2**z - 1
    return min(tile.x, last), min(tile.y, last), tile.z


def at_gsd(box: GeoBox, gsd: float) -> GeoBox:
    """The same ground exactly, with pixels of ``gsd`` metres.

    Raises ValueError when the ground is not a whole number of such pixels, or the old and new pixels do not nest.
    """
    from odc.geo.geobox import GeoBox

    old = float(box.affine.a)
    if not (_whole(gsd / old) or _whole(old / gsd)):
        raise ValueError(f"pixels of {gsd:g} m and {old:g} m do not nest; one must be a whole multiple of the other")
    rows, columns = (n * old / gsd for n in box.shape)
    if not (_whole(rows) and _whole(columns)):
        raise ValueError(f"{box.shape[1]} px at {old:g} m are not a whole number of {gsd:g} m pixels")
    shape = (round(rows), round(columns))
    across, down = (old * n / m for n, m in zip(reversed(box.shape), reversed(shape), strict=True))
    return GeoBox(shape, Affine(across, 0.0, box.affine.c, 0.0, -down, box.affine.f), box.crs)


def _whole(number: float) -> bool:
    """True for a positive whole number, up to the rounding of one division."""
    return round(number) >= 1 and abs(number - round(number)) <= 1e-9 * round(number)


def to_earthengine(box: GeoBox) -> dict[str, Any]:
    """The grid as Earth Engine's REST interface writes it (PixelGrid)."""
    a, b, c, d, e, f = box.affine[:6]
    if box.crs is None:
        raise ValueError("a grid without a CRS is nowhere on Earth")
    return {
        "dimensions": {"width": box.shape[1], "height": box.shape[0]},
        "affineTransform": {
            "scaleX": a,
            "shearX": b,
            "translateX": c,
            "shearY": d,
            "scaleY": e,
            "translateY": f,
        },
        "crsCode": f"EPSG:{box.crs.to_epsg()}",
    }
