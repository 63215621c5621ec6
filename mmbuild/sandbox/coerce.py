"""Turns an argument into the type an algorithm expects, where Earth Engine would: numbers to images, and so on.

Anything else is refused with the expected and the actual type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mmbuild.sandbox.geometry import Geometry, from_geojson
from mmbuild.sandbox.images import Image, constant_image
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.signatures import Argument
from mmbuild.sandbox.values import (
    EPOCH,
    Collection,
    Date,
    DateRange,
    EarthEngineError,
    ErrorMargin,
    Feature,
    Filter,
    Function,
    PixelType,
    Projection,
    crs_object,
)

NO: Any = object()


def converts(argument: Argument) -> bool:
    """Whether values of the argument's type are converted or checked at all."""
    return argument.kind in _CONVERSIONS


def coerce(value: Any, argument: Argument, algorithm: str) -> Any:
    """The value as the argument's type; None stays None."""
    convert = _CONVERSIONS.get(argument.kind)
    if value is None or convert is None:
        return value
    converted = convert(value)
    if converted is NO:
        raise EarthEngineError(
            f"{algorithm}, argument '{argument.name}': Invalid type.\n"
            f"Expected type: {argument.kind}.\nActual type: {type_name(value)}."
        )
    if argument.kind == "List" and argument.item in ("Float", "Integer", "Number", "String", "Geometry", "Filter"):
        item = Argument(name=argument.name, kind=argument.item, item="", default=None)
        return [coerce(element, item, algorithm) for element in converted]
    return converted


def type_name(value: Any) -> str:
    """Earth Engine's word for the type of a value."""
    if value is None:
        return "Null"
    if isinstance(value, Collection):
        return "ImageCollection" if value.kind == "image" else "FeatureCollection"
    words: dict[type, str] = {bool: "Boolean", int: "Integer", float: "Float", str: "String", list: "List"}
    return words.get(type(value), "Dictionary" if isinstance(value, Mapping) else type(value).__name__)


def parse_date(text: str, zone: tzinfo = UTC) -> Date:
    """An instant from `2019`, `2019-2`, `2019-02-01`, `2019-02-01T10:20`, `...:30.5`, with an optional Z or offset.

    `2019-032` is the 32nd day of the year.
    """
    by_day = _DAY_OF_YEAR.match(text.strip())
    if by_day is not None:
        first = parse_date(f"{by_day[1]}-01-01{by_day[3]}", zone)
        return Date((first.when(zone) + timedelta(days=int(by_day[2]) - 1) - EPOCH) / timedelta(milliseconds=1))
    match = _DATE.fullmatch(text.strip())
    if match is None:
        raise EarthEngineError(f"Date: Bad date/time '{text}'.")
    year, month, day, hour, minute, second, offset = match.groups()
    try:
        when = datetime(int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), tzinfo=zone)
    except ValueError as error:
        raise EarthEngineError(f"Date: Bad date/time '{text}'.") from error
    if offset:
        when = datetime.fromisoformat(when.replace(tzinfo=None).isoformat() + offset.replace("Z", "+00:00"))
    return Date((when - EPOCH) / timedelta(milliseconds=1) + float(second or 0) * 1000.0)


_DAY_OF_YEAR = re.compile(r"(\d{4})-(\d{3})((?:[T ].*)?)$")
_DATE = re.compile(
    r"(\d{4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?"
    r"(?:[T ](\d{1,2})(?::(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?)?(Z|[+-]\d\d:?\d\d)?"
)


def time_zone(name: str | None) -> tzinfo:
    """A time zone by its tz name; UTC for None."""
    if name is None:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise EarthEngineError(f"Unrecognized time zone '{name}'.") from error


def to_projection(value: Any) -> Any:
    if isinstance(value, str):
        crs_object(value)
        return Projection(value)
    if isinstance(value, Mapping) and value.get("type") == "Projection":
        return Projection(str(value["crs"]), tuple(value.get("transform", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))))
    return value if isinstance(value, Projection) else NO


def _image(value: Any) -> Any:
    if isinstance(value, bool | int | float | list):
        return constant_image(value)
    if isinstance(value, Collection) and value.kind == "image":
        return NO
    return value if isinstance(value, Image) else NO


def to_geometry(value: Any) -> Any:
    if isinstance(value, Geometry):
        return value
    if isinstance(value, Feature | Image):
        return value.geometry if value.geometry is not None else NO
    if isinstance(value, Collection):
        return collection_geometry(value)
    if isinstance(value, Mapping) and "type" in value:
        return from_geojson(dict(value))
    return NO


def collection_geometry(collection: Collection) -> Geometry:
    """The union of all geometries in the collection."""
    import shapely

    shapes = [element.geometry.lonlat for element in collection.elements if element.geometry is not None]
    return Geometry(shapely.union_all(shapes), geodesic=False)


def _element(value: Any) -> Any:
    if isinstance(value, Geometry):
        return Feature(value)
    return value if isinstance(value, Feature | Image | Collection) else NO


def _feature(value: Any) -> Any:
    return Feature(value) if isinstance(value, Geometry) else value if isinstance(value, Feature) else NO


def _collection(value: Any) -> Any:
    if isinstance(value, Collection):
        return value
    if isinstance(value, Feature | Geometry):
        feature = value if isinstance(value, Feature) else Feature(value)
        return Collection("feature", lambda: [feature])
    return NO


def _image_collection(value: Any) -> Any:
    if isinstance(value, Image):
        return Collection("image", lambda: [value])
    return value if isinstance(value, Collection) else NO


def to_date(value: Any) -> Any:
    if isinstance(value, str):
        return parse_date(value)
    if isinstance(value, int | float):
        return Date(float(value))
    return value if isinstance(value, Date) else NO


def _date_range(value: Any) -> Any:
    if isinstance(value, DateRange):
        return value
    start = to_date(value)
    return NO if start is NO else DateRange(start.ms, start.ms + 1)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value if isinstance(value, int | float) else NO


def _integer(value: Any) -> Any:
    number = _number(value)
    return NO if number is NO else int(number)


def _float(value: Any) -> Any:
    number = _number(value)
    return NO if number is NO else float(number)


def _boolean(value: Any) -> Any:
    return bool(value) if isinstance(value, bool | int | float) else NO


def _margin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ErrorMargin(float(value.get("value") or 0.0), str(value.get("unit", "meters")))
    if isinstance(value, int | float):
        return ErrorMargin(float(value))
    return value if isinstance(value, ErrorMargin) else NO


def _pixel_type(value: Any) -> Any:
    return PixelType(value) if value in ("int", "float", "double") else value if isinstance(value, PixelType) else NO


def _only(*kinds: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, kinds) else NO


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "Image": _image,
    "Geometry": to_geometry,
    "Element": _element,
    "Feature": _feature,
    "FeatureCollection": _collection,
    "ImageCollection": _image_collection,
    "Projection": to_projection,
    "Date": to_date,
    "DateRange": _date_range,
    "Number": _number,
    "Integer": _integer,
    "Long": _integer,
    "Float": _float,
    "Boolean": _boolean,
    "ErrorMargin": _margin,
    "PixelType": _pixel_type,
    "String": _only(str),
    "List": _only(list),
    "Dictionary": _only(dict),
    "Reducer": _only(Reducer),
    "Filter": _only(Filter),
    "Algorithm": _only(Function),
}
