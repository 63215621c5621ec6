"""What a corpus holds and lacks, counted from its commit records."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from mmbuild.cube import Corpus

STATUSES = ("stored", "no_data", "rejected", "failed", "not_asked")


def summary(corpus: Corpus) -> dict[str, Any]:
    """Counts by sample, and by modality and reason (most frequent first), ready for JSON.

    ``missing`` counts slots without a commit record yet.
    """
    records = corpus.records(["modality", "sample_status", "status", "reason", "valid_fraction"])
    first = next(iter(corpus.modalities))
    samples = Counter(records.filter(pc.equal(records["modality"], first))["sample_status"].to_pylist())
    known = sum(samples.values())
    return {
        "name": corpus.recipe.name, "location": corpus.store.url,
        "synthetic": corpus.synthetic, "digest": corpus.digest,
        "samples": corpus.n_slots, "stored": samples.get("stored", 0), "missing": corpus.n_slots - known,
        "statuses": dict(sorted(samples.items())),
        "modalities": {
            name: _modality(records.filter(pc.equal(records["modality"], name))) for name in corpus.modalities
        },
    }  # fmt: skip


def _modality(rows: Any) -> dict[str, Any]:
    counts = Counter(rows["status"].to_pylist())
    missing = rows.filter(pc.not_equal(rows["status"], "stored"))
    reasons = Counter(missing["reason"].to_pylist())
    return {
        **{status: counts.get(status, 0) for status in STATUSES},
        "valid_fraction": pc.mean(rows["valid_fraction"]).as_py(),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
