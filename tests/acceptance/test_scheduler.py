"""A scheduler that goes away in the middle of a build; the client itself tries to reach it again for a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import LocalCluster

from mmbuild.build import BuildReport, build_corpus
from mmbuild.errors import UserError
from tests.corpora import small_recipe

FEW = ("store.samples_per_shard=8", "samples=48", "grid.size=16")


def test_a_scheduler_that_goes_away_is_one_readable_line(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as running:

        def close(report: BuildReport) -> None:
            running.close()

        with pytest.raises(UserError, match="the Dask scheduler or its workers went away"):
            build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=running.scheduler_address, progress=close)
