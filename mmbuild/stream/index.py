"""Where every chip of a corpus lies, from its commit records alone, in a few flat arrays.

A million samples of ten modalities take some 200 MB. What a record says beyond place and date (ids, digests) is read
again when an error has to name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbuild.cube import ArrayLayout, Corpus
from mmbuild.records import committed_shards, read_record, record_key

# The time of what has no time; numpy's NaT has the same value.
NO_TIME = -(2**63)
_COLUMNS = ("slot", "modality", "time", "status", "offset", "length", "datetime", "lon", "lat", "anchor_time")
# Requests for records under way at once on an object store, and threads that parse them on a disk.
_REMOTE_READERS, _LOCAL_READERS = 32, 2


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
    """Read the place of every chip of the named modalities from all commit records."""
    shards = _shards(corpus)
    per_shard = corpus.samples_per_shard
    # Whole shards, so that every record has its place.
    n_slots = max(-(-corpus.n_slots // per_shard), max(shards, default=-1) + 1) * per_shard
    times = [corpus.shape(name)[0] for name in names]
    base = np.concatenate([[0], np.cumsum([n_slots * t for t in times])]).astype(np.int64)
    flat = _Flat.empty(int(base[-1]), n_slots, n_slots // per_shard + 1)
    codes = {name: i for i, name in enumerate(names)}

    def take(shard: int) -> None:
        data = _record(corpus, shard)
        if data is not None:
            flat.stamps[shard] = google_crc32c.value(data) or 1
            flat.put(_read(data), codes, base, np.array(times))

    with ThreadPoolExecutor(_LOCAL_READERS if corpus.store.is_local else _REMOTE_READERS) as pool:
        for _ in pool.map(take, shards):
            pass
    known = np.flatnonzero(~np.isnan(flat.lon))
    end = max(corpus.n_slots, int(known[-1]) + 1 if len(known) else 0)
    tables = {}
    for i, name in enumerate(names):
        own = slice(int(base[i]), int(base[i + 1]))
        parts = (array[own].reshape(n_slots, times[i])[:end] for array in (flat.start, flat.length, flat.epoch_s))
        start, length, epoch_s = parts
        tables[name] = ChipTable(layout=corpus.layouts[name], start=start, length=length, epoch_s=epoch_s)
    return Index(
        tables=tables, lon=flat.lon[:end], lat=flat.lat[:end], anchor_s=flat.anchor_s[:end], stamps=flat.stamps
    )


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """All tables behind one another; each shard's rows are put by one thread, and no two touch the same places."""

    start: np.ndarray
    length: np.ndarray
    epoch_s: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    anchor_s: np.ndarray
    stamps: np.ndarray

    @classmethod
    def empty(cls, chips: int, slots: int, shards: int) -> _Flat:
        return cls(
            start=np.zeros(chips, np.uint32), length=np.zeros(chips, np.uint32),
            epoch_s=np.full(chips, NO_TIME, np.int64), lon=np.full(slots, np.nan), lat=np.full(slots, np.nan),
            anchor_s=np.full(slots, NO_TIME, np.int64), stamps=np.zeros(shards, np.uint32),
        )  # fmt: skip

    def put(self, rows: pa.Table, codes: dict[str, int], base: np.ndarray, times: np.ndarray) -> None:
        slot = numbers(rows["slot"])
        self.lon[slot], self.lat[slot] = numbers(rows["lon"], np.nan), numbers(rows["lat"], np.nan)
        self.anchor_s[slot] = epoch_seconds(rows["anchor_time"])
        modality = rows["modality"].combine_chunks()
        code_of = np.array([codes.get(name, -1) for name in modality.dictionary.to_pylist()], np.int64)
        code = code_of[numbers(modality.indices)]
        own = np.flatnonzero(code >= 0)
        code, slot = code[own], slot[own]
        at = base[code] + slot * times[code] + numbers(rows["time"])[own]
        offset, length = numbers(rows["offset"])[own], numbers(rows["length"])[own]
        status = rows["status"].combine_chunks()
        is_stored = np.array([word == "stored" for word in status.dictionary.to_pylist()], bool)
        stored = (offset >= 0) & is_stored[numbers(status.indices)[own]]
        self.start[at], self.length[at] = np.where(stored, offset, 0), np.where(stored, length, 0)
        self.epoch_s[at] = epoch_seconds(rows["datetime"])[own]


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
