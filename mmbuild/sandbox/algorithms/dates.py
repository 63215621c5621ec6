"""Date.* and DateRange.*: instants in milliseconds, calendar arithmetic in a time zone, Joda format patterns."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from mmbuild.sandbox.coerce import parse_date, time_zone, to_date
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.values import EPOCH, Date, DateRange, EarthEngineError

HOUR_MS = 3_600_000.0
# Mean lengths of the Gregorian calendar, which `difference` and fractional steps use (documented: average length).
UNIT_MS = {
    "year": 365.2425 * 24 * HOUR_MS,
    "month": 365.2425 / 12 * 24 * HOUR_MS,
    "week": 7 * 24 * HOUR_MS,
    "day": 24 * HOUR_MS,
    "hour": HOUR_MS,
    "minute": 60_000.0,
    "second": 1000.0,
}


def unit_name(unit: str) -> str:
    """The unit in the singular; EarthEngineError for an unknown one."""
    name = unit.lower().removesuffix("s")
    if name not in UNIT_MS:
        raise EarthEngineError(f"Date: Unknown unit '{unit}'. Known: {', '.join(UNIT_MS)}.")
    return name


def _from_datetime(when: datetime) -> Date:
    return Date((when - EPOCH) / timedelta(milliseconds=1))


@algorithm("Date")
def make(context: Context, value: Any, timeZone: str | None) -> Date:
    if isinstance(value, str):
        return parse_date(value, time_zone(timeZone))
    date = to_date(value)
    if not isinstance(date, Date):
        raise EarthEngineError("Date: The value must be a number, a string or a Date.")
    return date


@algorithm("Date.fromYMD")
def from_ymd(context: Context, year: int, month: int, day: int, timeZone: str | None) -> Date:
    try:
        return _from_datetime(datetime(year, month, day, tzinfo=time_zone(timeZone)))
    except ValueError as error:
        raise EarthEngineError(f"Date.fromYMD: {year}-{month}-{day}: {error}.") from error


@algorithm("Date.millis")
def millis(context: Context, date: Date) -> int:
    return int(date.ms)


@algorithm("Date.difference")
def difference(context: Context, date: Date, start: Date, unit: str) -> float:
    return (date.ms - start.ms) / UNIT_MS[unit_name(unit)]


@algorithm("Date.unitRatio")
def unit_ratio(context: Context, numerator: str, denominator: str) -> float:
    return UNIT_MS[unit_name(numerator)] / UNIT_MS[unit_name(denominator)]


def shifted(date: Date, steps: float, unit: str, zone: Any = UTC) -> Date:
    """The date moved by whole calendar months or years (the day clipped to the month), or by exact lengths."""
    name = unit_name(unit)
    if name in ("year", "month"):
        whole = int(steps)
        moved = _shift_months(date.when(zone), whole * (12 if name == "year" else 1))
        return Date(_from_datetime(moved).ms + (steps - whole) * UNIT_MS[name])
    if name in ("day", "week") and zone is not UTC:
        days = int(steps) * (7 if name == "week" else 1)
        rest = (steps - int(steps)) * UNIT_MS[name]
        return Date(_from_datetime(date.when(zone) + timedelta(days=days)).ms + rest)
    return Date(date.ms + steps * UNIT_MS[name])


def _shift_months(when: datetime, months: int) -> datetime:
    index = when.year * 12 + when.month - 1 + months
    year, month = divmod(index, 12)
    day = min(when.day, calendar.monthrange(year, month + 1)[1])
    return when.replace(year=year, month=month + 1, day=day)


@algorithm("Date.advance")
def advance(context: Context, date: Date, delta: float, unit: str, timeZone: str | None) -> Date:
    return shifted(date, delta, unit, time_zone(timeZone))


def floor_to(date: Date, unit: str, zone: Any) -> Date:
    """The start of the unit that contains the date; weeks start on Monday."""
    when, name = date.when(zone), unit_name(unit)
    day = when.replace(hour=0, minute=0, second=0, microsecond=0)
    starts: dict[str, datetime] = {
        "year": day.replace(month=1, day=1),
        "month": day.replace(day=1),
        "week": day - timedelta(days=day.weekday()),
        "day": day,
        "hour": when.replace(minute=0, second=0, microsecond=0),
        "minute": when.replace(second=0, microsecond=0),
        "second": when.replace(microsecond=0),
    }
    return _from_datetime(starts[name])


@algorithm("Date.getRange")
def get_range(context: Context, date: Date, unit: str, timeZone: str | None) -> DateRange:
    zone = time_zone(timeZone)
    start = floor_to(date, unit, zone)
    return DateRange(start.ms, shifted(start, 1, unit, zone).ms)


_FIELDS: dict[str, Callable[[datetime], int]] = {
    "year": lambda when: when.year,
    "month": lambda when: when.month,
    "week": lambda when: when.isocalendar().week,
    "day": lambda when: when.day,
    "hour": lambda when: when.hour,
    "minute": lambda when: when.minute,
    "second": lambda when: when.second,
}


@algorithm("Date.get")
def get(context: Context, date: Date, unit: str, timeZone: str | None) -> int:
    return _FIELDS[unit_name(unit)](date.when(time_zone(timeZone)))


@algorithm("Date.getRelative")
def get_relative(context: Context, date: Date, unit: str, inUnit: str, timeZone: str | None) -> int:
    """How many whole units have passed since the larger unit began (0-based)."""
    zone = time_zone(timeZone)
    start = floor_to(date, inUnit, zone)
    if unit_name(unit) == "month":
        a, b = start.when(zone), date.when(zone)
        return (b.year - a.year) * 12 + b.month - a.month
    return int((date.ms - start.ms) // UNIT_MS[unit_name(unit)])


@algorithm("Date.getFraction")
def get_fraction(context: Context, date: Date, unit: str, timeZone: str | None) -> float:
    window = get_range(context, date, unit, timeZone)
    return float((date.ms - window.start) / (window.end - window.start))


@algorithm("Date.update")
def update(
    context: Context,
    date: Date,
    year: int | None,
    month: int | None,
    day: int | None,
    hour: int | None,
    minute: int | None,
    second: Any,
    timeZone: str | None,
) -> Date:
    given = {"year": year, "month": month, "day": day, "hour": hour, "minute": minute}
    when = date.when(time_zone(timeZone))
    try:
        when = when.replace(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValueError as error:
        raise EarthEngineError(f"Date.update: {error}.") from error
    if second is not None:
        when = when.replace(second=0, microsecond=0) + timedelta(seconds=float(second))
    return _from_datetime(when)


_TOKEN = re.compile(r"'([^']*)'|([A-Za-z])\2*|[^A-Za-z']+")


@algorithm("Date.format")
def format_date(context: Context, date: Date, format: str | None, timeZone: str | None) -> str:
    when = date.when(time_zone(timeZone))
    pattern = format or "yyyy-MM-dd'T'HH:mm:ss"
    return "".join(_piece(match, when) for match in _TOKEN.finditer(pattern))


def _piece(match: re.Match[str], when: datetime) -> str:
    text = match.group(0)
    if match.group(1) is not None:
        return match.group(1) or "'"
    if match.group(2) is None:
        return text
    letter, length = text[0], len(text)
    if letter == "M" and length > 2:
        return calendar.month_name[when.month] if length > 3 else calendar.month_abbr[when.month]
    if letter == "E":
        return calendar.day_name[when.weekday()] if length > 3 else calendar.day_abbr[when.weekday()]
    if letter in "yYu":
        return f"{when.year % 100:02d}" if length == 2 else str(when.year).zfill(length)
    if letter in "zZ":
        return _zone(letter, length, when)
    if letter == "a":
        return "AM" if when.hour < 12 else "PM"
    if letter == "G":
        return "AD"
    if letter == "S":
        return f"{when.microsecond:06d}"[:length].ljust(length, "0")
    if letter not in _PATTERN:
        raise EarthEngineError(f"The offline Earth Engine does not know the date pattern '{text}'.")
    return str(_PATTERN[letter](when)).zfill(length)


def _zone(letter: str, length: int, when: datetime) -> str:
    """Z: the offset, ZZ: with a colon, ZZZ: the name of the zone; z: its abbreviation."""
    if letter == "z" and length > 3:
        raise EarthEngineError(f"The offline Earth Engine does not know the date pattern '{letter * length}'.")
    if letter == "z":
        return when.strftime("%Z")
    if length > 2:
        return str(when.tzinfo)
    offset = when.strftime("%z")
    return offset if length == 1 else f"{offset[:3]}:{offset[3:5]}"


_PATTERN: dict[str, Callable[[datetime], int]] = {
    "C": lambda when: when.year // 100,
    "K": lambda when: when.hour % 12,
    "k": lambda when: when.hour or 24,
    "M": lambda when: when.month,
    "d": lambda when: when.day,
    "D": lambda when: when.timetuple().tm_yday,
    "H": lambda when: when.hour,
    "h": lambda when: (when.hour - 1) % 12 + 1,
    "m": lambda when: when.minute,
    "s": lambda when: when.second,
    "w": lambda when: when.isocalendar().week,
    "x": lambda when: when.isocalendar().year,
    "e": lambda when: when.isoweekday(),
}


# Joda patterns and how strptime calls them, which reads numbers with and without leading zeros.
_CODES = {
    "yyyy": "%Y", "YYYY": "%Y", "yy": "%y", "YY": "%y", "MMMM": "%B", "MMM": "%b", "MM": "%m", "M": "%m", "dd": "%d",
    "d": "%d", "DDD": "%j", "HH": "%H", "H": "%H", "mm": "%M", "m": "%M", "ss": "%S", "s": "%S",
}  # fmt: skip


@algorithm("Date.parse")
def parse(context: Context, format: str, date: str, timeZone: str | None) -> Date:
    pieces = [match.group(1) or _CODES.get(match.group(0), match.group(0)) for match in _TOKEN.finditer(format)]
    try:
        return _from_datetime(datetime.strptime(date, "".join(pieces)).replace(tzinfo=time_zone(timeZone)))
    except ValueError as error:
        raise EarthEngineError(f"Date.parse: {error}.") from error


# -- ranges -----------------------------------------------------------------------------------------------------------


@algorithm("DateRange")
def make_range(context: Context, start: Any, end: Any, timeZone: str | None) -> DateRange:
    """Half-open; a single date is the one millisecond it names."""
    first = make(context, start, timeZone)
    last = Date(first.ms + 1) if end is None else make(context, end, timeZone)
    if last.ms < first.ms:
        raise EarthEngineError("DateRange: The end is before the start.")
    return DateRange(first.ms, last.ms)


@algorithm("DateRange.start")
def range_start(context: Context, dateRange: DateRange) -> Date:
    return Date(dateRange.start)


@algorithm("DateRange.end")
def range_end(context: Context, dateRange: DateRange) -> Date:
    return Date(dateRange.end)


@algorithm("DateRange.contains")
def range_contains(context: Context, dateRange: DateRange, other: Any) -> bool:
    if isinstance(other, DateRange):
        return dateRange.start <= other.start and other.end <= dateRange.end
    return dateRange.contains(make(context, other, None).ms)


@algorithm("DateRange.intersects")
def range_intersects(context: Context, dateRange: DateRange, other: DateRange) -> bool:
    return max(dateRange.start, other.start) < min(dateRange.end, other.end)


@algorithm("DateRange.intersection")
def range_intersection(context: Context, dateRange: DateRange, other: DateRange) -> DateRange:
    start = max(dateRange.start, other.start)
    return DateRange(start, max(start, min(dateRange.end, other.end)))


@algorithm("DateRange.union")
def range_union(context: Context, dateRange: DateRange, other: DateRange) -> DateRange:
    return DateRange(min(dateRange.start, other.start), max(dateRange.end, other.end))


@algorithm("DateRange.isEmpty")
def range_is_empty(context: Context, dateRange: DateRange) -> bool:
    return dateRange.start >= dateRange.end
