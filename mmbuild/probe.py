"""What a build will cost, from a few samples that are really asked for: requests, bytes, EECU and time, as intervals.

The probed pixels are thrown away. Counts are carried over to whole shards by the rule that decides how samples share
metadata requests, not by proportion: a shard of 64 shares them better than the probe of 16 did.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmbuild.anchors import SCREEN_ROUNDS
from mmbuild.choose import Choice, Sample, Scene
from mmbuild.cube import layouts
from mmbuild.errors import QuotaStop
from mmbuild.plan import locate, samples_of
from mmbuild.recipe import Recipe
from mmbuild.shard import BLOCK, chip_readers, gather
from mmbuild.sources import PAIRS_PER_REQUEST, SAMPLES_PER_REQUEST, Ask, Source, SourceSpec, Usage, open_source
from mmbuild.throttle import REQUESTS_PER_SECOND, Gate

if TYPE_CHECKING:
    import geopandas as gpd

Counts = npt.NDArray[np.float64]
# Resampled probes, and shards made up from each: the percentiles move by about one percent between repetitions.
REPLICATES, SHARDS_EACH = 200, 20
CONFIDENCE = 0.90


@dataclass(kw_only=True)
class Visit:
    """One place that was tried: how many of its scenes were screened in each round, and whether it was read."""

    screened: list[int] = field(default_factory=list)
    read: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A prediction and the bounds that hold it with the module's confidence."""

    expected: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        return Interval(expected=self.expected * factor, low=self.low * factor, high=self.high * factor)

    def plus(self, amount: float) -> Interval:
        return Interval(expected=self.expected + amount, low=self.low + amount, high=self.high + amount)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What ``samples`` will take, and what the probe itself took (``spent``, in ``spent_s`` seconds).

    eecu_hours: None where the service does not say what a request cost. seconds: on this machine, with threads.
    """

    samples: int
    probed: int
    stored: int
    requests: Interval
    bytes: Interval
    eecu_hours: Interval | None
    seconds: Interval
    spent: Usage
    spent_s: float


class Watch:
    """A Source that notes who was searched, screened and read, and what each kind of request took together."""

    def __init__(self, source: Source) -> None:
        self.source, self.usage = source, source.usage
        self.visits: dict[int, list[Visit]] = {}
        self.searches, self.screens = Usage(), Usage()

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        for sample in samples:
            self.visits.setdefault(sample.slot, []).append(Visit())
        before = copy.copy(self.usage)
        found = self.source.search(samples, asks)
        self.searches.add(self.usage.since(before))
        return found

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        counts: dict[int, int] = {}
        for sample, _ in pairs:
            counts[sample.slot] = counts.get(sample.slot, 0) + 1
        for slot, count in counts.items():
            self.visits[slot][-1].screened.append(count)
        before = copy.copy(self.usage)
        found = self.source.screen(pairs)
        self.screens.add(self.usage.since(before))
        return found

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        self.visits[sample.slot][-1].read = True
        return self.source.read(sample, choices)

    def regions(self, name: str) -> gpd.GeoDataFrame:
        return self.source.regions(name)


def probe(
    recipe: Recipe,
    spec: SourceSpec,
    *,
    samples: int,
    probed: int,
    gate: Gate | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Forecast:
    """Ask for the first ``probed`` samples as a build would, and forecast ``samples`` of them."""
    gsd = {name: a.gsd for name, a in layouts(recipe).items() if a.gsd}
    began = time.monotonic()
    watch = Watch(open_source(spec, recipe.known_modalities | recipe.modality_defs, gsd, gate))
    places = locate(recipe, stop=min(probed, samples), source=watch.source)
    tables = copy.copy(watch.usage)
    places = places.drop(columns="geometry").astype({"date": object, "anchor_year": object})
    slots = sorted(places["slot"].unique())
    asking, stored = time.monotonic(), 0
    with chip_readers() as readers:
        for first in range(0, len(slots), BLOCK):
            rows = places[places["slot"].isin(slots[first : first + BLOCK])]
            rows = rows.where(rows.notna(), None).to_dict("records")
            outcomes, stopped = gather(recipe, watch, list(samples_of(rows)), readers, lambda name: None)
            if stopped:
                raise QuotaStop(f"{stopped}; a part of a probe forecasts nothing")
            stored += sum(outcome.status == "stored" for outcome in outcomes.values())
            progress(len(watch.visits))
    now = time.monotonic()
    return _forecast(recipe, watch, tables, samples, stored, asked_s=now - asking, spent_s=now - began)


def _forecast(
    recipe: Recipe, watch: Watch, tables: Usage, samples: int, stored: int, *, asked_s: float, spent_s: float
) -> Forecast:
    size = min(recipe.store.samples_per_shard, samples)
    seen, likely = (c * (samples / size) for c in _shards(_table(list(watch.visits.values())), size, samples // size))
    asked = watch.usage.since(tables)

    def interval(what: str, already: float) -> Interval:
        unit = _units(watch, asked, what)
        low, high = np.quantile(likely @ unit, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        expected = float((seen @ unit).mean())
        return Interval(expected=expected, low=min(low, expected), high=max(high, expected)).plus(already)

    requests = interval("requests", tables.requests)
    # A build lasts as long as its requests: as fast as the probe was answered, but never above the service's rate.
    a_request = max(asked_s / max(1, asked.requests), 1 / REQUESTS_PER_SECOND)
    return Forecast(
        samples=samples, probed=len(watch.visits), stored=stored, requests=requests,
        bytes=interval("bytes", tables.bytes), seconds=requests.times(a_request), spent=watch.usage, spent_s=spent_s,
        eecu_hours=interval("eecu_seconds", tables.eecu_seconds).times(1 / 3600) if asked.eecu_seconds else None,
    )  # fmt: skip


def _shards(table: Counts, size: int, shards: int) -> tuple[Counts, Counts]:
    """Mean shards of ``size`` made of the samples seen, and of what they make likely: (replicate, see ``_shard``).

    A probe in which no place was rejected does not show that none is: the likely ones know one sample more, of weight
    one half (Jeffreys' prior), that needs every round and every alternate.
    """
    # Not part of a corpus: the same probe only has to give the same forecast.
    random = np.random.default_rng(0)
    worst = np.concatenate([table, np.broadcast_to(_worst(table), (1, *table.shape[1:]))])
    seen, likely = np.zeros((REPLICATES, 6)), np.zeros((REPLICATES, 6))
    made = min(max(1, shards), SHARDS_EACH)
    for replicate in range(REPLICATES):
        weights = random.dirichlet([1.0] * len(table) + [0.5])
        for _ in range(made):
            seen[replicate] += _shard(table[random.integers(len(table), size=size)]) / made
            likely[replicate] += _shard(worst[random.choice(len(worst), size=size, p=weights)]) / made
    return seen, likely


def _worst(table: Counts) -> Counts:
    """(attempt, column) of a sample that was tried everywhere, screened in every round, and read."""
    screened = np.broadcast_to(SCREEN_ROUNDS[: table.shape[2] - 2], (table.shape[1], table.shape[2] - 2))
    ones = np.ones((table.shape[1], 1))
    return np.concatenate([ones, screened, ones], axis=1)


def _table(visits: Sequence[Sequence[Visit]]) -> Counts:
    """(sample, attempt, [tried, scenes screened in each round ..., read]) as numbers."""
    attempts = max(2, *(len(own) for own in visits))
    rounds = len(SCREEN_ROUNDS) if any(visit.screened for own in visits for visit in own) else 0
    table = np.zeros((len(visits), attempts, rounds + 2))
    for row, own in zip(table, visits, strict=True):
        for cell, visit in zip(row, own, strict=False):
            cell[:] = [1, *visit.screened, *[0] * (rounds - len(visit.screened)), visit.read]
    return table


def _shard(samples: Counts) -> Counts:
    """What a shard made of these samples asks for: requests and items of searches, screens and reads."""
    total = np.zeros(6)
    for attempt in range(samples.shape[1]):
        active = samples[samples[:, attempt, 0] > 0, attempt]
        for first in range(0, len(active), BLOCK):
            tried, *screened, read = active[first : first + BLOCK].sum(axis=0)
            screens = sum(math.ceil(pairs / PAIRS_PER_REQUEST) for pairs in screened)
            total += [math.ceil(tried / SAMPLES_PER_REQUEST), tried, screens, sum(screened), read, read]
    return total


def _units(watch: Watch, asked: Usage, what: str) -> Counts:
    """What one request or item of each column of ``_shard`` takes of ``what``."""
    visits = [visit for own in watch.visits.values() for visit in own]
    pairs, reads = sum(sum(visit.screened) for visit in visits), sum(visit.read for visit in visits)
    if what == "requests":
        return np.array([1, 0, 1, 0, 0, asked.pixel_requests / max(1, reads)])
    searched, screened = getattr(watch.searches, what), getattr(watch.screens, what)
    left = getattr(asked, what) - searched - screened
    return np.array([0, searched / max(1, len(visits)), 0, screened / max(1, pairs), 0, left / max(1, reads)])
