"""Loaders of a hand-made corpus and what tests compare of their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mmbuild.stream.loader import Batch, Loader
from tests.shards import TinyCorpus


def make(corpus: TinyCorpus | str, **options: Any) -> Loader:
    where = corpus if isinstance(corpus, str) else corpus.path
    return Loader(where, **{"batch_size": 4, "prefetch": 1, **options})


def ids(batches: Iterator[Batch] | list[Batch] | Loader) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch["id"]]


def by_id(batches: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of every sample."""
    return {
        sample_id: {k: v[i] for k, v in batch.items() if isinstance(v, torch.Tensor)}
        for batch in batches
        for i, sample_id in enumerate(batch["id"])
    }


def assert_same_samples(one: Any, two: Any) -> None:
    first, second = by_id(one), by_id(two)
    assert first.keys() == second.keys()
    for sample_id, entries in first.items():
        assert entries.keys() == second[sample_id].keys()
        for key, value in entries.items():
            torch.testing.assert_close(value, second[sample_id][key], rtol=0, atol=0, equal_nan=True, msg=key)
