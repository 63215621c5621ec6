"""GeometryConstructors.*, Geometry.* and their Feature.* twins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import shapely
import shapely.affinity

from mmbuild.sandbox import geometry as shapes
from mmbuild.sandbox.coerce import to_geometry
from mmbuild.sandbox.geometry import LONLAT, Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.values import EarthEngineError, ErrorMargin, Feature, Projection, is_geographic


def _made(build: Callable[[], Any], crs: Projection | None, geodesic: bool | None) -> Geometry:
    """The shape in the CRS of the projection; with a transform, coordinates are pixels (columns, rows) of it."""
    code = LONLAT if crs is None else crs.crs
    try:
        shape = build()
    except (ValueError, TypeError, IndexError, shapely.errors.ShapelyError) as error:
        raise EarthEngineError(f"GeometryConstructors: Invalid coordinates: {error}.") from error
    if crs is not None and crs.transform != Projection().transform:
        a, b, c, d, e, f = crs.transform
        shape = shapely.affinity.affine_transform(shape, [a, b, d, e, c, f])
    return Geometry(shape, code, is_geographic(code) if geodesic is None else geodesic)


def _pairs(coordinates: Sequence[Any]) -> list[Any]:
    """[x, y, x, y, ...] or [[x, y], ...] or [Point, ...] as pairs."""
    if coordinates and all(isinstance(value, int | float) for value in coordinates):
        return [list(pair) for pair in zip(coordinates[::2], coordinates[1::2], strict=True)]
    return [item.shape.coords[0] if isinstance(item, Geometry) else item for item in coordinates]


def _rings(coordinates: Sequence[Any]) -> list[Any]:
    """Rings of a polygon from nested lists, one flat ring, or LinearRing geometries."""
    if coordinates and isinstance(coordinates[0], Geometry) and coordinates[0].shape.geom_type != "Point":
        return [list(item.shape.coords) for item in coordinates]
    if coordinates and isinstance(coordinates[0], int | float | Geometry):
        return [_pairs(coordinates)]
    if coordinates and coordinates[0] and isinstance(coordinates[0][0], int | float):
        return [_pairs(coordinates)]
    return [_pairs(ring) for ring in coordinates]


def _polygon(coordinates: Sequence[Any]) -> Any:
    rings = _rings(coordinates)
    return shapely.Polygon(rings[0], rings[1:]) if rings else shapely.Polygon()


@algorithm("GeometryConstructors.Point")
def point(context: Context, coordinates: Sequence[float], crs: Projection | None) -> Geometry:
    return _made(lambda: shapely.Point(*coordinates[:2]), crs, None)


@algorithm("GeometryConstructors.MultiPoint")
def multi_point(context: Context, coordinates: Sequence[Any], crs: Projection | None) -> Geometry:
    return _made(lambda: shapely.MultiPoint(_pairs(coordinates)), crs, None)


@algorithm("GeometryConstructors.LineString")
def line(context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, maxError: Any) -> Geometry:
    return _made(lambda: shapely.LineString(_pairs(coordinates)), crs, geodesic)


@algorithm("GeometryConstructors.LinearRing")
def ring(context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, maxError: Any) -> Geometry:
    return _made(lambda: shapely.LinearRing(_pairs(coordinates)), crs, geodesic)


@algorithm("GeometryConstructors.MultiLineString")
def lines(context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, maxError: Any) -> Geometry:
    return _made(lambda: shapely.MultiLineString(_rings(coordinates)), crs, geodesic)


@algorithm("GeometryConstructors.Polygon")
def polygon(
    context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, maxError: Any, evenOdd: bool
) -> Geometry:
    return _made(lambda: _polygon(coordinates), crs, geodesic)


@algorithm("GeometryConstructors.MultiPolygon")
def multi_polygon(
    context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, maxError: Any, evenOdd: bool
) -> Geometry:
    return _made(lambda: shapely.MultiPolygon([_polygon(part) for part in coordinates]), crs, geodesic)


@algorithm("GeometryConstructors.MultiGeometry")
def multi_geometry(
    context: Context, geometries: Sequence[Geometry], crs: Any, geodesic: bool | None, maxError: Any
) -> Geometry:
    return Geometry(shapely.GeometryCollection([part.lonlat for part in geometries]), geodesic=False)


@algorithm("GeometryConstructors.Rectangle")
def rectangle(context: Context, coordinates: Sequence[Any], crs: Any, geodesic: bool | None, evenOdd: bool) -> Geometry:
    """[xmin, ymin, xmax, ymax] or two corners."""

    def build() -> Any:
        (x0, y0), (x1, y1) = _pairs(coordinates)[:2]
        return shapes.rectangle(x0, y0, x1, y1)

    return _made(build, crs, geodesic)


@algorithm("GeometryConstructors.BBox")
def bbox(context: Context, west: float, south: float, east: float, north: float) -> Geometry:
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    elif east < west:
        east += 360.0
    return Geometry(shapes.rectangle(west, max(south, -90.0), east, min(north, 90.0)), geodesic=False)


# -- operations, each once for geometries and once for features --------------------------------------------------------


def _buffer(shape: Geometry, distance: float, proj: Projection | None) -> Geometry:
    if proj is None:
        return shapes.buffered(shape, distance)
    return Geometry(shape.in_crs(proj.crs).buffer(distance), proj.crs, geodesic=False)


def _bounds(shape: Geometry, proj: Projection | None) -> Geometry:
    if proj is not None and not is_geographic(proj.crs):
        return Geometry(shapes.rectangle(*shape.in_crs(proj.crs).bounds), proj.crs, geodesic=False)
    west, south, east, north = shape.bounds_lonlat()
    return Geometry(shapes.rectangle(west, south, east + 360.0 if east < west else east, north), geodesic=False)


def _transform(shape: Geometry, proj: Projection) -> Geometry:
    return Geometry(shape.in_crs(proj.crs), proj.crs, geodesic=False)


def _simplify(shape: Geometry, margin: ErrorMargin) -> Geometry:
    local, crs = shape.local()
    return shapes.back_to_lonlat(local.simplify(margin.value), crs)


def _set(name: str) -> Callable[[Geometry, Geometry], Geometry]:
    return lambda a, b: Geometry(getattr(a.lonlat, name)(b.lonlat), geodesic=False)


_SETS = {
    "intersection": _set("intersection"),
    "union": _set("union"),
    "difference": _set("difference"),
    "symmetricDifference": _set("symmetric_difference"),
}
_TESTS: dict[str, Callable[[Geometry, Geometry], Any]] = {
    "intersects": lambda a, b: bool(a.lonlat.intersects(b.lonlat)),
    "disjoint": lambda a, b: bool(a.lonlat.disjoint(b.lonlat)),
    "contains": lambda a, b: bool(a.lonlat.covers(b.lonlat)),
    "containedIn": lambda a, b: bool(b.lonlat.covers(a.lonlat)),
}
_MEASURES: dict[str, Callable[[Geometry], float]] = {
    "area": shapes.area_m2,
    "length": shapes.length_m,
    "perimeter": shapes.perimeter_m,
}
# Which parts a measure is of: lines (1) or polygons (2).
_DIMENSIONS = {"area": 2, "length": 1, "perimeter": 2}
_SHAPERS: dict[str, Callable[[Geometry], Geometry]] = {
    "centroid": shapes.centroid,
    "convexHull": lambda g: Geometry(g.lonlat.convex_hull, geodesic=False),
    "dissolve": lambda g: Geometry(shapely.union_all(shapely.get_parts(g.lonlat)), geodesic=False),
}


def _measured(shape: Geometry, maxError: Any, proj: Projection | None, *, name: str) -> float:
    """In metres on the ellipsoid, or in the units of a projection."""
    if proj is None:
        return _MEASURES[name](shape)
    parts = shapely.get_parts(shape.in_crs(proj.crs))
    parts = parts[shapely.get_dimensions(parts) == _DIMENSIONS[name]]
    a, b, _, d, e, _ = proj.transform
    pixel = abs(a * e - b * d)
    return float(shapely.area(parts).sum() / pixel if name == "area" else shapely.length(parts).sum() / pixel**0.5)


def _of(element: Any) -> Geometry:
    shape = to_geometry(element)
    if not isinstance(shape, Geometry):
        raise EarthEngineError("The feature has no geometry.")
    return shape


def _back(element: Any, shape: Geometry) -> Any:
    """A Feature keeps its properties around the new geometry; a geometry is just the geometry."""
    if isinstance(element, Geometry):
        return shape
    return (
        replace(element, geometry=shape) if isinstance(element, Feature) else Feature(shape, dict(element.properties))
    )


def _pair(context: Context, left: Any, right: Any, maxError: Any, proj: Any, *, compute: Any) -> Any:
    result = compute(_of(left), _of(right))
    return _back(left, result) if isinstance(result, Geometry) else result


for _name, _compute in {**_SETS, **_TESTS}.items():
    for _family in ("Geometry", "Feature"):
        algorithm(f"{_family}.{_name}")(partial(_pair, compute=_compute))


def _distance(context: Context, left: Any, right: Any, maxError: Any, proj: Any, spherical: bool) -> float:
    return shapes.distance_m(_of(left), _of(right))


def _within(context: Context, left: Any, right: Any, distance: float, maxError: Any, proj: Any) -> bool:
    return shapes.distance_m(_of(left), _of(right)) <= distance


algorithm("Geometry.distance", "Feature.distance")(_distance)
algorithm("Geometry.withinDistance", "Feature.withinDistance")(_within)


def _register_single(name: str, compute: Callable[..., Any]) -> None:
    """Register `compute(shape, ...)` as Geometry.name (argument `geometry`) and Feature.name (argument `feature`)."""

    def of_geometry(context: Context, geometry: Geometry, **arguments: Any) -> Any:
        return compute(geometry, **arguments)

    def of_feature(context: Context, feature: Any, **arguments: Any) -> Any:
        result = compute(_of(feature), **arguments)
        return _back(feature, result) if isinstance(result, Geometry) else result

    algorithm(f"Geometry.{name}")(of_geometry)
    algorithm(f"Feature.{name}")(of_feature)


for _name, _measure in _MEASURES.items():
    _register_single(_name, partial(_measured, name=_name))
for _name, _shaper in _SHAPERS.items():
    _register_single(_name, lambda g, maxError, proj, shaper=_shaper: shaper(g))
_register_single("bounds", lambda g, maxError, proj: _bounds(g, proj))
_register_single("buffer", lambda g, distance, maxError, proj: _buffer(g, distance, proj))
_register_single("simplify", lambda g, maxError, proj: _simplify(g, maxError))
_register_single("transform", lambda g, proj, maxError, geodesic: _transform(g, proj))


@algorithm("Geometry.coordinates")
def coordinates(context: Context, geometry: Geometry) -> list[Any]:
    return list(geometry.to_json().get("coordinates", []))


@algorithm("Geometry.type")
def geometry_type(context: Context, geometry: Geometry) -> str:
    return str(geometry.shape.geom_type)


@algorithm("Geometry.geodesic", "Geometry.edgesAreGeodesics")
def is_geodesic(context: Context, geometry: Geometry) -> bool:
    return geometry.geodesic


@algorithm("Geometry.projection")
def geometry_projection(context: Context, geometry: Geometry) -> Projection:
    return Projection(geometry.crs)


@algorithm("Geometry.geometries")
def geometries(context: Context, geometry: Geometry) -> list[Geometry]:
    return [replace(geometry, shape=part) for part in shapely.get_parts(geometry.shape)]


@algorithm("Geometry.isUnbounded")
def is_unbounded(context: Context, geometry: Geometry) -> bool:
    return bool(geometry.lonlat.equals(shapely.box(-180.0, -90.0, 180.0, 90.0)))
