"""Collections of images and features: loading from the world, filtering, ordering, mapping, aggregating.

A collection straight from an asset stays unlisted while filters are added to it, so that bounds and time reach the
dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmbuild.sandbox import reducers
from mmbuild.sandbox.algorithms.bands import _matching, unused_name
from mmbuild.sandbox.algorithms.filters import field_of, plain
from mmbuild.sandbox.assets import Dataset
from mmbuild.sandbox.coerce import collection_geometry
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, masked_band
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature, Filter, Function, Hints


def asset_collection(
    context: Context, dataset: Dataset, hints: Hints | None = None, filters: tuple[Filter, ...] = ()
) -> Collection:
    """The images of a dataset that pass all filters; nothing is listed before somebody looks."""
    wanted = hints or Hints()

    def load() -> list[Image]:
        found = (context.image(dataset, info) for info in _candidates(dataset, wanted))
        return [image for image in found if all(condition(image) for condition in filters)]

    def narrow(condition: Filter) -> Collection:
        return asset_collection(context, dataset, wanted.narrowed(condition.hints), (*filters, condition))

    return Collection("image", load, id=dataset.id, properties=dataset.info(), narrow=narrow)


def _candidates(dataset: Dataset, hints: Hints) -> Sequence[Any]:
    if hints.index is None:
        try:
            return dataset.images(bounds=hints.bounds, start_ms=hints.start_ms, end_ms=hints.end_ms)
        except ValueError as error:
            # A synthetic planet of scenes is not listed without a region, which the real service would do.
            raise EarthEngineError(f"The offline Earth Engine does not list this collection: {error}.") from error
    try:
        return [dataset.image(hints.index)]
    except KeyError:
        return []


@algorithm("ImageCollection.load")
def load(context: Context, id: str, version: int | None) -> Collection:
    dataset = context.world.dataset(id)
    if dataset is None or dataset.kind != "image_collection":
        raise EarthEngineError(
            f"ImageCollection.load: ImageCollection asset '{id}' not found "
            "(does not exist or caller does not have access)."
        )
    return asset_collection(context, dataset)


@algorithm("Collection.loadTable")
def load_table(context: Context, tableId: str, geometryColumn: str | None, version: int) -> Collection:
    dataset = context.world.dataset(tableId)
    if dataset is None or dataset.kind != "table":
        raise EarthEngineError(
            f"Collection.loadTable: Collection asset '{tableId}' not found "
            "(does not exist or caller does not have access)."
        )

    def rows() -> list[Feature]:
        return [
            Feature(None if shape is None else Geometry(shape, geodesic=False), dict(properties), f"{row:020d}")
            for row, (shape, properties) in enumerate(dataset.features())
        ]

    return Collection("feature", rows, id=tableId, properties=dataset.info())


@algorithm("ImageCollection.fromImages")
def from_images(context: Context, images: Sequence[Any]) -> Collection:
    """Images without a system:index get their position."""
    for image in images:
        if not isinstance(image, Image):
            raise EarthEngineError("ImageCollection.fromImages: All elements must be images.")
    return Collection("image", lambda: [_indexed(image, str(i)) for i, image in enumerate(images)])


@algorithm("Collection")
def from_features(context: Context, features: Sequence[Any]) -> Collection:
    made = [Feature(item) if isinstance(item, Geometry) else item for item in features]
    return Collection("feature", lambda: [_indexed(item, str(i)) for i, item in enumerate(made)])


def _indexed(element: Any, index: str) -> Any:
    if isinstance(element, Collection) or element.get("system:index") is not None:
        return element
    return (
        replace(element, id=index) if isinstance(element, Feature) else element.with_properties({"system:index": index})
    )


@algorithm("Collection.filter")
def filter_collection(context: Context, collection: Collection, filter: Any) -> Collection:
    if isinstance(filter, str):
        filter = context.call("Filter.expression", expression=filter)
    if not isinstance(filter, Filter):
        raise EarthEngineError(f"Collection.filter: Expected a Filter or a string, found {type(filter).__name__}.")
    return collection.filter(filter)


@algorithm("Collection.limit")
def limit(context: Context, collection: Collection, limit: int | None, key: str | None, ascending: bool) -> Collection:
    """Ordered by a property (elements without it last), then cut; ties keep the order they had."""

    def elements() -> Sequence[Any]:
        found = list(collection.elements)
        if key is not None:
            having = [e for e in found if field_of(e, key) is not None]
            having.sort(key=lambda e: plain(field_of(e, key)), reverse=not ascending)
            found = having + [e for e in found if field_of(e, key) is None]
        return found[:limit]

    return collection.derive(elements)


@algorithm("Collection.size")
def size(context: Context, collection: Collection) -> int:
    return len(collection.elements)


@algorithm("Collection.first")
def first(context: Context, collection: Collection) -> Any:
    return collection.elements[0] if collection.elements else None


@algorithm("Collection.toList")
def to_list(context: Context, collection: Collection, count: int, offset: int) -> list[Any]:
    return list(collection.elements[offset : offset + count])


@algorithm("Collection.map")
def map_collection(context: Context, collection: Collection, baseAlgorithm: Function, dropNulls: bool) -> Collection:
    """Results keep the system:index of the element they were made from."""

    def elements() -> list[Any]:
        return [r for element in collection.elements if (r := _mapped(baseAlgorithm, element, dropNulls)) is not None]

    result = collection.derive(elements)
    if baseAlgorithm.transparent and collection.narrow is not None:
        result.narrow = lambda c: map_collection(context, collection.filter(c), baseAlgorithm, dropNulls)
    return result


def _mapped(function: Function, element: Any, drop_nulls: bool) -> Any:
    result = function.call(element)
    if isinstance(result, Geometry):
        result = Feature(result)
    if result is None and drop_nulls:
        return None
    if not isinstance(result, Image | Feature):
        raise EarthEngineError("Collection.map: A mapped algorithm must return a Feature or Image.")
    index = element.get("system:index")
    if result.get("system:index") == index:
        return result
    if isinstance(result, Feature):
        return replace(result, id=index)
    return result.with_properties({"system:index": index})


@algorithm("Collection.iterate")
def iterate(context: Context, collection: Collection, function: Function, first: Any) -> Any:
    result = first
    for element in collection.elements:
        result = function.call(element, result)
    return result


@algorithm("Collection.merge", "ImageCollection.merge")
def merge(context: Context, collection1: Collection, collection2: Collection) -> Collection:
    """Indexes are prefixed with 1_ and 2_ to stay unique."""

    def elements() -> list[Any]:
        return [
            _reindexed(element, f"{side}_{element.get('system:index')}")
            for side, part in ((1, collection1), (2, collection2))
            for element in part.elements
        ]

    return Collection(collection1.kind, elements)


def _reindexed(element: Any, index: str) -> Any:
    return (
        replace(element, id=index) if isinstance(element, Feature) else element.with_properties({"system:index": index})
    )


@algorithm("Collection.distinct")
def distinct(context: Context, collection: Collection, properties: Any) -> Collection:
    names = [properties] if isinstance(properties, str) else list(properties)

    def key(element: Any) -> str:
        values = (field_of(element, name) for name in names)
        return repr([value.to_json() if isinstance(value, Geometry) else value for value in values])

    return collection.derive(
        lambda: list({key(element): element for element in reversed(collection.elements)}.values())[::-1]
    )


@algorithm("Collection.flatten")
def flatten(context: Context, collection: Collection) -> Collection:
    def elements() -> list[Any]:
        return [
            item for part in collection.elements for item in (part.elements if isinstance(part, Collection) else [part])
        ]

    return collection.derive(elements)


@algorithm("Collection.geometry")
def geometry(context: Context, collection: Collection, maxError: Any) -> Geometry:
    return collection_geometry(collection)


@algorithm("Collection.bounds")
def bounds(context: Context, collection: Collection, maxError: Any, proj: Any) -> Any:
    return context.call("Geometry.bounds", geometry=collection_geometry(collection), maxError=maxError, proj=proj)


@algorithm("Collection.reduceColumns")
def reduce_columns(
    context: Context,
    collection: Collection,
    reducer: Reducer,
    selectors: Sequence[str],
    weightSelectors: Sequence[str] | None,
) -> dict[str, Any]:
    if len(selectors) != reducer.inputs:
        raise EarthEngineError(
            f"Collection.reduceColumns: Need {reducer.inputs} selectors for this reducer, got {len(selectors)}."
        )
    rows = [tuple(field_of(element, name) for name in selectors) for element in collection.elements]
    weights = None
    if weightSelectors:
        weights = [float(element.get(weightSelectors[0]) or 0.0) for element in collection.elements]
    return reducer.reduce_rows(rows, weights)


@algorithm("ImageCollection.toBands")
def to_bands(context: Context, collection: Collection) -> Image:
    bands: list[Band] = []
    for image in images_of(collection):
        for band in image.bands:
            name = f"{image.get('system:index')}_{band.name}"
            bands.append(replace(band, name=unused_name(name, bands) if len(bands) < 64 else name))
    if len(bands) > 5000:
        raise EarthEngineError(f"ImageCollection.toBands: Too many bands: {len(bands)}; at most 5000 are allowed.")
    return Image(tuple(bands))


def images_of(collection: Collection) -> Sequence[Image]:
    """The elements, all of which must be images."""
    for element in collection.elements:
        if not isinstance(element, Image):
            raise EarthEngineError("Expected a homogeneous image collection, but an element is not an image.")
    return collection.elements


@algorithm("Image.linkCollection")
def link_collection(
    context: Context,
    input: Image,
    imageCollection: Collection,
    linkedBands: Any,
    linkedProperties: Any,
    matchPropertyName: str,
) -> Image:
    """Bands and properties of the matching image; fully masked bands and null properties when there is none."""
    key = input.get(matchPropertyName)
    condition = context.call("Filter.equals", leftField=matchPropertyName, rightValue=key) if key is not None else None
    matches = imageCollection.filter(condition).elements if condition is not None else []
    bands, properties = _names(linkedBands), _names(linkedProperties)
    match = matches[0] if matches else None
    linked = _linked_bands(imageCollection, match, bands)
    result = context.call("Image.addBands", dstImg=input, srcImg=Image(tuple(linked)), overwrite=True)
    found = {name: None if match is None else match.get(name) for name in properties}
    linked_image: Image = context.call("Element.setMulti", object=result, properties=found)
    return linked_image


def _names(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _linked_bands(collection: Collection, match: Image | None, names: Sequence[str]) -> list[Band]:
    if match is not None:
        return [band for name in names for band in _matching(match, name)]
    example = next(iter(collection.elements), None)
    if not names:
        return []
    if not isinstance(example, Image):
        raise EarthEngineError("Image.linkCollection: The collection to link is empty.")
    return [masked_band(band.name, band) for name in names for band in _matching(example, name)]


# -- aggregates -------------------------------------------------------------------------------------------------------


def _column(collection: Collection, property: str) -> list[Any]:
    found = (field_of(element, property) for element in collection.elements)
    return [value for value in found if value is not None]


@algorithm("AggregateFeatureCollection.array")
def aggregate_array(context: Context, collection: Collection, property: str) -> list[Any]:
    return _column(collection, property)


@algorithm("AggregateFeatureCollection.first")
def aggregate_first(context: Context, collection: Collection, property: str) -> Any:
    return next(iter(_column(collection, property)), None)


@algorithm("AggregateFeatureCollection.count")
def aggregate_count(context: Context, collection: Collection, property: str) -> int:
    return len(_column(collection, property))


@algorithm("AggregateFeatureCollection.count_distinct")
def aggregate_count_distinct(context: Context, collection: Collection, property: str) -> int:
    return len({repr(value) for value in _column(collection, property)})


@algorithm("AggregateFeatureCollection.histogram")
def aggregate_histogram(context: Context, collection: Collection, property: str) -> Mapping[str, Any]:
    found = reducers.frequency_histogram().reduce_rows([(value,) for value in _column(collection, property)])
    return dict(found["histogram"])


def _aggregate(context: Context, collection: Collection, property: str, *, reducer: Reducer) -> Any:
    rows = [(value,) for value in _column(collection, property)]
    return reducer.reduce_rows(rows)[reducer.names[0]]


for _name, _reducer in {
    "min": reducers.minimum(),
    "max": reducers.maximum(),
    "mean": reducers.mean(),
    "sum": reducers.total(),
    "product": reducers.product(),
    "total_sd": reducers.standard_deviation(),
    "total_var": reducers.variance(),
}.items():
    algorithm(f"AggregateFeatureCollection.{_name}")(partial(_aggregate, reducer=_reducer))
