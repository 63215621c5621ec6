"""Filter.*: predicates over elements or pairs of them, and the hints that spare a dataset from listing everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmbuild.sandbox.coerce import to_date, to_geometry
from mmbuild.sandbox.geometry import Geometry, distance_m
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.values import Collection, Date, DateRange, EarthEngineError, Feature, Filter, Hints

Compare = Callable[[Any, Any], bool]
GEOMETRY_FIELDS = (".all", ".geo")


def field_of(element: Any, name: str) -> Any:
    """A property; `.geo` and `.all` are the geometry."""
    if name in GEOMETRY_FIELDS:
        return element.geometry
    return element.get(name) if isinstance(element, Image | Feature) else None


def operands(
    compare: Compare, leftField: str | None, rightValue: Any, rightField: str | None, leftValue: Any
) -> Callable[[Any, Any], bool]:
    """The predicate of a filter with Earth Engine's four operand arguments; a missing property fails it."""
    if leftField is None and rightField is None:
        raise EarthEngineError("Filter: Either 'leftField' or 'rightField' must be given.")
    if leftField is not None and rightField is not None:

        def pair(element: Any, other: Any) -> bool:
            # Outside a join both fields are those of the one element (documented on ee.Filter.lessThan).
            right = element if other is None else other
            return _safe(compare, field_of(element, leftField), field_of(right, rightField))

        return pair
    if leftField is not None:
        return lambda element, _: _safe(compare, field_of(element, leftField), rightValue)
    field = str(rightField)
    return lambda element, _: _safe(compare, leftValue, field_of(element, field))


def measured(
    distance: Callable[[Any, Any], float | None],
    leftField: str | None,
    rightValue: Any,
    rightField: str | None,
    leftValue: Any,
) -> Callable[[Any, Any], float | None]:
    """How far apart a pair is that passed the filter with these operands."""

    def measure(element: Any, other: Any) -> float | None:
        left = leftValue if leftField is None else field_of(element, leftField)
        right = rightValue if rightField is None else field_of(element if leftField is None else other, rightField)
        return None if left is None or right is None else distance(left, right)

    return measure


def _first_measure(filters: Sequence[Filter]) -> Callable[[Any, Any], float | None] | None:
    """The measure of the first filter that the pair passes and that has one (assumed for And and Or alike)."""
    having = [(condition, condition.measure) for condition in filters if condition.measure is not None]
    if not having:
        return None
    return lambda left, right: next((measure(left, right) for test, measure in having if test(left, right)), None)


def _safe(compare: Compare, left: Any, right: Any) -> bool:
    if left is None or right is None:
        return False
    try:
        return bool(compare(left, right))
    except TypeError:
        return False


def plain(value: Any) -> Any:
    """Dates compare as numbers."""
    return value.ms if isinstance(value, Date) else value


_COMPARISONS: dict[tuple[str, ...], Compare] = {
    ("equals", "eq"): lambda a, b: plain(a) == plain(b),
    ("notEquals", "neq"): lambda a, b: plain(a) != plain(b),
    ("lessThan", "lt"): lambda a, b: plain(a) < plain(b),
    ("lessThanOrEquals", "lte"): lambda a, b: plain(a) <= plain(b),
    ("greaterThan", "gt"): lambda a, b: plain(a) > plain(b),
    ("greaterThanOrEquals", "gte"): lambda a, b: plain(a) >= plain(b),
    ("stringContains",): lambda a, b: b in a,
    ("stringStartsWith",): lambda a, b: a.startswith(b),
    ("stringEndsWith",): lambda a, b: a.endswith(b),
    ("listContains",): lambda a, b: b in a,
    ("inList",): lambda a, b: a in b,
}


def _compare(
    context: Context,
    leftField: str | None,
    rightValue: Any,
    rightField: str | None,
    leftValue: Any,
    *,
    compare: Compare,
    name: str,
) -> Filter:
    hints = Hints()
    if name == "equals" and leftField == "system:index" and isinstance(rightValue, str):
        hints = Hints(index=rightValue)
    return Filter(operands(compare, leftField, rightValue, rightField, leftValue), hints)


for _names, _function in _COMPARISONS.items():
    algorithm(*(f"Filter.{name}" for name in _names))(partial(_compare, compare=_function, name=_names[0]))


@algorithm("Filter.always")
def always(context: Context) -> Filter:
    return Filter(lambda element, other: True)


@algorithm("Filter.never")
def never(context: Context) -> Filter:
    return Filter(lambda element, other: False)


@algorithm("Filter.notNull")
def not_null(context: Context, properties: Sequence[str]) -> Filter:
    return Filter(lambda element, other: all(field_of(element, name) is not None for name in properties))


@algorithm("Filter.hasGeometry")
def has_geometry(context: Context) -> Filter:
    return Filter(lambda element, other: element.geometry is not None)


@algorithm("Filter.and")
def all_of(context: Context, filters: Sequence[Filter]) -> Filter:
    hints = Hints()
    for condition in filters:
        hints = hints.narrowed(condition.hints)
    measure = _first_measure(filters)
    return Filter(lambda element, other: all(condition(element, other) for condition in filters), hints, measure)


@algorithm("Filter.or")
def any_of(context: Context, filters: Sequence[Filter]) -> Filter:
    hints = filters[0].hints if filters else Hints()
    for condition in filters[1:]:
        hints = hints.widened(condition.hints)
    measure = _first_measure(filters)
    return Filter(lambda element, other: any(condition(element, other) for condition in filters), hints, measure)


@algorithm("Filter.not")
def negation(context: Context, filter: Filter) -> Filter:
    return Filter(lambda element, other: not filter(element, other))


@algorithm("Filter.dateRangeContains")
def date_range_contains(
    context: Context, leftField: str | None, rightValue: Any, rightField: str | None, leftValue: Any
) -> Filter:
    def contains(window: Any, when: Any) -> bool:
        date = to_date(when)
        return isinstance(window, DateRange) and isinstance(date, Date) and window.contains(date.ms)

    hints = Hints()
    if isinstance(leftValue, DateRange) and rightField == "system:time_start":
        hints = Hints(start_ms=int(leftValue.start), end_ms=int(-(-leftValue.end // 1)))
    return Filter(operands(contains, leftField, rightValue, rightField, leftValue), hints)


@algorithm("Filter.rangeContains")
def range_contains(context: Context, field: str, minValue: Any, maxValue: Any) -> Filter:
    def inside(element: Any, other: Any) -> bool:
        value = plain(field_of(element, field))
        return value is not None and plain(minValue) <= value <= plain(maxValue)

    return Filter(inside)


@algorithm("Filter.maxDifference")
def max_difference(
    context: Context,
    difference: float,
    leftField: str | None,
    rightValue: Any,
    rightField: str | None,
    leftValue: Any,
) -> Filter:
    def apart(a: Any, b: Any) -> float:
        return float(abs(plain(a) - plain(b)))

    given = (leftField, rightValue, rightField, leftValue)
    return Filter(operands(lambda a, b: apart(a, b) <= difference, *given), measure=measured(apart, *given))


_CALENDAR: dict[str, Callable[[Any], int]] = {
    "year": lambda when: int(when.year),
    "month": lambda when: int(when.month),
    "hour": lambda when: int(when.hour),
    "minute": lambda when: int(when.minute),
    "day_of_year": lambda when: int(when.timetuple().tm_yday),
    "day_of_month": lambda when: int(when.day),
    "day_of_week": lambda when: int(when.isoweekday()),
}


@algorithm("Filter.calendarRange")
def calendar_range(context: Context, start: int, end: int | None, field: str) -> Filter:
    """Both ends are included; end < start wraps around."""
    if field not in _CALENDAR:
        raise EarthEngineError(f"Filter.calendarRange: Unknown field '{field}'. Known: {sorted(_CALENDAR)}.")
    last = start if end is None else end

    def inside(element: Any, other: Any) -> bool:
        when = to_date(field_of(element, "system:time_start"))
        if not isinstance(when, Date):
            return False
        value = _CALENDAR[field](when.when())
        return start <= value <= last if start <= last else value >= start or value <= last

    return Filter(inside)


@algorithm("Filter.dayOfYear")
def day_of_year(context: Context, start: int, end: int) -> Filter:
    condition: Filter = calendar_range(context, start, end, "day_of_year")
    return condition


# -- geometry ---------------------------------------------------------------------------------------------------------


def _shape(value: Any) -> Geometry | None:
    geometry = to_geometry(value)
    return geometry if isinstance(geometry, Geometry) else None


def _spatial(test: Callable[[Geometry, Geometry], bool]) -> Compare:
    def compare(left: Any, right: Any) -> bool:
        a, b = _shape(left), _shape(right)
        return a is not None and b is not None and test(a, b)

    return compare


def _once_per_outline(compare: Compare) -> Compare:
    """The same relation; passes over one frame share its outline, and a search compares them with one region."""
    known: dict[Any, tuple[Any, bool]] = {}

    def remembered(left: Any, right: Any) -> bool:
        if not (isinstance(left, Geometry) and isinstance(right, Geometry)):
            return compare(left, right)
        key = id(left.shape), left.crs, left.geodesic, id(right.shape), right.crs, right.geodesic
        if key not in known:
            # The shapes are kept with the answer, so that no other shape takes their ids.
            known[key] = (left.shape, right.shape), compare(left, right)
        return known[key][1]

    return remembered


_RELATIONS: dict[str, Compare] = {
    "intersects": _spatial(lambda a, b: bool(a.lonlat.intersects(b.lonlat))),
    "disjoint": _spatial(lambda a, b: bool(a.lonlat.disjoint(b.lonlat))),
    "contains": _spatial(lambda a, b: bool(a.lonlat.covers(b.lonlat))),
    "isContained": _spatial(lambda a, b: bool(b.lonlat.covers(a.lonlat))),
}


def _relate(
    context: Context,
    leftField: str | None,
    rightValue: Any,
    rightField: str | None,
    leftValue: Any,
    maxError: Any,
    *,
    name: str,
) -> Filter:
    right, left = _fixed(rightValue), _fixed(leftValue)
    hints = Hints()
    if name in ("intersects", "contains") and leftField in GEOMETRY_FIELDS and isinstance(right, Geometry):
        hints = Hints(bounds=right.bounds_lonlat())
    return Filter(operands(_once_per_outline(_RELATIONS[name]), leftField, right, rightField, left), hints)


def _fixed(value: Any) -> Any:
    """A constant operand as one geometry, so that a collection is dissolved once and not per element."""
    return to_geometry(value) if isinstance(value, Collection | Feature | Image | dict) else value


for _relation in _RELATIONS:
    algorithm(f"Filter.{_relation}")(partial(_relate, name=_relation))


@algorithm("Filter.withinDistance")
def within_distance(
    context: Context,
    distance: float,
    leftField: str | None,
    rightValue: Any,
    rightField: str | None,
    leftValue: Any,
    maxError: Any,
) -> Filter:
    def metres(left: Any, right: Any) -> float | None:
        a, b = _shape(left), _shape(right)
        return None if a is None or b is None else distance_m(a, b)

    given = (leftField, rightValue, rightField, leftValue)
    compare = _spatial(lambda a, b: distance_m(a, b) <= distance)
    return Filter(operands(compare, *given), measure=measured(metres, *given))
