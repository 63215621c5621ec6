"""Chips wait for the slowest sample of their shard encoded, so a shard at work does not take its raw size in memory."""

from __future__ import annotations

import platform
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.plan import locate, samples_of
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.shard import gather
from mmbuild.sources import Ask, Usage

SAMPLES, SIZE, READERS = 24, 264, 2
RECIPE = f"""
name: ramps
title: Ramps
licence: CC0-1.0
samples: {SAMPLES}
source: sandbox
sampler: {{kind: cities, top: 100}}
grid: {{kind: utm, gsd: 10, size: {SIZE}}}
anchor: {{modality: sentinel2_l2a, years: [2019]}}
modalities: {{sentinel2_l2a: }}
"""


class Ramps:
    """A source of one scene a place, with chips that rise from the upper left: some 1.7 MB each, easy to encode."""

    def __init__(self, recipe: Recipe) -> None:
        self.usage = Usage()
        self._recipe = recipe

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        when = datetime(2019, 7, 1, tzinfo=UTC)
        return [Scene(slot=s.slot, modality="sentinel2_l2a", scene_id="a", time=when, cloud=0.0) for s in samples]

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        return [1.0 for _ in pairs]

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        shape = self._recipe.shape("sentinel2_l2a")[1:]
        ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE)) + sample.slot + 1
        return {key: np.broadcast_to(ramp, shape).astype(np.uint16) for key in choices}

    def identity(self) -> dict[str, Any]:
        return {"synthetic": True}

    def regions(self, name: str) -> Any:
        raise NotImplementedError(name)


def test_a_shard_waits_for_its_slowest_sample_in_less_memory_than_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    places = list(samples_of(locate(recipe, stop=SAMPLES).to_dict("records")))
    first = [replace(place) for place in places if place.alternate == 0]
    raw = SAMPLES * int(np.prod(recipe.shape("sentinel2_l2a"))) * 2
    tracemalloc.start()
    with ThreadPoolExecutor(READERS) as readers:
        outcomes, stopped = gather(recipe, Ramps(recipe), first, readers, lambda name: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not stopped
    assert [outcome.status for outcome in outcomes.values()] == ["stored"] * SAMPLES
    assert raw > 36e6
    assert peak < raw / 2


HEAPS = """
import threading
from mmbuild.shard import chip_readers
def heaps():
    # glibc lays each heap of its threads out in a region of 64 MiB, aligned to its size.
    with open("/proc/self/maps") as maps:
        return {line.split("-")[0] for line in maps
                if " rw-p " in line and "/" not in line and int(line.split("-")[0], 16) % 2**26 == 0}
before = heaps()  # of threads that libraries started
wait = threading.Barrier(33)
with chip_readers() as readers:
    kept = [readers.submit(lambda: (bytearray(60_000), wait.wait())) for _ in range(32)]
    wait.wait()
    print(len(heaps() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives threads heaps of their own")
def test_threads_that_read_chips_share_two_heaps() -> None:
    told = subprocess.run([sys.executable, "-c", HEAPS], capture_output=True, text=True, check=True)
    assert int(told.stdout) <= 2
