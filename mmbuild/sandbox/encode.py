"""Values as the JSON that `value:compute` and `table:computeFeatures` answer; whole numbers are written as integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.images import Band, Image
from mmbuild.sandbox.limits import MAX_ELEMENTS
from mmbuild.sandbox.values import (
    Collection,
    Date,
    DateRange,
    EarthEngineError,
    ErrorMargin,
    Feature,
    PixelType,
    Projection,
)


def to_json(value: Any) -> Any:
    """The JSON of any value; EarthEngineError for functions, filters and reducers, which have none."""
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode(value)
    raise EarthEngineError(f"Object of type {type(value).__name__} cannot be encoded for the client.")


def _number(value: float) -> Any:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if value.is_integer() and abs(value) < 2**63 else value


def _image(image: Image) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "Image", "bands": [_band(band) for band in image.bands]}
    if image.id is not None:
        result["id"] = image.id
    if image.properties:
        result["properties"] = to_json(image.properties)
    return result


def _band(band: Band) -> dict[str, Any]:
    result: dict[str, Any] = {"id": band.name, "data_type": _pixel_type(band.type)}
    if band.size is not None:
        result["dimensions"] = list(band.size)
        if band.origin != (0, 0):
            result["origin"] = list(band.origin)
    return result | {"crs": band.projection.crs, "crs_transform": to_json(list(band.projection.transform))}


def _pixel_type(kind: PixelType) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "PixelType", "precision": kind.precision}
    if kind.low is not None and kind.high is not None:
        result |= {"min": _number(kind.low), "max": _number(kind.high)}
    return result


def feature_json(feature: Feature) -> dict[str, Any]:
    """GeoJSON with the system index as id; properties never include it."""
    geometry = None if feature.geometry is None else feature.geometry.to_json()
    properties = {key: to_json(item) for key, item in feature.properties.items() if key != "system:index"}
    result: dict[str, Any] = {"type": "Feature", "geometry": geometry, "properties": properties}
    index = feature.get("system:index")
    return result if index is None else {**result, "id": index}


def planar_feature_json(feature: Feature) -> dict[str, Any]:
    """The same with the geometry in EPSG:4326 and planar edges, as `table:computeFeatures` answers."""
    if feature.geometry is None:
        return feature_json(feature)
    geometry = Geometry(feature.geometry.lonlat, geodesic=False).to_json()
    return {**feature_json(feature), "geometry": {k: v for k, v in geometry.items() if k != "geodesic"}}


def _collection(collection: Collection) -> dict[str, Any]:
    if len(collection.elements) > MAX_ELEMENTS:
        raise EarthEngineError(f"Collection query aborted after accumulating over {MAX_ELEMENTS} elements.")
    elements = [to_json(element) for element in collection.elements]
    kind = "ImageCollection" if collection.kind == "image" else "FeatureCollection"
    if elements:
        kind = "ImageCollection" if isinstance(collection.elements[0], Image) else "FeatureCollection"
    result: dict[str, Any] = {"type": kind, "features": elements}
    if kind == "ImageCollection":
        result["bands"] = []
    if collection.id is not None:
        result["id"] = collection.id
    if collection.properties:
        result["properties"] = to_json(collection.properties)
    return result


def _projection(projection: Projection) -> dict[str, Any]:
    return {"type": "Projection", "crs": projection.crs, "transform": to_json(list(projection.transform))}


_ENCODERS: dict[type, Any] = {
    Image: _image,
    Feature: feature_json,
    Geometry: lambda geometry: geometry.to_json(),
    Collection: _collection,
    Projection: _projection,
    PixelType: _pixel_type,
    Date: lambda date: {"type": "Date", "value": _number(float(date.ms))},
    DateRange: lambda r: {"type": "DateRange", "dates": [_number(float(r.start)), _number(float(r.end))]},
    ErrorMargin: lambda margin: {"type": "ErrorMargin", "unit": margin.unit, "value": _number(margin.value)},
}
