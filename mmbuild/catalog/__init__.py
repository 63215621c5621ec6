"""What is in a corpus, for people and tools that have never heard of mmbuild: items.parquet and collection.json.

One STAC item per stored sample, one asset per stored chip, made from the commit records alone. Nothing here says when
or how the corpus was built, and no product is named that is not inside.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import stac_geoparquet.arrow as sga

from mmbuild.catalog.collection import COLLECTION, ITEMS, build_collection
from mmbuild.catalog.items import build_items, item_parts, tag_column, without_nulls

if TYPE_CHECKING:
    from mmbuild.cube import Corpus

__all__ = ["build_collection", "build_items", "item_dict", "read_items", "tag_column", "write_catalog"]


def write_catalog(corpus: Corpus, splits: Mapping[int, str], statistics: Mapping[str, Any], *, records: str) -> None:
    """Write items.parquet, then collection.json, which names the commit records (``records``) both were made from."""
    items = pa.concat_tables(item_parts(corpus, splits, with_assets=False))
    collection = build_collection(corpus, items, statistics) | {"mmbuild:records": records}
    corpus.store.put(ITEMS, _as_parquet(item_parts(corpus, splits), collection))
    corpus.store.put(
        COLLECTION, (json.dumps(collection, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def read_items(corpus: Corpus) -> pa.Table:
    """The catalogue of record."""
    return pq.read_table(pa.BufferReader(corpus.store.get(ITEMS)))


def item_dict(row: pa.Table) -> dict[str, Any]:
    """The STAC item, as JSON has it, of a table of one row; fields without a value are left out."""
    item: dict[str, Any] = next(iter(sga.stac_table_to_items(row)))
    assets = {key: without_nulls(asset) for key, asset in item["assets"].items() if asset}
    properties = {"datetime": None, **without_nulls(item["properties"])}
    return {**item, "assets": assets, "properties": properties, "links": [without_nulls(k) for k in item["links"]]}


def _as_parquet(parts: Iterator[pa.Table], collection: Mapping[str, Any]) -> bytes:
    """A GeoParquet file with one row group a part."""
    first = next(parts)
    batches = (batch for part in chain([first], parts) for batch in part.to_batches())
    reader = pa.RecordBatchReader.from_batches(first.schema, batches)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ITEMS
        sga.to_parquet(reader, path, collections={collection["id"]: collection}, compression="zstd")
        return path.read_bytes()
