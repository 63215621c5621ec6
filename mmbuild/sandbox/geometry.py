"""Shapes on the Earth: a shapely geometry, the CRS of its coordinates, and whether its edges are geodesics.

Every comparison happens in longitude and latitude, on outlines densified so that straight edges of a projection and
geodesic edges are followed to well under a metre, and cut at the antimeridian. Spherical geometry is not attempted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mmbuild.sandbox.assets import Bounds
from mmbuild.sandbox.values import EarthEngineError, is_geographic, transformer

GEOD = pyproj.Geod(ellps="WGS84")
LONLAT = "EPSG:4326"
# Geodesic edges shorter than this are drawn straight in lon/lat: at 60 degrees they deviate by less than 0.2 m.
STRAIGHT_EDGE_M = 2000.0
SEGMENTS_PER_OUTLINE = 64


@dataclass(frozen=True, eq=False)
class Geometry:
    """A shape in `crs`; geodesic edges only make sense in degrees."""

    shape: BaseGeometry
    crs: str = LONLAT
    geodesic: bool = True

    @cached_property
    def lonlat(self) -> BaseGeometry:
        """The shape in planar lon/lat within [-180, 180], densified, cut at the antimeridian, valid."""
        if not is_geographic(self.crs):
            return _cut(_each_ring(_densified(self.shape), lambda xy: _unwrapped(_project(xy, self.crs, LONLAT))))
        if self.geodesic:
            return _cut(_each_ring(self.shape, lambda xy: _geodesic(_unwrapped(xy))))
        return _cut(self.shape)

    def bounds_lonlat(self) -> Bounds:
        """west, south, east, north; west > east when the shape crosses the antimeridian."""
        west, south, east, north = self.lonlat.bounds
        parts = shapely.get_parts(self.lonlat)
        if len(parts) > 1 and west <= -180.0 and east >= 180.0:
            boxes = shapely.bounds(parts)
            eastern, western = boxes[boxes[:, 2] >= 180.0], boxes[boxes[:, 2] < 180.0]
            if len(western) and eastern[:, 0].min() > western[:, 2].max():
                return float(eastern[:, 0].min()), south, float(western[:, 2].max()), north
        return west, south, east, north

    def in_crs(self, crs: str) -> BaseGeometry:
        """The shape in the plane of `crs`, edges densified on the way when the CRS changes."""
        if crs == self.crs and not (is_geographic(crs) and self.geodesic):
            return self.shape
        if is_geographic(crs):
            return self.lonlat
        if is_geographic(self.crs):
            # From the vertices, not from `lonlat`, which is cut at the antimeridian where `crs` may not be.
            follow = _geodesic if self.geodesic else _as_is
            source = self.shape if self.geodesic else _densified(self.shape)
            return _each_ring(source, lambda xy: _project(follow(_unwrapped(xy)), self.crs, crs))
        return _each_ring(_densified(self.shape), lambda xy: _project(xy, self.crs, crs))

    def local(self) -> tuple[BaseGeometry, str]:
        """The shape in metres on an azimuthal equidistant plane around its middle, and that CRS."""
        middle = shapely.get_coordinates(_each_ring(self._vertices(), _unwrapped))
        lon, lat = middle.min(axis=0) / 2 + middle.max(axis=0) / 2
        lon = (float(lon) + 180.0) % 360.0 - 180.0
        crs = f"+proj=aeqd +lat_0={float(lat):.12f} +lon_0={lon:.12f} +datum=WGS84 +units=m"
        return self.in_crs(crs), crs

    def _vertices(self) -> BaseGeometry:
        if is_geographic(self.crs):
            return self.shape
        return _each_ring(self.shape, lambda xy: _project(xy, self.crs, LONLAT))

    def to_json(self) -> dict[str, Any]:
        """GeoJSON as the service writes it: planar shapes say so, other CRSs are named."""
        result: dict[str, Any] = _geojson(self.shape)
        if self.shape.geom_type not in ("Point", "MultiPoint") and not (is_geographic(self.crs) and self.geodesic):
            result["geodesic"] = False
        if self.crs != LONLAT:
            result["crs"] = {"type": "name", "properties": {"name": self.crs}}
        return result


def from_geojson(json: dict[str, Any]) -> Geometry:
    """A GeoJSON geometry, with the `geodesic` and `crs` members Earth Engine adds."""
    crs = json.get("crs", {}).get("properties", {}).get("name", LONLAT) if json.get("crs") else LONLAT
    try:
        shape = shapely.geometry.shape(json)
    except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as error:
        raise EarthEngineError(f"Invalid GeoJSON geometry: {error}") from error
    return Geometry(shape, crs, bool(json.get("geodesic", is_geographic(crs))))


def prepared(shape: BaseGeometry) -> BaseGeometry:
    """A copy ready for many point tests: GEOS prepares in place, and the shape may be shared between threads."""
    copy = shapely.transform(shape, _as_is)
    shapely.prepare(copy)
    return copy


def rectangle(west: float, south: float, east: float, north: float) -> BaseGeometry:
    """A box whose ring runs from the lower left corner counterclockwise, as the service writes it."""
    return shapely.Polygon([(west, south), (east, south), (east, north), (west, north)])


def back_to_lonlat(shape: BaseGeometry, crs: str) -> Geometry:
    """A planar lon/lat geometry from a shape on a local plane."""
    return Geometry(_cut(_each_ring(shape, lambda xy: _unwrapped(_project(xy, crs, LONLAT)))), LONLAT, geodesic=False)


def buffered(geometry: Geometry, metres: float) -> Geometry:
    """Everything within `metres` of the geometry."""
    shape, crs = geometry.local()
    return back_to_lonlat(shape.buffer(metres, quad_segs=16), crs)


def centroid(geometry: Geometry) -> Geometry:
    """The centre of mass on a local plane."""
    if geometry.shape.geom_type == "Point":
        return geometry
    if not is_geographic(geometry.crs):
        return Geometry(geometry.shape.centroid, geometry.crs, geodesic=False)
    shape, crs = geometry.local()
    return Geometry(back_to_lonlat(shape.centroid, crs).shape)


def area_m2(geometry: Geometry) -> float:
    """Area on the WGS 84 ellipsoid."""
    return sum(abs(GEOD.geometry_area_perimeter(part)[0]) for part in shapely.get_parts(geometry.lonlat))


def length_m(geometry: Geometry) -> float:
    """Length of the linear parts on the WGS 84 ellipsoid; polygons have none."""
    lines = (part for part in shapely.get_parts(geometry.lonlat) if shapely.get_dimensions(part) == 1)
    return float(sum(GEOD.geometry_length(part) for part in lines))


def perimeter_m(geometry: Geometry) -> float:
    """Length of the outlines of the polygons on the WGS 84 ellipsoid; lines have none."""
    areas = (part for part in shapely.get_parts(geometry.lonlat) if shapely.get_dimensions(part) == 2)
    return float(sum(GEOD.geometry_area_perimeter(part)[1] for part in areas))


def distance_m(left: Geometry, right: Geometry) -> float:
    """Shortest distance in metres, measured on a plane around the left geometry."""
    shape, crs = left.local()
    return float(shape.distance(right.in_crs(crs)))


def _project(xy: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    x, y = transformer(source, target).transform(xy[:, 0], xy[:, 1])
    return np.column_stack([x, y])


def _as_is(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return xy


def _densified(shape: BaseGeometry) -> BaseGeometry:
    return shapely.segmentize(shape, shape.length / SEGMENTS_PER_OUTLINE) if shape.length > 0 else shape


def _unwrapped(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes made continuous along an outline, so that 179 → -179 becomes 179 → 181."""
    if len(xy) < 2 or np.abs(np.diff(xy[:, 0])).max() <= 180.0:
        return xy
    return np.column_stack([np.unwrap(xy[:, 0], period=360.0), xy[:, 1]])


def _geodesic(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline with points added along every long geodesic edge."""
    if len(xy) < 2:
        return xy
    _, _, length = GEOD.inv(xy[:-1, 0], xy[:-1, 1], xy[1:, 0], xy[1:, 1])
    if np.max(length) <= STRAIGHT_EDGE_M:
        return xy
    pieces: list[NDArray[np.float64]] = []
    for start, end, metres in zip(xy[:-1], xy[1:], length, strict=True):
        pieces.append(start[None])
        if metres > STRAIGHT_EDGE_M:
            points = min(math.ceil(metres / STRAIGHT_EDGE_M), 200)
            between = np.array(GEOD.npts(start[0], start[1], end[0], end[1], points))
            pieces.append(_unwrapped(np.vstack([start[None], between]))[1:])
    return _unwrapped(np.vstack([*pieces, xy[-1:]]))


def _each_ring(shape: BaseGeometry, change: Any) -> BaseGeometry:
    """The shape with every ring, line and point changed on its own."""
    kind = shape.geom_type
    if kind == "Polygon":
        holes = [change(np.asarray(ring.coords)[:, :2]) for ring in shape.interiors]
        return shapely.Polygon(change(np.asarray(shape.exterior.coords)[:, :2]), holes)
    if kind in ("Point", "LineString", "LinearRing"):
        return type(shape)(change(np.asarray(shape.coords)[:, :2]).squeeze())
    return type(shape)([_each_ring(part, change) for part in shape.geoms])


def _cut(shape: BaseGeometry) -> BaseGeometry:
    """The shape brought into [-180, 180], in pieces when it crosses the antimeridian."""
    west, _, east, _ = shape.bounds if not shape.is_empty else (0.0, 0.0, 0.0, 0.0)
    if west >= -180.0 and east <= 180.0:
        return shape if shape.is_valid else shapely.make_valid(shape)
    shape = shape if shape.is_valid else shapely.make_valid(shape)
    turns = range(math.floor((west + 180.0) / 360.0), math.floor((east + 180.0) / 360.0) + 1)
    pieces = [_turned(shape, turn) for turn in turns]
    return shapely.union_all([piece for piece in pieces if not piece.is_empty])


def _turned(shape: BaseGeometry, turn: int) -> BaseGeometry:
    window = shapely.box(-180.0 + 360.0 * turn, -91.0, 180.0 + 360.0 * turn, 91.0)
    return shapely.transform(shape.intersection(window), lambda xy: xy - [360.0 * turn, 0.0])


def _geojson(shape: BaseGeometry) -> dict[str, Any]:
    if shape.geom_type == "GeometryCollection":
        return {"type": "GeometryCollection", "geometries": [_geojson(part) for part in shape.geoms]}
    mapping = shapely.geometry.mapping(shape)
    return {"type": mapping["type"], "coordinates": _as_lists(mapping["coordinates"])}


def _as_lists(coordinates: Any) -> Any:
    return [_as_lists(item) for item in coordinates] if isinstance(coordinates, Iterable) else coordinates
