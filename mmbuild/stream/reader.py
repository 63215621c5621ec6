"""Chips of many samples into numpy arrays: byte ranges from the commit records, decoded by a pool of threads.

It trusts only commit records: what they do not list as stored comes back as nodata, flagged, and unsought.
It never guesses: bytes that are missing or damaged raise IntegrityError naming sample and modality.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import pyarrow as pa
from numcodecs import blosc

from mmbuild.cube import ArrayLayout, Corpus, chip_digest
from mmbuild.errors import IntegrityError, UserError
from mmbuild.store import Store

# Neighbours closer than this are read in one go: on an object store, 64 KiB more cost less than a request.
MAX_GAP_BYTES = 64 * 2**10
# No read is longer than this, so that one batch still splits among the threads.
MAX_RANGE_BYTES = 4 * 2**20
# Shard objects kept open on a local disk; far below the usual limit of 1,024 files a process.
MAX_OPEN_FILES = 128
# The time of what has no time; numpy's NaT has the same value.
NO_TIME = -(2**63)
_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One square window a sample, in units that divide every pixel-level chip: ``units`` of them make a side.

    rows, cols: (n,) upper-left corners; size: the window's side; all in units. A chip with Y rows has
    Y / units pixels a unit, so that the window covers the same ground in modalities of every GSD.
    """

    units: int
    size: int
    rows: np.ndarray
    cols: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Chips:
    """One modality of a batch.

    data: (n, time, band, y, x) or (n, time, band), stored dtype; stored: (n, time) bool.
    """

    data: np.ndarray
    stored: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ChipTable:
    """What the commit records say about one modality; arrays are (slot, time).

    start, length: byte range in the shard object, length -1 where nothing is stored. row: the record's place
    in ``Corpus.records()``, -1 when there is none. epoch_s: UTC seconds of the acquisition or NO_TIME.
    """

    layout: ArrayLayout
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    epoch_s: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One chunk within a range: where it lies and where it goes (position in the batch, time step)."""

    offset: int
    length: int
    position: int
    time: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class Range:
    """One read of one shard object, with the chunks in it."""

    table: ChipTable
    key: str
    start: int
    length: int
    pieces: tuple[Piece, ...]


class Reader:
    """Random access to chips, safe to share between threads.

    modalities: names in the order of the answer, all by default. threads: how many decode at once.
    Raises UserError for a modality that the corpus does not have.
    """

    def __init__(self, corpus: Corpus, modalities: Sequence[str] | None = None, *, threads: int = 2) -> None:
        names = list(corpus.modalities) if modalities is None else list(modalities)
        for name in names:
            if name not in corpus.modalities:
                fix = f"choose from {', '.join(corpus.modalities)}"
                raise UserError(f"no modality {name!r} in this corpus", corpus.store.url, fix)
        self.records = corpus.records()
        self.tables = {name: chip_table(corpus, self.records, name) for name in names}
        self._n_slots = min((len(table.length) for table in self.tables.values()), default=0)
        self._files = RangeReader(corpus.store)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmbuild-decode")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mmbuild-decode")

    def close(self) -> None:
        """Stop the threads and close the files; reading afterwards raises RuntimeError."""
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def read(
        self, slots: Sequence[int] | np.ndarray, *, crop: Crop | None = None, verify: bool = False
    ) -> dict[str, Chips]:
        """The chips of ``slots`` in their order; what is not stored is nodata, with ``stored`` False.

        crop: a window a sample, for pixel-level modalities. verify: compare the sha256 of every whole chip.
        Raises IntegrityError that names sample and modality when bytes are missing, damaged or different.
        """
        wanted = np.asarray(slots, dtype=np.int64)
        for slot in wanted[(wanted < 0) | (wanted >= self._n_slots)].tolist():
            raise IndexError(f"slot {slot} must be 0 to {self._n_slots - 1}")
        batch = {name: _empty(table, wanted, crop) for name, table in self.tables.items()}
        ranges = [part for table in self.tables.values() for part in plan_ranges(table, wanted)]

        def take(part: Range) -> None:
            self._fill(part, batch[part.table.layout.name].data, crop, verify)

        run_all(self._pool, take, ranges)
        return batch

    def _fill(self, part: Range, out: np.ndarray, crop: Crop | None, verify: bool) -> None:
        """Read one range and decode its chunks into their places in ``out``."""
        layout, data = part.table.layout, self._bytes(part)
        windows = crop if len(layout.chip) == 3 else None
        scratch = np.empty(layout.chip, layout.modality.np_dtype) if windows else None
        for piece in part.pieces:
            target = out[piece.position, piece.time]
            chip = target if scratch is None else scratch
            try:
                decode_chunk(data[piece.offset : piece.offset + piece.length], chip)
            except ValueError as error:
                raise self._damage(part, piece, str(error)) from error
            if verify and chip_digest(chip) != self._recorded(part, piece, "sha256"):
                raise self._damage(part, piece, "its sha256 differs from the commit record")
            if windows is not None:
                target[...] = chip[window(windows, piece.position, layout.chip[1:])]

    def _bytes(self, part: Range) -> bytes:
        try:
            return self._files.get_range(part.key, part.start, part.length)
        except (FileNotFoundError, EOFError) as error:
            raise self._damage(part, part.pieces[0], f"its bytes are missing ({error})") from error
        except Exception as error:
            error.add_note(f"while reading {self._name(part, part.pieces[0])} from {part.key}")
            raise

    def _name(self, part: Range, piece: Piece) -> str:
        sample_id = self._recorded(part, piece, "sample_id")
        return f"sample {sample_id}, modality {part.table.layout.name}, time {piece.time}"

    def _recorded(self, part: Range, piece: Piece, column: str) -> Any:
        return self.records.column(column)[int(part.table.row[piece.slot, piece.time])].as_py()

    def _damage(self, part: Range, piece: Piece, reason: str) -> IntegrityError:
        place = f"{part.key} at byte {part.start + piece.offset}"
        return IntegrityError(f"{self._name(part, piece)}: {reason}; {place}")


def chip_table(corpus: Corpus, records: pa.Table, modality: str) -> ChipTable:
    """Lay the commit records of one modality out by (slot, time)."""
    layout = corpus.layouts[modality]
    rows = np.flatnonzero(records["modality"].to_numpy(zero_copy_only=False) == modality)
    slots, times = (records[name].to_numpy()[rows].astype(np.int64) for name in ("slot", "time"))
    n_slots = max(corpus.n_slots, int(slots.max(initial=-1)) + 1)

    def place(values: np.ndarray, missing: int) -> np.ndarray:
        table = np.full((n_slots, layout.times), missing, dtype=np.int64)
        table[slots, times] = values
        return table

    stored = records["status"].to_numpy(zero_copy_only=False)[rows] == "stored"
    return ChipTable(
        layout=layout,
        start=place(records["offset"].to_numpy()[rows], -1),
        length=place(np.where(stored, records["length"].to_numpy()[rows], -1), -1),
        row=place(rows, -1),
        epoch_s=place(epoch_seconds(records["datetime"])[rows], NO_TIME),
    )


def epoch_seconds(column: pa.ChunkedArray) -> np.ndarray:
    """UTC seconds since 1970 as int64, NO_TIME for null."""
    millis = column.cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).fill_null(NO_TIME).to_numpy()
    return np.where(millis == NO_TIME, NO_TIME, millis // 1000)


def decode_chunk(encoded: bytes, out: np.ndarray) -> None:
    """Decode one inner chunk into ``out`` (C-contiguous, the chip's dtype and shape), the GIL released.

    ValueError when the checksum is wrong or the chunk holds another number of bytes.
    """
    packed, tail = encoded[:-_CRC_BYTES], encoded[-_CRC_BYTES:]
    if len(packed) < _BLOSC_HEADER_BYTES or struct.pack("<I", google_crc32c.value(packed)) != tail:
        raise ValueError("its checksum is wrong")
    size = int.from_bytes(packed[4:8], "little")  # the Blosc header: bytes 4 to 8 are the decoded size
    if size != out.nbytes:
        raise ValueError(f"it decodes to {size} bytes where {out.nbytes} belong")
    try:
        # Given a destination, Blosc writes in place and releases the GIL.
        blosc.decompress(packed, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def window(crop: Crop, position: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The slices of a (band, y, x) chip, shape (y, x), that the crop window of a batch position covers."""
    (top, left), size = (int(crop.rows[position]), int(crop.cols[position])), crop.size
    steps = [side // crop.units for side in shape]
    return (
        slice(None),
        slice(top * steps[0], (top + size) * steps[0]),
        slice(left * steps[1], (left + size) * steps[1]),
    )


def _empty(table: ChipTable, slots: np.ndarray, crop: Crop | None) -> Chips:
    """Arrays for a batch: nodata wherever no chunk will be decoded."""
    layout = table.layout
    chip = layout.chip
    if crop is not None and len(chip) == 3:
        if any(side % crop.units for side in chip[1:]):
            raise ValueError(f"{layout.name}: {chip[1:]} pixels do not divide into {crop.units} units")
        chip = (chip[0], *(side // crop.units * crop.size for side in chip[1:]))
    stored = table.length[slots] > 0
    data = np.empty((len(slots), layout.times, *chip), layout.modality.np_dtype)
    data[~stored] = layout.modality.fill
    return Chips(data=data, stored=stored)


def plan_ranges(table: ChipTable, slots: np.ndarray) -> Iterator[Range]:
    """Cover the stored chunks of ``slots`` by few reads: neighbours in one shard object come together."""
    positions, times = np.nonzero(table.length[slots] > 0)
    found = slots[positions]
    shards = found // table.layout.samples_per_shard
    starts, lengths = table.start[found, times], table.length[found, times]
    order = np.lexsort((starts, shards))
    columns = np.stack([shards, starts, lengths, positions, times, found], axis=1)[order]
    run: list[Piece] = []
    shard = begin = 0
    for its_shard, start, length, position, time, slot in columns.tolist():
        if run and not (its_shard == shard and _joins(begin, run[-1], start, length)):
            yield _range(table, shard, begin, run)
            run = []
        if not run:
            shard, begin = its_shard, start
        run.append(Piece(offset=start - begin, length=length, position=position, time=time, slot=slot))
    if run:
        yield _range(table, shard, begin, run)


def _joins(begin: int, last: Piece, start: int, length: int) -> bool:
    gap = start - (begin + last.offset + last.length)
    return gap <= MAX_GAP_BYTES and start + length - begin <= MAX_RANGE_BYTES


def _range(table: ChipTable, shard: int, begin: int, run: list[Piece]) -> Range:
    length = run[-1].offset + run[-1].length
    return Range(table=table, key=table.layout.key(shard), start=begin, length=length, pieces=tuple(run))


def run_all(pool: ThreadPoolExecutor, work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Do ``work`` on every item in the pool; the first error is raised after what was running has ended."""
    futures = [pool.submit(work, item) for item in items]
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    wait(waiting)
    for future in done:
        future.result()


class RangeReader:
    """Byte ranges of a store's objects; local files stay open between reads, the least used are closed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RangeReader, (self._store,))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes. FileNotFoundError without the object, EOFError when it is too short."""
        if self._store.is_local:
            data = self._file(key).read(start, length)
        else:
            data = self._store.get_range(key, start, length)
        if len(data) != length:
            raise EOFError(f"{len(data)} of {length} bytes at {start}")
        return data

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _file(self, key: str) -> _File:
        with self._lock:
            file = self._open.get(key)
            if file is None:
                file = self._open[key] = _File(os.fspath(self._store.handle(key)))
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return file


class _File:
    """An open file that closes when its last user lets go, so that eviction never closes it under a read."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self._fd, length, start)
        while 0 < len(data) < length:  # a signal may shorten a read; an empty answer is the end of the file
            more = os.pread(self._fd, length - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)
