"""mmbuild's own loader on its own corpus; ``--values`` gives what training sees instead of the stored values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common import Options, run

from mmbuild.stream.loader import Loader


def batches(given: Options) -> Any:
    training = os.environ.get("MMBUILD_BENCH_VALUES") == "training"
    return Loader(
        given.url or given.store, batch_size=given.batch, threads=max(1, given.workers), modalities=given.modalities,
        crop=given.crop, raw=not training, augment=training, shuffle="blocks" if given.url else True,
    )  # fmt: skip


def write(_: Path, __: Path, ___: Options) -> None:
    """The corpus is there."""


if __name__ == "__main__":
    run(batches, write)
