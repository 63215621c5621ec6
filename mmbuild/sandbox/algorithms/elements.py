"""Element.*, Feature and Image metadata: properties, ids, geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmbuild.sandbox.coerce import to_date
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.values import Collection, Date, EarthEngineError, Feature

Element = Feature | Image


@algorithm("Feature")
def feature(
    context: Context, geometry: Geometry | None, metadata: Mapping[str, Any], geometryKey: str | None
) -> Feature:
    return Feature(geometry, dict(metadata))


@algorithm("Element.get")
def get(context: Context, object: Element | Collection, property: str) -> Any:
    if isinstance(object, Collection):
        return object.id if property == "system:id" else object.properties.get(property)
    return object.get(property)


@algorithm("Element.getNumber")
def get_number(context: Context, object: Element, property: str) -> Any:
    value = object.get(property)
    if value is not None and not isinstance(value, int | float):
        raise EarthEngineError(f"Element.getNumber: Property '{property}' is not a number.")
    return value


@algorithm("Element.getString")
def get_string(context: Context, object: Element, property: str) -> Any:
    value = object.get(property)
    if value is not None and not isinstance(value, str):
        raise EarthEngineError(f"Element.getString: Property '{property}' is not a string.")
    return value


@algorithm("Element.set")
def set_property(context: Context, object: Element | Collection, key: str, value: Any) -> Any:
    return _with(object, {key: value})


@algorithm("Element.setMulti")
def set_many(context: Context, object: Element | Collection, properties: Mapping[str, Any]) -> Any:
    return _with(object, properties)


def _with(element: Any, properties: Mapping[str, Any]) -> Any:
    if isinstance(element, Collection):
        return Collection(
            element.kind, lambda: element.elements, id=element.id, properties={**element.properties, **properties}
        )
    kept = {key: value for key, value in properties.items() if value is not None}
    dropped = properties.keys() - kept.keys()
    result = element.with_properties(kept)
    if not dropped:
        return result
    return replace(result, properties={k: v for k, v in result.properties.items() if k not in dropped})


@algorithm("Element.propertyNames")
def property_names(context: Context, element: Element) -> list[str]:
    names = list(element.properties)
    return names if "system:index" in names else [*names, "system:index"]


@algorithm("Element.toDictionary")
def to_dictionary(context: Context, element: Element, properties: Sequence[str] | None) -> dict[str, Any]:
    """All properties but those of the system, or just the named ones."""
    if properties is not None:
        return {name: element.get(name) for name in properties}
    return {key: value for key, value in element.properties.items() if not key.startswith("system:")}


@algorithm("Element.copyProperties", "Image.copyProperties")
def copy_properties(
    context: Context,
    destination: Element | None,
    source: Element | None,
    properties: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> Any:
    """System properties are only copied when they are named."""
    if destination is None or source is None:
        return destination
    names = properties or [key for key in source.properties if not key.startswith("system:")]
    found = {name: source.get(name) for name in names if name not in (exclude or ())}
    return destination.with_properties({name: value for name, value in found.items() if value is not None})


@algorithm("Feature.id", "Image.id")
def element_id(context: Context, element: Element) -> Any:
    return element.get("system:index")


@algorithm("Element.geometry", "Feature.geometry", "Image.geometry")
def element_geometry(context: Context, feature: Element, maxError: Any, proj: Any, geodesics: Any) -> Any:
    return feature.geometry


@algorithm("Feature.select")
def select(
    context: Context,
    input: Feature,
    propertySelectors: Sequence[str],
    newProperties: Sequence[str] | None,
    retainGeometry: bool,
) -> Feature:
    names = newProperties or propertySelectors
    found = {new: input.get(old) for old, new in zip(propertySelectors, names, strict=True) if old in input.properties}
    return replace(input, properties=found, geometry=input.geometry if retainGeometry else None)


@algorithm("Feature.setGeometry")
def set_geometry(context: Context, feature: Feature, geometry: Geometry | None) -> Feature:
    return replace(feature, geometry=geometry)


@algorithm("Image.date")
def image_date(context: Context, image: Image) -> Date:
    start = image.get("system:time_start")
    if start is None:
        raise EarthEngineError("Image.date: The image has no property 'system:time_start'.")
    date = to_date(start)
    assert isinstance(date, Date)
    return date
