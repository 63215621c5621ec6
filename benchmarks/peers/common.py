"""What every peer shares: the samples as plain arrays, one way to count, one line of JSON at the end.

Needs numpy, torch and psutil only: it runs in the environment of each peer. Batches are stored dtypes, no masks, and a
byte of every cache line of every batch is read by the consumer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

# What Python, numpy and torch take by themselves: a peer's own library counts as its memory.
BASE_BYTES = psutil.Process().memory_info().rss
# The fastest read an epoch in half a second, which no clock of a shared machine measures well.
ENOUGH_S = 2.0
Sample = dict[str, np.ndarray]
Options = argparse.Namespace


def source(folder: str | Path, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """The samples as memory-mapped arrays by modality, (n, ...)."""
    about = json.loads((Path(folder) / "about.json").read_text())
    return {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in names or about["modalities"]}


def cut(chip: np.ndarray, crop: int | None) -> np.ndarray:
    """The centre window of a chip of pixels."""
    if crop is None or chip.ndim < 3:
        return chip
    top, left = (chip.shape[-2] - crop) // 2, (chip.shape[-1] - crop) // 2
    return chip[..., top : top + crop, left : left + crop]


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([one[name] for one in samples])) for name in samples[0]}


def torch_loader(dataset: Dataset[Sample], given: Options, **more: Any) -> Iterator[Any]:
    """The DataLoader that most people would write."""
    if "shuffle" not in more and "sampler" not in more:
        more["shuffle"] = True
    keep = {"persistent_workers": True} if given.workers else {}
    return DataLoader(dataset, batch_size=given.batch, num_workers=given.workers, collate_fn=collate, **keep, **more)  # type: ignore[return-value]


def touch(batch: Any) -> int:
    """Read a byte of every cache line of a batch."""
    total = 0
    for value in batch.values():
        if isinstance(value, torch.Tensor):
            value = value.numpy() if value.device.type == "cpu" else value.cpu().numpy()
        if isinstance(value, np.ndarray) and value.dtype != object:
            flat = value.reshape(-1) if value.flags.c_contiguous else np.ascontiguousarray(value).reshape(-1)
            total += int(flat.view(np.uint8)[::64].sum(dtype=np.int64))
    return total


def size_of(batch: Any) -> tuple[int, int]:
    """Samples and bytes of a batch."""
    tensors = [v for v in batch.values() if isinstance(v, torch.Tensor | np.ndarray) and getattr(v, "ndim", 0)]
    return len(tensors[0]), sum(v.nbytes for v in tensors)


def tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """CPU time of this process and of its workers, the ended ones included."""
    times = [process.cpu_times() for process in tree()]
    mine = times[0]
    return sum(t.user + t.system for t in times) + mine.children_user + mine.children_system


def run(batches: Callable[[Options], Any], write: Callable[[Path, Path, Options], None]) -> None:
    """The command line of a peer: write once, then read: one epoch to warm up, the next ones are counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--modalities", type=lambda text: text.split(","))
    parser.add_argument("--crop", type=int)
    parser.add_argument("--samples", type=int, default=10**9, help="stop an epoch after so many")
    parser.add_argument("--cold", action="store_true", help="count the first epoch")
    given = parser.parse_args()
    if given.action == "write":
        write(given.source, given.store, given)
        return
    torch.set_num_threads(1)
    began = time.perf_counter()
    loader = batches(given)
    print(json.dumps(count(loader, given, began)), flush=True)
    os._exit(0)  # some peers' threads never end


def count(loader: Any, given: Options, began: float) -> dict[str, float]:
    """In numbers: epochs after the first, for ENOUGH_S at least; or of a cold run the only one, with its opening."""
    first = None
    samples = nbytes = 0
    memory: list[float] = []
    start, cpu = began, cpu_seconds()
    for epoch in itertools.count():
        if epoch == 1:
            samples = nbytes = 0
            memory.clear()
            start, cpu = time.perf_counter(), cpu_seconds()
        family: list[psutil.Process] = []
        stream = iter(loader)
        of_epoch = 0
        for batch in stream:
            first = first or time.perf_counter() - began
            family = family or tree()
            touch(batch)
            n, size = size_of(batch)
            of_epoch, nbytes = of_epoch + n, nbytes + size
            memory.append(resident_mb(family))
            if of_epoch >= given.samples:
                break
        samples += of_epoch
        seconds, used = time.perf_counter() - start, cpu_seconds() - cpu
        del stream
        if given.cold or (epoch and seconds >= ENOUGH_S):
            break
    half = len(memory) // 2
    return {
        "samples_per_s": samples / seconds, "mb_per_s": nbytes / seconds / 1e6, "cpu_us": used / samples * 1e6,
        "first_s": first or 0.0, "rss_mb": max(memory), "grown_mb": max(memory[half:]) - max(memory[:half] or memory),
        "samples": samples,
    }  # fmt: skip


def resident_mb(family: list[psutil.Process]) -> float:
    """Memory of a process and those of its workers that still run, above Python and torch, in 10^6 bytes."""
    sizes = [process.memory_info().rss - BASE_BYTES for process in family if process.is_running()]
    return sum(size for size in sizes if size > 0) / 1e6
