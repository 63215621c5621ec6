"""Commit records: one Parquet file a shard, one row a chip, written last; readers trust nothing else.

What became of a chip is decided by whoever builds the shard; here it is only written and read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmbuild.store import Store

TIMESTAMP = pa.timestamp("ms", tz="UTC")
RECORD_SCHEMA = pa.schema(
    [
        ("slot", pa.int64()), ("sample_id", pa.string()), ("alternate", pa.int16()), ("sample_status", pa.string()),
        ("lon", pa.float64()), ("lat", pa.float64()), ("epsg", pa.int32()), ("x0", pa.float64()), ("y0", pa.float64()),
        ("gsd", pa.float64()), ("height", pa.int32()), ("width", pa.int32()), ("tags", pa.string()),
        ("anchor_time", TIMESTAMP), ("modality", pa.string()), ("time", pa.int16()), ("status", pa.string()),
        ("reason", pa.string()), ("scene_ids", pa.list_(pa.string())), ("datetime", TIMESTAMP),
        ("window_start", TIMESTAMP), ("window_end", TIMESTAMP), ("first", TIMESTAMP), ("last", TIMESTAMP),
        ("scene_count", pa.int32()), ("delta_days", pa.float64()), ("clear_fraction", pa.float32()),
        ("valid_fraction", pa.float32()), ("sha256", pa.string()), ("offset", pa.int64()), ("length", pa.int64()),
    ]
)  # fmt: skip


def record_key(shard: int) -> str:
    return f"shards/{shard:06d}.parquet"


def write_record(store: Store, shard: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the commit record of a shard: the one act that makes its arrays part of the corpus."""
    store.put(record_key(shard), parquet_bytes(pa.Table.from_pylist(list(rows), schema=RECORD_SCHEMA)))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as one Parquet file; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def read_record(store: Store, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The commit record of a shard, whole or some of its columns; see RECORD_SCHEMA."""
    return read_parquet(store, record_key(shard), columns)


def read_parquet(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.get(key)), columns=None if columns is None else list(columns))


def committed_shards(store: Store) -> list[int]:
    """The shards that have a commit record, in order."""
    return sorted(int(key.split("/")[-1].split(".")[0]) for key in store.list("shards") if key.endswith(".parquet"))
