"""Pacing, the AIMD window, budgets and retries in simulated time: no thread runs and nothing sleeps."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbuild.errors import SourceError
from mmbuild.throttle import (
    FIRST_WINDOW,
    LONGEST_DELAY_S,
    RESTRICTED_WINDOW,
    TIERS,
    TRIES,
    Budget,
    Limits,
    Pace,
    RetryBudget,
    Run,
    Spending,
    Spent,
    Throttle,
    Window,
    delay_s,
    used_up,
    with_retries,
)

FINE = Spent(sent_bytes=10, received_bytes=100, eecu_s=0.5)
BUSY = Spent(received_bytes=20, throttled=True)


def simulate(
    latency: Callable[[int], float], seconds: float, *, answer: Callable[[float], Spent] = lambda now: FINE
) -> list[float]:
    """When requests left, with always one more waiting; ``latency`` by number, ``answer`` by the time it came."""
    throttle, now = Throttle(Limits(), 0.0), 0.0
    left: list[float] = []
    under_way: list[tuple[float, int]] = []
    while now < seconds:
        wait = throttle.wait_s(now)
        if wait <= 0:
            number = throttle.start()
            left.append(now)
            heapq.heappush(under_way, (now + latency(number), number))
            continue
        due = now + wait
        if under_way and under_way[0][0] <= due:
            due, number = heapq.heappop(under_way)
            throttle.end()
            throttle.note(number, answer(due), due)
        now = due
    return left


@pytest.mark.parametrize(("latency", "ideal"), [(0.05, 100.0), (0.3, 100.0), (1.0, 40.0)])
def test_after_ramp_up_the_rate_is_at_least_97_percent_of_the_ideal(latency: float, ideal: float) -> None:
    left = simulate(lambda number: latency, 60.0)
    steady = [t for t in left if 6.0 <= t < 60.0]
    assert len(steady) / 54.0 >= 0.97 * ideal


@given(st.integers(0, 2**32), st.floats(0.001, 3.0))
def test_no_second_sees_more_than_the_limit_and_never_more_than_40_are_under_way(seed: int, mean: float) -> None:
    draw = random.Random(seed)
    delays = [draw.expovariate(1 / mean) for _ in range(4000)]
    left = simulate(lambda number: delays[number % 4000], 6.0)
    for first, when in enumerate(left):
        assert len([t for t in left[first : first + 200] if t < when + 1.0]) <= 100
    ends = [when + delays[(number + 1) % 4000] for number, when in enumerate(left)]
    for when in left:
        assert sum(start <= when < end for start, end in zip(left, ends, strict=True)) <= 40


def leave(pace: Pace, asked: list[float]) -> list[float]:
    """When requests leave that are there at these times, each waiting for the one before it."""
    now, left = 0.0, []
    for when in asked:
        now = max(now, when)
        while (wait := pace.wait_s(now)) > 0:
            now += wait
        pace.take()
        left.append(now)
    return left


def test_requests_after_a_rest_leave_one_by_one_at_most_twice_as_fast_as_evenly() -> None:
    left = leave(Pace(100.0), [1000.0] * 50)
    assert min(later - earlier for earlier, later in itertools.pairwise(left)) == pytest.approx(0.5 * 1.005 / 99)


def test_what_late_threads_missed_is_caught_up_within_the_second() -> None:
    even = [k * 1.005 / 99 for k in range(990)]
    # Every tenth request is asked for 50 ms late, and so are all that wait behind it.
    left = leave(Pace(100.0), [when + 0.05 * (k % 10 == 9) for k, when in enumerate(even)])
    assert 990 / (left[-1] - left[0]) > 98


def test_an_infinite_rate_never_waits() -> None:
    pace = Pace(math.inf)
    for _ in range(1000):
        assert pace.wait_s(0.0) == 0.0
        pace.take()


@pytest.mark.parametrize(("rate", "apart"), [(1.0, 1.005), (0.5, 2.01)])
def test_a_rate_of_one_request_a_second_or_less_is_kept_too(rate: float, apart: float) -> None:
    assert leave(Pace(rate), [0.0] * 3) == pytest.approx([0.0, apart, 2 * apart])


def test_a_clock_that_steps_back_lets_nobody_pass_earlier() -> None:
    pace = Pace(100.0)
    pace.wait_s(50.0)
    pace.take()
    assert pace.wait_s(10.0) > 40
    assert 0 < pace.wait_s(50.0) < 0.01


# -- the window ---------------------------------------------------------------------------------------------------


def test_the_window_starts_low_and_doubles_each_round_trip() -> None:
    window = Window(40)
    seen = [window.limit]
    number = 0
    while window.limit < 40:
        trip = range(number + 1, number + 1 + window.limit)
        for number in trip:
            window.leave(number, number - trip.start + 1)
        for answered in trip:
            window.grow(answered)
        seen.append(window.limit)
    assert seen == [FIRST_WINDOW, 8, 16, 32, 40]


def test_all_429s_of_one_round_trip_halve_the_window_once() -> None:
    window = Window(40)
    window.size = 40.0
    told = [window.halve(number, 40, 40) for number in range(1, 41)]
    assert told == [True] + [False] * 39
    assert window.limit == 20


def test_a_429_of_the_next_round_trip_halves_it_again_down_to_one() -> None:
    window = Window(40)
    for trip in range(1, 9):
        window.halve(trip * 10, trip * 10, 40)
    assert window.limit == 1


def test_after_a_429_the_window_grows_by_one_each_round_trip() -> None:
    window = Window(40)
    window.size = 40.0
    window.halve(40, 40, 40)
    for number in range(41, 61):
        window.leave(number, number - 40)
    for number in range(41, 61):
        window.grow(number)
    assert window.size == pytest.approx(21, abs=0.05)


def test_a_window_that_is_not_full_does_not_grow() -> None:
    window = Window(40)
    for number in range(1, 100):
        window.leave(number, 1)
        window.grow(number)
    assert window.limit == FIRST_WINDOW


def test_a_429_below_a_full_window_halves_what_was_under_way() -> None:
    window = Window(40)
    window.size = 40.0
    window.halve(8, 8, 8)
    assert window.limit == 4


def test_restricted_mode_is_respected_from_its_header_until_a_later_answer_lacks_it() -> None:
    throttle = Throttle(Limits(), 0.0)
    throttle.window.size = 40.0
    numbers = [throttle.start() for _ in range(10)]
    throttle.note(numbers[0], Spent(received_bytes=1, restricted=True), 1.0)
    assert throttle.window.limit == RESTRICTED_WINDOW
    throttle.note(numbers[1], Spent(received_bytes=1), 1.0)
    assert throttle.window.limit == RESTRICTED_WINDOW, "an answer that left before says nothing about now"
    for _ in numbers:
        throttle.end()
    throttle.note(throttle.start(), Spent(received_bytes=1), 2.0)
    assert throttle.window.limit == 40


def test_a_broken_connection_does_not_end_restricted_mode() -> None:
    throttle = Throttle(Limits(), 0.0)
    throttle.note(throttle.start(), Spent(received_bytes=1, restricted=True), 1.0)
    throttle.note(throttle.start(), Spent(), 2.0)
    assert throttle.window.restricted


def test_a_429_holds_everything_back_and_longer_each_time() -> None:
    throttle = Throttle(Limits(), 0.0)
    now, waits = 0.0, []
    for _ in range(7):
        now += throttle.wait_s(now)
        number = throttle.start()
        throttle.end()
        throttle.note(number, BUSY, now)
        waits.append(throttle.wait_s(now))
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    now += throttle.wait_s(now)
    number = throttle.start()
    throttle.end()
    throttle.note(number, FINE, now)
    assert throttle.wait_s(now + 0.02) == 0.0


def test_a_storm_of_429s_costs_few_requests_and_the_rate_comes_back() -> None:
    def storm(now: float) -> Spent:
        return BUSY if 20.0 <= now < 50.0 else FINE

    left = simulate(lambda number: 0.3, 150.0, answer=storm)
    # At full rate it would be 2,910 requests.
    assert len([t for t in left if 20.5 <= t < 50.0]) < 60
    assert len([t for t in left if 130.0 <= t < 150.0]) / 20.0 >= 95


# -- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "used", "seconds", "text"),
    [
        (Budget(max_requests=5), Spending(requests=5), 0, "--max-requests 5 is used up: 5 requests were sent"),
        (Budget(max_gb=1.5), Spending(received_bytes=1_600_000_000), 0, "--max-gb 1.5 is used up: 1.6 GB"),
        (Budget(max_minutes=2), Spending(), 121, "--max-minutes 2 is used up: the run took 2.0 minutes"),
        (
            Budget(max_eecu_hours=1),
            Spending(eecu_s=3600.0, metered=1),
            0,
            "--max-eecu-hours 1 is used up: 1 EECU-hours",
        ),
        (Budget(max_eecu_hours=1), Spending(answered=1), 0, "cannot be kept: the first answer did not tell"),
    ],
)
def test_a_budget_that_is_used_up_says_which_and_how_much(
    budget: Budget, used: Spending, seconds: float, text: str
) -> None:
    assert text in (used_up(budget, used, seconds) or "")


def test_a_budget_with_something_left_is_silent() -> None:
    budget = Budget(max_requests=5, max_gb=1, max_minutes=2, max_eecu_hours=1)
    used = Spending(requests=4, received_bytes=10**8, eecu_s=3599.0, metered=4, answered=4)
    assert used_up(budget, used, 119.0) is None
    assert used_up(Budget(), Spending(requests=10**9), 1e9) is None


def test_a_run_counts_what_it_sends_and_stops_for_good() -> None:
    run = Run(Throttle(Limits(), 0.0), Budget(max_requests=3), 0.0)
    numbers = []
    while run.stopped(0.0) is None:
        numbers.append(run.start())
    assert len(numbers) == 3
    for number in numbers:
        run.end()
        run.note(number, FINE, 1.0)
    assert run.used == Spending(
        requests=3, sent_bytes=30, received_bytes=300, eecu_s=1.5, metered=3, answered=3, peak_in_flight=3
    )
    assert run.stopped(2.0) == "--max-requests 3 is used up: 3 requests were sent"


def test_what_others_used_of_a_budget_counts_and_the_budget_is_named_as_it_was_given() -> None:
    run = Run(Throttle(Limits(), 0.0), Budget(max_requests=10, max_minutes=5), 0.0, Spending(requests=9), seconds=60.0)
    assert run.stopped(0.0) is None
    assert run.left_s(0.0) == 240.0
    run.start()
    assert run.stopped(0.0) == "--max-requests 10 is used up: 10 requests were sent"
    assert run.used.requests == 1


def test_the_spending_of_two_parts_adds_up_and_peaks_do_not() -> None:
    first = Spending(requests=1, peak_in_flight=7, eecu_s=1.0)
    first.merge(Spending(requests=2, peak_in_flight=5, eecu_s=0.5))
    assert first == Spending(requests=3, peak_in_flight=7, eecu_s=1.5)


def test_the_tiers_are_those_of_the_service() -> None:
    assert TIERS == {"community": 150.0, "contributor": 1_000.0, "partner": 100_000.0}


# -- retries ------------------------------------------------------------------------------------------------------


def test_full_jitter_spreads_from_nothing_to_the_longest_delay() -> None:
    assert delay_s(1, 0.0) == 0.0
    assert [delay_s(attempt, 1.0) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, LONGEST_DELAY_S, LONGEST_DELAY_S]


def test_the_tries_of_a_request_outlast_an_outage_of_half_a_minute() -> None:
    draw = random.Random(1)
    short = sum(sum(delay_s(n, draw.random()) for n in range(1, TRIES)) < 30.0 for _ in range(20_000))
    assert short / 20_000 < 0.001


def outage(failures: int) -> Callable[[], str]:
    left = [failures]

    def ask() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise SourceError("503", transient=True)
        return "answer"

    return ask


def test_only_transient_errors_are_tried_again() -> None:
    slept: list[float] = []
    assert with_retries(outage(3), sleep=slept.append) == "answer"
    assert len(slept) == 3
    with pytest.raises(SourceError):
        with_retries(outage(TRIES), sleep=slept.append)

    def wrong() -> str:
        raise SourceError("404")

    slept.clear()
    with pytest.raises(SourceError):
        with_retries(wrong, sleep=slept.append)
    assert slept == []


def test_a_retry_budget_ends_retries_that_never_help_and_answers_earn_it_back() -> None:
    budget = RetryBudget(share=0.5, reserve=4)
    retried: list[SourceError] = []
    for _ in range(5):
        with pytest.raises(SourceError):
            with_retries(outage(99), sleep=lambda s: None, on_retry=retried.append, budget=budget)
    assert len(retried) == 4
    for _ in range(4):
        with_retries(outage(0), sleep=lambda s: None, budget=budget)
    assert with_retries(outage(2), sleep=lambda s: None, budget=budget) == "answer"
    assert budget.left == pytest.approx(0.5)
