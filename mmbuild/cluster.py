"""Shards on Dask: a local cluster or a scheduler, a bounded number of them at a time, one desk for all their requests.

The desk lives in the scheduler's process and lets requests pass by messages over the streams that are there anyway;
a worker that dies gives its places back. Every worker process opens its session once, in a plugin.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import dask
import distributed
from distributed import Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from mmbuild.errors import UserError
from mmbuild.governor import Counter, Desk
from mmbuild.shard import ShardResult, build_shard, chip_readers
from mmbuild.sources import open_source
from mmbuild.threads import SHARDS_AT_ONCE, Task, Work
from mmbuild.throttle import Budget, Limits, Spending

# A process that has two shards is never without one while the other is searched or written.
SHARDS_PER_PROCESS = 2
_DESK = "mmbuild-desk"
# An ended build waits so long for its shards under way: a request ends after five minutes at the latest (wire.Limits),
# writing a shard takes seconds.
END_S = 330.0
# A build without any worker looks for one this often, and gives up after this long: Dask's own nannies start a worker
# that died again within seconds.
LOOK_S, ALONE_S = 2.0, 60.0
# A build that waits for a shard looks this often whether someone has pressed Ctrl-C; a shard takes seconds.
POLL_S = 0.01
# Most of its functions have no types.
_dask: Any = distributed


class DeskPlugin(SchedulerPlugin):
    """The desk of a scheduler: one for all builds that use it, for as long as it runs."""

    name = _DESK
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        def send(worker: str, message: dict[str, Any]) -> None:
            if worker in scheduler.stream_comms:
                scheduler.worker_send(worker, {"op": "mmbuild-turn", **message})

        self._clients: dict[str, str] = {}
        self.desk = desk = Desk(send, lambda seconds, act: asyncio.get_running_loop().call_later(seconds, act))
        scheduler.handlers.update({"mmbuild_open": self.open, "mmbuild_close": self.end_run, "mmbuild_stop": desk.stop})
        scheduler.stream_handlers.update(
            {
                "mmbuild-ask": lambda worker, run: desk.ask(worker, run),
                "mmbuild-end": lambda worker, run, number: desk.end(worker, run, number),
                "mmbuild-note": lambda worker, run, number, spent: desk.note(worker, run, number, spent),
            }
        )

    def open(self, run: str, client: str, quota: str, limits: dict[str, Any], so_far: dict[str, Any]) -> None:
        self._clients[run] = client
        budget, before = Budget(**so_far["budget"]), Spending(**so_far["before"])
        self.desk.open(run, quota, Limits(**limits), budget, before, so_far["seconds"])

    def end_run(self, run: str) -> dict[str, Any]:
        self._clients.pop(run, None)
        return self.desk.close(run)

    def remove_worker(self, scheduler: Scheduler, worker: str, **more: Any) -> None:
        self.desk.lose(worker)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A build that went away asks for nothing more."""
        for run in [run for run, owner in self._clients.items() if owner == client]:
            self.end_run(run)


class BenchPlugin(WorkerPlugin):
    """What a worker process needs for the shards of one run: what they share, an open session, the gate, and room."""

    def __init__(self, run: str, work: Work, room: int) -> None:
        self.name, self.run, self.work, self.room = _bench(run), run, work, room

    async def setup(self, worker: Worker) -> None:
        def send(message: dict[str, Any]) -> None:
            worker.loop.add_callback(worker.batched_send, {**message, "op": f"mmbuild-{message['op']}"})

        def turn(run: str, number: int, reason: str | None) -> None:
            bench = worker.plugins.get(_bench(run))
            if isinstance(bench, BenchPlugin):
                bench.gate.answered(number, reason)
            elif number:
                # The run has left this process: the place is free for others.
                send({"op": "end", "run": run, "number": number})

        self.gate, self.readers = Counter(self.run, send), chip_readers()
        self.places, self.ready = threading.BoundedSemaphore(self.room), threading.Event()
        worker.stream_handlers.setdefault("mmbuild-turn", turn)
        try:
            # Here and not in a task: once a process, before its threads need it, never before a fork.
            await asyncio.to_thread(open_source, self.work.source, self.work.recipe.known_modalities, {})
        finally:
            # A task whose process could not connect tries again and raises why not.
            self.ready.set()

    def teardown(self, worker: Worker) -> None:
        self.gate.lose()
        self.readers.shutdown(wait=False)


def _bench(run: str) -> str:
    return f"mmbuild-bench-{run}"


def _build(run: str, task: Task) -> ShardResult:
    """A task: build one shard in a worker.

    It leaves the worker's own pool of threads, whose size says nothing about how many shards fit: its room does.
    """
    bench = _dask.get_worker().plugins[_bench(run)]
    assert isinstance(bench, BenchPlugin)
    _dask.secede()
    bench.ready.wait()
    with bench.places:
        return build_shard(bench.work.task(task), bench.readers, gate=bench.gate)


class Cluster:
    """Builds shards on a Dask client; ``so_far``: the run's budget and what is used of it (`Governor.so_far`).

    ``raise_interrupt``: of `interrupts_noted`, called while nothing of Dask's runs.
    """

    def __init__(self, client: Any, work: Work, so_far: dict[str, Any], raise_interrupt: Callable[[], None]) -> None:
        self._client, self._run, self._stopped = client, uuid.uuid4().hex[:12], False
        self._raise_interrupt = raise_interrupt
        self._at_once = 0 if work.is_offline else SHARDS_AT_ONCE
        self._register(DeskPlugin())
        limits = asdict(work.limits(self._processes()))
        self._ask("open", client=client.id, quota=work.quota, limits=limits, so_far=so_far)
        room = max(SHARDS_PER_PROCESS, math.ceil(self._at_once / self._processes()))
        self._register(BenchPlugin(self._run, work, room))

    def results(self, tasks: Iterator[Task]) -> Iterator[ShardResult]:
        waiting = _dask.as_completed()
        try:
            self._fill(waiting, tasks)
            with self._watched(waiting):
                for future in self._finished(waiting):
                    result: ShardResult = future.result()
                    future.release()
                    yield result
                    self._fill(waiting, tasks)
        except (CancelledError, asyncio.CancelledError, _dask.KilledWorker) as error:
            self._end(waiting)
            raise _lost(error) from error
        except BaseException:
            self._end(waiting)
            raise

    def _finished(self, waiting: Any) -> Iterator[Any]:
        """Futures as they finish; between them, and only here, Ctrl-C ends the build."""
        while not waiting.is_empty():
            self._raise_interrupt()
            if waiting.has_ready():
                yield next(waiting)
            else:
                time.sleep(POLL_S)

    @contextmanager
    def _watched(self, waiting: Any) -> Iterator[None]:
        """Give up the shards when no worker is left to build them, and none comes back; Dask would wait for ever."""
        over = threading.Event()

        def watch() -> None:
            alone_s = 0.0
            while not over.wait(LOOK_S):
                workers = self._client.scheduler_info(n_workers=-1).get("workers")
                if workers is None:  # the client has lost its scheduler for good, and with it all futures
                    return
                alone_s = 0.0 if workers else alone_s + LOOK_S
                if alone_s >= ALONE_S:
                    self._client.cancel(list(waiting.futures))
                    return

        watcher = threading.Thread(target=watch, name="mmbuild-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _end(self, waiting: Any) -> None:
        """Let the shards under way come to their end: whoever ends the build gives back the right to write.

        No request passes any more, so what was read is written and what was not is left; a scheduler that is gone has
        nothing under way that could be waited for.
        """
        with suppress(UserError, OSError, RuntimeError, CancelledError, asyncio.CancelledError):
            self.stop("the build was ended")
            left = list(waiting.futures)
            _dask.wait(left, timeout=END_S)
            self._client.cancel(left)

    def _fill(self, waiting: Any, tasks: Iterator[Task]) -> None:
        """Submit shards while there is room for them: the scheduler knows a few at a time, however many there are."""
        room = max(self._at_once, SHARDS_PER_PROCESS * self._processes())
        while not self._stopped and waiting.count() < room and (task := next(tasks, None)) is not None:
            key = f"mmbuild-{self._run}-{task[0]}"
            waiting.add(self._client.submit(_build, self._run, task, key=key, pure=False, retries=0))

    def stop(self, reason: str) -> None:
        self._stopped = True
        self._ask("stop", reason=reason)

    def close(self) -> Spending:
        """End the run; what it has used, as far as the scheduler is still there to tell."""
        try:
            used = Spending(**self._ask("close"))
            self._client.unregister_worker_plugin(_bench(self._run))
        except (UserError, OSError, RuntimeError):
            return Spending()
        return used

    def _processes(self) -> int:
        return max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def _ask(self, verb: str, **more: Any) -> Any:
        try:
            return self._client.sync(getattr(self._client.scheduler, f"mmbuild_{verb}"), run=self._run, **more)
        except (OSError, RuntimeError, asyncio.CancelledError) as error:  # a closed pool of connections is the second
            raise _lost(error) from error

    def _register(self, plugin: SchedulerPlugin | WorkerPlugin) -> None:
        try:
            self._client.register_plugin(plugin)
        except ModuleNotFoundError as error:
            raise UserError(
                f"a process of the cluster cannot import {error.name}", "--scheduler",
                "start the scheduler and its workers in the environment of this command",
            ) from error  # fmt: skip


def _lost(error: BaseException) -> UserError:
    return UserError(
        f"the Dask scheduler or its workers went away: {type(error).__name__}", "--scheduler",
        "start them again and run the same command; finished shards are kept",
    )  # fmt: skip


@contextmanager
def client_of(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A client of the scheduler at an address, or of a cluster of ``workers`` processes on this machine."""
    if scheduler is not None:
        try:
            client = _dask.Client(scheduler, timeout="20s")
        except OSError as error:
            raise UserError(
                f"no Dask scheduler answers: {error}", scheduler, "start one with `dask scheduler`"
            ) from error
        with client:
            if not client.scheduler_info(n_workers=-1)["workers"]:
                raise UserError("the scheduler has no workers", scheduler, "start some with `dask worker ADDR`")
            yield client
        return
    with dask.config.set({"distributed.worker.daemon": True}):
        with _interrupts_held():
            # Workers hold a few shards in memory (at most 256 MiB each); Dask's own limits would only pause them.
            cluster = _dask.LocalCluster(
                n_workers=workers, processes=True, threads_per_worker=1,
                dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=logging.ERROR,
            )  # fmt: skip
        with cluster, _dask.Client(cluster) as client:
            yield client


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], None]]:
    """Only note Ctrl-C; it is raised where the function that is given is called, or at the end, a second one at once.

    Raised within a call of Dask's it would leave Dask's own traceback (distributed.utils.sync cancels what it has not
    begun), and within a weak reference's callback Python would print it and go on.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            before(number, frame)
        noted.append(number)

    def raise_noted() -> None:
        if noted:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield raise_noted
    finally:
        signal.signal(signal.SIGINT, before)
    raise_noted()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let processes started here never see Ctrl-C: they inherit the mask. One meanwhile comes afterwards."""
    # Its start inside would unblock the signal again (CPython's resource_tracker.ensure_running).
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
