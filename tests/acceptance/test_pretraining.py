"""Each method from the command line: killed at random moments it ends as the straight run; two processes are as one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shards import write_corpus
from train import log
from train.checkpoint import find, open_checkpoint

REPO = Path(__file__).parents[2]
CONFIGS = REPO / "train" / "configs"
STEPS, EVERY = 30, 5
# Config, and what differs from it here. Scale-ALiBi's corpus is hand-made: twelve pixels of radar and twenty-four.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mpmae": ("tiny", ()),
    "croma": ("croma_tiny", ()),
    "scale_alibi": (
        "scale_alibi_tiny",
        ("model.radar.modality=radar", "model.lores.modality=colour", "model.hires.modality=aerial",
         "model.crop=24", "model.patch=4"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tiny64: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    handmade = tmp_path_factory.mktemp("handmade")
    write_corpus(handmade, slots=40, companions=True)
    return {"mpmae": tiny64, "croma": tiny64, "scale_alibi": handmade}


def arguments(method: str, corpus: Path, out: Path, *options: str) -> list[str]:
    config, own = METHODS[method]
    changes = (
        f"corpus={corpus}", f"out={out}", f"steps={STEPS}", f"checkpoint_every={EVERY}", "log_every=1", "batch_size=8",
        *own,
    )  # fmt: skip
    settings = [text for change in changes for text in ("--set", change)]
    return ["-m", "train.pretrain", str(CONFIGS / f"{config}.yaml"), *settings, *options]


def finish(command: list[str]) -> str:
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """One thread everywhere: another number adds floats in another order."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def straight(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of each method."""
    folder = tmp_path_factory.mktemp("straight")
    for method, corpus in corpora.items():
        finish([sys.executable, *arguments(method, corpus, folder / method)])
    return folder


def kill(method: str, corpus: Path, out: Path, seed: int) -> int:
    """Start or resume a run and kill it at a random moment after its next checkpoint; the step it is left at."""
    before = find(out)
    command = [sys.executable, *arguments(method, corpus, out, "--resume")]
    process = subprocess.Popen(
        command, cwd=REPO, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while (found := find(out)) is None or (before is not None and found.step <= before.step):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=120)
    return open_checkpoint(out).step


@pytest.mark.parametrize("method", METHODS)
def test_killed_twice_a_run_ends_with_the_weights_of_the_straight_one(
    method: str, corpora: dict[str, Path], straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    steps = [kill(method, corpora[method], out, seed) for seed in range(2)]
    assert steps[0] < STEPS
    text = finish([sys.executable, *arguments(method, corpora[method], out, "--resume")])
    assert "resuming" in text or "already trained" in text
    ours, theirs = (open_checkpoint(one).path / "model.safetensors" for one in (out, straight / method))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_by_torchrun_have_the_loss_curve_of_one(
    method: str, corpora: dict[str, Path], straight: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finish([*launcher, *arguments(method, corpora[method], tmp_path / "run")])
    ours, theirs = (log.read_rows(one / "log.csv") for one in (tmp_path / "run", straight / method))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        losses = {key: value for key, value in b.items() if key.startswith("loss")}
        assert {key: a[key] for key in losses} == pytest.approx(losses, rel=1e-5, abs=1e-5, nan_ok=True), a["step"]
