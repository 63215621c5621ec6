"""Issue 2: interrupted anywhere, killed at random, with any workers: the same bytes as one straight build."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import SMALL, TINY, build_small, snapshot


class Interrupted(Exception):
    """Raised by the hook."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("straight") / "corpus"
    build_small(out)
    return snapshot(out)


def test_interrupted_at_every_step_then_run_again(straight: dict[str, str], tmp_path: Path) -> None:
    steps: list[str] = []
    build_small(tmp_path / "counted", on_step=steps.append)
    assert len(steps) > 40, "the hook sees the planning, every array of every shard, every record and the catalogue"
    for stop, name in enumerate(steps):
        out = tmp_path / f"stopped-{stop}"
        left = [stop]

        def interrupt(step: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted(step)

        with pytest.raises(Interrupted):
            build_small(out, on_step=interrupt)
        build_small(out)
        assert snapshot(out) == straight, f"interrupted at step {stop}: {name}"


def command(out: Path, *options: str) -> list[str]:
    settings = [text for pair in SMALL for text in ("--set", pair)]
    return [
        sys.executable,
        "-c",
        "from mmbuild.cli import main; main()",
        "build",
        str(TINY),
        str(out),
        *settings,
        *options,
    ]


def test_killed_with_sigkill_at_three_random_moments(straight: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    began = time.monotonic()
    subprocess.run(command(tmp_path / "timed"), check=True, capture_output=True)
    whole = time.monotonic() - began
    moments = random.Random(20)
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0.2, 0.9) * whole)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if kills < 3 and snapshot(out) == straight:  # it finished before it was killed: begin anew
            out = tmp_path / f"corpus-{kills}-{time.monotonic_ns()}"
    subprocess.run(command(out), check=True, capture_output=True)
    assert snapshot(out) == straight


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_any_number_of_workers(straight: dict[str, str], tmp_path: Path, workers: int) -> None:
    subprocess.run(command(tmp_path / "corpus", "--workers", str(workers)), check=True, capture_output=True)
    assert snapshot(tmp_path / "corpus") == straight


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A `dask scheduler` with two workers, started by hand."""
    dask = str(Path(sys.executable).with_name("dask"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0"]
    running = [subprocess.Popen([dask, "scheduler", *options])]
    running += [
        subprocess.Popen([dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"])
        for _ in range(2)
    ]
    yield address
    for process in reversed(running):
        process.terminate()
        process.wait(20)


def test_a_scheduler_with_two_workers(straight: dict[str, str], tmp_path: Path, scheduler: str) -> None:
    subprocess.run(command(tmp_path / "corpus", "--scheduler", scheduler), check=True, capture_output=True)
    assert snapshot(tmp_path / "corpus") == straight
