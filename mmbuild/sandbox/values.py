"""The values an Earth Engine expression computes with, other than pixels and shapes: dates, features, collections, ...

All are immutable in spirit: an algorithm makes a new value. Wrong arguments end in EarthEngineError, whose text is what
the real service would answer with HTTP 400.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

if TYPE_CHECKING:
    from mmbuild.sandbox.geometry import Geometry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# One degree of longitude on the equator of WGS 84: 2*pi*6378137/360 m, how Earth Engine turns degrees into metres.
METRES_PER_DEGREE = 2.0 * math.pi * 6378137.0 / 360.0


class EarthEngineError(Exception):
    """A request the real service would refuse: HTTP `code` and Google's `status` word."""

    def __init__(self, message: str, code: int = 400, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.message, self.code, self.status = message, code, status


@lru_cache(maxsize=256)
def crs_object(crs: str) -> pyproj.CRS:
    """The CRS with this code or WKT; EarthEngineError for anything PROJ does not know."""
    try:
        return pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise EarthEngineError(f"The CRS of a map projection could not be parsed: '{crs}'.") from error


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> pyproj.Transformer:
    """Coordinates of `source` to `target`, x before y."""
    return pyproj.Transformer.from_crs(crs_object(source), crs_object(target), always_xy=True)


@lru_cache(maxsize=256)
def is_geographic(crs: str) -> bool:
    """Whether coordinates of this CRS are degrees."""
    return bool(crs_object(crs).is_geographic)


@dataclass(frozen=True)
class Projection:
    """A CRS and the affine transform (a, b, c, d, e, f) from pixel corners to it."""

    crs: str = "EPSG:4326"
    transform: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def nominal_scale(self) -> float:
        """Pixel size in metres at the point of true scale."""
        a, b, _, d, e, _ = self.transform
        return math.sqrt(abs(a * e - b * d)) * self.metres_per_unit()

    def metres_per_unit(self) -> float:
        """Metres in one CRS unit: degrees count at the equator."""
        return METRES_PER_DEGREE if is_geographic(self.crs) else 1.0

    def at_scale(self, metres: float) -> Projection:
        """The same CRS and origin with square pixels of `metres`, rows running as they did."""
        size = metres / self.metres_per_unit()
        _, _, c, _, e, f = self.transform
        return Projection(self.crs, (size, 0.0, c, 0.0, math.copysign(size, e), f))


@dataclass(frozen=True)
class PixelType:
    """int, float or double, with the range of the values; numpy_dtype is the smallest that holds the range."""

    precision: str
    low: float | None = None
    high: float | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """How computePixels stores it: ints as narrow as their range allows, float as f4, double as f8."""
        if self.precision != "int":
            return np.dtype("<f4" if self.precision == "float" else "<f8")
        low, high = self.low or 0.0, self.high or 0.0
        for name in ("u1", "i1", "u2", "i2", "u4", "i4"):
            info = np.iinfo(name)
            if low >= info.min and high <= info.max:
                return np.dtype(name).newbyteorder("<")
        return np.dtype("<i8")

    def union(self, other: PixelType) -> PixelType:
        """The narrowest type that holds the values of both."""
        order = ("int", "float", "double")
        precision = max(self.precision, other.precision, key=order.index)
        bounds = (self.low, self.high, other.low, other.high)
        if None in bounds:
            return PixelType(precision)
        numbers = [float(bound) for bound in bounds if bound is not None]
        return PixelType(precision, min(numbers), max(numbers))


@lru_cache(maxsize=256)
def pixel_type(dtype: str, value_range: tuple[float, float] | None = None) -> PixelType:
    """The pixel type of stored data with this numpy dtype, narrowed to `value_range` when it is given."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        low, high = value_range or (None, None)
        return PixelType("float" if kind.itemsize <= 4 else "double", low, high)
    if kind.kind == "b":
        return PixelType("int", 0.0, 1.0)
    info = np.iinfo(kind)
    low, high = value_range or (float(info.min), float(info.max))
    return PixelType("int", low, high)


@dataclass(frozen=True)
class Date:
    """An instant, milliseconds since 1970 UTC."""

    ms: float

    def when(self, zone: Any = UTC) -> datetime:
        """The same instant as a datetime in `zone`."""
        return (EPOCH + timedelta(milliseconds=self.ms)).astimezone(zone)


@dataclass(frozen=True)
class DateRange:
    """A half-open interval [start, end) in milliseconds since 1970 UTC."""

    start: float
    end: float

    def contains(self, ms: float) -> bool:
        return self.start <= ms < self.end


@dataclass(frozen=True)
class ErrorMargin:
    """How inexact a geometric answer may be; accepted and not needed, for answers here are as exact as they can be."""

    value: float = 0.0
    unit: str = "meters"


@dataclass(frozen=True)
class Feature:
    """A geometry (or None) with properties; `id` is what `system:index` answers when no property says otherwise."""

    geometry: Geometry | None
    properties: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None

    def get(self, name: str) -> Any:
        if name == "system:index":
            return self.properties.get(name, self.id)
        return self.properties.get(name)

    def with_properties(self, properties: Mapping[str, Any]) -> Feature:
        return replace(self, properties={**self.properties, **properties})


@dataclass(frozen=True)
class Hints:
    """What a filter implies for candidates, so that a dataset need not list everything: bounds, time window, index."""

    bounds: tuple[float, float, float, float] | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    index: str | None = None

    def narrowed(self, other: Hints) -> Hints:
        """Both hold: the tighter time window; of two boxes the first, for a superset is enough."""
        starts = [ms for ms in (self.start_ms, other.start_ms) if ms is not None]
        ends = [ms for ms in (self.end_ms, other.end_ms) if ms is not None]
        index = self.index or other.index
        return Hints(self.bounds or other.bounds, max(starts, default=None), min(ends, default=None), index)

    def widened(self, other: Hints) -> Hints:
        """Either holds: the hull of the time windows, and no box unless both have the same."""
        start = None if None in (self.start_ms, other.start_ms) else min(self.start_ms or 0, other.start_ms or 0)
        end = None if None in (self.end_ms, other.end_ms) else max(self.end_ms or 0, other.end_ms or 0)
        return Hints(self.bounds if self.bounds == other.bounds else None, start, end)


@dataclass(frozen=True, eq=False)
class Filter:
    """A predicate over one element, or over a pair in a join; `hints` only ever narrow what is listed.

    measure: how far apart a pair is, for joins that save the best match; few filters have one.
    """

    test: Callable[[Any, Any], bool]
    hints: Hints = Hints()
    measure: Callable[[Any, Any], float | None] | None = None

    def __call__(self, element: Any, other: Any = None) -> bool:
        return self.test(element, other)


class Collection:
    """A list of features or images that is only made when somebody looks.

    kind: "image" or "feature". `load` is called once, by `elements`; `narrow` (collections straight from an asset)
    takes a filter and answers the narrower collection without listing first.
    """

    def __init__(
        self,
        kind: str,
        load: Callable[[], Sequence[Any]],
        *,
        id: str | None = None,
        properties: Mapping[str, Any] | None = None,
        narrow: Callable[[Filter], Collection] | None = None,
    ) -> None:
        self.kind, self.id, self.properties = kind, id, dict(properties or {})
        self._load, self.narrow = load, narrow
        self._elements: Sequence[Any] | None = None

    @property
    def elements(self) -> Sequence[Any]:
        if self._elements is None:
            self._elements = self._load()
        return self._elements

    def filter(self, condition: Filter) -> Collection:
        if self.narrow is not None:
            return self.narrow(condition)
        return self.derive(lambda: [element for element in self.elements if condition(element)])

    def derive(self, load: Callable[[], Sequence[Any]], kind: str | None = None) -> Collection:
        """The same collection with other elements."""
        return Collection(kind or self.kind, load, id=self.id, properties=self.properties)


@dataclass(frozen=True, eq=False)
class Function:
    """A function value: call it with positional arguments.

    transparent: it only picks or renames bands of its argument, so filters may go before it.
    """

    names: tuple[str, ...]
    call: Callable[..., Any]
    transparent: bool = False
