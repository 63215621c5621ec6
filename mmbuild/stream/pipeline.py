"""Batches in the making: a few threads read, decode and convert ahead of the consumer, in the order of the epoch.

Work is cut below a batch, so that all threads work on the first one; on an object store the bytes of later batches are
asked for while earlier ones are decoded. It decides nothing about order.
"""

from __future__ import annotations

import threading
import time as clock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from mmbuild.stream import plan
from mmbuild.stream.assembly import Assembly, Outline, Parts
from mmbuild.stream.chunks import Encoded
from mmbuild.stream.fetch import Allowance
from mmbuild.stream.reader import Row

# Encoded bytes of later batches that are asked for while one is made. From 16 to 64 MiB the rate rises by a tenth, and
# the memory by 40 MB (measured, 80 MB/s a connection and 30 ms a request).
AHEAD_BYTES = 40 * 2**20
# Batches that are outlined ahead on an object store; of few bytes, or none, all of an epoch would be otherwise.
MOST_PLANNED = 64


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch of this rank: its samples, their groups in a block-shuffled order, and where the epoch is after it."""

    positions: np.ndarray
    slots: np.ndarray
    groups: np.ndarray | None
    stop: int


@dataclass(kw_only=True)
class Job:
    """A step that is under way; asked: requests of its and all earlier steps; following: the one after it."""

    step: Step
    asked: int = 0
    parts: Parts | None = None
    outline: Outline | None = None
    following: Job | None = None
    pending: int = 1
    error: BaseException | None = None
    result: dict[str, Any] = field(default_factory=dict)
    waiting: list[tuple[Span, list[Row]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(kw_only=True, eq=False)
class Span:
    """A range that was asked for: its bytes when they came, and who waits for which of its chunks."""

    start: int
    left: int
    data: Encoded | None = None
    error: BaseException | None = None
    waiting: list[tuple[Job, list[Row]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)


class Pipeline:
    """Iterates over finished jobs of ``steps``. Closing it ends its threads.

    prefetch: batches that are made while the consumer has one; 0 makes each when it is asked for.
    """

    def __init__(self, assembly: Assembly, steps: Sequence[Step], *, epoch: int, threads: int, prefetch: int) -> None:
        self._assembly, self._steps, self._epoch = assembly, steps, epoch
        self._threads, self._prefetch = threads, prefetch
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._planned: deque[Job] = deque()
        self._next = 0
        self._remote = assembly.reader.requests is not None
        self._spans: dict[tuple[int, int, int], Span] = {}
        self._opened: set[int] = set()
        self._allowance = Allowance(AHEAD_BYTES)
        self._closed = False
        self.wait_s = 0.0
        self._later = _Later(steps) if self._remote and steps and steps[0].groups is not None else None

    def __iter__(self) -> Iterator[Job]:
        workers = [
            threading.Thread(target=self._run, name=f"mmbuild-batch-{i}", daemon=True) for i in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        admitted: deque[Job] = deque()
        try:
            for i in range(len(self._steps)):
                self._admit(admitted, 1)
                if i:  # nothing competes with the first batch
                    self._ask_ahead()
                job = admitted.popleft()
                began = clock.perf_counter()
                job.done.wait()
                self.wait_s += clock.perf_counter() - began
                if job.error is not None:
                    raise job.error
                self._admit(admitted, self._prefetch)
                if self._prefetch:
                    self._ask_ahead()
                yield job
        finally:
            self._closed = True
            for _ in workers:
                self._queue.put(None)
            for worker in workers:
                worker.join()

    # -- in the consumer's thread

    def _admit(self, admitted: deque[Job], count: int) -> None:
        """Let so many batches be under way."""
        while len(admitted) < count and (self._planned or self._next < len(self._steps)):
            if not self._planned:
                self._plan()
            job = self._planned.popleft()
            self._allowance.need(job.asked)
            admitted.append(job)
            if not self._remote and not self._planned and self._next < len(self._steps):
                self._plan()
                job.following = self._planned[0]
            self._queue.put(partial(self._begin, job))

    def _ask_ahead(self) -> None:
        """Ask an object store for the bytes of batches to come."""
        while (
            self._remote
            and self._next < len(self._steps)
            and len(self._planned) < MOST_PLANNED
            and not self._allowance.is_used_up
        ):
            self._plan()

    def _plan(self) -> None:
        step = self._steps[self._next]
        job = Job(step=step)
        self._planned.append(job)
        self._next += 1
        if self._remote:
            loads = self._assembly.asks(step.slots)
            self._ask(job, self._outlined(job).chunks, self._next - 1)
            with job.lock:
                job.pending += len(loads)
            for load in loads:
                load.add_done_callback(partial(self._loaded, job))
            job.asked = self._allowance.asked

    def _ask(self, job: Job, own: plan.Chunks, number: int) -> None:
        """Ask for the bytes of a batch, or of what the rest of the epoch needs of its groups."""
        chunks = own
        if self._later is not None and job.step.groups is not None:
            new = sorted(set(job.step.groups.tolist()) - self._opened)
            self._opened.update(new)
            chunks = self._assembly.chunks(self._later.positions(new, number), self._epoch)
        for low, high in plan.ranges(chunks):
            self._request(chunks, low, high)
        groups: dict[int, tuple[Span, list[Row]]] = {}
        for row in map(tuple, own.rows(0, len(own)).tolist()):
            span = self._spans.pop((row[0], row[4], row[6]), None)
            if span is not None:
                groups.setdefault(id(span), (span, []))[1].append(row)
        with job.lock:
            job.pending += len(groups)
        for span, rows in groups.values():
            with span.lock:
                if span.data is None and span.error is None:
                    span.waiting.append((job, rows))
                    continue
            self._arrived(span, job, rows)

    def _request(self, chunks: plan.Chunks, low: int, high: int) -> None:
        """Ask for one range."""
        rows: list[Row] = list(map(tuple, chunks.rows(low, high).tolist()))
        member, shard, start, _, slot, _, _ = rows[0]
        length = rows[-1][2] + rows[-1][3] - start
        span = Span(start=start, left=high - low)
        for row in rows:
            self._spans[row[0], row[4], row[6]] = span
        reader, table = self._assembly.reader, self._assembly.tables[member]
        if table.name in reader.foreign:
            span.data = b""
            return
        assert reader.requests is not None
        stamp = int(reader.index.stamps[shard])
        came = partial(self._came, span)
        self._allowance.ask(length, partial(reader.requests.submit, table.key(slot), start, length, stamp, came))

    # -- in the threads

    def _run(self) -> None:
        # Values under nodata may overflow in passing; they are masked.
        with np.errstate(all="ignore"):
            while (work := self._queue.get()) is not None:
                if not self._closed:
                    work()

    def _came(self, span: Span, future: Future[Encoded]) -> None:
        """A range arrived, or will not; in the thread that asked for it."""
        if future.cancelled():
            return
        error = future.exception()
        with span.lock:
            if error is None:
                span.data = future.result()
            elif isinstance(error, FileNotFoundError | EOFError):
                span.data = b""  # every chunk in it will be told as missing
            else:
                span.error = error
            waiting, span.waiting = span.waiting, []
        for job, rows in waiting:
            self._arrived(span, job, rows)

    def _loaded(self, job: Job, future: Future[None]) -> None:
        if not future.cancelled():
            self._queue.put(partial(self._do, job, future.result))

    def _arrived(self, span: Span, job: Job, rows: list[Row]) -> None:
        with job.lock:
            if job.parts is None:
                job.waiting.append((span, rows))
                return
        self._queue.put(partial(self._decode_span, job, span, rows))

    def _outlined(self, job: Job) -> Outline:
        with job.lock:
            if job.outline is None:
                job.outline = self._assembly.outline(job.step.positions, self._epoch)
            return job.outline

    def _begin(self, job: Job) -> None:
        """Make room for a batch and hand out its work."""
        with self._guard(job):
            outline = self._outlined(job)
            parts = self._assembly.begin(outline)
            loads: list[Callable[[], None]] = []
            pieces: list[tuple[int, int]] = []
            if not self._remote:
                loads = self._assembly.loads(outline.slots)
                pieces = plan.shrinking_parts(outline.chunks, self._assembly.tables, self._threads)
            with job.lock:
                job.pending += len(pieces) + len(loads)
                job.parts = parts
                waiting, job.waiting = job.waiting, []
            for load in loads:
                self._queue.put(partial(self._do, job, load))
            for low, high in pieces:
                self._queue.put(partial(self._do, job, partial(self._decode, outline.chunks, low, high, parts)))
            for span, rows in waiting:
                self._queue.put(partial(self._decode_span, job, span, rows))
            if job.following is not None:
                self._prepare(job.following)

    def _prepare(self, job: Job) -> None:
        """Let whoever finds nothing left to decode outline the next batch while others end this one."""
        with job.lock:
            if job.outline is not None:
                return  # it was begun meanwhile, and may have ended
            job.pending += 1
        self._queue.put(partial(self._do, job, partial(self._outlined, job)))

    def _do(self, job: Job, work: Callable[[], object]) -> None:
        with self._guard(job):
            work()

    def _decode(self, chunks: plan.Chunks, low: int, high: int, parts: Parts) -> None:
        self._assembly.reader.fill(chunks.rows(low, high), parts.targets)

    def _decode_span(self, job: Job, span: Span, rows: list[Row]) -> None:
        with self._guard(job):
            if span.error is not None:
                raise span.error
            assert job.parts is not None
            self._assembly.reader.fill(rows, job.parts.targets, data=span.data, origin=span.start)
            with span.lock:
                span.left -= len(rows)
                gone = span.left == 0
            if gone:
                span.data = None

    def _guard(self, job: Job) -> _Guard:
        return _Guard(self, job)

    def finish(self, job: Job) -> None:
        assert job.parts is not None
        job.result = self._assembly.finish(job.parts)
        job.done.set()


class _Guard:
    """One piece of a job's work: the last one finishes the job, a failed one ends it."""

    def __init__(self, pipeline: Pipeline, job: Job) -> None:
        self._pipeline, self._job = pipeline, job

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        job = self._job
        with job.lock:
            job.pending -= 1
            last = job.pending == 0
        try:
            if error is not None:
                raise error
            if last:
                self._pipeline.finish(job)
        except BaseException as failure:  # noqa: BLE001  told where the batch is asked for
            job.error = failure
            job.done.set()
        return True


class _Later:
    """Which samples of a group the steps from a given one on need."""

    def __init__(self, steps: Sequence[Step]) -> None:
        groups = [step.groups for step in steps if step.groups is not None]
        self._positions = np.concatenate([step.positions for step in steps])
        self._step = np.repeat(np.arange(len(steps)), [len(step.positions) for step in steps])
        joined = np.concatenate(groups)
        self._order = np.argsort(joined, kind="stable")
        self._sorted = joined[self._order]

    def positions(self, groups: Sequence[int], step: int) -> np.ndarray:
        wanted = np.asarray(groups, dtype=np.int64)
        low = np.searchsorted(self._sorted, wanted, side="left").tolist()
        high = np.searchsorted(self._sorted, wanted, side="right").tolist()
        places = [self._order[a:b] for a, b in zip(low, high, strict=True)]
        found = np.concatenate(places) if places else np.zeros(0, np.int64)
        later: np.ndarray = self._positions[found[self._step[found] >= step]]
        return later
