"""What a corpus holds and lacks, counted from its commit records."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from mmbuild.cube import Corpus

STATUSES = ("stored", "no_data", "rejected", "failed", "not_asked")


def summary(corpus: Corpus) -> dict[str, Any]:
    """Counts by sample, and by modality and reason (most frequent first), ready for JSON.

    ``missing`` counts slots without a commit record yet, ``alternates`` samples stored at another place
    than their first.
    """
    records = corpus.records(["modality", "status", "reason", "valid_fraction"])
    each = corpus.samples(["sample_status", "alternate"])
    samples = Counter(each["sample_status"].to_pylist())
    places = Counter(each.filter(pc.equal(each["sample_status"], "stored"))["alternate"].to_pylist())
    known = sum(samples.values())
    return {
        "name": corpus.recipe.name, "location": corpus.store.url,
        "synthetic": corpus.synthetic, "digest": corpus.digest,
        "samples": corpus.n_slots, "stored": samples.get("stored", 0), "missing": corpus.n_slots - known,
        "statuses": dict(sorted(samples.items())),
        "alternates": sum(count for alternate, count in places.items() if alternate),
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
