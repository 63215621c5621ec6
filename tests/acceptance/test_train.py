"""Issue 2: training on the tiny corpus lowers the loss; killed and resumed it ends with the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import log
from train.checkpoint import find, open_checkpoint

REPO = Path(__file__).parents[2]
# Often enough that a run killed at a random moment has done some steps of its own since.
CHECKPOINT_EVERY = 7


def command(corpus: Path, out: Path, *options: str) -> list[str]:
    changes = (f"corpus={corpus}", f"out={out}", f"checkpoint_every={CHECKPOINT_EVERY}")
    settings = [text for change in changes for text in ("--set", change)]
    return [sys.executable, "-m", "train.pretrain", "train/configs/tiny.yaml", *settings, *options]


def train(corpus: Path, out: Path, *options: str) -> str:
    done = subprocess.run(command(corpus, out, *options), cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def straight(tiny64: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("straight") / "run"
    text = train(tiny64, out)
    for name in ("checkpoint", "log", "loss curve"):
        assert f"\n{name} " in text
    return out


def test_training_lowers_the_loss_and_that_of_most_tasks(straight: Path) -> None:
    rows = log.read_rows(straight / "log.csv")
    first, last = log.loss_change(rows, "loss")
    assert last < 0.9 * first
    tasks = [column for column in rows[0] if column.startswith(log.TASK)]
    changes = {task: log.loss_change(rows, task) for task in tasks}
    falling = [task for task, (begin, end) in changes.items() if end < begin]
    assert len(tasks) >= 7
    assert len(falling) > len(tasks) / 2, changes


def weights(out: Path) -> bytes:
    return (open_checkpoint(out).path / "model.safetensors").read_bytes()


def stop(corpus: Path, out: Path, number: signal.Signals, seed: int) -> int:
    """Start or resume a run and end it at a random moment after its next checkpoint; the step it is left at."""
    before = find(out)
    process = subprocess.Popen(
        command(corpus, out, "--resume"), cwd=REPO, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while (found := find(out)) is None or (before is not None and found.step <= before.step):
        assert process.poll() is None, "it ended before it was stopped"
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0, 2))
    process.send_signal(number)
    process.wait(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    return open_checkpoint(out).step


def test_killed_twice_and_stopped_once_it_ends_with_the_same_weights(
    tiny64: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    steps = [stop(tiny64, out, number, seed) for seed, number in enumerate(numbers)]
    assert steps == sorted(set(steps))
    assert "resuming" in train(tiny64, out, "--resume")
    assert weights(out) == weights(straight)


def test_the_probe_scores_the_trained_model_beside_its_baselines(tiny64: Path, straight: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train.probe", str(straight), str(tiny64)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for word in ("statistics", "untrained", "pretrained", "logistic", "bootstrap", "synthetic"):
        assert word in done.stdout
