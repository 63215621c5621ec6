"""Image.reduceResolution and Collection.reduceToImage: many pixels, or many features, into each output pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmbuild.sandbox.algorithms.reducing import result_type
from mmbuild.sandbox.covering import in_pixels, near, seen, touched
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, Inside
from mmbuild.sandbox.picking import Array, Fetch, Pair, gather, indices
from mmbuild.sandbox.raster import Grid, Pixels, Reader, coarser, lattice_offset, on_lattice, positions
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import Collection, EarthEngineError, PixelType, Projection

# A share below this comes from rounding of coordinates, not from an overlap.
LEAST_SHARE = 1e-9
# Values held at once while features are painted: features times pixels.
MAX_STACK = 2**27


# -- coarser pixels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReducedResolution:
    """One output of a reducer over the inner pixels under each output pixel, weighted by mask and covered share.

    The share is that of the output pixel (a quadrangle on the inner lattice) which the inner pixel covers. The mask is
    the sum of the weights. Pixels finer than the inner lattice are read as nearest. Source: the API reference of
    ee.Image.reduceResolution; that the count held against `max_pixels` is the ratio of the areas is assumed.
    """

    inner: Pixels
    projection: Projection
    reducer: Reducer
    output: int
    max_pixels: int
    best_effort: bool

    def read(self, reader: Reader, grid: Grid) -> Pair:
        if lattice_offset(grid, self.projection) == (0, 0) and grid.transform == self.projection.transform:
            return reader.read(self.inner, grid)
        rows, cols = self._corners(reader, grid, self.projection)
        ratio = float(np.nanmedian(_area(rows, cols)))
        if not ratio > 1.0 - 1e-6:
            row, col = positions(reader, grid, self.projection)
            return gather(on_lattice(reader, self.inner, self.projection), indices(row), indices(col))[0]
        level = self._level(ratio)
        lattice = coarser(self.projection, level)
        return self._reduced(on_lattice(reader, self.inner, lattice), rows / 2**level, cols / 2**level)

    def _corners(self, reader: Reader, grid: Grid, lattice: Projection) -> tuple[Array, Array]:
        """(4, height, width) row and column of the pixel corners on the lattice, in turn around each pixel."""
        a, b, c, d, e, f = grid.transform
        corners = Grid(grid.crs, (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2), grid.width + 1, grid.height + 1)
        row, col = np.broadcast_arrays(*positions(reader, corners, lattice))
        around = ((0, 0), (0, 1), (1, 1), (1, 0))
        height, width = grid.height, grid.width
        rows, cols = (np.stack([p[r : r + height, c : c + width] for r, c in around]) for p in (row, col))
        # Positions within rounding of a whole number are on it: no slivers of the neighbour.
        return _snapped(rows), _snapped(cols)

    def _level(self, ratio: float) -> int:
        level = 0
        while round(ratio / 4**level, 3) > self.max_pixels:
            if not self.best_effort:
                raise EarthEngineError(
                    f"Image.reduceResolution: Too many input pixels per output pixel: {ratio:.0f}, but maxPixels "
                    f"allows only {self.max_pixels}."
                )
            level += 1
        return level

    def _reduced(self, fetch: Fetch, rows: Array, cols: Array) -> Pair:
        first_row, first_col = indices(rows.min(axis=0)), indices(cols.min(axis=0))
        tall, wide = _reach(rows, first_row), _reach(cols, first_col)
        offsets = [(dr, dc) for dr in range(tall) for dc in range(wide)]
        pairs = gather(fetch, first_row, first_col, offsets)
        whole = np.maximum(_area(rows, cols), LEAST_SHARE)
        weights = []
        for (dr, dc), (_, mask) in zip(offsets, pairs, strict=True):
            share = _overlap(rows - first_row - dr, cols - first_col - dc) / whole
            weights.append(np.where(share > LEAST_SHARE, share * mask, 0.0))
        weight = np.stack(weights)
        values, mask = self.reducer.reduce_stack(np.stack([v for v, _ in pairs]), weight)[self.output]
        total = np.minimum(weight.sum(axis=0), 1.0)
        return values, np.where(mask > 0, np.where(total > 1.0 - 1e-6, 1.0, total), 0.0)


def _snapped(position: Array) -> Array:
    nearest = np.round(position)
    return np.where(np.abs(position - nearest) < 1e-6, nearest, position)


def _reach(corner: Array, first: np.ndarray) -> int:
    """How many pixels from the first one the widest output pixel reaches."""
    spans = np.ceil(corner.max(axis=0)) - first
    return max(1, int(np.nanmax(np.where(np.isfinite(spans), spans, 1.0))))


def _area(rows: Array, cols: Array) -> Array:
    """Area of quadrangles, corners along axis 0."""
    turn = np.roll(cols, -1, axis=0) * rows - cols * np.roll(rows, -1, axis=0)
    return np.asarray(np.abs(turn.sum(axis=0)) / 2.0)


def _overlap(rows: Array, cols: Array) -> Array:
    """Area of each quadrangle within the unit square [0, 1] x [0, 1].

    The area under every edge, cut to the square, added with its sign: exact for any polygon (Green's theorem).
    """
    total = np.zeros(rows.shape[1:])
    for here in range(4):
        there = (here + 1) % 4
        x0, y0, x1, y1 = cols[here], rows[here], cols[there], rows[there]
        left, right = np.clip(x0, 0.0, 1.0), np.clip(x1, 0.0, 1.0)
        run = x1 - x0
        slope = np.divide(y1 - y0, run, out=np.zeros_like(run), where=run != 0.0)
        low, high = y0 + (left - x0) * slope, y0 + (right - x0) * slope
        rise = high - low
        level = np.abs(rise) < 1e-9
        mean = np.divide(_integral(high) - _integral(low), rise, out=np.clip((low + high) / 2, 0.0, 1.0), where=~level)
        total += np.where(run != 0.0, (right - left) * mean, 0.0)
    return np.abs(np.nan_to_num(total))


def _integral(y: Array) -> Array:
    """Integral of clip(y, 0, 1) from 0 to y."""
    return np.where(y <= 0.0, 0.0, np.where(y >= 1.0, y - 0.5, y * y / 2.0))


@algorithm("Image.reduceResolution")
def reduce_resolution(context: Context, image: Image, reducer: Reducer, bestEffort: bool, maxPixels: int) -> Image:
    """One band per output: the band's name for a single output, else `band_output`."""
    if reducer.inputs != 1:
        raise EarthEngineError("The offline Earth Engine reduces resolution with one-input reducers only.")
    bands = [
        replace(
            band,
            name=band.name if len(reducer.names) == 1 else f"{band.name}_{output}",
            type=result_type(output, [band]),
            node=ReducedResolution(band.node, band.projection, reducer, position, maxPixels, bestEffort),
        )
        for band in image.bands
        for position, output in enumerate(reducer.names)
    ]
    return image.with_bands(bands)


# -- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Painted:
    """One output of a reducer over the values of all features that intersect each pixel; masked where none does.

    A grid over half the globe or a pole asks for the pixel's centre instead.
    """

    shapes: tuple[Geometry, ...]
    values: tuple[float, ...]
    reducer: Reducer
    output: int

    def read(self, reader: Reader, grid: Grid) -> Pair:
        if len(self.shapes) * grid.height * grid.width > MAX_STACK:
            raise EarthEngineError("User memory limit exceeded.")
        view = seen(reader, grid)
        if view is None:
            covers = [reader.read(Inside(shape), grid)[0] > 0 for shape in self.shapes]
        else:
            parts = (in_pixels(near(shape, view, grid.crs), grid) for shape in self.shapes)
            covers = [touched(part, grid.height, grid.width) for part in parts]
        hits = [(value, cover) for value, cover in zip(self.values, covers, strict=True) if cover.any()]
        if not hits:
            empty = np.zeros((grid.height, grid.width))
            return empty, empty
        mask = np.stack([cover for _, cover in hits]).astype(np.float64)
        values = np.array([value for value, _ in hits])[:, None, None] * np.ones(mask.shape)
        return self.reducer.reduce_stack(values, mask)[self.output]


@algorithm("Collection.reduceToImage")
def reduce_to_image(context: Context, collection: Collection, properties: Sequence[str], reducer: Reducer) -> Image:
    """Bands named after the reducer's outputs; a feature without the property or a geometry is left out."""
    if len(properties) != reducer.inputs:
        raise EarthEngineError(
            f"Collection.reduceToImage: Need {reducer.inputs} properties for this reducer, got {len(properties)}."
        )
    if reducer.inputs != 1:
        raise EarthEngineError("The offline Earth Engine reduces features to images with one-input reducers only.")
    found = [
        (feature.geometry, float(value))
        for feature in collection.elements
        if feature.geometry is not None and isinstance(value := feature.get(properties[0]), int | float)
    ]
    shapes, values = tuple(shape for shape, _ in found), tuple(value for _, value in found)
    bands = [
        Band(name, _painted_type(name, len(values)), Painted(shapes, values, reducer, position))
        for position, name in enumerate(reducer.names)
    ]
    return Image(tuple(bands))


def _painted_type(output: str, features: int) -> PixelType:
    return PixelType("int", 0.0, float(features)) if output == "count" else PixelType("double")
