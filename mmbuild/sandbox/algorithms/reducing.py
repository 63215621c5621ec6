"""Reducer.* constructors and the reductions per pixel: of image collections, of the bands of one image, mosaics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import shapely

from mmbuild.sandbox import reducers
from mmbuild.sandbox.algorithms.collections import images_of
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image
from mmbuild.sandbox.picking import Array, Pair
from mmbuild.sandbox.raster import Grid, Pixels, Reader, together
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import Collection, EarthEngineError, PixelType

for _name, _make in {
    "mean": reducers.mean,
    "sum": reducers.total,
    "count": reducers.count,
    "product": reducers.product,
    "first": reducers.first,
    "firstNonNull": reducers.first,
    "last": reducers.last,
    "lastNonNull": reducers.last,
    "stdDev": reducers.standard_deviation,
    "sampleStdDev": reducers.sample_standard_deviation,
    "sampleVariance": reducers.sample_variance,
    "allNonZero": reducers.all_non_zero,
    "and": reducers.all_non_zero,
    "anyNonZero": reducers.any_non_zero,
    "or": reducers.any_non_zero,
    "variance": reducers.variance,
    "minMax": reducers.minimum_maximum,
    "frequencyHistogram": reducers.frequency_histogram,
    "countDistinct": reducers.count_distinct,
    "countDistinctNonNull": reducers.count_distinct,
}.items():

    def _plain(context: Context, *, make: Any) -> Reducer:
        reducer = make()
        assert isinstance(reducer, Reducer)
        return reducer

    algorithm(f"Reducer.{_name}")(partial(_plain, make=_make))


@algorithm("Reducer.min")
def minimum(context: Context, numInputs: int) -> Reducer:
    return _of_inputs(reducers.minimum(), numInputs)


@algorithm("Reducer.max")
def maximum(context: Context, numInputs: int) -> Reducer:
    return _of_inputs(reducers.maximum(), numInputs)


def _of_inputs(reducer: Reducer, inputs: int) -> Reducer:
    return reducer if inputs == 1 else reducers.with_companions(reducer, inputs)


@algorithm("Reducer.median")
def median(context: Context, maxBuckets: Any, minBucketWidth: Any, maxRaw: Any) -> Reducer:
    """Exact for any number of inputs; the service approximates beyond maxRaw with a histogram."""
    return reducers.median()


@algorithm("Reducer.mode")
def most_common(context: Context, maxBuckets: Any, minBucketWidth: Any, maxRaw: Any) -> Reducer:
    """Exact for any number of inputs; the service approximates beyond maxRaw with a histogram."""
    return reducers.most_common()


@algorithm("Reducer.percentile")
def percentile(
    context: Context,
    percentiles: Sequence[float],
    outputNames: Sequence[str] | None,
    maxBuckets: Any,
    minBucketWidth: Any,
    maxRaw: Any,
) -> Reducer:
    return reducers.percentile(percentiles, outputNames)


@algorithm("Reducer.toList")
def to_list(context: Context, tupleSize: int | None, numOptional: int) -> Reducer:
    return reducers.to_list(tupleSize, numOptional)


@algorithm("Reducer.repeat")
def repeat(context: Context, reducer: Reducer, count: int) -> Reducer:
    return reducers.repeat(reducer, count)


@algorithm("Reducer.combine")
def combine(context: Context, reducer1: Reducer, reducer2: Reducer, outputPrefix: str, sharedInputs: bool) -> Reducer:
    return reducers.combine(reducer1, reducer2, outputPrefix, shared=sharedInputs)


@algorithm("Reducer.unweighted")
def unweighted(context: Context, reducer: Reducer) -> Reducer:
    def rows(rows: Sequence[tuple[Any, ...]], weights: Sequence[float]) -> list[Any]:
        return reducer.rows(rows, [1.0] * len(rows))

    stack = reducer.stack
    even = None if stack is None else (lambda values, mask: stack(values, (mask > 0).astype(np.float64)))
    return replace(reducer, rows=rows, stack=even, layers=None, weighted=False)


@algorithm("Reducer.setOutputs")
def set_outputs(context: Context, reducer: Reducer, outputs: Sequence[str]) -> Reducer:
    if len(outputs) != len(reducer.names):
        raise EarthEngineError(f"Reducer.setOutputs: Need {len(reducer.names)} names, got {len(outputs)}.")
    return replace(reducer, names=tuple(outputs))


@algorithm("Reducer.getOutputs")
def get_outputs(context: Context, reducer: Reducer) -> list[str]:
    return list(reducer.names)


# -- stacks of pixels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stack:
    """One output of a reducer over the same pixel of many nodes."""

    nodes: tuple[Pixels, ...]
    reducer: Reducer
    output: int = 0

    def read(self, reader: Reader, grid: Grid) -> Pair:
        with together(self.nodes):
            pairs = [reader.read(node, grid) for node in self.nodes]
        return self.reducer.reduce_layers(pairs)[self.output]


@dataclass(frozen=True, eq=False)
class TupleStack:
    """One output of a reducer of several inputs over the same pixel of many images."""

    images: tuple[tuple[Pixels, ...], ...]
    compute: Callable[[Array, Array], list[Pair]]
    output: int

    def read(self, reader: Reader, grid: Grid) -> Pair:
        if not self.images:
            empty = np.zeros((grid.height, grid.width))
            return empty, empty
        pairs = [[reader.read(node, grid) for node in nodes] for nodes in self.images]
        values = np.stack([np.stack([v for v, _ in image]) for image in pairs])
        mask = np.stack([np.minimum.reduce([m for _, m in image]) for image in pairs])
        return self.compute(values, mask)[self.output]


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The last node on top; earlier ones fill what is masked, and are not read once everything is filled."""

    nodes: tuple[Pixels, ...]

    def read(self, reader: Reader, grid: Grid) -> Pair:
        values, mask = np.zeros((grid.height, grid.width)), np.zeros((grid.height, grid.width))
        for node in reversed(self.nodes):
            v, m = reader.read(node, grid)
            fill = (mask <= 0) & (m > 0)
            values, mask = np.where(fill, v, values), np.where(fill, m, mask)
            if mask.min(initial=1.0) > 0:
                break
        return values, mask


def _bands_by_name(collection: Collection) -> dict[str, list[Band]]:
    """Bands of all images by name, in the first image's order; names the first image lacks follow."""
    found: dict[str, list[Band]] = {}
    for image in images_of(collection):
        for band in image.bands:
            found.setdefault(band.name, []).append(band)
    return found


def _union(bands: Sequence[Band]) -> PixelType:
    result = bands[0].type
    for band in bands[1:]:
        result = result.union(band.type)
    return result


def _footprint(collection: Collection) -> Geometry | None:
    shapes = [image.footprint for image in images_of(collection)]
    if not shapes or any(shape is None for shape in shapes):
        return None
    # Dates of one granule share an outline; the union of a year needs each once.
    outlines = {id(shape.shape): shape.lonlat for shape in shapes if shape is not None}
    return Geometry(shapely.union_all(list(outlines.values())), geodesic=False)


def result_type(output: str, bands: Sequence[Band]) -> PixelType:
    """The pixel type of a reducer's output from those of its inputs."""
    kind = _union(bands)
    if output in ("min", "max", "mode", "first", "last"):
        return kind
    if output in ("all", "any"):
        return PixelType("int", 0.0, 1.0)
    if output == "count":
        return PixelType("int", 0.0, float(len(bands)))
    if output == "sum" and kind.precision == "int" and kind.low is not None and kind.high is not None:
        return PixelType("int", min(0.0, kind.low * len(bands)), kind.high * len(bands))
    return PixelType("double")


def _composite(collection: Collection, reducer: Reducer, *, suffix: bool) -> Image:
    bands = [
        Band(
            f"{name}_{output}" if suffix else name,
            result_type(output, parts),
            Stack(tuple(part.node for part in parts), reducer, position),
        )
        for name, parts in _bands_by_name(collection).items()
        for position, output in enumerate(reducer.names)
    ]
    return Image(tuple(bands), footprint=_footprint(collection))


@algorithm("ImageCollection.mosaic")
def mosaic(context: Context, collection: Collection) -> Image:
    bands = [
        Band(name, _union(parts), Mosaic(tuple(part.node for part in parts)))
        for name, parts in _bands_by_name(collection).items()
    ]
    return Image(tuple(bands), footprint=_footprint(collection))


@algorithm("ImageCollection.reduce")
def reduce_collection(context: Context, collection: Collection, reducer: Reducer, parallelScale: float) -> Image:
    if reducer.inputs != 1:
        return _composite_of_tuples(collection, reducer)
    return _composite(collection, reducer, suffix=True)


def _composite_of_tuples(collection: Collection, reducer: Reducer) -> Image:
    """A reducer with an input per band: outputs keep the reducer's names; a pixel needs all of an image's bands."""
    images = images_of(collection)
    if any(len(image.bands) != reducer.inputs for image in images):
        found = ", ".join(str(len(image.bands)) for image in images)
        raise EarthEngineError(
            f"ImageCollection.reduce: The reducer has {reducer.inputs} inputs, the images have {found} bands."
        )
    if reducer.tuples is None:
        raise EarthEngineError(
            f"The offline Earth Engine does not reduce collections with {reducer.inputs} inputs to "
            f"'{', '.join(reducer.names)}'."
        )
    nodes = tuple(tuple(band.node for band in image.bands) for image in images)
    bands = [
        Band(name, _union([image.bands[i] for image in images]) if images else PixelType("double"),
             TupleStack(nodes, reducer.tuples, i))
        for i, name in enumerate(reducer.names)
    ]  # fmt: skip
    return Image(tuple(bands), footprint=_footprint(collection))


def _shorthand(context: Context, collection: Collection, *, reducer: Reducer) -> Image:
    return _composite(collection, reducer, suffix=False)


for _name, _reducer in {
    "min": reducers.minimum(),
    "max": reducers.maximum(),
    "count": reducers.count(),
    "sum": reducers.total(),
    "product": reducers.product(),
    "mean": reducers.mean(),
    "median": reducers.median(),
    "mode": reducers.most_common(),
    "and": reducers.all_non_zero(),
    "or": reducers.any_non_zero(),
}.items():
    algorithm(f"reduce.{_name}")(partial(_shorthand, reducer=_reducer))


@algorithm("Image.reduce")
def reduce_bands(context: Context, image: Image, reducer: Reducer) -> Image:
    """One band per output, over the bands of the image."""
    nodes = tuple(band.node for band in image.bands)
    bands = [
        Band(name, result_type(name, image.bands), Stack(nodes, reducer, position), image.bands[0].projection)
        for position, name in enumerate(reducer.names)
    ]
    return image.with_bands(bands)


@algorithm("ImageCollection.qualityMosaic")
def quality_mosaic(context: Context, collection: Collection, qualityBand: str) -> Image:
    """Per pixel all bands of the image with the highest valid value of the quality band."""
    images = images_of(collection)
    judges = tuple(band.node for image in images if (band := image.band(qualityBand)) is not None)
    if not images or len(judges) != len(images):
        raise EarthEngineError(f"ImageCollection.qualityMosaic: No band named '{qualityBand}' in every image.")
    bands = [
        Band(name, _union(parts), Best(judges, tuple(part.node for part in parts)))
        for name, parts in _bands_by_name(collection).items()
        if len(parts) == len(images)
    ]
    return Image(tuple(bands), footprint=_footprint(collection))


@dataclass(frozen=True, eq=False)
class Best:
    """The node whose judge has the highest valid value; the first of equals."""

    judges: tuple[Pixels, ...]
    nodes: tuple[Pixels, ...]

    def read(self, reader: Reader, grid: Grid) -> Pair:
        scores = [reader.read(judge, grid) for judge in self.judges]
        order = np.argmax(np.stack([np.where(m > 0, v, -np.inf) for v, m in scores]), axis=0)[None]
        pairs = [reader.read(node, grid) for node in self.nodes]
        valid = np.take_along_axis(np.stack([m for _, m in scores]), order, axis=0)[0]
        values = np.take_along_axis(np.stack([v for v, _ in pairs]), order, axis=0)[0]
        mask = np.take_along_axis(np.stack([m for _, m in pairs]), order, axis=0)[0]
        mask = np.where(valid > 0, mask, 0.0)
        return np.where(mask > 0, values, 0.0), mask
