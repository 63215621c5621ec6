"""Dates and half-open UTC windows [start, end); it never asks what time it is now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_date(text: str) -> datetime:
    """Read an ISO 8601 date or date-time as UTC; a time without a zone is taken as UTC, a bare date as midnight.

    Raises ValueError, naming the text, when it is anything else.
    """
    text = text.strip()
    if not _DAY.match(text):
        raise ValueError(f"{text!r} is not a date; write YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ")
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date ({error}); write YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ") from None
    return as_utc(when)


def as_utc(when: datetime) -> datetime:
    """The same moment in UTC; a time without a zone is taken as UTC."""
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def year_window(year: int) -> tuple[datetime, datetime]:
    """The calendar year, its last day included."""
    return datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)


def month_start(when: datetime, offset: int = 0) -> datetime:
    """First moment of the calendar month ``offset`` months after the one that holds ``when`` (negative: before)."""
    when = as_utc(when)
    months = when.year * 12 + (when.month - 1) + offset
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def window_around(when: datetime, days: float) -> tuple[datetime, datetime]:
    """From ``days`` before to ``days`` after a moment; days may be fractions."""
    when, half = as_utc(when), timedelta(days=days)
    return when - half, when + half
