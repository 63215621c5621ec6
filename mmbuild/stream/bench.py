"""How fast a corpus streams on this machine, and where the time goes: what ``mmbuild bench`` prints.

The memory-copy limit is measured in the same run: the same batches copied by the same number of threads from memory to
memory, with nothing read, checked or decoded.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbuild.cube import Corpus
from mmbuild.stream import compiled
from mmbuild.stream.loader import Loader


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of the epochs after the first. Shares of the decoding threads' time add up to 1 with what is left for Python.

    compiled: whether chunks were decoded by compiled code.
    """

    samples: int
    samples_per_s: float
    decoded_mb_per_s: float
    read_mb_per_s: float
    first_batch_s: float
    cpu_us_per_sample: float
    peak_memory_mb: float
    copy_limit_samples_per_s: float
    share_of_limit: float
    read_share: float
    decode_share: float
    copy_share: float
    consumer_wait_share: float
    threads: int
    batch_size: int
    compiled: bool


def measure(corpus: Corpus, *, seconds: float = 5.0, **options: Any) -> Speed:
    """Stream for about so long after one batch to warm up. options: those of Loader."""
    began = time.perf_counter()
    loader = Loader(corpus, **options)
    stream = iter(loader)
    first = next(stream)
    first_s = time.perf_counter() - began
    sizes = {key: value.numpy() for key, value in first.items() if hasattr(value, "numpy") and value.ndim > 1}
    limit = copy_limit(sizes, threads=options["threads"], seconds=min(1.0, seconds / 4))
    del first, sizes
    stream.close()  # type: ignore[attr-defined]
    meter, waited = loader.meter, 0.0
    before = (meter.read_s, meter.decode_s, meter.copy_s, meter.read_bytes, meter.decoded_bytes)
    cpu, start, samples = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for batch in loader:
            samples += len(batch["id"])
        waited += loader.waited_s
    took, used = time.perf_counter() - start, time.process_time() - cpu
    after = (meter.read_s, meter.decode_s, meter.copy_s, meter.read_bytes, meter.decoded_bytes)
    read_s, decode_s, copy_s, read_bytes, decoded_bytes = (b - a for a, b in zip(before, after, strict=True))
    of_threads = took * options["threads"]
    return Speed(
        samples=samples, samples_per_s=samples / took, decoded_mb_per_s=decoded_bytes / took / 1e6,
        read_mb_per_s=read_bytes / took / 1e6, first_batch_s=first_s, cpu_us_per_sample=used / samples * 1e6,
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, copy_limit_samples_per_s=limit,
        share_of_limit=samples / took / limit, read_share=read_s / of_threads, decode_share=decode_s / of_threads,
        copy_share=copy_s / of_threads, consumer_wait_share=waited / took, threads=options["threads"],
        batch_size=options["batch_size"], compiled=compiled.is_built(),
    )  # fmt: skip


def copy_limit(batch: dict[str, np.ndarray], *, threads: int, seconds: float) -> float:
    """Samples a second that this many threads copy from one place in memory to another, in batches like this one."""
    n = max(len(array) for array in batch.values())
    targets = {key: np.empty_like(array) for key, array in batch.items()}
    step = -(-n // (4 * threads))

    def some(low: int) -> None:
        for key, array in batch.items():
            np.copyto(targets[key][low : low + step], array[low : low + step])

    def once(pool: ThreadPoolExecutor) -> None:
        list(pool.map(some, range(0, n, step)))

    with ThreadPoolExecutor(threads) as pool:
        once(pool)  # the first touches new pages
        return n * _per_second(lambda: once(pool), seconds)


def _per_second(work: Callable[[], None], seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not count:
        work()
        count += 1
    return count / (time.perf_counter() - start)


def default_threads() -> int:
    """As many as the cores that this process may use."""
    return len(os.sched_getaffinity(0))
