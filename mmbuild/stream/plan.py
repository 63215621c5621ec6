"""PURE: which chunks a batch needs, cut into parts of work for threads or into few ranges for requests.

No sample becomes a Python object here: a batch is a handful of sorted arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmbuild.stream.index import ChipTable

# Neighbours closer than this are fetched in one go: on an object store, 64 KiB more cost less than a request.
MAX_GAP_BYTES = 64 * 2**10
# What a chunk costs beside its decoding: as long as so many bytes take to decode (10 us).
CALL_BYTES = 40_000
# Parts of work are not cut below so many a thread and batch: each costs some 0.1 ms of Python, and
# threads that end early go on with the next batch.
SMALLEST_PARTS = 4
# No request is longer than this, so that a batch is fetched over many connections at once.
MAX_RANGE_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """The stored chunks of some samples, one entry each, sorted by member, shard and place in it.

    columns: (7, n) int64: member (number of the table), shard, start and length (byte range in the shard), slot,
    position (the sample's row in the batch), time.
    """

    columns: np.ndarray

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def rows(self, low: int, high: int) -> np.ndarray:
        """(n, 7) int64: entries low..high as member, shard, start, length, slot, position, time."""
        rows: np.ndarray = self.columns[:, low:high].T
        return rows


def find_chunks(
    tables: Sequence[ChipTable],
    slots: np.ndarray,
    wanted: Sequence[np.ndarray] | None = None,
    steps: Sequence[np.ndarray | None] | None = None,
) -> Chunks:
    """The stored chunks of ``slots``.

    wanted: for each table, which of the slots it is asked for (bool), or all. steps: for each table, the one time step
    that each slot is asked for, or None for all of them.
    """
    parts = [np.zeros((7, 0), np.int64)]
    for member, table in enumerate(tables):
        rows = np.arange(len(slots)) if wanted is None else np.flatnonzero(wanted[member])
        own = None if steps is None else steps[member]
        if own is None:
            at, time = np.nonzero(table.length[slots[rows]])
        else:
            at = np.flatnonzero(table.length[slots[rows], own[rows]])
            time = own[rows[at]]
        slot = slots[rows[at]]
        where = np.full(len(at), member), slot // table.layout.samples_per_shard
        parts.append(np.stack([*where, table.start[slot, time], table.length[slot, time], slot, rows[at], time]))
    columns = np.concatenate(parts, axis=1)
    return Chunks(columns=columns[:, np.lexsort((columns[2], columns[1], columns[0]))])


def shrinking_parts(chunks: Chunks, tables: Sequence[ChipTable], threads: int) -> list[tuple[int, int]]:
    """Cut the chunks into consecutive runs (low, high) of work that threads take one after the other.

    Each is half of a thread's share of what is left (guided self-scheduling, Polychronopoulos and Kuck 1987), so that
    there are few, and threads that were held up still end together. The last chunks come first: labels of few bytes
    are mostly Python's work, which no two threads do at once, and pixels are not.
    """
    if not len(chunks):
        return []
    cost = np.array([table.layout.modality.np_dtype.itemsize * int(np.prod(table.layout.chip)) for table in tables])
    done = np.cumsum(cost[chunks.columns[0]] + CALL_BYTES)
    edges = [left := int(done[-1])]
    least = left // (SMALLEST_PARTS * threads) + 1
    while left > 0:
        edges.append(left := max(0, left - max(left // (2 * threads), least)))
    ends = np.searchsorted(done, edges, side="left") + 1
    ends[0], ends[-1] = len(chunks), 0
    unique = sorted(set(ends.tolist()), reverse=True)
    return [(low, high) for high, low in pairwise(unique)]


def ranges(chunks: Chunks) -> list[tuple[int, int]]:
    """Cut the chunks into runs (low, high) that one request each can fetch: near each other in one shard object."""
    if not len(chunks):
        return []
    member, shard, start, length = chunks.columns[:4]
    end = start + length
    same = (np.diff(member) == 0) & (np.diff(shard) == 0)
    breaks = np.flatnonzero(~(same & (start[1:] - end[:-1] <= MAX_GAP_BYTES))) + 1
    cuts = [0]
    starts, ends = start.tolist(), end.tolist()
    for low, high in zip([0, *breaks.tolist()], [*breaks.tolist(), len(chunks)], strict=True):
        begin = low
        for i in range(low + 1, high):
            if ends[i] - starts[begin] > MAX_RANGE_BYTES:
                cuts.append(i)
                begin = i
        cuts.append(high)
    return list(pairwise(cuts))
