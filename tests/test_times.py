"""Windows are half-open and in UTC."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbuild.times import as_utc, month_start, parse_date, window_around, year_window

MOMENTS = st.datetimes(datetime(1972, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-06-04", datetime(2020, 6, 4, tzinfo=UTC)),
        (" 2020-06-04T05:46:39Z ", datetime(2020, 6, 4, 5, 46, 39, tzinfo=UTC)),
        ("2020-06-04 05:46", datetime(2020, 6, 4, 5, 46, tzinfo=UTC)),
        ("2020-06-04T05:46:39.5+02:00", datetime(2020, 6, 4, 3, 46, 39, 500_000, tzinfo=UTC)),
        ("2021-07-23T13:22:41.000000000", datetime(2021, 7, 23, 13, 22, 41, tzinfo=UTC)),
    ],
)
def test_iso_dates_are_read_as_utc(text: str, expected: datetime) -> None:
    assert parse_date(text) == expected
    assert parse_date(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["", "2020", "2020-13-01", "2020-02-30", "04.06.2020", "06/04/2020", "soon", "20200604"]
)
def test_anything_else_is_refused_with_the_text_and_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date") as error:
        parse_date(text)
    assert repr(text) in str(error.value)
    assert "YYYY-MM-DD" in str(error.value)


def test_a_time_without_a_zone_is_utc() -> None:
    assert as_utc(datetime(2020, 1, 1)) == datetime(2020, 1, 1, tzinfo=UTC)
    east = timezone(timedelta(hours=9))
    assert as_utc(datetime(2020, 1, 1, 3, tzinfo=east)) == datetime(2019, 12, 31, 18, tzinfo=UTC)


@pytest.mark.parametrize("year", [2019, 2020, 2100])
def test_a_year_holds_its_last_moment_and_not_the_next_year(year: int) -> None:
    start, end = year_window(year)
    assert start <= datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC) < end
    assert end == year_window(year + 1)[0]


@given(MOMENTS, st.integers(-30, 30))
def test_month_starts_follow_each_other_without_gaps(when: datetime, offset: int) -> None:
    start, after = month_start(when, offset), month_start(when, offset + 1)
    assert start.day == 1
    assert (start.hour, start.minute, start.second, start.microsecond) == (0, 0, 0, 0)
    assert (after - start).days == monthrange(start.year, start.month)[1]


@given(MOMENTS)
def test_a_moment_lies_in_its_own_month(when: datetime) -> None:
    assert month_start(when) <= when < month_start(when, 1)


def test_months_before_january_are_in_the_year_before() -> None:
    when = datetime(2020, 1, 15, tzinfo=UTC)
    assert month_start(when, -1) == datetime(2019, 12, 1, tzinfo=UTC)
    assert month_start(when, -11) == datetime(2019, 2, 1, tzinfo=UTC)
    assert month_start(when, 12) == datetime(2021, 1, 1, tzinfo=UTC)


def test_a_window_around_a_moment_is_as_long_as_said_on_both_sides() -> None:
    when = datetime(2020, 3, 1, 12, tzinfo=UTC)
    assert window_around(when, 1.5) == (datetime(2020, 2, 29, tzinfo=UTC), datetime(2020, 3, 3, tzinfo=UTC))
