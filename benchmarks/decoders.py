"""Chunks of a corpus read from its folder and decoded in threads, by python-blosc and by numcodecs.

    python -m benchmarks.decoders OUT [--samples N] [--rounds N]

Both have the same C library and let the GIL go; they differ in what they do in Python before. Every chunk is read,
checked and decoded into its place in a batch. Prints samples a second with one and with two threads, and CPU a sample:
medians of the rounds, which go by turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import google_crc32c
import numcodecs.blosc
import numpy as np

from mmbuild.cube import open_corpus
from mmbuild.stream import plan
from mmbuild.stream.chunks import CRC_RESIDUE, decode_chunk
from mmbuild.stream.reader import Reader, Row
from mmbuild.stream.targets import Target

BATCH = 128
Decode = Callable[[bytes, Target, int, int], None]


def ours(chunk: bytes, target: Target, position: int, step: int) -> None:
    decode_chunk(chunk, target.address(position, step), target.data[position, step].nbytes)


def by_numcodecs(chunk: bytes, target: Target, position: int, step: int) -> None:
    assert google_crc32c.value(chunk) == CRC_RESIDUE
    numcodecs.blosc.decompress(chunk, target.data[position, step])


def batch(reader: Reader, slots: np.ndarray) -> tuple[list[Row], list[Target]]:
    tables = [table for table in reader.tables.values() if len(table.layout.chip) == 3]
    chunks = plan.find_chunks(tables, slots)
    shapes = [(len(slots), table.layout.times, *table.layout.chip) for table in tables]
    targets = [
        Target(table=table, data=np.empty(shape, table.layout.modality.np_dtype), missing=table.layout.modality.fill)
        for table, shape in zip(tables, shapes, strict=True)
    ]
    return chunks.rows(0, len(chunks)), targets


def work(reader: Reader, rows: Sequence[Row], targets: Sequence[Target], decode: Decode, repeats: int) -> None:
    assert reader.files is not None
    for _ in range(repeats):
        for member, _, start, length, slot, position, step in rows:
            target = targets[member]
            decode(reader.files.file(target.table.key(slot)).read(start, length), target, position, step)


def measure(reader: Reader, batches: Sequence[tuple[list[Row], list[Target]]], decode: Decode, n: int) -> list[float]:
    """Samples a second, and CPU seconds a sample; every thread has a batch of its own and works on it ``n`` times."""
    threads = [threading.Thread(target=work, args=(reader, *one, decode, n)) for one in batches]
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = len(batches) * n * BATCH
    return [samples / (time.perf_counter() - began), (time.process_time() - cpu) / samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--samples", type=int, default=2048, help="about so many a round and thread")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    reader = Reader(open_corpus(given.corpus))
    order = np.random.default_rng(0).permutation(reader.index.n_slots)
    batches = [batch(reader, np.resize(order[k * BATCH :], BATCH)) for k in range(2)]
    decoders = {"python-blosc": ours, "numcodecs": by_numcodecs}
    found: dict[tuple[str, int], list[list[float]]] = {}
    for number in range(given.rounds + 1):
        for name, decode in decoders.items():
            for threads in (1, 2):
                result = measure(reader, batches[:threads], decode, max(1, given.samples // BATCH))
                if number:  # the first round brings the files into memory
                    found.setdefault((name, threads), []).append(result)
    print(f"{reader.corpus!r}\n{os.cpu_count()} cores; samples a second, CPU a sample")
    for (name, threads), results in found.items():
        rate, cpu = (statistics.median(one[k] for one in results) for k in range(2))
        print(f"  {name:14s} {threads} thread{'s' * (threads > 1):1s} {rate:8,.0f}/s {cpu * 1e6:6.0f} us")
    gains = [a[0] / b[0] for a, b in zip(found["python-blosc", 2], found["numcodecs", 2], strict=True)]
    print(f"  python-blosc over numcodecs with two threads: {statistics.median(gains):.2f} x (median of the rounds)")


if __name__ == "__main__":
    main()
