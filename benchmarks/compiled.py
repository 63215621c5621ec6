"""Batches of a corpus made by compiled code and by the Python that stands in for it where there is none.

    python -m benchmarks.compiled OUT [--rounds N] [--crop PX]

For stored values, normalised ones, and windows with flips and turns; with one thread and with two. Prints samples a
second, CPU a sample and how many times as fast compiled code was: medians of the rounds, which go by turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

from mmbuild.cube import open_corpus
from mmbuild.stream import compiled
from mmbuild.stream.loader import Loader

BATCH = 128


def epoch(loader: Loader) -> tuple[float, float]:
    """Samples a second, and CPU seconds a sample."""
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    for batch in loader:
        samples += len(batch["id"])
    return samples / (time.perf_counter() - began), (time.process_time() - cpu) / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", type=int, default=112, help="pixels of the windows")
    given = parser.parse_args()
    if not compiled.is_built():
        raise SystemExit("there is no compiled code: install mmbuild where there is a C compiler")
    corpus, built = open_corpus(given.corpus), compiled._chunks
    values: dict[str, dict[str, Any]] = {
        "stored": {"raw": True}, "normalised": {}, "windows, flips and turns": {"crop": given.crop, "augment": True},
    }  # fmt: skip
    print(f"{corpus!r}\n{os.cpu_count()} cores; medians of {given.rounds}; samples a second, CPU a sample")
    for name, options in values.items():
        for threads in (1, 2):
            found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for number in range(given.rounds + 1):
                for is_compiled, results in found.items():
                    compiled._chunks = built if is_compiled else None
                    result = epoch(Loader(corpus, batch_size=BATCH, threads=threads, seed=number, **options))
                    if number:  # the first round brings the files into memory
                        results.append(result)
            told = [
                f"{word} {statistics.median(rate for rate, _ in found[way]):6,.0f}/s "
                f"{statistics.median(cpu for _, cpu in found[way]) * 1e6:6,.0f} us"
                for word, way in (("compiled", True), ("Python", False))
            ]
            gain = statistics.median(a / b for (a, _), (b, _) in zip(found[True], found[False], strict=True))
            print(f"  {name:26s} {threads} thread{'s' * (threads > 1):1s}  {'  '.join(told)}  {gain:.2f} x", flush=True)


if __name__ == "__main__":
    main()
