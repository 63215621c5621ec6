"""How fast the offline Earth Engine answers full MMEarth samples, through the genuine client and inside the process.

    python benchmarks/sandbox.py [--samples 128] [--workers 2]

A sample is searched, screened and read as a build does it: Sentinel-2 (12 bands and the class map), Sentinel-1 in two
orbits, elevation and slope, canopy height, yearly Dynamic World, WorldCover and ERA5, 128 px. Every sample is another
place, so no cache helps twice. Each worker is a process with a sandbox of its own, as the workers of a build are.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild import anchors, choose, shard
from mmbuild.choose import Choice, Sample, Scene
from mmbuild.cube import layouts
from mmbuild.plan import locate, samples_of
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.sources import Source, SourceSpec, open_source

RECIPE = Path(__file__).parent / "recipes" / "mmearth_like.yaml"
# Built before the clock starts: imports, the client's algorithm list and the planet's tables are paid once a process.
WARM_UP = 2
# What full samples are asked to come at, by two processes on two cores that nobody else uses.
ASKED_PER_S = 4.0
# Places at which each modality is read alone, each place for one modality.
PLACES = 3


@dataclass(kw_only=True)
class Timing:
    """What one worker measured: seconds on the clock and of its processor, the latter by step, and what it stored."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    stored: int = 0
    raw_bytes: int = 0
    requests: int = 0


_opened: dict[str, Any] = {}


def opened() -> tuple[Recipe, Source]:
    """The recipe and the sandbox of this process."""
    if not _opened:
        # Chips wait encoded for their shard; what that costs is not the sandbox's, so the cheapest way is taken.
        recipe = load_recipe(RECIPE, ["store.codec=lz4", "store.level=1"])
        gsd = {name: array.gsd for name, array in layouts(recipe).items() if array.gsd}
        modalities = recipe.known_modalities | recipe.modality_defs
        _opened.update(recipe=recipe, source=open_source(SourceSpec(name="sandbox"), modalities, gsd))
    return _opened["recipe"], _opened["source"]


def places(count: int) -> list[Sample]:
    """The first places of the recipe's sampler, each with its alternates."""
    recipe, source = opened()
    table = locate(recipe, stop=count, source=source)
    return list(samples_of(table.drop(columns="geometry").to_dict("records")))


def slots(samples: Sequence[Sample], wanted: range) -> list[Sample]:
    return [sample for sample in samples if sample.slot in wanted]


def work(samples: Sequence[Sample]) -> Timing:
    """Build these samples but for writing them down."""
    recipe, source = opened()
    timing, before = Timing(), source.usage.requests
    wall, cpu = time.perf_counter(), time.process_time()
    last = cpu

    def step(name: str) -> None:
        nonlocal last
        now = time.process_time()
        timing.steps[name] = timing.steps.get(name, 0.0) + now - last
        last = now

    with shard.chip_readers() as readers:
        outcomes, _ = shard.gather(recipe, source, samples, readers, step)
    timing.wall_s, timing.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    stored = [outcome for outcome in outcomes.values() if outcome.status == "stored"]
    timing.stored = len(stored)
    arrays = layouts(recipe)
    chips = [arrays[outcome.choices[key].modality] for outcome in stored for key in outcome.chips]
    timing.raw_bytes = sum(math.prod(array.chip) * array.modality.np_dtype.itemsize for array in chips)
    timing.requests = source.usage.requests - before
    return timing


def measure(samples: Sequence[Sample], count: int, workers: int) -> tuple[list[Timing], float]:
    """Every worker builds its share of the samples; the clock runs from the first start to the last end."""
    warm = [slots(samples, range(worker * WARM_UP, (worker + 1) * WARM_UP)) for worker in range(workers)]
    first = workers * WARM_UP
    shares = [range(first + worker, first + count, workers) for worker in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # As many tasks as workers, each long: every process gets one.
        list(pool.map(work, warm))
        started = time.perf_counter()
        timings = list(pool.map(work, [slots(samples, share) for share in shares]))
        return timings, time.perf_counter() - started


def alone(samples: Sequence[Sample]) -> dict[str, float]:
    """CPU milliseconds to read each modality by itself, at places where nothing was read before."""
    recipe, source = opened()
    # Values of a whole image come with the search and are not read.
    names = [name for name, m in recipe.modality_defs.items() if not m.is_derived and m.level == "pixel"]
    jobs = _chosen(recipe, source, samples)
    spent: dict[str, float] = {}
    for number, name in enumerate(names):
        some = jobs[number * PLACES : (number + 1) * PLACES]
        own = [job for job in some if name in job[1] and job[1][name].scenes]
        started = time.process_time()
        for sample, choices in own:
            source.read(sample, {name: choices[name]})
        if own:
            spent[name] = 1000.0 * (time.process_time() - started) / len(own)
    return spent


def _chosen(recipe: Recipe, source: Source, samples: Sequence[Sample]) -> list[tuple[Sample, dict[str, Choice]]]:
    """The samples' first places with the scenes of every modality, chosen as a build does but not screened."""
    first = [sample for sample in samples if sample.alternate == 0]
    found = []
    scenes: dict[int, list[Scene]] = {sample.slot: [] for sample in first}
    for scene in source.search(first, {sample.slot: shard.asks_of(recipe, sample) for sample in first}):
        scenes[scene.slot].append(scene)
    for sample in first:
        step = anchors.steps(sample, recipe)[0]
        ranked = anchors.rank_anchors(sample, step, scenes[sample.slot], recipe)
        if ranked:
            anchored = choose.Anchored(step=step, scene=ranked[0], clear=1.0)
            found.append((sample, choose.choose_all(sample, anchored, scenes[sample.slot], recipe)))
    return found


def get_info_rate(seconds: float = 1.0) -> float:
    """Answers to `ee.Number(n).add(1).getInfo()` per second of one thread."""
    import ee

    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        assert ee.Number(count).add(1).getInfo() == count + 1
        count += 1
    return count / (time.perf_counter() - started)


def copies_per_second(size: int) -> float:
    """How often numpy copies so many bytes in a second: what no sandbox can beat."""
    source = np.zeros(size, dtype=np.uint8)
    target = np.empty_like(source)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        np.copyto(target, source)
        count += 1
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    recipe, _ = opened()
    modalities = [name for name, modality in recipe.modality_defs.items() if not modality.is_derived]
    first_alone = options.samples + options.workers * WARM_UP
    samples = places(first_alone + len(modalities) * PLACES)
    timings, wall_s = measure(samples, options.samples, options.workers)
    rest = alone(slots(samples, range(first_alone, first_alone + len(modalities) * PLACES)))
    report(timings, wall_s)
    report_alone(rest, sum(t.cpu_s for t in timings) * 1000.0 / sum(t.stored for t in timings))
    print(f"getInfo of a number: {get_info_rate():.0f} answers/s on one thread")


def report(timings: Sequence[Timing], wall_s: float) -> None:
    stored, cpu_s = sum(t.stored for t in timings), sum(t.cpu_s for t in timings)
    size = sum(t.raw_bytes for t in timings) // stored
    rate, floor = stored / wall_s, copies_per_second(size)
    print(f"rate: {rate:.2f} full samples/s on {len(timings)} cores; asked are {ASKED_PER_S:g} on 2")
    print(f"CPU: {cpu_s / stored:.3f} s a sample ({stored} of 128 px in {wall_s:.1f} s on the clock,", end=" ")
    print(f"processes ran {100.0 * cpu_s / (wall_s * len(timings)):.0f} % of the time)")
    for name in timings[0].steps:
        spent = sum(t.steps.get(name, 0.0) for t in timings)
        print(f"  {name:9s} {1000.0 * spent / stored:6.0f} ms a sample, {100.0 * spent / cpu_s:3.0f} %")
    print(f"requests: {sum(t.requests for t in timings) / stored:.2f} a sample")
    print(f"copying the same {size / 1e6:.1f} MB in memory: {floor:.0f} samples/s, {floor / rate:.0f} times as fast")


def report_alone(spent: dict[str, float], sample_ms: float) -> None:
    print("largest parts of reading: one modality alone, at a new place (what modalities share is paid by each):")
    for name, ms in sorted(spent.items(), key=lambda part: -part[1]):
        print(
            f"  {name:18s} {ms:6.1f} ms, {1000.0 / ms:6.1f} chips per CPU second, "
            f"{100.0 * ms / sample_ms:3.0f} % of a sample"
        )


if __name__ == "__main__":
    main()
