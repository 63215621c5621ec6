"""What the service limits, with sources, and the quotas of a running sandbox: concurrency, rate and compute time.

A request takes a slot when it arrives and holds it, latency included, until its answer is ready. One that finds no slot
or no token is refused at once with 429. All counts are those of one process since it started.
"""

from __future__ import annotations

import ast
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmbuild.sandbox.values import EarthEngineError

# -- one request (refused with 400) -----------------------------------------------------------------------------------
# Sources: REST reference of image:computePixels for the first three; google/Xee issue 50 for the mask byte per value;
# geemap issue 1092 for the payload; the developers' debugging guide for the elements.
RESPONSE_LIMIT_BYTES = 48 * 2**20
MAX_SIDE, MAX_BANDS = 32768, 1024
PAYLOAD_LIMIT_BYTES = 10 * 2**20
MAX_ELEMENTS = 5000
# getDownloadURL, by the client's docstring. Since 2022 users also quote 50331648 bytes for it (geemap pull request 889,
# wxee issue 49); the documented limit is the safe one.
DOWNLOAD_LIMIT_BYTES, DOWNLOAD_MAX_SIDE = 32 * 2**20, 10_000

# -- one project (refused with 429) -----------------------------------------------------------------------------------
# Source: developers.google.com/earth-engine/guides/usage, adjustable quota limits of the standard and the high-volume
# endpoint. The bucket holds one second's worth.
MAX_CONCURRENT, REQUESTS_PER_SECOND, BURST_S = 40, 100.0, 1.0
# Assumed: how many requests run side by side in restricted mode is not published.
RESTRICTED_CONCURRENT = 4
QUOTA_STATUS = {"x-earth-engine-quota-status": "parallelism_restricted=true"}

# -- compute time, synthetic ------------------------------------------------------------------------------------------
# The live service tells nobody what a request cost in its answer; ours does, by a formula of the request and the answer
# alone, so that it stays the same however fast the evaluator is. A chip of 128 px and 23 bands costs about 0.8 EECU-s.
EECU_HEADER = "x-mmbuild-eecu-seconds"
EECU_PER_REQUEST_S, EECU_PER_CALL_S, EECU_PER_VALUE_S = 0.01, 1e-4, 2e-6
# The live service names a profile in its answer when the request asks for one; `Profile.getProfiles` then prints it.
# Ours keeps no profiles: the id is the cost.
PROFILE_ASKED, PROFILE_HEADER = "x-earth-engine-computation-profiling", "x-earth-engine-computation-profile"
_PROFILE = "synthetic-"

# Texts of the live service: the first as users quote it for `value:compute` on the high-volume endpoint, the second
# from qgis-earthengine-plugin issue 202. For the third only the quotas' names are known (guides/cost_controls and the
# console): the sentence around them is assumed.
TOO_MANY_REQUESTS = (
    "Too Many Requests: Request was rejected because the request rate or concurrency limit was exceeded."
)
_QUOTA = (
    "Quota exceeded for quota metric '{metric}' and limit '{limit}' of service 'earthengine.googleapis.com' "
    "for consumer 'project_number:0'."
)
QUOTA_PER_MINUTE = _QUOTA.format(metric="Number of read requests", limit="Number of read requests per minute per user")
QUOTA_EECU_DAY = _QUOTA.format(
    metric="Earth Engine compute time (EECU-time) per day in seconds", limit="EECU-seconds per day"
)
QUOTA_EECU_MONTH = _QUOTA.format(
    metric="Noncommercial Earth Engine compute time (EECU-time)", limit="Noncommercial EECU-seconds per month"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The quotas of one project; 0 means none.

    max_eecu_hours: the month's allowance. Beyond it the project is restricted or, with eecu_stop, refused.
    restricted: the project has used up its allowance before.
    """

    max_concurrent: int = MAX_CONCURRENT
    requests_per_second: float = REQUESTS_PER_SECOND
    max_eecu_hours: float = 0.0
    eecu_stop: bool = False
    restricted: bool = False

    def __post_init__(self) -> None:
        if min(self.max_concurrent, self.requests_per_second, self.max_eecu_hours) < 0:
            raise ValueError(f"limits must not be negative; 0 means none: {self}")


UNLIMITED = Limits(max_concurrent=0, requests_per_second=0.0)


class Quota:
    """Lets requests in or refuses them, and counts both; threads share it."""

    def __init__(self, limits: Limits = UNLIMITED, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.in_flight = self.peak_in_flight = self.peak_per_second = self.bytes = 0
        self.eecu_s = 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._tokens, self._filled = self._bucket, clock()
        self._arrivals: deque[float] = deque()

    @property
    def _bucket(self) -> float:
        return max(1.0, self.limits.requests_per_second * BURST_S)

    @property
    def is_spent(self) -> bool:
        """Whether the month's compute time is used up."""
        return 0.0 < self.limits.max_eecu_hours * 3600.0 <= self.eecu_s

    @property
    def is_restricted(self) -> bool:
        return self.limits.restricted or self.is_spent

    @contextmanager
    def slot(self, endpoint: str) -> Iterator[None]:
        """Hold a place while the request is worked on; EarthEngineError with 429 when there is none."""
        self._enter(endpoint)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1

    def _enter(self, endpoint: str) -> None:
        with self._lock:
            now = self._clock()
            self.requests[endpoint] += 1
            self._note_rate(now)
            reason, text = self._refusal(now)
            if reason:
                self.refused[reason] += 1
                raise EarthEngineError(text, 429, "RESOURCE_EXHAUSTED")
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def _note_rate(self, now: float) -> None:
        self._arrivals.append(now)
        while self._arrivals[0] <= now - 1.0:
            self._arrivals.popleft()
        self.peak_per_second = max(self.peak_per_second, len(self._arrivals))

    def _refusal(self, now: float) -> tuple[str, str]:
        """Why the request is refused, as a word and as a text; two empty strings when it is not."""
        if self.limits.eecu_stop and self.is_spent:
            return "eecu", QUOTA_EECU_MONTH
        if self.limits.requests_per_second:
            rate = self.limits.requests_per_second
            self._tokens = min(self._bucket, self._tokens + (now - self._filled) * rate)
            self._filled = now
            if self._tokens < 1.0:
                return "rate", QUOTA_PER_MINUTE
            self._tokens -= 1.0
        places = self.limits.max_concurrent
        if self.is_restricted:
            places = min(places or RESTRICTED_CONCURRENT, RESTRICTED_CONCURRENT)
        if places and self.in_flight >= places:
            return "concurrency", TOO_MANY_REQUESTS
        return "", ""

    def spend(self, size: int, eecu_s: float) -> None:
        """Charge an answer: its bytes and its compute time."""
        with self._lock:
            self.bytes += size
            self.eecu_s += eecu_s

    def note_fault(self, name: str) -> None:
        with self._lock:
            self.faults[name] += 1

    def counters(self) -> dict[str, Any]:
        """All counts so far, as JSON has them."""
        with self._lock:
            return {
                "requests": dict(self.requests), "refused": dict(self.refused), "faults": dict(self.faults),
                "in_flight": self.in_flight, "peak_in_flight": self.peak_in_flight,
                "peak_per_second": self.peak_per_second, "bytes": self.bytes, "eecu_s": round(self.eecu_s, 6),
                "restricted": self.is_restricted,
            }  # fmt: skip


def eecu_seconds(asked: bytes, headers: Mapping[str, str], answered: bytes) -> float:
    """Synthetic compute time of an answered request, in EECU-seconds.

    A constant, plus one share per algorithm in the expression, plus one per value answered: pixels times bands of an
    NPY, the values of a JSON text (its commas plus one), the bytes of any other file.
    """
    if answered.startswith(b"\x93NUMPY"):
        # The length of the header takes two bytes in format 1.0, four in those for longer headers.
        start = 10 if answered[6] == 1 else 12
        values = _npy_values(answered[start : start + int.from_bytes(answered[8:start], "little")])
    elif "json" in headers.get("content-type", ""):
        values = answered.count(b",") + 1
    else:
        values = len(answered)
    calls = asked.count(b'"functionInvocationValue"')
    return EECU_PER_REQUEST_S + calls * EECU_PER_CALL_S + values * EECU_PER_VALUE_S


def profile_id(eecu_s: float) -> str:
    """The id of the profile of a request with this cost."""
    return f"{_PROFILE}{eecu_s:.6f}"


def profile_cost_s(profile: str) -> float:
    """The cost in the profile's id, in EECU-seconds; EarthEngineError for an id that none of our answers had."""
    kind, _, cost = profile.partition(_PROFILE)
    try:
        if kind:
            raise ValueError
        return float(cost)
    except ValueError as error:
        raise EarthEngineError(f"Profile '{profile}' not found.", 404, "NOT_FOUND") from error


_ONE_AT_A_TIME = threading.Lock()


@lru_cache(maxsize=256)
def _npy_values(header: bytes) -> int:
    """Pixels times bands of an NPY file with this header."""
    with _ONE_AT_A_TIME:  # side by side they may fail in CPython 3.11 before 3.11.8: python/cpython issue 106905
        about = ast.literal_eval(header.decode("utf-8"))
    count = len(about["descr"]) if isinstance(about["descr"], list) else 1
    for side in about["shape"]:
        count *= side
    return int(count)


def refusal(error: EarthEngineError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a refusal, in Google's error JSON."""
    message = {"error": {"code": error.code, "message": error.message, "status": error.status}}
    return error.code, {"content-type": "application/json; charset=UTF-8"}, json.dumps(message).encode()
