"""How often and how fast a source may be asked: pure state machines, wrapped by whoever talks to the network."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from mmbuild.errors import SourceError

Answer = TypeVar("Answer")

# Earth Engine's advice is exponential back-off; six tries span about a minute, longer outages end the sample as failed.
TRIES = 6
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0


def delay_s(attempt: int, jitter: float) -> float:
    """Seconds to wait before try ``attempt`` + 1 (attempts count from 1); ``jitter`` in [0, 1) spreads clients out."""
    longest: float = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (attempt - 1))
    return longest * (0.5 + jitter / 2)


def with_retries(
    ask: Callable[[], Answer],
    *,
    sleep: Callable[[float], None],
    on_retry: Callable[[SourceError], None] = lambda error: None,
    tries: int = TRIES,
) -> Answer:
    """Call ``ask`` until it answers; only a transient SourceError is tried again, and the last one is raised."""
    for attempt in range(1, tries):
        try:
            return ask()
        except SourceError as error:
            if not error.transient:
                raise
            on_retry(error)
            # Jitter never reaches the data: it only spreads requests over time.
            sleep(delay_s(attempt, random.random()))
    return ask()
