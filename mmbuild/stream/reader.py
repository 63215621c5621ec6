"""Chips of many samples into numpy arrays: byte ranges from the commit records, decoded by a pool of threads.

It trusts only commit records: what they do not list as stored comes back as nodata, flagged, and unsought.
It never guesses: bytes that are missing or damaged raise IntegrityError naming sample and modality.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from mmbuild.cube import Corpus, chip_digest
from mmbuild.errors import IntegrityError, UserError
from mmbuild.stream import compiled, plan
from mmbuild.stream.cache import Cache
from mmbuild.stream.chunks import Encoded
from mmbuild.stream.fetch import LocalFiles, OpenFile, Requests, no_pickle
from mmbuild.stream.foreign import ForeignArray, foreign_arrays
from mmbuild.stream.index import ChipTable, recorded
from mmbuild.stream.shard_index import open_index
from mmbuild.stream.targets import Crop, Geometry, Scratch, Target, cropped, decode

# Requests under way at once: 32 of 30 ms each fetch a thousand ranges a second.
CONNECTIONS = 32
Item = TypeVar("Item")
# (member, shard, start, length, slot, position, time) of one chunk, as Chunks.rows gives them.
Row = tuple[int, int, int, int, int, int, int]
OnDamage = Callable[[Target, Row, Exception], None]


@dataclass(frozen=True, kw_only=True)
class Chips:
    """One modality of a batch.

    data: (n, time, band, y, x) or (n, time, band), stored dtype; stored: (n, time) bool.
    """

    data: np.ndarray
    stored: np.ndarray


@dataclass(kw_only=True)
class Meter:
    """Where the time of the decoding threads went, in seconds, and how many bytes went through."""

    read_s: float = 0.0
    decode_s: float = 0.0
    copy_s: float = 0.0
    read_bytes: int = 0
    decoded_bytes: int = 0
    chunks: int = 0
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def add(self, read_s: float, decode_s: float, copy_s: float, read_bytes: int, decoded_bytes: int, n: int) -> None:
        with self._lock:
            self.read_s += read_s
            self.decode_s += decode_s
            self.copy_s += copy_s
            self.read_bytes += read_bytes
            self.decoded_bytes += decoded_bytes
            self.chunks += n

    def __reduce__(self) -> tuple[Any, ...]:
        return (Meter, ())


class Reader:
    """Random access to chips, safe to share between threads.

    modalities: names in the order of the answer, all by default. threads: how many decode at once. on_damage: "raise",
    or "skip": a damaged chip counts as not stored and its (sample, modality) is noted in ``damaged``. cache,
    connections: for object stores.
    Raises UserError for a modality that the corpus does not have.
    """

    def __init__(
        self,
        corpus: Corpus,
        modalities: Sequence[str] | None = None,
        *,
        threads: int = 2,
        on_damage: str = "raise",
        cache: Cache | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        names = list(corpus.modalities) if modalities is None else list(modalities)
        for name in names:
            if name not in corpus.modalities:
                fix = f"choose from {', '.join(corpus.modalities)}"
                raise UserError(f"no modality {name!r} in this corpus", corpus.store.url, fix)
        self.corpus, self.on_damage, self._threads = corpus, on_damage, threads
        self._cache, self._connections = cache, connections
        with ThreadPoolExecutor(1) as pool:  # on an object store each of the two waits for answers
            foreign = pool.submit(foreign_arrays, corpus, names)
            self.index = open_index(corpus, names)
            self.foreign: dict[str, ForeignArray] = foreign.result()
        self.tables = self.index.tables
        self.damaged: list[tuple[str, str]] = []
        self.meter = Meter()
        self.scratch = Scratch()
        self._open()

    def _open(self) -> None:
        store = self.corpus.store
        self.files = LocalFiles(store) if store.is_local else None
        self.requests = None
        if not store.is_local:
            self.requests = Requests(store, connections=self._connections, cache=self._cache)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mmbuild-decode")

    def __getstate__(self) -> dict[str, Any]:
        return no_pickle(self.__dict__, "_pool", "files", "requests", "scratch")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.scratch = Scratch()
        self._open()

    def close(self) -> None:
        """Stop the threads and close the files; reading afterwards raises RuntimeError."""
        self._pool.shutdown(cancel_futures=True)
        if self.files is not None:
            self.files.close()
        if self.requests is not None:
            self.requests.close()

    def read(
        self, slots: Sequence[int] | np.ndarray, *, crop: Crop | None = None, verify: bool = False
    ) -> dict[str, Chips]:
        """The chips of ``slots`` in their order; what is not stored is nodata, with ``stored`` False.

        crop: a window a sample, for pixel-level modalities. verify: compare the sha256 of every whole chip.
        Raises IntegrityError that names sample and modality when bytes are missing, damaged or different.
        """
        wanted = np.asarray(slots, dtype=np.int64)
        for slot in wanted[(wanted < 0) | (wanted >= self.index.n_slots)].tolist():
            raise IndexError(f"slot {slot} must be 0 to {self.index.n_slots - 1}")
        tables = list(self.tables.values())
        targets = [_raw_target(table, len(wanted), crop) for table in tables]
        chunks = plan.find_chunks(tables, wanted)
        batch = {}
        for table, target in zip(tables, targets, strict=True):
            stored = table.length[wanted] > 0
            target.data[~stored] = target.missing
            batch[table.name] = Chips(data=target.data, stored=stored)
        missed: list[Row] = []
        cut = plan.ranges(chunks) if self.requests else plan.shrinking_parts(chunks, tables, self._threads)

        def take(part: tuple[int, int]) -> None:
            rows = chunks.rows(*part)
            data = None if self.requests is None else self.range_of(tables[rows[0, 0]], rows)
            missed.extend(self.fill(rows, targets, data=data, origin=int(rows[0, 2]), verify=verify))

        run_all(self._pool, take, cut)
        for member, _, _, _, _, position, time in missed:
            batch[tables[member].name].stored[position, time] = False
        return batch

    def fill_now(self, chunks: plan.Chunks, targets: Sequence[Target]) -> None:
        """Read, decode and place all chunks in the calling thread."""
        if self.requests is None:
            self.fill(chunks.rows(0, len(chunks)), targets)
            return
        for low, high in plan.ranges(chunks):
            rows = chunks.rows(low, high)
            self.fill(rows, targets, data=self.range_of(targets[rows[0, 0]].table, rows), origin=int(rows[0, 2]))

    # -- one part of a batch, in one thread

    def fill(
        self,
        rows: np.ndarray | Sequence[Row],
        targets: Sequence[Target],
        *,
        data: Encoded | None = None,
        origin: int = 0,
        verify: bool = False,
        damage: OnDamage | None = None,
    ) -> list[Row]:
        """Read, decode and place some chunks; the answer are those that are damaged, when they are to be skipped.

        rows: sorted as Chunks are. data: bytes of the shard object from ``origin`` on, when they were fetched before.
        damage: what to do with a damaged chunk, instead of what ``on_damage`` says.
        """
        if not len(rows):
            return []
        table = np.asarray(rows, np.int64)
        # Compiled code compares no digests.
        left = table if verify else self._fill_compiled(table, targets, data, origin)
        some: list[Row] = list(map(tuple, left.tolist()))
        return self._fill_each(some, targets, data, origin, verify=verify, damage=damage or self.damage) if some else []

    def _fill_compiled(
        self, rows: np.ndarray, targets: Sequence[Target], data: Encoded | None, origin: int
    ) -> np.ndarray:
        """Have compiled code do what it can; the rows that are left."""
        work = np.zeros(len(rows), compiled.ROW)
        work["length"] = rows[:, 3]
        alive: list[object] = []  # what the work has addresses and numbers of
        edges = [0, *(np.flatnonzero(np.diff(rows[:, 0])) + 1).tolist(), len(rows)]
        for low, high in pairwise(edges):
            own, part, target = rows[low:high], work[low:high], targets[rows[low, 0]]
            record = None if target.table.name in self.foreign else target.record
            if record is None:
                part["failed"] = 1
                continue
            target.describe(record, part, own[:, 5], own[:, 6])
            alive += [
                record,
                _in_memory(part, own, data, origin) if data is not None else self._in_files(part, own, target),
            ]
        chosen = np.flatnonzero(work["failed"] == 0)
        if len(chosen):
            able = work[chosen]
            done = compiled.fill(able)
            self.meter.add(*done, len(able) - int(able["failed"].sum()))
            work["failed"][chosen] = able["failed"]
        left: np.ndarray = rows[work["failed"] != 0]
        return left

    def _in_files(self, work: np.ndarray, rows: np.ndarray, target: Target) -> object:
        """Say of chunks of one modality in which files they are."""
        shards, slots = rows[:, 1].tolist(), rows[:, 4].tolist()
        try:
            files = {
                shard: self._file(target.table, slot) for shard, slot in dict(zip(shards, slots, strict=True)).items()
            }
        except FileNotFoundError:  # it is told, or not, chunk by chunk
            work["failed"] = 1
            return None
        work["fd"], work["source"] = [files[shard].fd for shard in shards], rows[:, 2]
        return files

    def _fill_each(
        self,
        rows: Sequence[Row],
        targets: Sequence[Target],
        data: Encoded | None,
        origin: int,
        *,
        verify: bool,
        damage: OnDamage,
    ) -> list[Row]:
        missed: list[Row] = []
        read_s = decode_s = copy_s = 0.0
        read_bytes = decoded_bytes = 0
        now = clock.perf_counter
        chunk: Encoded
        file, opened = None, (-1, -1)
        for row in rows:
            member, shard, start, length, slot, position, time = row
            target = targets[member]
            began = now()
            try:
                if opened != (member, shard):
                    file, opened = None, (-1, -1)
                    if data is None and target.table.name not in self.foreign:
                        file = self._file(target.table, slot)
                    opened = member, shard
                if file is not None:
                    chunk = file.read(start, length)
                elif target.table.name in self.foreign:
                    target.place(self.foreign[target.table.name].read(slot, time), position, time, self.scratch)
                    decode_s += now() - began
                    continue
                else:
                    assert data is not None
                    chunk = data[start - origin : start - origin + length]
                ready = now()
                chip = self._decoded(target, chunk, row)
                if verify and chip_digest(chip) != self._recorded(target.table, row, "sha256"):
                    raise ValueError("its sha256 differs from the commit record")
                decoded = now()
                if not target.is_direct:
                    target.place(chip, position, time, self.scratch)
            except (ValueError, FileNotFoundError, EOFError) as error:
                damage(target, row, error)
                missed.append(row)
                continue
            read_s += ready - began
            decode_s += decoded - ready
            copy_s += now() - decoded
            read_bytes += length
            decoded_bytes += chip.nbytes
        self.meter.add(read_s, decode_s, copy_s, read_bytes, decoded_bytes, len(rows))
        return missed

    def _file(self, table: ChipTable, slot: int) -> OpenFile:
        assert self.files is not None
        return self.files.file(table.key(slot))

    def range_of(self, table: ChipTable, rows: np.ndarray) -> Encoded | None:
        """The bytes that hold rows of one shard object; None for a foreign array, nothing when they are not there."""
        if table.name in self.foreign:
            return None
        start, slot = int(rows[0, 2]), int(rows[0, 4])
        length = int(rows[-1, 2] + rows[-1, 3]) - start
        try:
            if self.requests is None:
                return self._file(table, slot).read(start, length)
            return self.requests.get(table.key(slot), start, length)
        except (FileNotFoundError, EOFError):
            return b""

    def _decoded(self, target: Target, chunk: Encoded, row: Row) -> np.ndarray:
        _, _, start, length, slot, position, time = row
        try:
            if len(chunk) != length:
                raise EOFError(f"{len(chunk)} of {length} bytes at {start}")
            return decode(target, chunk, position, time, self.scratch)
        except (ValueError, EOFError):
            if self.requests is None:
                raise
            # What was damaged on its way comes whole the second time, past any cache.
            again = self.requests.get(target.table.key(slot), start, length)
            return decode(target, again, position, time, self.scratch)

    def damage(self, target: Target, row: Row, error: Exception) -> None:
        """Raise what is wrong with a chunk, or note it and put nothing in its place."""
        _, _, start, _, slot, position, time = row
        sample_id = self._recorded(target.table, row, "sample_id") or f"at slot {slot}"
        reason = str(error) if isinstance(error, ValueError) else f"its bytes are missing ({error})"
        if self.on_damage != "skip":
            name = f"sample {sample_id}, modality {target.table.name}, time {time}"
            raise IntegrityError(f"{name}: {reason}; {target.table.key(slot)} at byte {start}") from error
        target.clear(position, time)
        self.damaged.append((str(sample_id), target.table.name))

    def _recorded(self, table: ChipTable, row: Row, column: str) -> Any:
        return recorded(self.corpus, table.name, row[4], row[6], column)


def _in_memory(work: np.ndarray, rows: np.ndarray, data: Encoded, origin: int) -> object:
    """Say of chunks of one modality where in ``data``, which begins at ``origin``, they are."""
    memory = np.frombuffer(data, np.uint8)
    start = rows[:, 2] - origin
    work["fd"], work["source"], work["failed"] = -1, memory.ctypes.data + start, start + rows[:, 3] > len(memory)
    return memory


def _raw_target(table: ChipTable, n: int, crop: Crop | None) -> Target:
    """New arrays for stored values of one modality."""
    layout = table.layout
    shape = (n, layout.times, *cropped(layout.chip, crop, layout.name))
    data = np.empty(shape, layout.modality.np_dtype)
    return Target(table=table, data=data, missing=layout.modality.fill, geometry=Geometry(crop=crop))


def run_all(pool: ThreadPoolExecutor, work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Do ``work`` on every item in the pool; the first error is raised after what was running has ended."""
    futures = [pool.submit(work, item) for item in items]
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    wait(waiting)
    for future in done:
        future.result()
