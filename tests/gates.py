"""A gate that counts what passes it, and what an action raises in a process that is forked off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mmbuild.errors import QuotaStop
from mmbuild.throttle import Spent


class Turnstile:
    """A gate that counts: how many came, how many are inside, and what they reported."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.came, self.inside, self.reports = most, 0, 0, list[Spent]()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self.came == self.most:
            raise QuotaStop("no more requests")
        self.came += 1
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def request(self) -> AbstractContextManager[None]:
        return self._turn()

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)

    def report(self, spent: Spent) -> None:
        self.reports.append(spent)


def in_a_fork(ask: Callable[[], object]) -> str:
    """What an action raises in a process that is forked off, or `nothing`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ask()
            said = "nothing"
        except Exception as error:  # noqa: BLE001  (whatever it is, it is told)
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()
