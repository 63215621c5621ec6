"""The memory-copy limit: uncompressed samples copied by threads from mapped memory into batches that are used again.

No loader of whole batches can be faster on this machine; it decodes nothing and checks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import Options, cut, run, source

RING = 3


class Copies:
    def __init__(self, given: Options) -> None:
        self.arrays, self.given = source(given.source, given.modalities), given
        self.n = len(next(iter(self.arrays.values())))
        shapes = {name: cut(array[0], given.crop).shape for name, array in self.arrays.items()}
        self.ring = [
            {name: np.empty((given.batch, *shapes[name]), array.dtype) for name, array in self.arrays.items()}
            for _ in range(RING)
        ]
        self.pool = ThreadPoolExecutor(max(1, given.workers))
        self.seed = 0

    def copy(self, block: dict[str, np.ndarray], place: int, index: int) -> None:
        for name, array in self.arrays.items():
            np.copyto(block[name][place], cut(array[index], self.given.crop))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.seed += 1
        order = np.random.default_rng(self.seed).permutation(self.n).tolist()
        parts = [order[i : i + self.given.batch] for i in range(0, self.n, self.given.batch)]
        ahead: list[list[object]] = []
        for k, part in enumerate(parts):
            if not ahead:
                ahead.append(self.submit(k, part))
            if k + 1 < len(parts):
                ahead.append(self.submit(k + 1, parts[k + 1]))
            for future in ahead.pop(0):
                future.result()  # type: ignore[attr-defined]
            yield {name: array[: len(part)] for name, array in self.ring[k % RING].items()}

    def submit(self, k: int, part: list[int]) -> list[object]:
        block, threads = self.ring[k % RING], max(1, self.given.workers)
        step = -(-len(part) // (4 * threads))

        def some(low: int) -> None:
            for place in range(low, min(low + step, len(part))):
                self.copy(block, place, part[place])

        return [self.pool.submit(some, low) for low in range(0, len(part), step)]


def write(_: Path, __: Path, ___: Options) -> None:
    """The source is what it reads."""


if __name__ == "__main__":
    run(Copies, write)
