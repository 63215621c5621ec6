"""The stored samples of a corpus one by one, with their chips and what the records say of them.

Records are read a shard at a time and few are kept, so that a corpus of any size goes through little memory.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbuild.cube import Corpus
from mmbuild.errors import IntegrityError, UserError
from mmbuild.records import read_parquet, read_record

# Records of shards in memory at a time; one holds some 400 rows.
_SHARDS_KEPT = 24
# What a record says of where a chip lies in its shard: the same chip may move when its shard is rewritten.
_PLACE = ("offset", "length")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One stored sample: ``rows`` are its commit records by (modality, time)."""

    slot: int
    sample_id: str
    split: str
    rows: Mapping[tuple[str, int], Mapping[str, Any]]

    @property
    def about(self) -> Mapping[str, Any]:
        """Any of its records: what they say of the sample itself is the same in all."""
        return next(iter(self.rows.values()))

    @property
    def digest(self) -> str:
        """A digest of everything known of it, its pixels by their sha256."""
        rows = [{key: row[key] for key in row if key not in _PLACE} for row in self.rows.values()]
        text = json.dumps([self.sample_id, self.split, rows], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


class SampleReader:
    """Reads the catalogued samples of a corpus; threads may share it.

    slots, splits: of every stored sample, by slot. Raises UserError when there is no catalogue yet.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        where = corpus.store.url
        try:
            items = read_parquet(corpus.store, "items.parquet", ["split", "mmbuild:index"]).sort_by("mmbuild:index")
        except FileNotFoundError:
            raise UserError("there is no catalogue yet", where, f"make it: mmbuild catalog {where}") from None
        self.slots: np.ndarray = items["mmbuild:index"].to_numpy().astype(np.int64)
        self.splits: np.ndarray = items["split"].to_numpy(zero_copy_only=False).astype(str)
        self._records: OrderedDict[int, dict[int, dict[tuple[str, int], dict[str, Any]]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.slots)

    def narrowed(self, split: str | None) -> SampleReader:
        """The samples of one split, or all; UserError when it has none."""
        if split is None:
            return self
        chosen = self.splits == split
        if not chosen.any():
            names, counts = np.unique(self.splits, return_counts=True)
            known = ", ".join(f"{name or 'none'} {count}" for name, count in zip(names, counts, strict=True))
            raise UserError(f"no sample is in split {split!r}", self.corpus.store.url, f"the catalogue has: {known}")
        other = SampleReader.__new__(SampleReader)
        other.__dict__ |= self.__dict__ | {"slots": self.slots[chosen], "splits": self.splits[chosen]}
        return other

    def sample(self, slot: int) -> Sample:
        """The sample of a slot of ``slots``."""
        rows = self._shard(slot // self.corpus.samples_per_shard).get(slot)
        if not rows:
            where = self.corpus.store.url
            raise IntegrityError(
                f"{where}: slot {slot} is catalogued but has no commit record; run mmbuild catalog {where}"
            )
        split = str(self.splits[np.searchsorted(self.slots, slot)])
        return Sample(slot=slot, sample_id=next(iter(rows.values()))["sample_id"], split=split, rows=rows)

    def chip(self, sample: Sample, modality: str, time: int = 0) -> np.ndarray | None:
        """The chip as stored, (band, y, x) or (band,); None where none is stored."""
        row = sample.rows.get((modality, time))
        if row is None or row["offset"] < 0:
            return None
        layout = self.corpus.layouts[modality]
        key = layout.key(sample.slot // self.corpus.samples_per_shard)
        try:
            return layout.decode(self.corpus.store.get_range(key, row["offset"], row["length"]))
        except IntegrityError as error:
            raise IntegrityError(f"{self.corpus.store.url}: sample {sample.sample_id}: {error}") from error

    def _shard(self, shard: int) -> dict[int, dict[tuple[str, int], dict[str, Any]]]:
        """Rows of a shard by slot, then by (modality, time)."""
        with self._lock:
            if shard in self._records:
                self._records.move_to_end(shard)
                return self._records[shard]
        found: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
        for row in read_record(self.corpus.store, shard).to_pylist():
            found.setdefault(row["slot"], {})[row["modality"], row["time"]] = row
        with self._lock:
            self._records[shard] = found
            while len(self._records) > _SHARDS_KEPT:
                self._records.popitem(last=False)
        return found
