"""Image.reduceRegion and its kin: pixels of a region, each with the share of it that lies inside.

A weighted reducer (mean, sum, histogram) takes every pixel the region touches, weighted by covered area and mask; the
others take the pixels whose centre lies inside. A point is the pixel that contains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from mmbuild.sandbox.algorithms.projecting import chosen_projection
from mmbuild.sandbox.geometry import Geometry, prepared
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.raster import Grid
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature, Projection

# The real service leaves out pixels covered by less than about 0.5 % (facts: GIS.SE, staff answers).
LEAST_COVER = 1 / 256
# 1e-6 px: a region edge this close to a pixel edge is on it, whatever the rounding of its coordinates.
EDGE_TOLERANCE_PX = 1e-6


def region_grid(shape: Any, projection: Projection, max_pixels: float) -> Grid:
    """The window of the projection's lattice that covers a shape given in its CRS."""
    a, b, c, d, e, f = projection.transform
    if b or d:
        raise EarthEngineError("The offline Earth Engine reduces regions on upright grids only.")
    west, south, east, north = shape.bounds
    cols, rows = sorted(((west - c) / a, (east - c) / a)), sorted(((south - f) / e, (north - f) / e))
    col0, row0 = math.floor(cols[0] + EDGE_TOLERANCE_PX), math.floor(rows[0] + EDGE_TOLERANCE_PX)
    width = max(1, math.ceil(cols[1] - EDGE_TOLERANCE_PX) - col0)
    height = max(1, math.ceil(rows[1] - EDGE_TOLERANCE_PX) - row0)
    if width * height > max_pixels:
        raise EarthEngineError(
            f"Image.reduceRegion: Too many pixels in the region. Found {width * height}, but maxPixels allows only "
            f"{int(max_pixels)}.\nEnsure that you are not aggregating at a higher resolution than you intended; that "
            "is the most frequent cause of this error. If not, then you may set the 'maxPixels' argument to a limit "
            "suitable for your computation; set 'bestEffort' to true to aggregate at whatever scale results in "
            "'maxPixels' total pixels; or both."
        )
    return Grid(projection.crs, (a, 0.0, c + col0 * a, 0.0, e, f + row0 * e), width, height)


def coverage(shape: Any, grid: Grid, *, weighted: bool) -> NDArray[Any]:
    """(height, width): covered share of each pixel, or 1 where the centre is inside."""
    if shape.geom_type == "Point":
        return np.ones((grid.height, grid.width))
    if not weighted:
        x, y = np.broadcast_arrays(*grid.centres())
        return np.asarray(shapely.intersects_xy(prepared(shape), x, y).astype(np.float64))
    a, _, c, _, e, f = grid.transform
    edges_x, edges_y = c + a * np.arange(grid.width + 1), f + e * np.arange(grid.height + 1)
    if shape.equals(shapely.box(*shape.bounds)):
        west, south, east, north = shape.bounds
        share = np.outer(_overlap(edges_y, south, north), _overlap(edges_x, west, east))
        return np.where(share > LEAST_COVER, share, 0.0)
    return _polygon_share(shape, edges_x, edges_y)


def _overlap(edges: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Share of each interval between edges that lies in [low, high]; 1 or 0 exactly within the tolerance."""
    first, second = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
    share = np.clip((np.minimum(second, high) - np.maximum(first, low)) / (second - first), 0.0, 1.0)
    return np.where(share > 1 - EDGE_TOLERANCE_PX, 1.0, np.where(share < EDGE_TOLERANCE_PX, 0.0, share))


def _polygon_share(shape: Any, edges_x: NDArray[Any], edges_y: NDArray[Any]) -> NDArray[Any]:
    left, right = np.meshgrid(edges_x[:-1], edges_y[:-1]), np.meshgrid(edges_x[1:], edges_y[1:])
    boxes = shapely.box(left[0], left[1], right[0], right[1])
    fast = prepared(shape)
    inside = shapely.contains(fast, boxes)
    touched = shapely.intersects(fast, boxes) & ~inside
    share = inside.astype(np.float64)
    share[touched] = shapely.area(shapely.intersection(shape, boxes[touched])) / shapely.area(boxes[touched])
    return np.where(share > LEAST_COVER, share, 0.0)


def reduce_region(
    context: Context,
    image: Image,
    reducer: Reducer,
    geometry: Geometry | None,
    projection: Projection,
    max_pixels: float,
) -> dict[str, Any]:
    """Outputs by band: `band` for one output, `band_output` for several; plain outputs of a reducer over all bands."""
    if geometry is None:
        geometry = image.footprint
    if geometry is None:
        raise EarthEngineError("Image.reduceRegion: The image is unbounded; give a geometry.")
    shape = geometry.in_crs(projection.crs)
    grid = region_grid(shape, projection, max_pixels)
    cover = coverage(shape, grid, weighted=reducer.weighted)
    pixels = [context.reader.read(band.node, grid) for band in image.bands]
    if reducer.inputs > 1:
        return _over_bands(image, reducer, pixels, cover)
    results: dict[str, Any] = {}
    for band, (values, mask) in zip(image.bands, pixels, strict=True):
        weights = mask * cover if reducer.weighted else ((mask > 0) & (cover > 0)).astype(np.float64)
        whole = band.type.precision == "int"
        found = _reduced(reducer, values.ravel(), weights.ravel(), whole=whole)
        for name, value in found.items():
            results[band.name if len(found) == 1 else f"{band.name}_{name}"] = value
    return results


def _reduced(reducer: Reducer, values: NDArray[Any], weights: NDArray[Any], *, whole: bool) -> dict[str, Any]:
    kept = weights > 0
    values, weights = values[kept], weights[kept]
    if reducer.stack is not None and len(values):
        outputs = [float(v) for v, _ in reducer.reduce_stack(values, weights)]
        return dict(zip(reducer.names, outputs, strict=True))
    rows = [(int(v) if whole else v,) for v in values.tolist()]
    return reducer.reduce_rows(rows, weights.tolist())


def _over_bands(image: Image, reducer: Reducer, pixels: Sequence[Any], cover: NDArray[Any]) -> dict[str, Any]:
    if reducer.inputs != len(image.bands):
        raise EarthEngineError(
            f"Image.reduceRegion: Need {reducer.inputs} bands for this reducer, image has {len(image.bands)}."
        )
    valid = np.logical_and.reduce([mask > 0 for _, mask in pixels]) & (cover > 0)
    columns = [
        [int(v) if band.type.precision == "int" else v for v in values[valid].tolist()]
        for band, (values, _) in zip(image.bands, pixels, strict=True)
    ]
    return reducer.reduce_rows(list(zip(*columns, strict=True)), cover[valid].tolist())


def _projection(
    image: Image, scale: float | None, crs: Projection | None, crs_transform: Sequence[float] | None
) -> Projection:
    """Without a CRS: the first band's lattice, at `scale` if given."""
    if not image.bands:
        raise EarthEngineError("Image.reduceRegion: The image has no bands.")
    native = image.bands[0].projection
    if crs is None and crs_transform is None:
        return native if scale is None else native.at_scale(scale)
    return chosen_projection(crs or Projection(native.crs), crs_transform, scale)


@algorithm("Image.reduceRegion")
def image_reduce_region(
    context: Context,
    image: Image,
    reducer: Reducer,
    geometry: Geometry | None,
    scale: float | None,
    crs: Projection | None,
    crsTransform: Sequence[float] | None,
    bestEffort: bool,
    maxPixels: int,
    tileScale: float,
) -> dict[str, Any]:
    if bestEffort:
        raise EarthEngineError("The offline Earth Engine does not implement Image.reduceRegion with bestEffort.")
    projection = _projection(image, scale, crs, crsTransform)
    return reduce_region(context, image, reducer, geometry, projection, maxPixels)


@algorithm("Image.reduceRegions")
def image_reduce_regions(
    context: Context,
    image: Image,
    collection: Collection,
    reducer: Reducer,
    scale: float | None,
    crs: Projection | None,
    crsTransform: Sequence[float] | None,
    tileScale: float,
    maxPixelsPerRegion: int | None,
) -> Collection:
    """The features with the outputs as properties: named like the reducer's when the image has one band."""
    projection = _projection(image, scale, crs, crsTransform)

    def reduced(feature: Feature) -> Feature:
        found = reduce_region(context, image, reducer, feature.geometry, projection, maxPixelsPerRegion or 1e7)
        if len(image.bands) == 1 and reducer.inputs == 1:
            found = dict(zip(reducer.names, found.values(), strict=True))
        return feature.with_properties({key: value for key, value in found.items() if value is not None})

    return collection.derive(lambda: [reduced(feature) for feature in collection.elements])


@algorithm("Image.sampleRectangle")
def sample_rectangle(
    context: Context,
    image: Image,
    region: Geometry | None,
    properties: Sequence[str] | None,
    defaultValue: float | None,
    defaultArrayValue: Any,
) -> Feature:
    """Each band as rows of values on its own lattice; masked pixels become defaultValue or are refused."""
    region = region or image.footprint
    if region is None:
        raise EarthEngineError("Image.sampleRectangle: The image is unbounded; give a region.")
    found: dict[str, Any] = {}
    for band in image.bands:
        grid = region_grid(region.in_crs(band.projection.crs), band.projection, 262144)
        values, mask = context.reader.read(band.node, grid)
        if not (mask > 0).all():
            if defaultValue is None:
                raise EarthEngineError(
                    "Image.sampleRectangle: Fully masked pixels / pixels outside of the image footprint when sampling "
                    f"band '{band.name}' with no default value set. Note that calling sampleRectangle() on an image "
                    "after ee.Image.clip() may result in a sampling bounding box outside the geometry passed to clip()."
                )
            values = np.where(mask > 0, values, defaultValue)
        whole = band.type.precision == "int" and np.equal(np.mod(values, 1), 0).all()
        found[band.name] = (values.astype(np.int64) if whole else values).tolist()
    kept = properties if properties is not None else [key for key in image.properties if not key.startswith("system:")]
    named = {key: image.get(key) for key in kept}
    return replace(Feature(region, {**named, **found}), id=image.get("system:index"))
