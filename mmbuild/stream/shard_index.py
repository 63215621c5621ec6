"""Where chips lie in a cube without commit records: from the index at the end of every shard, as Zarr's codec has it.

A copy of a cube and its catalogue streams like the corpus it comes from. Which chips are there is told by the indexes
alone, so nothing is known of why others are not; where there are records, only they are believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np

from mmbuild.cube import ArrayLayout, Corpus
from mmbuild.errors import IntegrityError
from mmbuild.stream.foreign import is_ours
from mmbuild.stream.index import NO_TIME, ChipTable, Index, read_index

_READERS = 32
_CRC_BYTES = 4
# Zarr's mark of an absent chunk (sharding codec, v1.0).
_ABSENT = np.uint64(2**64 - 1)
_NAT = np.iinfo(np.int64).min


def open_index(corpus: Corpus, names: Sequence[str]) -> Index:
    """From the commit records, or where there is none from the cube itself."""
    index = read_index(corpus, names)
    return index if index.stamps.any() or not _is_cube(corpus) else index_of_cube(corpus, names)


def index_of_cube(corpus: Corpus, names: Sequence[str]) -> Index:
    """The same from shard indexes and the cube's coordinates; anchor times are unknown.

    Raises IntegrityError where an index is damaged.
    """
    import zarr

    root: Any = zarr.open_group(corpus.zarr_store(), mode="r")
    with ThreadPoolExecutor(_READERS) as pool:
        tables = {name: _table(corpus, root, name, pool) for name in names}
    slots = corpus.n_slots
    lon, lat = (np.asarray(root[name][:], float) if name in root else np.zeros(slots) for name in ("lon", "lat"))
    shards = -(-slots // corpus.samples_per_shard)
    return Index(
        tables=tables, lon=lon, lat=lat, anchor_s=np.full(slots, NO_TIME, np.int64),
        stamps=np.zeros(shards + 1, np.uint32),
    )  # fmt: skip


def _is_cube(corpus: Corpus) -> bool:
    return corpus.store.exists("cube.zarr/zarr.json")


def _table(corpus: Corpus, root: Any, name: str, pool: ThreadPoolExecutor) -> ChipTable:
    layout, slots = corpus.layouts[name], corpus.n_slots
    shards, per_shard = -(-slots // layout.samples_per_shard), layout.samples_per_shard
    start = np.zeros((shards * per_shard, layout.times), np.uint32)
    # An array in another layout is read by zarr-python, which knows what is there.
    length = np.ones_like(start)
    if is_ours(corpus, layout):
        parts = list(pool.map(lambda shard: _shard(corpus, layout, shard), range(shards)))
        start, length = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    epoch_s = np.full((slots, layout.times), NO_TIME, np.int64)
    if "datetime" in root[name]:
        millis = np.asarray(root[name]["datetime"][:], np.int64)
        epoch_s = np.where(millis == _NAT, NO_TIME, millis // 1000)
    return ChipTable(layout=layout, start=start[:slots], length=length[:slots], epoch_s=epoch_s)


def _shard(corpus: Corpus, layout: ArrayLayout, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, length) of a shard's chips, (sample, time) each; length 0 where there is none."""
    shape, key = (layout.samples_per_shard, layout.times), layout.key(shard)
    size = 16 * shape[0] * shape[1] + _CRC_BYTES
    try:
        tail = corpus.store.get_range(key, corpus.store.size(key) - size, size)
    except FileNotFoundError:
        return np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    index, crc = tail[:-_CRC_BYTES], tail[-_CRC_BYTES:]
    if len(tail) != size or google_crc32c.value(index) != int.from_bytes(crc, "little"):
        raise IntegrityError(f"{corpus.store.url}: the index at the end of {key} is damaged; fetch the object again")
    entries = np.frombuffer(index, "<u8").reshape(*shape, 2)
    absent = entries[..., 1] == _ABSENT
    start, length = (np.where(absent, 0, entries[..., k]).astype(np.uint32) for k in (0, 1))
    return start, length
