"""The gates of threads and of processes: nobody passes the limits, nobody is forgotten, a stop reaches everyone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmbuild.errors import QuotaStop
from mmbuild.governor import ENDED, Counter, Desk, Governor
from mmbuild.throttle import Budget, Gate, Limits, Spent

FAST = Limits(in_flight=40, per_second=float("inf"))


class Crowd:
    """Threads that ask a gate for turns, with a count of how many hold one."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.lock = gate, threading.Lock()
        self.inside = self.peak = self.passed = 0
        self.stops: list[str] = []

    def ask(self, times: int, work: Callable[[], None] = lambda: None) -> None:
        try:
            for _ in range(times):
                with self.gate.request():
                    with self.lock:
                        self.inside += 1
                        self.passed += 1
                        self.peak = max(self.peak, self.inside)
                    work()
                    self.gate.report(Spent(received_bytes=1))
                    with self.lock:
                        self.inside -= 1
        except QuotaStop as stop:
            self.stops.append(str(stop))

    def run(self, threads: int, times: int) -> None:
        crowd = [threading.Thread(target=self.ask, args=(times,), daemon=True) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(timeout=20)
            assert not thread.is_alive(), "a thread waits for ever"


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread to get there."""
    deadline = time.monotonic() + 10
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        pause.wait(0.001)


def test_threads_never_hold_more_places_than_the_window_and_all_get_through() -> None:
    governor = Governor(Limits(in_flight=7, per_second=float("inf")))
    crowd = Crowd(governor)
    crowd.run(threads=30, times=20)
    assert crowd.passed == 600
    assert crowd.peak <= 7
    assert governor.used.requests == governor.used.answered == 600
    assert governor.used.peak_in_flight <= 7


def test_a_request_that_raises_gives_its_place_back() -> None:
    governor = Governor(Limits(in_flight=1, per_second=float("inf")))
    for _ in range(3):
        with pytest.raises(ConnectionError), governor.request():
            raise ConnectionError
    assert governor.used.requests == 3


def test_a_budget_of_requests_is_kept_to_the_request_whatever_the_number_of_threads() -> None:
    governor = Governor(FAST, Budget(max_requests=50))
    crowd = Crowd(governor)
    crowd.run(threads=16, times=100)
    assert crowd.passed == governor.used.requests == 50
    assert set(crowd.stops) == {"--max-requests 50 is used up: 50 requests were sent"}
    assert len(crowd.stops) == 16


def test_a_stop_reaches_those_who_wait_and_leaves_those_under_way() -> None:
    governor = Governor(Limits(in_flight=1, per_second=float("inf")))
    crowd, go = Crowd(governor), threading.Event()
    holder = threading.Thread(target=crowd.ask, args=(1, go.wait))
    holder.start()
    until(lambda: crowd.inside == 1)
    waiting = [threading.Thread(target=crowd.ask, args=(1,)) for _ in range(5)]
    for thread in waiting:
        thread.start()
    until(lambda: len(governor._queue) == 5)
    governor.stop("enough")
    for thread in waiting:
        thread.join(timeout=10)
    assert crowd.stops == ["enough"] * 5
    assert crowd.inside == 1
    go.set()
    holder.join(timeout=10)
    assert governor.used.answered == 1


def test_time_that_runs_out_wakes_those_who_wait() -> None:
    governor = Governor(Limits(in_flight=1, per_second=float("inf")), Budget(max_minutes=0.05 / 60))
    with governor.request(), pytest.raises(QuotaStop, match="--max-minutes"), governor.request():
        pass


# -- processes: the desk and its counters, connected by hand --------------------------------------------------------


class Post:
    """Carries messages between a desk and counters at once, and holds timers until they are asked to ring."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.desk = Desk(
            lambda name, message: self.sent.append((name, message)),
            lambda seconds, act: self.timers.append((self.now + seconds, act)),
            clock=lambda: self.now,
        )

    def granted(self) -> list[tuple[str, int]]:
        return [(name, message["number"]) for name, message in self.sent if message["number"]]

    def ring(self) -> None:
        """Let time pass until the next timer."""
        self.timers.sort(key=lambda timer: timer[0])
        due, act = self.timers.pop(0)
        self.now = max(self.now, due)
        act()


def open_desk(**limits: Any) -> Post:
    post = Post()
    post.desk.open("run", "quota", Limits(**limits), Budget())
    return post


def test_the_desk_lets_pass_in_the_order_of_asking_and_at_the_rate() -> None:
    post = open_desk()
    for index in range(40):
        post.desk.ask(f"w{index % 2}", "run")
    while len(post.granted()) < 4:
        post.ring()
    assert post.granted() == [("w0", 1), ("w1", 2), ("w0", 3), ("w1", 4)]
    assert post.now == pytest.approx(3 * 0.5 * 1.005 / 99)
    assert len(post.timers) <= 1


def test_a_process_that_dies_gives_its_places_back_and_waits_no_longer() -> None:
    post = open_desk(in_flight=4, per_second=float("inf"))
    for _ in range(6):
        post.desk.ask("dead", "run")
    post.desk.ask("alive", "run")
    assert post.granted() == [("dead", number) for number in range(1, 5)]
    post.desk.lose("dead")
    assert post.granted()[4:] == [("alive", 5)]
    assert post.desk.used("run")["requests"] == 5
    post.desk.end("dead", "run", 1)
    for _ in range(9):
        post.desk.ask("alive", "run")
    assert len(post.granted()) == 8, "a late message of the dead frees no second place"


def test_two_runs_of_one_quota_share_its_limits_and_have_their_own_budgets() -> None:
    post = open_desk(in_flight=4, per_second=float("inf"))
    post.desk.open("other", "quota", Limits(), Budget(max_requests=1))
    for _ in range(3):
        post.desk.ask("a", "run")
        post.desk.ask("b", "other")
    assert len(post.granted()) == 4
    reasons = [message["reason"] for name, message in post.sent if name == "b" and not message["number"]]
    assert reasons == ["--max-requests 1 is used up: 1 requests were sent"] * 2


def test_a_run_that_is_closed_answers_late_askers_and_is_forgotten_when_its_requests_end() -> None:
    post = open_desk()
    post.desk.ask("a", "run")
    assert post.desk.close("run")["requests"] == 1
    post.desk.ask("a", "run")
    assert post.sent[-1][1] == {"run": "run", "number": 0, "reason": ENDED}
    post.desk.end("a", "run", 1)
    assert post.desk._runs == {}


def connected(budget: Budget) -> tuple[Desk, Counter]:
    """A desk and one counter with the post between them instantaneous, as if on one event loop."""
    lock = threading.RLock()
    timers: list[threading.Timer] = []

    def later(seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, lambda: locked(act))
        timer.daemon = True
        timers.append(timer)
        timer.start()

    def locked(act: Callable[..., None], **message: Any) -> None:
        with lock:
            act(**message)

    def to_desk(message: dict[str, Any]) -> None:
        verb = {"ask": desk.ask, "end": desk.end, "note": desk.note}[message["op"]]
        locked(verb, counter="w", **{key: value for key, value in message.items() if key != "op"})

    counter = Counter("run", to_desk)
    desk = Desk(lambda name, m: counter.answered(m["number"], m["reason"]), later)
    desk.open("run", "quota", Limits(in_flight=5, per_second=float("inf")), budget)
    return desk, counter


def test_threads_at_a_counter_are_limited_by_the_desk() -> None:
    desk, counter = connected(Budget())
    crowd = Crowd(counter)
    crowd.run(threads=12, times=10)
    assert crowd.passed == 120
    assert crowd.peak <= 5
    assert desk.used("run")["answered"] == 120


def test_a_budget_at_the_desk_ends_every_thread_at_the_counter() -> None:
    _, counter = connected(Budget(max_requests=9))
    crowd = Crowd(counter)
    crowd.run(threads=12, times=10)
    assert crowd.passed == 9
    assert len(crowd.stops) == 12


def test_a_run_that_is_stopped_sends_away_who_waits_for_a_turn_or_to_try_again() -> None:
    desk, counter = connected(Budget())
    governor = Governor(Limits())
    told: list[str] = []

    def rest(gate: Gate) -> None:
        with gate.request():
            pass
        try:
            gate.rest(60.0)
        except QuotaStop as stop:
            told.append(str(stop))

    threads = [threading.Thread(target=rest, args=(gate,)) for gate in (counter, governor)]
    for thread in threads:
        thread.start()
    until(lambda: desk.used("run")["requests"] == 1 and governor.used.requests == 1)
    desk.stop("run", "the build was ended")
    governor.stop("the build was ended")
    for thread in threads:
        thread.join(timeout=10)
    assert told == ["the build was ended"] * 2


def test_a_turn_that_comes_when_nobody_waits_any_more_is_given_back() -> None:
    sent: list[dict[str, Any]] = []
    counter = Counter("run", sent.append)
    counter.answered(0, "the build was ended")
    counter.answered(7, None)
    assert sent == [{"op": "end", "run": "run", "number": 7}]


def test_a_counter_whose_desk_is_gone_lets_nobody_wait() -> None:
    counter = Counter("run", lambda message: None)
    crowd = Crowd(counter)
    threads = [threading.Thread(target=crowd.ask, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(counter._waiting) == 4)
    counter.lose()
    for thread in threads:
        thread.join(timeout=10)
    assert crowd.stops == ["the scheduler is gone"] * 4
