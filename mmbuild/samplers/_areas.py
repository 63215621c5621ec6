"""Areas of polygons on the Earth, and polygons of users brought onto it: valid, wrapped, within the UTM latitudes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from mmbuild.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Where UTM ends (MGRS): no sample grid exists beyond, so no point is drawn there.
SOUTH_LIMIT_DEG, NORTH_LIMIT_DEG = -80.0, 84.0


def sphere_area(geometries: npt.ArrayLike) -> Floats:
    """Area of each polygon on the unit sphere (steradians), its edges straight in longitude and latitude.

    Exact: along an edge the integral of sin(latitude) over longitude has a closed form, which is the
    longitude span times sin(mean latitude) times sinc(half the latitude span).
    """
    shapes = np.atleast_1d(np.asarray(geometries, dtype=object))
    parts, owner = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    if not len(rings):
        return np.zeros(len(shapes))
    is_hole = np.concatenate([[False], part[1:] == part[:-1]])
    areas = np.abs(_ring_areas(rings))
    return np.bincount(owner[part], np.where(is_hole, -areas, areas), minlength=len(shapes)).astype(np.float64)


# The authalic sphere of WGS 84 has the ellipsoid's area; latitudes go over to it by this series in the eccentricity,
# exact to 1e-8. Source: Snyder, Map Projections: A Working Manual (USGS 1395), equations 3-12 and 3-18.
AUTHALIC_RADIUS_KM = 6371.0072
ECCENTRICITY_2 = 0.00669437999014


def ground_area(geometries: npt.ArrayLike) -> Floats:
    """Area of each polygon in km2 on the WGS 84 ellipsoid; long edges bend by a few metres in between."""
    e2 = ECCENTRICITY_2
    second = e2 / 3 + 31 * e2**2 / 180 + 59 * e2**3 / 560
    fourth = 17 * e2**2 / 360 + 61 * e2**3 / 1260

    def authalic(points: Floats) -> Floats:
        lat = np.radians(points[:, 1])
        return np.column_stack([points[:, 0], np.degrees(lat - second * np.sin(2 * lat) + fourth * np.sin(4 * lat))])

    shapes = np.atleast_1d(np.asarray(geometries, dtype=object))
    return sphere_area(shapely.transform(shapes, authalic)) * AUTHALIC_RADIUS_KM**2


def _ring_areas(rings: npt.NDArray[Any]) -> Floats:
    """Signed area of each closed ring, in steradians."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lon, lat = np.radians(points).T
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    middle, half = (lat[edge + 1] + lat[edge]) / 2, (lat[edge + 1] - lat[edge]) / 2
    parts = (lon[edge + 1] - lon[edge]) * np.sin(middle) * np.sinc(half / np.pi)
    return np.bincount(ring[edge], parts, minlength=len(rings)).astype(np.float64)


def on_globe(geometry: Any, where: str) -> Any:
    """A polygon in lon/lat as valid parts within -180 .. 180 and the latitudes that have UTM grids.

    Longitudes beyond 180 (an area written as 170 .. 190) are wrapped. An edge of more than 180 degrees of
    longitude has two readings and is refused, unless it runs along the antimeridian's two sides or along a
    pole. Raises UserError (``where`` says file and row) for anything that is not a polygon, or has no area
    that can be drawn.
    """
    if geometry is None or geometry.is_empty or shapely.get_type_id(geometry) not in (3, 6, 7):
        raise UserError("is not a polygon", where, "give every row a Polygon or MultiPolygon")
    _refuse_ambiguous_edges(geometry, where)
    flat = shapely.force_2d(geometry)
    flat = _polygons(flat if flat.is_valid else shapely.make_valid(flat))
    west, south, east, north = flat.bounds
    if west < -540 or east > 540 or south < -90.0001 or north > 90.0001:
        raise UserError(
            f"its bounds {flat.bounds} are not longitudes and latitudes",
            where,
            "say the right CRS in the file",
        )
    if west < -180 or east > 180 or south < SOUTH_LIMIT_DEG or north > NORTH_LIMIT_DEG:
        flat = _wrap(flat)
    if flat.is_empty:
        text = f"lies beyond {-SOUTH_LIMIT_DEG:g}° S or {NORTH_LIMIT_DEG:g}° N, where UTM ends"
        raise UserError(text, where, "leave it out or extend it")
    return flat


def _wrap(geometry: Any) -> Any:
    """Bring the parts beyond the antimeridian back and cut what lies beyond the UTM limits."""
    pieces = []
    for turn in (-360.0, 0.0, 360.0):
        window = shapely.box(turn - 180, SOUTH_LIMIT_DEG, turn + 180, NORTH_LIMIT_DEG)
        piece = _polygons(shapely.intersection(geometry, window))
        pieces.append(shapely.transform(piece, lambda xy, turn=turn: xy - (turn, 0.0)))
    return _polygons(shapely.union_all(pieces))


def _polygons(geometry: Any) -> Any:
    """Only the polygons of a geometry; lines and points left over from a cut have no area."""
    parts = shapely.get_parts(shapely.get_parts(shapely.get_parts(geometry)))
    return shapely.multipolygons(parts[shapely.get_type_id(parts) == 3])


def _refuse_ambiguous_edges(geometry: Any, where: str) -> None:
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    first, last = points[:-1], points[1:]
    on_seam = (np.abs(np.abs(first[:, 0]) - 180) < 1e-6) & (np.abs(np.abs(last[:, 0]) - 180) < 1e-6)
    at_pole = (np.abs(first[:, 1]) > 89) & (np.abs(last[:, 1]) > 89)
    long = (np.abs(last[:, 0] - first[:, 0]) > 180) & (ring[1:] == ring[:-1]) & ~on_seam & ~at_pole
    if long.any():
        (a, _), (b, _) = first[long][0], last[long][0]
        raise UserError(
            f"an edge runs from longitude {a:g} to {b:g}, which can be read in two ways",
            where,
            "across the antimeridian write longitudes beyond 180 (170 to 190) or cut the polygon there; "
            "otherwise add a vertex in between",
        )
