"""The gate of one process: threads wait here for their turn under limits and budgets that they share.

Several processes share one through messages: `Desk` is the side that decides, `Counter` the side where threads wait.
Neither sends anything itself; whoever connects them does.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mmbuild.errors import QuotaStop
from mmbuild.throttle import Budget, Limits, Run, Spending, Spent, Throttle

ENDED = "the build has ended"

Clock = Callable[[], float]
Send = Callable[[dict[str, Any]], None]


class Governor:
    """The gate of threads in one process; first come, first served."""

    def __init__(self, limits: Limits, budget: Budget | None = None, *, clock: Clock = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        now = clock()
        self._run = Run(Throttle(limits, now), budget or Budget(), now)
        self._queue: deque[threading.Condition] = deque()
        self._mine, self._over = threading.local(), threading.Event()

    @property
    def used(self) -> Spending:
        return self._run.used

    @property
    def budget(self) -> Budget:
        return self._run.budget

    @property
    def reason(self) -> str | None:
        """Why it stopped, if it did."""
        return self._run.reason

    def so_far(self) -> dict[str, Any]:
        """The budget and what is used of it, as plain data for a desk that goes on with this run."""
        seconds = self._clock() - self._run.began
        return {"budget": asdict(self._run.budget), "before": asdict(self._run.used), "seconds": seconds}

    @contextmanager
    def request(self) -> Iterator[None]:
        self._mine.number = self._enter()
        try:
            yield
        finally:
            with self._lock:
                self._run.end()
                self._wake()

    def rest(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise QuotaStop(self._run.reason or ENDED)

    def report(self, spent: Spent) -> None:
        with self._lock:
            self._run.note(self._mine.number, spent, self._clock())
            self._wake()

    def stop(self, reason: str) -> None:
        """Let no request pass any more; those under way are not touched."""
        with self._lock:
            self._run.reason = self._run.reason or reason
            self._over.set()
            for turn in self._queue:
                turn.notify()

    def _enter(self) -> int:
        """Wait until it is this thread's turn; the first in the queue watches the clock, the others sleep."""
        with self._lock:
            turn = threading.Condition(self._lock)
            self._queue.append(turn)
            try:
                while (wait := self._wait_s(turn)) > 0:
                    turn.wait(None if math.isinf(wait) else wait)
                return self._run.start()
            finally:
                self._queue.remove(turn)
                self._wake()

    def _wait_s(self, turn: threading.Condition) -> float:
        now = self._clock()
        if (reason := self._run.stopped(now)) is not None:
            raise QuotaStop(reason)
        first = self._run.throttle.wait_s(now) if self._queue[0] is turn else math.inf
        return min(first, max(0.001, self._run.left_s(now))) if first > 0 else 0.0

    def _wake(self) -> None:
        if self._queue:
            self._queue[0].notify()


class Desk:
    """Decides for counters in other processes; single-threaded, as on an event loop.

    send: carries a message to a counter by its name. later: calls a function after so many seconds.
    """

    def __init__(
        self, send: Callable[[str, dict[str, Any]], None], later: Callable[[float, Callable[[], None]], Any],
        *, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._send, self._later, self._clock = send, later, clock
        self._throttles: dict[str, Throttle] = {}
        self._queues: dict[str, deque[tuple[str, str]]] = {}  # by quota: (run, counter), in the order they asked
        self._runs: dict[str, tuple[str, Run]] = {}
        self._known: dict[str, set[str]] = {}  # the counters that ever asked for a run
        self._held: dict[tuple[str, int], str] = {}  # (run, number) of requests under way -> counter
        self._timers: dict[str, float] = {}
        self._closed: set[str] = set()

    def open(
        self, run: str, quota: str, limits: Limits, budget: Budget,
        before: Spending | None = None, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Begin a run; runs of one quota share its limits, which are those of the first. See ``Run`` for the rest."""
        now = self._clock()
        if all(other != quota for other, _ in self._runs.values()):
            self._throttles[quota], self._queues[quota] = Throttle(limits, now), deque()
        self._runs[run] = (quota, Run(self._throttles[quota], budget, now, before, seconds))
        self._known[run] = set()

    def used(self, run: str) -> dict[str, Any]:
        """What a run has used, as plain data."""
        _, machine = self._runs[run]
        return asdict(machine.used)

    def close(self, run: str) -> dict[str, Any]:
        """End a run and say what it has used; its requests that are still under way keep their places till they end."""
        found = self.used(run)
        self.stop(run, ENDED)
        self._closed.add(run)
        self._forget(run)
        return found

    def stop(self, run: str, reason: str) -> None:
        if run in self._runs:
            quota, machine = self._runs[run]
            machine.reason = machine.reason or reason
            self._dismiss(run)
            self._pump(quota)

    # -- messages of counters -------------------------------------------------------------------------------------

    def ask(self, counter: str, run: str) -> None:
        """A thread wants a turn."""
        if run not in self._runs:
            self._send(counter, {"run": run, "number": 0, "reason": ENDED})
            return
        quota, _ = self._runs[run]
        self._known[run].add(counter)
        self._queues[quota].append((run, counter))
        self._pump(quota)

    def end(self, counter: str, run: str, number: int) -> None:
        """A request is no longer under way."""
        if self._held.pop((run, number), None) is not None:
            quota, machine = self._runs[run]
            machine.end()
            self._pump(quota)
            self._forget(run)

    def _forget(self, run: str) -> None:
        if run in self._closed and not self._runs[run][1].under_way:
            self._closed.remove(run)
            del self._runs[run], self._known[run]

    def note(self, counter: str, run: str, number: int, spent: dict[str, Any]) -> None:
        """What a request has cost."""
        if run in self._runs:
            quota, machine = self._runs[run]
            machine.note(number, Spent(**spent), self._clock())
            self._pump(quota)

    def lose(self, counter: str) -> None:
        """A process died: it waits for nothing, and its places are free again."""
        for queue in self._queues.values():
            _keep(queue, lambda entry: entry[1] != counter)
        for known in self._known.values():
            known.discard(counter)
        for run, number in [key for key, holder in self._held.items() if holder == counter]:
            self.end(counter, run, number)
        for quota in self._queues:
            self._pump(quota)

    # -- whose turn it is -----------------------------------------------------------------------------------------

    def _pump(self, quota: str) -> None:
        """Let pass whoever may, in order, and come back when the next one may."""
        queue, throttle = self._queues[quota], self._throttles[quota]
        while queue:
            run, counter = queue[0]
            now, machine = self._clock(), self._runs[run][1]
            if machine.stopped(now) is not None:
                self._dismiss(run)
                continue
            wait = throttle.wait_s(now)
            if wait > 0:
                self._come_back(quota, now, min(wait, machine.left_s(now)))
                return
            queue.popleft()
            number = machine.start()
            self._held[run, number] = counter
            self._send(counter, {"run": run, "number": number, "reason": None})

    def _dismiss(self, run: str) -> None:
        """Tell every process that a run is over: who waits there for a turn, or to try again, is sent away."""
        quota, machine = self._runs[run]
        _keep(self._queues[quota], lambda entry: entry[0] != run)
        for counter in sorted(self._known[run]):
            self._send(counter, {"run": run, "number": 0, "reason": machine.reason})

    def _come_back(self, quota: str, now: float, wait: float) -> None:
        """Pump again after ``wait``, unless that will happen earlier anyway."""
        due = now + wait
        if math.isinf(due) or now < self._timers.get(quota, -math.inf) <= due:
            return
        self._timers[quota] = due

        def again() -> None:
            if self._timers.get(quota) == due:
                del self._timers[quota]
            self._pump(quota)

        self._later(wait, again)


def _keep(queue: deque[tuple[str, str]], wanted: Callable[[tuple[str, str]], bool]) -> None:
    """Leave in a queue only what is wanted, in its order."""
    kept = [entry for entry in queue if wanted(entry)]
    queue.clear()
    queue.extend(kept)


class Counter:
    """The gate of threads in a process that a desk elsewhere decides for; ``send`` carries a message to it."""

    def __init__(self, run: str, send: Send) -> None:
        self.run, self._send = run, send
        self._lock = threading.Lock()
        self._waiting: deque[_Turn] = deque()
        self._reason: str | None = None
        self._mine, self._over = threading.local(), threading.Event()

    @contextmanager
    def request(self) -> Iterator[None]:
        turn = _Turn()
        with self._lock:
            if self._reason is not None:
                raise QuotaStop(self._reason)
            self._waiting.append(turn)
        self._send({"op": "ask", "run": self.run})
        turn.come.wait()
        if turn.number == 0:
            raise QuotaStop(self._reason or ENDED)
        self._mine.number = turn.number
        try:
            yield
        finally:
            self._send({"op": "end", "run": self.run, "number": turn.number})

    def rest(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise QuotaStop(self._reason or ENDED)

    def report(self, spent: Spent) -> None:
        self._send({"op": "note", "run": self.run, "number": self._mine.number, "spent": asdict(spent)})

    def answered(self, number: int, reason: str | None) -> None:
        """The desk's answer: a number for the thread that has waited longest, or 0 and why the run is over."""
        if number == 0:
            self._end(reason or ENDED)
            return
        with self._lock:
            turn = self._waiting.popleft() if self._waiting else None
        if turn is None:
            # Whoever asked has been sent away meanwhile: the place is free for others.
            self._send({"op": "end", "run": self.run, "number": number})
            return
        turn.number = number
        turn.come.set()

    def lose(self) -> None:
        """The desk is gone: nobody waits for it any longer."""
        self._end("the scheduler is gone")

    def _end(self, reason: str) -> None:
        with self._lock:
            self._reason = self._reason or reason
            self._over.set()
            waiting, self._waiting = list(self._waiting), deque()
        for turn in waiting:
            turn.come.set()


class _Turn:
    """A thread's place in the queue."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.number = 0
