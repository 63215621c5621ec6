"""What the client folds into a download: Image.clipToBoundsAndScale and Image.slice, and the window a clip leaves.

A clipped image has edges: its bands say where they begin and how many pixels they have on their own lattice, and a
download without a grid is exactly that window. Windows are rounded outwards to whole pixels of the lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mmbuild.sandbox.algorithms.regions import region_grid
from mmbuild.sandbox.geometry import Geometry, rectangle
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image
from mmbuild.sandbox.picking import Pair, indices
from mmbuild.sandbox.raster import Grid, Pixels, Reader, Reprojected, lattice_offset, positions
from mmbuild.sandbox.values import EarthEngineError, Projection

NAME = "Image.clipToBoundsAndScale"


@dataclass(frozen=True, eq=False)
class Windowed:
    """The inner pixels, masked outside a window of a lattice: columns and rows from `origin`, `size` of them."""

    inner: Pixels
    projection: Projection
    origin: tuple[int, int]
    size: tuple[int, int]

    def read(self, reader: Reader, grid: Grid) -> Pair:
        pair = reader.read(self.inner, grid)
        if self._holds(grid):
            return pair
        (col0, row0), (width, height) = self.origin, self.size
        rows, cols = (indices(p) for p in positions(reader, grid, self.projection))
        inside = ((rows >= row0) & (rows < row0 + height)) & ((cols >= col0) & (cols < col0 + width))
        return np.where(inside, pair[0], 0.0), np.where(inside, pair[1], 0.0)

    def _holds(self, grid: Grid) -> bool:
        offset = lattice_offset(grid, self.projection)
        if offset is None:
            return False
        row, col = offset[0] - self.origin[1], offset[1] - self.origin[0]
        return row >= 0 and col >= 0 and row + grid.height <= self.size[1] and col + grid.width <= self.size[0]


def with_window(band: Band, region: Geometry) -> Band:
    """The band with the size and origin of the part of its window that the region's bounding box covers.

    Unchanged where that is not a finite box of upright pixels: a rotated lattice, a region the CRS does not reach.
    """
    if band.projection.transform[1] or band.projection.transform[3]:
        return band
    shape = region.in_crs(band.projection.crs)
    if shape.is_empty or not np.isfinite(shape.bounds).all():
        return band
    grid = region_grid(shape, band.projection, math.inf)
    offset = lattice_offset(grid, band.projection)
    if offset is None:
        return band
    col0, row0, col1, row1 = offset[1], offset[0], offset[1] + grid.width, offset[0] + grid.height
    if band.size is not None:
        col0, row0 = max(col0, band.origin[0]), max(row0, band.origin[1])
        col1, row1 = min(col1, band.origin[0] + band.size[0]), min(row1, band.origin[1] + band.size[1])
    if col1 <= col0 or row1 <= row0:
        return band
    return replace(band, size=(col1 - col0, row1 - row0), origin=(col0, row0))


def bounded(image: Image, footprint: Geometry) -> Image:
    """The image with this footprint, which is then a property too."""
    return replace(image.with_properties({"system:footprint": footprint}), footprint=footprint)


@algorithm("Image.clipToBoundsAndScale")
def clip_to_bounds_and_scale(
    context: Context,
    input: Image,
    geometry: Geometry | None,
    width: int | None,
    height: int | None,
    maxDimension: int | None,
    scale: float | None,
) -> Image:
    """Cut to the region's bounding box in each band's projection and put on a lattice of the wanted pixel size.

    With `scale` the lattice keeps the projection's origin, so a 1 m default projection gives pixel edges at multiples
    of the scale (this is why MMEarth's 1,280 m chips come back a few pixels larger); the window is rounded outwards.
    With width and height the box is divided exactly.
    """
    if (width is None) != (height is None):
        raise EarthEngineError(f"{NAME}: Parameters 'width' and 'height' must be given together.")
    if sum(value is not None for value in (width, maxDimension, scale)) > 1:
        raise EarthEngineError(f"{NAME}: 'width' and 'height', 'maxDimension' and 'scale' are mutually exclusive.")
    region = geometry or input.footprint
    if region is None:
        raise EarthEngineError(f"{NAME}: The geometry for image clipping must not be unbounded.")
    size = None if width is None or height is None else (width, height)
    bands = [_placed(band, region, size, maxDimension, scale) for band in input.bands]
    return bounded(input.with_bands(bands), _box(region, input))


def _placed(
    band: Band, region: Geometry, size: tuple[int, int] | None, longest: int | None, scale: float | None
) -> Band:
    lattice = _lattice(band.projection, region, size, longest, scale)
    if (size, longest, scale) != (None, None, None):
        # On a lattice of its own the region alone decides; without one, the band's old edges still hold.
        node = Reprojected(band.node, lattice)
        band = replace(band, node=node, projection=lattice, size=None, origin=(0, 0))
    cut = with_window(band, region)
    if cut.size is None:
        raise EarthEngineError(f"{NAME}: The region does not reach the projection '{lattice.crs}'.")
    return replace(cut, node=Windowed(band.node, lattice, cut.origin, cut.size))


def _lattice(
    native: Projection, region: Geometry, size: tuple[int, int] | None, longest: int | None, scale: float | None
) -> Projection:
    """Where the pixels go; rows run south, also below a projection whose y grows with the row."""
    if size is None and longest is None and scale is None:
        return native
    if native.transform[1] or native.transform[3]:
        raise EarthEngineError(f"{NAME}: the offline Earth Engine scales upright lattices only.")
    if scale is not None:
        a, _, c, _, e, f = native.at_scale(scale).transform
        return Projection(native.crs, (a, 0.0, c, 0.0, -abs(e), f))
    west, south, east, north = region.in_crs(native.crs).bounds
    if size is not None:
        return Projection(native.crs, ((east - west) / size[0], 0.0, west, 0.0, (south - north) / size[1], north))
    pixel = max(east - west, north - south) / (longest or 1)
    return Projection(native.crs, (pixel, 0.0, west, 0.0, -pixel, north))


def _box(region: Geometry, image: Image) -> Geometry:
    """The region's bounding box in the image's projection."""
    crs = image.bands[0].projection.crs if image.bands else region.crs
    shape = region.in_crs(crs)
    if shape.is_empty or not np.isfinite(shape.bounds).all():
        return region
    return Geometry(rectangle(*shape.bounds), crs, geodesic=False)


@algorithm("Image.slice")
def image_slice(context: Context, image: Image, start: int, end: int | None) -> Image:
    """Bands by position, as a list is sliced: negative positions count from the end."""
    return image.with_bands(image.bands[start:end])
