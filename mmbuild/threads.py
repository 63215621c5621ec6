"""Shards on threads of this process, a bounded number of them at a time; and what every way to run shards shares.

A shard is one task with one writer, wherever it runs; more threads never mean more requests than the limits allow.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from mmbuild.governor import Governor
from mmbuild.recipe import Recipe
from mmbuild.shard import ShardResult, ShardTask, build_shard, chip_readers, requests_before_pixels
from mmbuild.sources import SANDBOX, SourceSpec
from mmbuild.throttle import Limits

# A shard's number and its rows of locations.parquet.
Task = tuple[int, list[dict[str, Any]]]

# Shards at work in one process or one cluster: while some are read, others are searched and one is written.
SHARDS_AT_ONCE = 6
# An expression makes thousands of objects that live until it is sent. At Python's own threshold of 700 the collector
# walks over them, and over every module that is loaded, again and again: a tenth to half a second in one go, in which
# no other thread runs and no request leaves.
OBJECTS_PER_COLLECTION = 50_000
# Chips that the offline Earth Engine computes side by side for each shard: it has this process's cores and no network.
OFFLINE_IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all shards of a run share, sent to every worker once."""

    out: str
    recipe: Recipe
    source: SourceSpec

    def task(self, task: Task) -> ShardTask:
        shard, rows = task
        return ShardTask(shard=shard, out=self.out, recipe=self.recipe, source=self.source, rows=rows)

    @property
    def is_offline(self) -> bool:
        """Whether requests never leave the process that makes them."""
        return self.source.name == SANDBOX

    @property
    def quota(self) -> str:
        """What requests are counted against: builds that name the same share its limits."""
        return " ".join(str(part) for part in (self.source.name, self.source.url, self.source.project) if part)

    def limits(self, processes: int) -> Limits:
        """What may be under way in all processes together."""
        if not self.is_offline:
            return Limits()
        shards = cores_at_once() if processes == 0 else processes
        return Limits(in_flight=OFFLINE_IN_FLIGHT * shards, per_second=float("inf"))


def cores_at_once() -> int:
    """Shards that are worth computing side by side in one process."""
    return min(4, os.cpu_count() or 1)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let the garbage collector leave alone what is there already, and look seldom at what comes, inside the block."""
    before = gc.get_threshold()
    gc.freeze()
    if 0 < before[0] < OBJECTS_PER_COLLECTION:
        gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Crew(Protocol):
    """Whoever builds shards."""

    def results(self, tasks: Iterator[Task]) -> Iterator[ShardResult]:
        """Build the shards, a bounded number at a time; results come as they finish."""
        ...

    def stop(self, reason: str) -> None:
        """Let no request of this run pass any more, and begin no shard."""
        ...


class Threads:
    """Builds shards on threads; with ``step`` one after the other in the caller's, so that it may raise there."""

    def __init__(self, work: Work, governor: Governor, step: Callable[[str], None] | None = None) -> None:
        self._work, self._governor, self._step = work, governor, step
        self._at_once = cores_at_once() if work.is_offline else SHARDS_AT_ONCE
        if (most := governor.budget.max_requests) is not None:
            # A small budget is not spent on searches of many shards, of which none is then finished.
            self._at_once = max(1, min(self._at_once, most // (2 * requests_before_pixels(work.recipe))))

    def results(self, tasks: Iterator[Task]) -> Iterator[ShardResult]:
        with chip_readers() as readers, collecting_seldom():
            if self._step is None:
                yield from self._side_by_side(tasks, readers)
            else:
                for task in tasks:
                    yield build_shard(self._work.task(task), readers, self._step, gate=self._governor)

    def _side_by_side(self, tasks: Iterator[Task], readers: Executor) -> Iterator[ShardResult]:
        pool = ThreadPoolExecutor(max_workers=self._at_once)
        running: set[Future[ShardResult]] = set()
        try:
            while True:
                while len(running) < self._at_once and (new := self._next(tasks)) is not None:
                    running.add(pool.submit(build_shard, self._work.task(new), readers, gate=self._governor))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            if running:
                self.stop("the build was ended")
            pool.shutdown(cancel_futures=True)

    def _next(self, tasks: Iterator[Task]) -> Task | None:
        return None if self._governor.reason is not None else next(tasks, None)

    def stop(self, reason: str) -> None:
        self._governor.stop(reason)
