"""A build on a scheduler that others own: when it ends early, nothing of it goes on in their workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from mmbuild.build import BuildReport, build_corpus
from mmbuild.cli import progress
from mmbuild.errors import UserError
from tests.corpora import build_small, small_recipe, snapshot

FEW = ("store.samples_per_shard=8", "samples=48", "grid.size=16")


class Ended(Exception):
    """What ends the build in these tests."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as running:
        yield running


def test_a_build_that_ends_early_leaves_no_shard_under_way(cluster: LocalCluster, tmp_path: Path) -> None:
    def end(report: BuildReport) -> None:
        raise Ended

    with pytest.raises(Ended):
        build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=cluster.scheduler_address, progress=end)
    with Client(cluster) as client:
        assert not any(client.processing().values())
    build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=cluster.scheduler_address)
    assert snapshot(tmp_path / "out") == snapshot(build_small(tmp_path / "straight", *FEW).store)


def test_ctrl_c_interrupts_no_call_of_dask(cluster: LocalCluster, tmp_path: Path) -> None:
    """It is raised where the build waits; within one of Dask's calls it would leave a traceback of Dask's."""
    handler, went_on = signal.getsignal(signal.SIGINT), []

    def press(report: BuildReport) -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append(report.shards_done)

    with pytest.raises(KeyboardInterrupt):
        build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=cluster.scheduler_address, progress=press)
    assert went_on == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    with Client(cluster) as client:
        assert not any(client.processing().values())


def test_a_second_ctrl_c_is_raised_at_once(cluster: LocalCluster, tmp_path: Path) -> None:
    went_on = []

    def press_twice(report: BuildReport) -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append("once")
        signal.raise_signal(signal.SIGINT)
        went_on.append("twice")

    with pytest.raises(KeyboardInterrupt):
        build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=cluster.scheduler_address, progress=press_twice)
    assert went_on == ["once"]


def test_a_build_whose_workers_are_all_gone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbuild.cluster.ALONE_S", 1.0)
    monkeypatch.setattr("mmbuild.cluster.LOOK_S", 0.2)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as mortal:

        def lose_all(report: BuildReport) -> None:
            mortal.scale(0)

        with pytest.raises(UserError, match="went away") as caught:
            build_corpus(small_recipe(*FEW), tmp_path / "out", scheduler=mortal.scheduler_address, progress=lose_all)
    assert "finished shards are kept" in str(caught.value)


def test_progress_without_a_finished_shard_names_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    with progress._Lines() as show:
        show(BuildReport(shards_total=4, statuses={"stored": 3}, seconds=9.0))
