"""Where every chip of a corpus lies, from its commit records alone, in a few flat arrays.

A finished corpus keeps what was parsed in one file; a record that has other bytes than the file speaks for is parsed.
A million samples of ten modalities take some 200 MB. What a record says beyond place and date (ids, digests) is read
again when an error has to name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbuild.cube import ArrayLayout, Corpus, put_if_changed
from mmbuild.errors import UserError
from mmbuild.records import committed_shards, read_record, record_key
from mmbuild.stream import kept

# The time of what has no time; numpy's NaT has the same value.
NO_TIME = -(2**63)
_COLUMNS = ("slot", "modality", "time", "status", "offset", "length", "datetime", "lon", "lat", "anchor_time")
_OF_CHIPS = ("start", "length", "epoch_s")
# Requests for records under way at once on an object store, and threads that parse them on a disk.
_REMOTE_READERS, _LOCAL_READERS = 64, 2


@dataclass(frozen=True, kw_only=True)
class ChipTable:
    """What the commit records say about one modality; arrays are (slot, time).

    start, length: byte range in the shard object, uint32 (a shard is at most 256 MiB), length 0 where nothing is
    stored. epoch_s: UTC seconds of the acquisition or NO_TIME.
    """

    layout: ArrayLayout
    start: np.ndarray
    length: np.ndarray
    epoch_s: np.ndarray

    @property
    def name(self) -> str:
        return self.layout.name

    def key(self, slot: int) -> str:
        """The shard object that holds a slot's chips."""
        return self.layout.key(slot // self.layout.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class Index:
    """The chip tables by modality, and by slot: lon, lat (NaN without a record) and the anchor's UTC seconds.

    stamps: by shard, a checksum of its commit record, 0 without one: another stamp means other objects.
    """

    tables: dict[str, ChipTable]
    lon: np.ndarray
    lat: np.ndarray
    anchor_s: np.ndarray
    stamps: np.ndarray

    @property
    def n_slots(self) -> int:
        return len(self.lon)


def read_index(corpus: Corpus, names: Sequence[str]) -> Index:
    """Read the place of every chip of the named modalities from all commit records.

    The bytes of every record are read; those that the kept index was made of are not parsed again.
    """
    shards = _shards(corpus)
    per_shard = corpus.samples_per_shard
    # Whole shards, so that every record has its place.
    n_slots = max(-(-corpus.n_slots // per_shard), max(shards, default=-1) + 1) * per_shard
    flat = _Flat.empty({name: corpus.shape(name)[0] for name in names}, n_slots, per_shard)

    def take(shard: int) -> None:
        data = _record(corpus, shard)
        stamp = 0 if data is None else google_crc32c.value(data) or 1
        if stamp != known.result()[shard]:
            flat.forget(shard)
            if data is not None:
                flat.put(_read(data))
        flat.stamps[shard] = stamp

    with ThreadPoolExecutor(_LOCAL_READERS if corpus.store.is_local else _REMOTE_READERS) as pool:
        known = pool.submit(_recall, corpus, flat)
        for _ in pool.map(take, shards):
            pass
        for shard in set(np.flatnonzero(known.result()).tolist()).difference(shards):
            flat.forget(shard)
    return flat.index(corpus)


def write_index(corpus: Corpus) -> None:
    """Keep what the records say of all modalities, for readers to come: for whoever holds the corpus's lease."""
    index = read_index(corpus, list(corpus.modalities))
    arrays = {"stamps": index.stamps, "lon": index.lon, "lat": index.lat, "anchor_s": index.anchor_s}
    for name, table in index.tables.items():
        arrays |= {f"{name}/{what}": getattr(table, what) for what in _OF_CHIPS}
    put_if_changed(corpus.store, kept.KEPT, kept.packed(arrays))


def _recall(corpus: Corpus, flat: _Flat) -> np.ndarray:
    """Fill in what the kept index says; by shard the stamp of the record that it was made of, 0 for none."""
    nothing = np.zeros(len(flat.stamps), np.uint32)
    try:
        arrays = kept.unpacked(corpus.store.get(kept.KEPT))
    except (FileNotFoundError, UserError):
        # Some servers refuse what is not there. All that it could say is in the records, which must be readable.
        return nothing
    return nothing if arrays is None or not flat.recall(arrays) else _fitted(arrays["stamps"], nothing)


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """All tables behind one another; each shard's rows are put by one thread, and no two touch the same places.

    first: by modality where its (slot, time) begin; times: how many time steps it has.
    """

    first: dict[str, int]
    times: dict[str, int]
    per_shard: int
    start: np.ndarray
    length: np.ndarray
    epoch_s: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    anchor_s: np.ndarray
    stamps: np.ndarray

    @classmethod
    def empty(cls, times: Mapping[str, int], slots: int, per_shard: int) -> _Flat:
        ends = np.cumsum([0, *(slots * t for t in times.values())]).tolist()
        return cls(
            first=dict(zip(times, ends[:-1], strict=True)), times=dict(times), per_shard=per_shard,
            start=np.zeros(ends[-1], np.uint32), length=np.zeros(ends[-1], np.uint32),
            epoch_s=np.full(ends[-1], NO_TIME, np.int64), lon=np.full(slots, np.nan), lat=np.full(slots, np.nan),
            anchor_s=np.full(slots, NO_TIME, np.int64), stamps=np.zeros(slots // per_shard + 1, np.uint32),
        )  # fmt: skip

    def of(self, name: str, what: str) -> np.ndarray:
        """One modality's view (slot, time) of ``start``, ``length`` or ``epoch_s``."""
        own: np.ndarray = getattr(self, what)[self.first[name] : self.first[name] + len(self.lon) * self.times[name]]
        return own.reshape(len(self.lon), self.times[name])

    def put(self, rows: pa.Table) -> None:
        slot = numbers(rows["slot"])
        self.lon[slot], self.lat[slot] = numbers(rows["lon"], np.nan), numbers(rows["lat"], np.nan)
        self.anchor_s[slot] = epoch_seconds(rows["anchor_time"])
        modality = rows["modality"].combine_chunks()
        words = modality.dictionary.to_pylist()
        first, times = (np.array([of.get(word, -1) for word in words]) for of in (self.first, self.times))
        code = numbers(modality.indices)
        own = np.flatnonzero(first[code] >= 0)
        code, slot = code[own], slot[own]
        at = first[code] + slot * times[code] + numbers(rows["time"])[own]
        offset, length = numbers(rows["offset"])[own], numbers(rows["length"])[own]
        status = rows["status"].combine_chunks()
        is_stored = np.array([word == "stored" for word in status.dictionary.to_pylist()], bool)
        stored = (offset >= 0) & is_stored[numbers(status.indices)[own]]
        self.start[at], self.length[at] = np.where(stored, offset, 0), np.where(stored, length, 0)
        self.epoch_s[at] = epoch_seconds(rows["datetime"])[own]

    def forget(self, shard: int) -> None:
        """As if the shard had no record."""
        own = slice(shard * self.per_shard, (shard + 1) * self.per_shard)
        self.lon[own], self.lat[own], self.anchor_s[own] = np.nan, np.nan, NO_TIME
        for name in self.first:
            self.of(name, "start")[own], self.of(name, "length")[own] = 0, 0
            self.of(name, "epoch_s")[own] = NO_TIME

    def recall(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Take over kept arrays; False, with nothing taken, when they are of other modalities or time steps."""
        shapes = {name: arrays[f"{name}/start"].shape[1:] for name in self.first if f"{name}/start" in arrays}
        if shapes != {name: (times,) for name, times in self.times.items()}:
            return False
        for what in ("lon", "lat", "anchor_s"):
            _fitted(arrays[what], getattr(self, what))
        for name in self.first:
            for what in _OF_CHIPS:
                _fitted(arrays[f"{name}/{what}"], self.of(name, what))
        return True

    def index(self, corpus: Corpus) -> Index:
        known = np.flatnonzero(~np.isnan(self.lon))
        end = max(corpus.n_slots, int(known[-1]) + 1 if len(known) else 0)
        tables = {}
        for name in self.first:
            start, length, epoch_s = (self.of(name, what)[:end] for what in _OF_CHIPS)
            tables[name] = ChipTable(layout=corpus.layouts[name], start=start, length=length, epoch_s=epoch_s)
        return Index(
            tables=tables, lon=self.lon[:end], lat=self.lat[:end], anchor_s=self.anchor_s[:end], stamps=self.stamps
        )


def _fitted(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """``place`` with as many of the values as it has room for."""
    some = min(len(values), len(place))
    place[:some] = values[:some]
    return place


def _shards(corpus: Corpus) -> Sequence[int]:
    """Shards that may have a record. A plain web server lists nothing, so there every possible one is asked for."""
    if corpus.store.url.startswith(("http://", "https://")):
        return range(-(-corpus.n_slots // corpus.samples_per_shard))
    return committed_shards(corpus.store)


def _record(corpus: Corpus, shard: int) -> bytes | None:
    try:
        return corpus.store.get(record_key(shard))
    except FileNotFoundError:
        return None


def _read(data: bytes) -> pa.Table:
    # A reader of its own a file: pyarrow's read_table takes twice as long for a file of this size (measured).
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["modality", "status"])
    return file.read(columns=list(_COLUMNS), use_threads=False)


def numbers(column: pa.ChunkedArray | pa.Array, null: float | None = None) -> np.ndarray:
    """The values of a column of numbers; ``null`` stands where there is none.

    pyarrow's own ``to_numpy`` imports pandas, which takes longer than the first batch (measured).
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    valid, data = array.buffers()
    own = slice(array.offset, array.offset + len(array))
    values: np.ndarray = np.frombuffer(data or b"", array.type.to_pandas_dtype())[own]
    if array.null_count and null is not None:
        known = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[own]
        values = np.where(known, values, values.dtype.type(null))
    return values


def epoch_seconds(column: pa.ChunkedArray) -> np.ndarray:
    """UTC seconds since 1970 as int64, NO_TIME for null."""
    millis = numbers(column.cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()), NO_TIME)
    return np.where(millis == NO_TIME, NO_TIME, millis // 1000)


def recorded(corpus: Corpus, modality: str, slot: int, time: int, column: str) -> Any:
    """What the commit record says of one chip, None without it: read again, for messages and rare checks."""
    try:
        rows: Iterable[dict[str, Any]] = read_record(corpus.store, slot // corpus.samples_per_shard).to_pylist()
    except FileNotFoundError:
        return None
    found = (row for row in rows if (row["modality"], row["slot"], row["time"]) == (modality, slot, time))
    return next((row[column] for row in found), None)
