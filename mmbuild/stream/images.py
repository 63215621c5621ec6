"""Image-level values as tables in memory: read when a sample is first asked for, then never again.

They are a few bytes a sample; read in every epoch they would cost as many calls as the pixels. On an object store those
of a whole shard come in one request; from a folder those that a batch needs, so that the first one does not wait.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

import numpy as np

from mmbuild.stream.index import ChipTable
from mmbuild.stream.plan import find_chunks
from mmbuild.stream.reader import Chips, Reader, Row
from mmbuild.stream.targets import Target

# Above this size the tables of a corpus would be memory that its user misses: chips are then read one by one.
MAX_TABLE_BYTES = 256 * 2**20


class ImageTable:
    """The values of one image-level modality by slot, (slot, time, band), nodata where none is stored."""

    def __init__(self, reader: Reader, table: ChipTable) -> None:
        layout = table.layout
        self._reader, self.table = reader, table
        data = np.full((reader.index.n_slots, layout.times, *layout.chip), layout.modality.fill)
        self._target = Target(table=table, data=data, missing=layout.modality.fill)
        self._known = np.zeros(reader.index.n_slots, bool)
        self._damaged: dict[int, tuple[Row, Exception]] = {}
        self._asked: dict[int, Future[None]] = {}

    def unknown(self, slots: np.ndarray) -> list[np.ndarray]:
        """Which slots to load before ``take``, in groups that one call each reads."""
        new = slots[~self._known[slots]]
        if self._reader.requests is None:
            return [new] if len(new) else []
        per_shard, end = self.table.layout.samples_per_shard, self._reader.index.n_slots
        # Not np.unique, whose first call imports np.ma: half as long as all else that opening a warm corpus takes.
        firsts = [shard * per_shard for shard in sorted(set((new // per_shard).tolist()))]
        return [np.arange(first, min(first + per_shard, end)) for first in firsts]

    def ask(self, slots: np.ndarray) -> list[Future[None]]:
        """On an object store: load what ``take`` needs, each shard once however many batches ask for it meanwhile."""
        assert self._reader.requests is not None
        futures = []
        for some in self.unknown(slots):
            first = int(some[0])
            future = self._asked.get(first)
            if future is None and self._known[some].all():
                continue  # it ended since
            if future is None:
                future = self._asked[first] = self._reader.requests.do(partial(self.load, some))
                # An ended future keeps who waited for it, and so the memory of whole batches.
                future.add_done_callback(partial(self._ended, first))
            futures.append(future)
        return futures

    def load(self, slots: np.ndarray) -> None:
        """Read the values of slots, on an object store of one shard's; a damaged one is told when it is asked for.

        Twice does no harm.
        """
        chunks = find_chunks([self.table], slots)
        # The row of a chunk in the table is its slot.
        rows = chunks.rows(0, len(chunks)).copy()
        rows[:, 5] = rows[:, 4]
        if len(rows):
            data = None if self._reader.requests is None else self._reader.range_of(self.table, rows)
            self._reader.fill(rows, [self._target], data=data, origin=int(rows[0, 2]), damage=self._note)
        self._known[slots] = True

    def take(self, slots: np.ndarray) -> Chips:
        """The values of slots that were loaded. Damaged ones raise IntegrityError, or are noted as not stored."""
        stored = self.table.length[slots] > 0
        if self._damaged:
            for position, slot in enumerate(slots.tolist()):
                if slot in self._damaged:
                    row, error = self._damaged[slot]
                    self._reader.damage(self._target, row, error)
                    stored[position, row[6]] = False
        return Chips(data=self._target.data[slots], stored=stored)

    def _ended(self, first: int, _: Future[None]) -> None:
        self._asked.pop(first, None)

    def _note(self, target: Target, row: Row, error: Exception) -> None:
        self._damaged[row[4]] = (row, error)


def image_tables(reader: Reader) -> dict[str, ImageTable]:
    """A table for every image-level modality, or none when they would take too much memory."""
    found = [table for table in reader.tables.values() if table.layout.gsd is None]
    values = sum(table.layout.times * int(np.prod(table.layout.chip)) * _itemsize(table) for table in found)
    if values * reader.index.n_slots > MAX_TABLE_BYTES:
        return {}
    return {table.name: ImageTable(reader, table) for table in found}


def _itemsize(table: ChipTable) -> int:
    return int(table.layout.modality.np_dtype.itemsize)
