"""What follows once chips and records are there: index, splits, coordinates, statistics, catalogue, in this order.

Everything here is made from the commit records and the chips, so it can be made again at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from mmbuild.catalog import write_catalog
from mmbuild.cube import Corpus
from mmbuild.records import committed_shards, record_key
from mmbuild.splits import split_corpus
from mmbuild.stats import compute
from mmbuild.store import Store
from mmbuild.stream.index import write_index
from mmbuild.tree import root_attributes, root_table, write_tree

OnStep = Callable[[str], None]


def finish(corpus: Corpus, *, step: OnStep = lambda name: None, again: bool = False) -> None:
    """Split, statistics and catalogue of what is stored now; skipped when they are already those of these records.

    The collection is written last and names the records it was made from, so an interrupted finish is seen.
    """
    records = _records_digest(corpus.store)
    if not again and _finished(corpus.store) == records:
        return
    write_index(corpus)
    step("indexed")
    splits = split_corpus(corpus)
    step("split")
    write_tree(corpus.store, corpus.layouts, corpus.n_slots, root_table(corpus, splits), root_attributes(corpus))
    step("coordinates")
    statistics = compute(corpus, splits)
    step("stats")
    write_catalog(corpus, splits, statistics, records=records)
    step("catalogued")


def _records_digest(store: Store) -> str:
    """One digest over all commit records."""
    total = hashlib.sha256()
    for shard in committed_shards(store):
        total.update(hashlib.sha256(store.get(record_key(shard))).digest())
    return total.hexdigest()


def _finished(store: Store) -> str | None:
    """The records that the catalogue here was made from."""
    if not store.exists("collection.json"):
        return None
    digest: str | None = json.loads(store.get("collection.json")).get("mmbuild:records")
    return digest
