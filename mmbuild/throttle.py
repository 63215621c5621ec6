"""How often and how fast a source may be asked: pure state machines, wrapped by whoever talks to the network."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from mmbuild.errors import SourceError

Answer = TypeVar("Answer")

# Earth Engine's limits for one project (developers guide, "Quotas": 40 concurrent requests, 6,000 a minute).
CONCURRENT_REQUESTS = 40
REQUESTS_PER_SECOND = 100.0
# EECU-hours a month of the noncommercial tiers since 27 April 2026 (developers guide, "Noncommercial tiers").
COMMUNITY_EECU_HOURS = 150.0
CONTRIBUTOR_EECU_HOURS = 1_000.0
PARTNER_EECU_HOURS = 100_000.0
TIERS = {
    "community": COMMUNITY_EECU_HOURS,
    "contributor": CONTRIBUTOR_EECU_HOURS,
    "partner": PARTNER_EECU_HOURS,
}

# Of 100 requests that a second may have 99 leave, and a second is taken as 5 ms longer: a little unevenness of the way
# does not make more than 100 arrive. Two leave at least half the even distance apart, also to catch up.
SHARE, SECOND_S, CLOSEST = 0.99, 1.005, 0.5
# A window of requests under way starts here and doubles every round trip until the first 429.
FIRST_WINDOW = 4
# Requests under way in restricted mode: its limit is not published; few enough for any, enough to go on.
RESTRICTED_WINDOW = 2
# After a 429 nothing is sent for this long, doubled for each round trip that ends with another one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0

# With full jitter twelve tries wait 105 s on average and hardly ever less than 30 s: an outage of half a minute passes.
TRIES = 12
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
# Retries that a source may make: one in five requests, and this many more at a time, for an outage of all requests.
RETRY_SHARE, RETRY_RESERVE = 0.2, 1000.0


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one request cost and how it ended, as the gate that let it pass wants to know.

    throttled: the service said that too much was asked (429). restricted: it said that the project works in restricted
    mode. eecu_s: Earth Engine compute units times seconds, None where the answer does not tell. refused: whatever came
    is not what was asked for.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    eecu_s: float | None = None
    throttled: bool = False
    restricted: bool = False
    refused: bool = False


class Gate(Protocol):
    """Decides when a request may go out; one for everything that shares a quota, whatever the process."""

    def request(self) -> AbstractContextManager[None]:
        """Wait for a turn and hold it while the request is under way; QuotaStop when a budget is used up."""
        ...

    def rest(self, seconds: float) -> None:
        """Wait before a request is tried again; QuotaStop as soon as the run is over."""
        ...

    def report(self, spent: Spent) -> None:
        """Say what a request that was let pass has cost; called once for each, also for one that failed."""
        ...


# -- how fast -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a quota allows at most; ``per_second`` may be infinite."""

    in_flight: int = CONCURRENT_REQUESTS
    per_second: float = REQUESTS_PER_SECOND


class Pace:
    """Never more than ``per_second`` requests in any one second, whenever the second begins.

    It remembers when the last ones left. What was missed because a thread woke up late is caught up within the second;
    a bucket of tokens that is as strict has room for so few that it overflows, and what it spills is lost.
    """

    def __init__(self, per_second: float) -> None:
        self.is_free = math.isinf(per_second)
        most = 1 if self.is_free else max(1, int(per_second * SHARE))
        self._left: deque[float] = deque(maxlen=most)
        # Less than one a second is one in a longer time.
        self._second_s = SECOND_S if self.is_free else SECOND_S * max(1.0, 1 / per_second)
        self._apart_s = CLOSEST * self._second_s / most
        self._now = -math.inf

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may leave."""
        self._now = max(self._now, now)
        if self.is_free or not self._left:
            return 0.0
        due = self._left[-1] + self._apart_s
        if len(self._left) == self._left.maxlen:
            due = max(due, self._left[0] + self._second_s)
        return max(0.0, due - now)

    def take(self) -> None:
        """A request leaves, at the time that was last asked about."""
        if not self.is_free:
            self._left.append(self._now)


class Window:
    """How many requests may be under way: more while all is well, half as many after a 429 (AIMD).

    Requests are numbered as they leave. A 429 counts once for all requests that had left before it came: they say the
    same about the same moment.
    """

    def __init__(self, most: int) -> None:
        self.most, self.size = most, float(min(FIRST_WINDOW, most))
        self.restricted = False
        self._first_climb = True
        self._judged = 0  # the newest request that had left when the window last changed for the worse
        self._filled = 0  # the newest request that had left when the window was last full
        self._restricted_at = 0

    @property
    def limit(self) -> int:
        return min(int(self.size), RESTRICTED_WINDOW) if self.restricted else int(self.size)

    def leave(self, number: int, in_flight: int) -> None:
        """Take in that request ``number`` has left, as one of so many under way."""
        if in_flight >= self.limit:
            self._filled = number

    def halve(self, number: int, newest: int, in_flight: int) -> bool:
        """Take in a 429 of request ``number``; True when it tells something new."""
        if number <= self._judged:
            return False
        # A window that was not full did not cause it; half of what was under way will.
        self.size = max(1.0, min(self.size, float(max(1, in_flight))) / 2)
        self._judged, self._first_climb = newest, False
        return True

    def grow(self, number: int) -> bool:
        """Take in an answer to request ``number``; True when it left after the last 429 came.

        A window that has not been full since the request left was wide enough, and grows no wider.
        """
        if number <= self._judged:
            return False
        if number <= self._filled and not self.restricted:
            self.size = min(float(self.most), self.size + (1.0 if self._first_climb else 1.0 / self.size))
        return True

    def restrict(self, number: int, newest: int, restricted: bool) -> None:
        """Take in whether the answer to request ``number`` said that the project is in restricted mode."""
        if restricted:
            self.restricted, self._restricted_at = True, newest
        elif number > self._restricted_at:
            self.restricted = False


class Throttle:
    """When the next request may leave, for all that share a quota: pace, window and the pause after a 429."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.pace, self.window = Pace(limits.per_second), Window(limits.in_flight)
        self.in_flight = self.newest = 0
        self._pause_s, self._paused_until = 0.0, now

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may leave; infinite until one that is under way ends."""
        if self.in_flight >= self.window.limit:
            return math.inf
        return max(self.pace.wait_s(now), self._paused_until - now, 0.0)

    def start(self) -> int:
        """A request leaves now; its number."""
        self.pace.take()
        self.in_flight += 1
        self.newest += 1
        self.window.leave(self.newest, self.in_flight)
        return self.newest

    def end(self) -> None:
        """A request is no longer under way, however it ended."""
        self.in_flight -= 1

    def note(self, number: int, spent: Spent, now: float) -> None:
        """Take in what the answer to a request said about the quota."""
        if spent.restricted or (spent.received_bytes and not spent.throttled):
            self.window.restrict(number, self.newest, spent.restricted)
        if spent.throttled:
            if self.window.halve(number, self.newest, self.in_flight):
                self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
                self._paused_until = now + self._pause_s
        elif self.window.grow(number):
            self._pause_s = 0.0


# -- how much -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one run may use at most; None is no limit. A GB is 10^9 bytes, sent and received."""

    max_requests: int | None = None
    max_eecu_hours: float | None = None
    max_gb: float | None = None
    max_minutes: float | None = None


@dataclass(kw_only=True)
class Spending:
    """What a run has used: ``requests`` left, ``answered`` of them were given what they asked for.

    metered: answers that told their EECU.
    """

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    eecu_s: float = 0.0
    metered: int = 0
    answered: int = 0
    throttled: int = 0
    restricted: int = 0
    peak_in_flight: int = 0

    def add(self, spent: Spent) -> None:
        """Count the answer to a request."""
        self.sent_bytes += spent.sent_bytes
        self.received_bytes += spent.received_bytes
        self.eecu_s += spent.eecu_s or 0.0
        self.metered += spent.eecu_s is not None
        self.answered += bool(spent.received_bytes) and not spent.throttled and not spent.refused
        self.throttled += spent.throttled
        self.restricted += spent.restricted

    def merge(self, other: Spending) -> None:
        """Add what another part of the same run has used."""
        for name in vars(self):
            mine, its = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, its) if name == "peak_in_flight" else mine + its)


UNMETERED = "the first answer did not tell what it had cost"


def used_up(budget: Budget, used: Spending, seconds: float) -> str | None:
    """Which budget is used up, with the numbers; None while every one has something left.

    Requests under way when it says so still finish, so bytes and EECU may end a little above their budget.
    """
    gigabytes, hours = (used.sent_bytes + used.received_bytes) / 1e9, used.eecu_s / 3600
    if budget.max_requests is not None and used.requests >= budget.max_requests:
        return f"--max-requests {budget.max_requests} is used up: {used.requests} requests were sent"
    if budget.max_gb is not None and gigabytes >= budget.max_gb:
        return f"--max-gb {budget.max_gb:g} is used up: {gigabytes:.3g} GB were sent and received"
    if budget.max_minutes is not None and seconds >= budget.max_minutes * 60:
        return f"--max-minutes {budget.max_minutes:g} is used up: the run took {seconds / 60:.1f} minutes"
    if budget.max_eecu_hours is None:
        return None
    if hours >= budget.max_eecu_hours:
        return f"--max-eecu-hours {budget.max_eecu_hours:g} is used up: {hours:.3g} EECU-hours were metered"
    # A budget of EECU that no answer tells anything about would be a promise that nobody keeps.
    if used.answered and not used.metered:
        return f"--max-eecu-hours {budget.max_eecu_hours:g} cannot be kept: {UNMETERED}; use --max-requests instead"
    return None


class Run:
    """One run on a shared throttle: its budget, what it has used, and why it must stop.

    before: what others have used of the same budget, in so many seconds; it counts towards the budget alone.
    """

    def __init__(
        self, throttle: Throttle, budget: Budget, now: float, before: Spending | None = None, seconds: float = 0.0
    ) -> None:
        self.throttle, self.budget, self.began = throttle, budget, now - seconds
        self.before, self.used = before or Spending(), Spending()
        self.under_way = 0
        self.reason: str | None = None

    def stopped(self, now: float) -> str | None:
        """Why no request may leave any more; once said it stays so."""
        if self.reason is None and self.budget != Budget():
            together = replace(self.before)
            together.merge(self.used)
            self.reason = used_up(self.budget, together, now - self.began)
        return self.reason

    def left_s(self, now: float) -> float:
        """Seconds until its time is up."""
        return math.inf if self.budget.max_minutes is None else self.began + self.budget.max_minutes * 60 - now

    def start(self) -> int:
        number = self.throttle.start()
        self.used.requests += 1
        self.under_way += 1
        self.used.peak_in_flight = max(self.used.peak_in_flight, self.under_way)
        return number

    def end(self) -> None:
        self.under_way -= 1
        self.throttle.end()

    def note(self, number: int, spent: Spent, now: float) -> None:
        self.used.add(spent)
        self.throttle.note(number, spent, now)


# -- trying again -------------------------------------------------------------------------------------------------


class RetryBudget:
    """Keeps retries a small share of all requests, beyond a reserve that an outage may use.

    Threads may share one; a count lost between two of them changes nothing that matters.
    """

    def __init__(self, share: float = RETRY_SHARE, reserve: float = RETRY_RESERVE) -> None:
        self.share, self.reserve, self.left = share, reserve, reserve

    def earn(self) -> None:
        """A request was answered."""
        self.left = min(self.reserve, self.left + self.share)

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


def delay_s(attempt: int, jitter: float) -> float:
    """Seconds to wait before try ``attempt`` + 1 (attempts count from 1): anything up to the longest.

    jitter: uniform in [0, 1); using all of it (full jitter) spreads clients that failed together the widest.
    """
    longest: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (attempt - 1))
    return longest * jitter


def with_retries(
    ask: Callable[[], Answer],
    *,
    sleep: Callable[[float], None],
    on_retry: Callable[[SourceError], None] = lambda error: None,
    tries: int = TRIES,
    budget: RetryBudget | None = None,
) -> Answer:
    """Call ``ask`` until it answers; only a transient SourceError is tried again, and the last one is raised."""
    budget = budget or RetryBudget()
    for attempt in range(1, tries):
        try:
            answer = ask()
        except SourceError as error:
            if not error.transient or not budget.spend():
                raise
            on_retry(error)
            # Jitter never reaches the data: it only spreads requests over time.
            sleep(delay_s(attempt, random.random()))
        else:
            budget.earn()
            return answer
    return ask()
