"""What the values of a corpus are like: exact statistics of the train split, per modality and band, in stored units.

Missing pixels never count. Chips are taken in the order of their slots and partial sums merged in the order of the
shards, so the numbers do not depend on how the corpus was built or on the number of threads.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmbuild.modality import Modality

if TYPE_CHECKING:
    from mmbuild.cube import Corpus

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Fine bins hold every value of a 16-bit type on its own; float bands cut their valid range into as many.
FINE_BINS = 2**16
# What stats.json shows of them: neighbours joined, in powers of two, until no more than this are left.
SHOWN_BINS = 256
PERCENTILES = (2, 98)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Fixed bins over a valid range: bin k holds low + k * step up to the next, the end bins also what is beyond."""

    low: float
    step: float
    count: int
    is_exact: bool  # one whole number per bin

    @classmethod
    def of(cls, valid_range: tuple[float, float], dtype: np.dtype[Any]) -> Bins:
        low, high = valid_range
        if dtype.kind in "iu" and high - low < FINE_BINS:
            return cls(low=low, step=1.0, count=int(high - low) + 1, is_exact=True)
        return cls(low=low, step=(high - low) / FINE_BINS or 1.0, count=FINE_BINS, is_exact=False)

    def add(self, total: Ints, values: Floats) -> None:
        """Count values into ``total`` (bin,)."""
        if len(values):
            index = np.clip(np.floor((values - self.low) / self.step), 0, self.count - 1).astype(np.int64)
            found = np.bincount(index)
            total[: len(found)] += found


@dataclass(kw_only=True)
class Continuous:
    """Sums over some chips: (band,) arrays, and bins (one array per band)."""

    bins: Sequence[Bins]
    seen: int = 0
    count: Ints = field(init=False)
    mean: Floats = field(init=False)
    square: Floats = field(init=False)  # sum of squared deviations from the mean
    low: Floats = field(init=False)
    high: Floats = field(init=False)
    outside: Ints = field(init=False)
    histogram: list[Ints] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.bins)
        self.count, self.outside = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.mean, self.square = np.zeros(n), np.zeros(n)
        self.low, self.high = np.full(n, np.inf), np.full(n, -np.inf)
        self.histogram = [np.zeros(b.count, np.int64) for b in self.bins]

    def add(self, chip: npt.NDArray[Any], modality: Modality) -> None:
        """Add one chip, (band, ...)."""
        values = chip.reshape(len(chip), -1).astype(np.float64)
        valid = _valid(chip, modality).reshape(len(chip), -1)
        count = valid.sum(axis=1)
        mean = np.sum(values, axis=1, where=valid) / np.maximum(count, 1)
        square = np.sum((values - mean[:, None]) ** 2, axis=1, where=valid)
        self._merge(count, mean, square)
        self.seen += values.shape[1]
        self.low = np.minimum(self.low, np.min(values, axis=1, where=valid, initial=np.inf))
        self.high = np.maximum(self.high, np.max(values, axis=1, where=valid, initial=-np.inf))
        for b, band in enumerate(modality.bands):
            own = values[b, valid[b]]
            self.outside[b] += np.count_nonzero((own < band.valid_range[0]) | (own > band.valid_range[1]))
            self.bins[b].add(self.histogram[b], own)

    def merge(self, other: Continuous) -> None:
        self._merge(other.count, other.mean, other.square)
        self.seen += other.seen
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.outside += other.outside
        for mine, theirs in zip(self.histogram, other.histogram, strict=True):
            mine += theirs

    def _merge(self, count: Ints, mean: Floats, square: Floats) -> None:
        """Two sets become one: Chan, Golub and LeVeque (1979), updating formulae for variances."""
        total = self.count + count
        safe = np.maximum(total, 1)
        delta = np.where(count > 0, mean - self.mean, 0.0)
        self.mean = self.mean + delta * (count / safe)
        self.square = self.square + square + delta**2 * (self.count * (count / safe))
        self.count = total

    def summary(self, b: int) -> dict[str, Any]:
        """The entry of band ``b`` in stats.json; what no value supports is null."""
        count = int(self.count[b])
        numbers = (self.mean[b], np.sqrt(self.square[b] / max(count, 1)), self.low[b], self.high[b])
        named = dict(zip(("mean", "std", "min", "max"), numbers, strict=True))
        return {
            **_coverage(count, self.seen),
            **{key: float(value) if count else None for key, value in named.items()},
            **{f"p{p}": self._percentile(b, p) for p in PERCENTILES},
            "outside_valid_range": int(self.outside[b]),
            "histogram": self._shown(b),
        }

    def _percentile(self, b: int, percent: int) -> float | None:
        """The smallest value that at least ``percent`` % of the values do not exceed (numpy's ``inverted_cdf``).

        Exact for whole numbers, else the middle of its fine bin, which is half a bin away at most.
        """
        if not self.count[b]:
            return None
        cumulative = np.cumsum(self.histogram[b])
        rank = max(1, -(-int(self.count[b]) * percent // 100))
        k, bins = int(np.searchsorted(cumulative, rank)), self.bins[b]
        value = bins.low + k if bins.is_exact else bins.low + (k + 0.5) * bins.step
        return float(np.clip(value, self.low[b], self.high[b]))

    def _shown(self, b: int) -> dict[str, Any] | None:
        """Bins of one power of two of fine bins, from the first to the last that is not empty."""
        used = np.flatnonzero(self.histogram[b])
        if not len(used):
            return None
        join = 1
        while used[-1] // join - used[0] // join >= SHOWN_BINS:
            join *= 2
        first, last = used[0] // join, used[-1] // join
        joined = np.bincount(used // join - first, self.histogram[b][used], minlength=last - first + 1)
        bins = self.bins[b]
        start = bins.low + float(first * join) * bins.step
        return {"start": start, "width": join * bins.step, "counts": joined.astype(np.int64).tolist()}


@dataclass(kw_only=True)
class Categorical:
    """How often each code was seen, per band."""

    codes: list[Counter[int]]
    seen: int = 0

    def add(self, chip: npt.NDArray[Any], modality: Modality) -> None:
        flat, valid = chip.reshape(len(chip), -1), _valid(chip, modality).reshape(len(chip), -1)
        self.seen += flat.shape[1]
        for b, counter in enumerate(self.codes):
            found, times = np.unique(flat[b, valid[b]], return_counts=True)
            counter.update(dict(zip(found.tolist(), times.tolist(), strict=True)))

    def merge(self, other: Categorical) -> None:
        self.seen += other.seen
        for mine, theirs in zip(self.codes, other.codes, strict=True):
            mine.update(theirs)

    def summary(self, b: int, declared: Sequence[int]) -> dict[str, Any]:
        """Counts of every declared class, also 0, and apart from them codes that no class explains."""
        found = self.codes[b]
        strangers = sorted(set(found) - set(declared))
        return {
            **_coverage(found.total(), self.seen),
            "classes": {str(code): found[code] for code in declared},
            "undeclared": {str(code): found[code] for code in strangers},
        }


def _valid(chip: npt.NDArray[Any], modality: Modality) -> npt.NDArray[np.bool_]:
    """True where a stored value is data: neither nodata nor, in a float type, NaN or infinite."""
    valid: npt.NDArray[np.bool_] = np.not_equal(chip, modality.fill) & np.isfinite(chip)
    return valid


def _coverage(count: int, seen: int) -> dict[str, Any]:
    return {"count": count, "nodata_count": seen - count, "valid_fraction": count / seen if seen else None}


def compute(corpus: Corpus, splits: Mapping[int, str], *, threads: int | None = None) -> dict[str, Any]:
    """Statistics of the stored chips of train samples, written to ``stats.json``.

    splits: slot -> split of every stored sample. Values are those on disk (apply scale and offset of the band for
    physical units); std divides by the count. Chips are counted by status over all samples of the catalogue.
    """
    train = pa.array([slot for slot, split in splits.items() if split == "train"], pa.int64())
    known = pa.array(list(splits), pa.int64())
    totals = {name: _empty(modality) for name, modality in corpus.modalities.items()}
    chips: dict[str, Counter[str]] = {name: Counter() for name in totals}
    taken: Counter[str] = Counter()
    with ThreadPoolExecutor(max_workers=threads or min(4, os.cpu_count() or 1)) as pool:
        for part in corpus.record_parts(["slot", "modality", "time", "status"]):
            part = part.filter(pc.is_in(part["slot"], known))
            for name, total in totals.items():
                own = part.filter(pc.equal(part["modality"], name))
                chips[name].update(own["status"].to_pylist())
                own = own.filter(pc.and_(pc.equal(own["status"], "stored"), pc.is_in(own["slot"], train)))
                taken[name] += len(own)
                _add(total, corpus, name, zip(own["slot"].to_pylist(), own["time"].to_pylist(), strict=True), pool)
    modalities = {
        name: {
            "values": corpus.modalities[name].values,
            "chips": dict(sorted(chips[name].items())),
            "train_chips": taken[name],
            "bands": _bands(total, corpus.modalities[name]),
        }
        for name, total in totals.items()
    }
    counts = Counter(splits.values())
    result = {"split": "train", "samples": {s or "none": counts[s] for s in sorted(counts)}, "modalities": modalities}
    corpus.store.put("stats.json", _as_text(result).encode())
    return result


def _add(
    total: Continuous | Categorical, corpus: Corpus, name: str, places: Iterable[tuple[int, int]], pool: Executor
) -> None:
    """Add the chips at (slot, time): one partial sum a shard, merged in the order of the shards."""
    shards = [list(own) for _, own in groupby(sorted(places), lambda place: place[0] // corpus.samples_per_shard)]
    for part in pool.map(lambda own: _of_shard(corpus, corpus.modalities[name], own), shards):
        total.merge(part)  # type: ignore[arg-type]  # both are of the modality's own kind


def _bands(total: Continuous | Categorical, modality: Modality) -> dict[str, dict[str, Any]]:
    """The entry of every band."""
    if isinstance(total, Continuous):
        return {name: total.summary(b) for b, name in enumerate(modality.band_names)}
    return {name: total.summary(b, modality.class_codes) for b, name in enumerate(modality.band_names)}


def _empty(modality: Modality) -> Continuous | Categorical:
    if modality.values == "categorical":
        return Categorical(codes=[Counter() for _ in modality.bands])
    return Continuous(bins=[Bins.of(band.valid_range, modality.np_dtype) for band in modality.bands])


def _of_shard(corpus: Corpus, modality: Modality, places: Sequence[tuple[int, int]]) -> Continuous | Categorical:
    part = _empty(modality)
    for slot, time in places:
        part.add(corpus.read_chip(modality.name, slot, time), modality)
    return part


def _as_text(result: Mapping[str, Any]) -> str:
    """JSON for people too: lists of numbers on one line. A NaN would be an error."""
    text = json.dumps(result, indent=1, allow_nan=False)
    return re.sub(r"\[[\s\d,]+\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"
