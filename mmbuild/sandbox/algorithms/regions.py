"""Image.reduceRegion and its kin: pixels of a region, each with the share of it that lies inside.

A weighted reducer (mean, sum, histogram) takes every pixel of which the region covers about 0.5 % or more, with the
lesser of that share and the mask as its weight; the others take the pixels whose centre lies inside (guide "Statistics
of an Image Region"). A point is the pixel that contains it, a line all that it crosses.
The service keeps weights in 256 steps (guide "Weighted Reductions"; how it rounds is not said); here they are exact.
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
from mmbuild.sandbox.covering import EDGE_TOLERANCE_PX, in_pixels, shares, touched
from mmbuild.sandbox.geometry import Geometry, prepared
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.raster import Grid
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature, Projection

# Pixels of one band in Image.sampleRectangle; limit and text as users quote them (torchgeo pull request 1223).
SAMPLE_LIMIT_PIXELS = 262144


def region_grid(shape: Any, projection: Projection, max_pixels: float) -> Grid:
    """The window of the projection's lattice that covers a shape given in its CRS."""
    a, b, c, d, e, f = projection.transform
    if b or d:
        raise EarthEngineError("The offline Earth Engine reduces regions on upright grids only.")
    west, south, east, north = shape.bounds
    if not np.isfinite(shape.bounds).all():
        raise EarthEngineError(f"The region is empty or does not reach the projection '{projection.crs}'.")
    cols, rows = sorted(((west - c) / a, (east - c) / a)), sorted(((south - f) / e, (north - f) / e))
    col0, row0 = math.floor(cols[0] + EDGE_TOLERANCE_PX), math.floor(rows[0] + EDGE_TOLERANCE_PX)
    # A point or a line on the last edge belongs to the next pixel, an area ends there.
    last = math.ceil if shapely.get_dimensions(shape) == 2 else lambda v: math.floor(v + 2 * EDGE_TOLERANCE_PX) + 1
    width = max(1, last(cols[1] - EDGE_TOLERANCE_PX) - col0)
    height = max(1, last(rows[1] - EDGE_TOLERANCE_PX) - row0)
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
    if shapely.get_dimensions(shape) < 2:
        return touched(in_pixels(shape, grid), grid.height, grid.width).astype(np.float64)
    if not weighted:
        x, y = np.broadcast_arrays(*grid.centres())
        return np.asarray(shapely.intersects_xy(prepared(shape), x, y).astype(np.float64))
    return shares(in_pixels(shape, grid), grid.height, grid.width)


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
        weights = np.minimum(mask, cover) if reducer.weighted else ((mask > 0) & (cover > 0)).astype(np.float64)
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
    weights = np.minimum.reduce([cover, *(mask for _, mask in pixels)]) if reducer.weighted else cover
    return reducer.reduce_rows(list(zip(*columns, strict=True)), weights[valid].tolist())


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
    projection = _projection(image, scale, crs, crsTransform)
    region = geometry or image.footprint
    if bestEffort and region is not None:
        projection = _affordable(region.in_crs(projection.crs), projection, maxPixels)
    return reduce_region(context, image, reducer, region, projection, maxPixels)


def _affordable(shape: Any, projection: Projection, max_pixels: float) -> Projection:
    """The projection with pixels just large enough for the region (how much larger the service goes is assumed)."""
    a, b, c, d, e, f = projection.transform
    for _ in range(64):
        grid = region_grid(shape, Projection(projection.crs, (a, b, c, d, e, f)), math.inf)
        excess = grid.width * grid.height / max(max_pixels, 1)
        if excess <= 1.0:
            break
        factor = max(math.sqrt(excess), 1.01)
        a, e = a * factor, e * factor
    return Projection(projection.crs, (a, b, c, d, e, f))


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
        grid = region_grid(region.in_crs(band.projection.crs), band.projection, math.inf)
        if grid.width * grid.height > SAMPLE_LIMIT_PIXELS:
            raise EarthEngineError(
                f"Image.sampleRectangle: Too many pixels in sample; must be <= {SAMPLE_LIMIT_PIXELS}. "
                f"Got {grid.width * grid.height}."
            )
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
