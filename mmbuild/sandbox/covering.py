"""How much of each pixel a shape covers, exactly: areas in pixel coordinates, where every pixel is a unit square.

Nothing is sampled: an area is the sum over the edges of the outline, cut at the lines between pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
import shapely.affinity
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from mmbuild.sandbox.geometry import LONLAT, Geometry, prepared
from mmbuild.sandbox.images import Inside
from mmbuild.sandbox.picking import Array, Pair
from mmbuild.sandbox.raster import Grid, Reader
from mmbuild.sandbox.values import is_geographic, transformer

# 1e-6 px: an edge this close to a pixel edge is on it, whatever the rounding of its coordinates.
EDGE_TOLERANCE_PX = 1e-6
# About 0.5 % of a pixel is the least that counts (guide "Statistics of an Image Region"); a mask is one byte as well.
LEAST_COVER = 1 / 256
# A geographic outline is followed in another projection by this many points along the side of its window.
POINTS_PER_SIDE = 256


def in_pixels(shape: BaseGeometry, grid: Grid) -> BaseGeometry:
    """A shape of the grid's CRS in (column, row) coordinates; a tilted grid included."""
    a, b, c, d, e, f = grid.transform
    det = a * e - b * d
    column, row = (e / det, -b / det, (b * f - e * c) / det), (-d / det, a / det, (d * c - a * f) / det)
    return shapely.affinity.affine_transform(shape, [*column[:2], *row[:2], column[2], row[2]])


def shares(shape: BaseGeometry, height: int, width: int) -> Array:
    """(height, width): area of each unit square inside a shape given in (column, row); 0 below LEAST_COVER.

    Every edge is cut at the lines between squares. A piece then takes from its row all that lies to its right: part of
    its own square and whole squares beyond, so that the pieces of a closed outline sum to the covered areas.
    """
    area = _of_dimension(shape, 2)
    if not np.isfinite(area.bounds).all():
        return np.zeros((height, width))
    area = area if area.is_valid else shapely.make_valid(area)
    start, end = _edges(area.intersection(shapely.box(-1, -1, width + 1, height + 1)))
    (x0, y0), (x1, y1) = _cut(start, end)
    col, row = np.floor((x0 + x1) / 2), np.floor((y0 + y1) / 2)
    here = (row >= 0) & (row < height) & (col < width)
    left = col < 0
    drop = (y1 - y0)[here]
    own = np.where(left, 0.0, (x0 + x1) / 2 - col)[here]
    place = (row[here].astype(np.int64), np.where(left, 0.0, col)[here].astype(np.int64))
    whole, part = np.zeros((height, width + 1)), np.zeros((height, width + 1))
    np.add.at(part, place, drop * (1.0 - own))
    np.add.at(whole, (place[0], place[1] + 1), drop)
    share = np.abs(part + np.cumsum(whole, axis=1))[:, :width]
    share[share > 1.0 - EDGE_TOLERANCE_PX] = 1.0
    return np.where(share > LEAST_COVER, share, 0.0)


def _edges(shape: BaseGeometry) -> tuple[Array, Array]:
    """(2, n) starts and ends of the edges of all rings: outlines one way around, holes the other."""
    parts = [p for p in shapely.get_parts(shapely.get_parts(shape)) if shapely.get_dimensions(p) == 2]
    polygons = [orient(piece) for part in parts for piece in shapely.get_parts(part)]
    rings = [shapely.get_coordinates(ring) for polygon in polygons for ring in shapely.get_rings(polygon)]
    if not rings:
        return np.zeros((2, 0)), np.zeros((2, 0))
    return np.concatenate([xy[:-1] for xy in rings]).T, np.concatenate([xy[1:] for xy in rings]).T


def _cut(start: Array, end: Array) -> tuple[Array, Array]:
    """(2, m) starts and ends of the pieces of edges between whole numbers of x and of y."""
    edge, along = [np.repeat(np.arange(start.shape[1]), 2)], [np.tile([0.0, 1.0], start.shape[1])]
    for first, last in zip(start, end, strict=True):
        low = np.floor(np.minimum(first, last)) + 1
        count = np.maximum(np.ceil(np.maximum(first, last)) - low, 0).astype(np.int64)
        owner = np.repeat(np.arange(len(count)), count)
        line = low[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        edge.append(owner)
        along.append((line - first[owner]) / (last - first)[owner])
    owner, share = np.concatenate(edge), np.concatenate(along)
    order = np.lexsort((share, owner))
    owner, share = owner[order], share[order]
    points = start[:, owner] + share * (end - start)[:, owner]
    same = owner[:-1] == owner[1:]
    return points[:, :-1][:, same], points[:, 1:][:, same]


def touched(shape: BaseGeometry, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width): the unit squares that share more than an edge with a shape in (column, row)."""
    result = np.zeros((height, width), dtype=bool)
    x, y = np.floor(shapely.get_coordinates(_of_dimension(shape, 0))).astype(np.int64).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    result[y[inside], x[inside]] = True
    for part in (_of_dimension(shape, 1), _of_dimension(shape, 2)):
        result |= _crossed(part, height, width)
    return result


def _crossed(shape: BaseGeometry, height: int, width: int) -> NDArray[np.bool_]:
    result = np.zeros((height, width), dtype=bool)
    window = _window(shape, height, width)
    if window is None:
        return result
    rows, cols = window
    hit = _centres(shape, rows, cols) > 0
    r, c = np.nonzero(_on_outline(shape, rows, cols))
    x, y, edge = cols.start + c, rows.start + r, EDGE_TOLERANCE_PX
    inner = shapely.box(x + edge, y + edge, x + 1 - edge, y + 1 - edge)
    hit[r, c] = shapely.intersects(prepared(shape), inner)
    result[rows.start : rows.stop, cols.start : cols.stop] = hit
    return result


def _of_dimension(shape: BaseGeometry, dimension: int) -> BaseGeometry:
    """The points (0), lines (1) or polygons (2) that the shape is made of, as one shape; perhaps an empty one."""
    if shape.geom_type != "GeometryCollection":
        return shape if shapely.get_dimensions(shape) == dimension else shapely.Point()
    parts = [part for part in shapely.get_parts(shape) if shapely.get_dimensions(part) == dimension]
    return shapely.union_all(parts) if parts else shapely.Point()


def _window(shape: BaseGeometry, height: int, width: int) -> tuple[range, range] | None:
    """Rows and columns of the squares within the shape's bounds."""
    if shape.is_empty:
        return None
    west, north, east, south = shape.bounds
    if not np.isfinite([west, north, east, south]).all():
        return None
    rows = range(max(0, int(np.floor(north))), min(height, int(np.floor(south)) + 1))
    cols = range(max(0, int(np.floor(west))), min(width, int(np.floor(east)) + 1))
    return (rows, cols) if rows and cols else None


def _centres(shape: BaseGeometry, rows: range, cols: range) -> Array:
    x, y = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    return np.asarray(shapely.intersects_xy(prepared(shape), x, y).astype(np.float64))


def _on_outline(shape: BaseGeometry, rows: range, cols: range) -> NDArray[np.bool_]:
    """Squares near the outline: those of points every half pixel along it, and their neighbours."""
    outline = shape.boundary if shapely.get_dimensions(shape) == 2 else shape
    near = outline.intersection(shapely.box(cols.start - 2, rows.start - 2, cols.stop + 2, rows.stop + 2))
    xy = np.floor(shapely.get_coordinates(shapely.segmentize(near, 0.5))).astype(np.int64)
    found = np.zeros((len(rows) + 2, len(cols) + 2), dtype=bool)
    r, c = xy[:, 1] - rows.start + 1, xy[:, 0] - cols.start + 1
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            inside = (r + dr >= 0) & (r + dr < found.shape[0]) & (c + dc >= 0) & (c + dc < found.shape[1])
            found[r[inside] + dr, c[inside] + dc] = True
    return found[1:-1, 1:-1]


@dataclass(frozen=True, eq=False)
class Covered:
    """The share of each pixel that lies in the geometry, 0 to 1; valid everywhere.

    Where a grid spans half the globe or a pole the pixel counts whole or not at all, by its centre.
    """

    geometry: Geometry

    def read(self, reader: Reader, grid: Grid) -> Pair:
        ones = np.broadcast_to(np.float64(1.0), (grid.height, grid.width))
        view = seen(reader, grid)
        if view is None:
            return reader.read(Inside(self.geometry), grid)
        if self.geometry.lonlat.contains(view):
            return ones, ones
        return shares(in_pixels(near(self.geometry, view, grid.crs), grid), grid.height, grid.width), ones


def seen(reader: Reader, grid: Grid) -> BaseGeometry | None:
    """The box in lon/lat around a grid; None where that says little: over half the globe, at a pole, beyond a CRS."""
    corners = Grid(grid.crs, _shifted(grid), grid.width + 1, grid.height + 1)
    lon, lat = (np.asarray(a) for a in reader.coordinates(corners, LONLAT))
    if not np.isfinite(lon).all() or np.ptp(lon) >= 180.0 or np.abs(lat).max() > 89.0:
        return None
    return shapely.box(lon.min(), lat.min(), lon.max(), lat.max())


def near(geometry: Geometry, view: BaseGeometry, crs: str) -> BaseGeometry:
    """The geometry in another CRS: as given where it is in that CRS already, else the part of it around the view."""
    if geometry.crs == crs and not (is_geographic(crs) and geometry.geodesic):
        return geometry.shape
    west, south, east, north = view.bounds
    margin = 0.5 * max(east - west, north - south)
    part = geometry.lonlat.intersection(view.buffer(margin, join_style="mitre"))
    if crs == LONLAT or part.is_empty:
        return part
    along = shapely.segmentize(part, 4 * margin / POINTS_PER_SIDE)
    project = transformer(LONLAT, crs).transform
    return shapely.transform(along, lambda xy: np.column_stack(project(xy[:, 0], xy[:, 1])))


def _shifted(grid: Grid) -> tuple[float, float, float, float, float, float]:
    """The grid's transform moved by half a pixel, so that its centres are the pixels' corners."""
    a, b, c, d, e, f = grid.transform
    return a, b, c - (a + b) / 2, d, e, f - (d + e) / 2
