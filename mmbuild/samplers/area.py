"""Places uniform on the sphere inside the user's polygons; the polygons' other columns become tags.

A polygon that an earlier one overlaps keeps only what is left of it, so ground that two rows share is not
drawn twice as often. Refuses files without a CRS and polygons with two readings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from mmbuild.errors import UserError
from mmbuild.samplers import (
    NEAR_ALTERNATES,
    Floats,
    counters,
    draw_each,
    frame,
    on_globe,
    plain_tags,
    sphere_area,
    uniform,
)

VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".zip", ".parquet", ".geoparquet")


def candidates(
    spec: Any,
    *,
    n: int,
    start: int = 0,
    seed: int,
    alternates: int,
    regions: gpd.GeoDataFrame | None = None,
) -> gpd.GeoDataFrame:
    """Uniform places in the polygons of ``spec.file`` (or ``regions``); tags are the polygon's other columns.

    Alternates 1 and 2 are in the polygon of the slot, later ones anywhere in the area.
    """
    table = read_polygons(spec.file) if regions is None else regions
    shapes, areas = _disjoint(table, str(spec.file))
    slots, numbers = counters(start, n, alternates)
    # A near alternate shares the draw of alternate 0, and with it the polygon.
    shared = np.where(numbers > NEAR_ALTERNATES, numbers, 0)
    upper = np.cumsum(areas)
    owner = np.searchsorted(upper, uniform(seed, "stratum", slots, shared) * upper[-1], side="right")
    lon, lat = draw_each(shapes, np.minimum(owner, len(areas) - 1), seed, slots, numbers)
    tags = plain_tags(table.drop(columns=table.geometry.name))
    return frame(slots=slots, alternates=numbers, lon=lon, lat=lat, tags=[tags[k] for k in owner])


def _disjoint(table: gpd.GeoDataFrame, where: str) -> tuple[list[Any], Floats]:
    """Each polygon without what earlier ones cover, and its area on the sphere; their sum is positive."""
    if not len(table):
        raise UserError("has no rows", where, "give it at least one polygon")
    shapes = [on_globe(g, f"{where}: row {i + 1}") for i, g in enumerate(table.geometry)]
    later, earlier = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    for a, b in sorted(zip(later.tolist(), earlier.tolist(), strict=True)):
        if b < a and shapely.relate_pattern(shapes[a], shapes[b], "2********"):
            shapes[a] = shapely.difference(shapes[a], shapes[b])
    areas = sphere_area(shapes)
    if areas.sum() <= 0:
        raise UserError("has no area", where, "give it at least one polygon with an area")
    return shapes, areas


def read_polygons(path: str | Path) -> gpd.GeoDataFrame:
    """Polygons in longitude and latitude from GeoJSON, GeoPackage, Shapefile or GeoParquet in any CRS.

    Edges are straight in the file's own CRS, so long edges of projected files get vertices before they are
    transformed. Raises UserError when the file cannot be read as polygons or does not say its CRS.
    """
    table = read_vector(path)
    if table.crs.is_geographic:
        return table.to_crs("EPSG:4326")
    width = max(np.ptp(table.total_bounds[[0, 2]]), np.ptp(table.total_bounds[[1, 3]]))
    table = table.set_geometry(shapely.segmentize(table.geometry.to_numpy(), max(width / 100, 1e-9)), crs=table.crs)
    table = table.to_crs("EPSG:4326")
    names = [f"{path}: row {i + 1}" for i in range(len(table))]
    shapes = [_unwrapped(g, name) for g, name in zip(table.geometry, names, strict=True)]
    return table.set_geometry(gpd.GeoSeries(shapes, index=table.index, crs="EPSG:4326"))


def read_vector(path: str | Path) -> gpd.GeoDataFrame:
    """Any vector file as a table with a CRS."""
    where = Path(path)
    if where.suffix.lower() not in VECTOR_SUFFIXES:
        raise UserError(f"cannot tell its format from {where.suffix!r}", str(path), f"use {', '.join(VECTOR_SUFFIXES)}")
    if not where.is_file():
        raise UserError("there is no such file", str(path), "check the path; it counts from the recipe")
    try:
        parquet = where.suffix.lower() in (".parquet", ".geoparquet")
        table = gpd.read_parquet(where) if parquet else gpd.read_file(where)
    except (RuntimeError, ValueError, OSError) as error:  # pyogrio's errors are RuntimeErrors
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", str(path), "check the file") from error
    if not isinstance(table, gpd.GeoDataFrame):
        raise UserError("has no geometry", str(path), "give it a geometry column")
    if table.crs is None:
        raise UserError("does not say its CRS", str(path), "add it (a .prj file, or write the file again with a CRS)")
    return table


def _unwrapped(geometry: Any, where: str) -> Any:
    """A polygon with short edges whose longitudes run on past 180 where it crosses the antimeridian."""
    if geometry is None or geometry.is_empty:
        return geometry
    points = shapely.get_coordinates(geometry)
    if not np.isfinite(points).all():
        raise UserError("has coordinates outside its CRS", where, "check the CRS of the file")
    if np.ptp(points[:, 0]) <= 180:
        return geometry
    return shapely.union_all([_unwrapped_part(part, where) for part in shapely.get_parts(geometry)])


def _unwrapped_part(part: Any, where: str) -> Any:
    middle = None
    rings = []
    for ring in shapely.get_rings(part):
        points = shapely.get_coordinates(ring)
        points[:, 0] = np.unwrap(points[:, 0], period=360.0)
        if abs(points[0, 0] - points[-1, 0]) > 1e-6:
            raise UserError("goes around a pole", where, "give it in longitude and latitude, cut at the pole")
        if middle is not None:  # a hole must land on the same turn as the outer ring
            points[:, 0] += 360.0 * np.round((middle - points[:, 0].mean()) / 360.0)
        middle = points[:, 0].mean() if middle is None else middle
        rings.append(points)
    return shapely.Polygon(rings[0], rings[1:])
