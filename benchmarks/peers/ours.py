"""mmbuild's own loader on its own corpus; MMBUILD_BENCH_VALUES says how far values are on their way to training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common import Options, run

from mmbuild.stream.loader import Loader

# Each has what the one before has; a crop asked for on the command line comes first.
STAGES: dict[str, dict[str, Any]] = {
    "stored": {"raw": True},
    "masked": {"normalize": False},
    "normalised": {},
    "training": {"augment": True},
}


def batches(given: Options) -> Any:
    stage = STAGES[os.environ.get("MMBUILD_BENCH_VALUES", "stored")]
    return Loader(
        given.url or given.store, batch_size=given.batch, threads=max(1, given.workers), modalities=given.modalities,
        crop=given.crop, shuffle="blocks" if given.url else True, **stage,
    )  # fmt: skip


def write(_: Path, __: Path, ___: Options) -> None:
    """The corpus is there."""


if __name__ == "__main__":
    run(batches, write)
