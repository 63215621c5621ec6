"""Each method on one process and on two: one loss curve; interrupted and continued, on as many or on others: the same.

The runs are short and on a hand-made corpus. What they compare is every step's loss, and the last weights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmbuild.errors import UserError
from tests.runs import SMALL
from tests.shards import write_corpus
from train import checkpoint, log
from train.config import load_config
from train.distributed import placement, rank_batch
from train.pretrain import pretrain

REPO = Path(__file__).parents[1]
STEPS, HALF = 4, 2
METHODS = ("mpmae", "croma", "scale_alibi")
MODELS: dict[str, dict[str, Any]] = {
    "mpmae": {"model": {"name": "mpmae", "input": "aerial", "crop": 16, "patch": 8, "decoder_dim": 16},
              "tasks": ["aerial", "colour", "climate", "zone"], "accumulate": 2, "ema": 0.9},
    "croma": {"model": {"name": "croma", "crop": 12, "mask_ratio": 0.5, "radar": {"modality": "radar"},
                        "optical": {"modality": "colour", "bands": ["B", "R"]}, **SMALL},
              "view": {"window": [6, 10], "mixup": 0.3, "scaling": "satmae"}, "drop_last": True},
    "scale_alibi": {"model": {"name": "scale_alibi", "crop": 24, "radar": {"modality": "radar", "bands": ["VV"]},
                              "lores": {"modality": "colour"}, "hires": {"modality": "aerial"}, **SMALL}},
}  # fmt: skip


# As many threads here as in the processes started below: another number adds floats in another order.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and the configs of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder / "corpus", slots=25, companions=True)
    for method, own in MODELS.items():
        for kind in ("one", "two", "one_then_two", "two_then_one"):
            write_config(folder, f"{method}_{kind}", own)
    write_config(folder, "mpmae_sharded", MODELS["mpmae"] | {"strategy": "fsdp"})
    return folder


def write_config(folder: Path, name: str, own: dict[str, Any]) -> None:
    content = {
        "corpus": str(folder / "corpus"), "out": str(folder / name), "batch_size": 8, "steps": STEPS, "seed": 3,
        "optim": {"lr": 0.003, "warmup_steps": 1}, "log_every": 1, "checkpoint_every": HALF, "validate_every": HALF,
        "threads": 1, **own,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Every method trained by one process."""
    for method in METHODS:
        pretrain(load_config(folder / f"{method}_one.yaml"))
    return folder


def cut_back(folder: Path, source: str, copy: str) -> None:
    """The run as a kill after half of its steps would have left it."""
    shutil.copytree(folder / source, folder / copy, symlinks=True)
    shutil.rmtree(folder / copy / "checkpoints" / f"step-{STEPS:08d}")


@pytest.fixture(scope="module")
def together(alone: Path) -> Path:
    """The same by two processes; by one and then two; and with sharded weights."""
    for method in METHODS:
        cut_back(alone, f"{method}_one", f"{method}_one_then_two")
    names = [f"{method}_{kind}" for method in METHODS for kind in ("two", "one_then_two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(REPO / "tests" / "distributed_runs.py"), str(alone), *names, "mpmae_sharded"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(launcher + script, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return alone


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    timing = {"samples_per_s", "data_wait", "mfu"}
    rows = log.read_rows(folder / name / "log.csv")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [{key: value for key, value in row.items() if key not in timing and value == value} for row in rows]


def weights(folder: Path, name: str, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(checkpoint.open_checkpoint(folder / name).path / f"{file}.safetensors")


def same_curve(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_and_one_give_the_same_loss_curve(method: str, together: Path) -> None:
    ours, theirs = (curve(together, f"{method}_{kind}") for kind in ("two", "one"))
    same_curve(ours, theirs)
    looked = [any(key.startswith(log.VALIDATION) for key in row) for row in ours]
    assert looked == [False, True, False, True]


def test_sharded_weights_give_the_same_loss_curve_and_whole_checkpoints(together: Path) -> None:
    same_curve(curve(together, "mpmae_sharded"), curve(together, "mpmae_one"))
    for file in ("model", "averages"):
        ours, theirs = (weights(together, f"mpmae_{kind}", file) for kind in ("sharded", "one"))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def fewer(together: Path) -> Path:
    """Begun by two processes, ended by one."""
    for method in METHODS:
        cut_back(together, f"{method}_two", f"{method}_two_then_one")
        pretrain(load_config(together / f"{method}_two_then_one.yaml"), resume=True)
    return together


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["one_then_two", "two_then_one"])
def test_a_run_continued_by_another_number_of_processes_sees_the_same_samples(
    kind: str, method: str, together: Path, fewer: Path
) -> None:
    """Losses of other samples differ by far more than the tolerance: the curve is that of the run that went on."""
    same_curve(curve(together, f"{method}_{kind}"), curve(together, f"{method}_one"))
    losses = [row["loss"] for row in curve(together, f"{method}_one")]
    assert max(losses) - min(losses) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_run_continued_by_as_many_processes_is_the_straight_run_bit_for_bit(method: str, alone: Path) -> None:
    write_config(alone, f"{method}_resumed", MODELS[method])
    cut_back(alone, f"{method}_one", f"{method}_resumed")
    pretrain(load_config(alone / f"{method}_resumed.yaml"), resume=True)
    assert curve(alone, f"{method}_resumed") == curve(alone, f"{method}_one")
    for file in ("model", *(["averages"] if method == "mpmae" else [])):
        ours, theirs = (weights(alone, f"{method}_{kind}", file) for kind in ("resumed", "one"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_averages_lag_behind_the_weights(alone: Path) -> None:
    """After n steps of decay d: average = d^n x first + ...; here by the recurrence over every step's weights."""
    write_config(alone, "mpmae_every", MODELS["mpmae"] | {"checkpoint_every": 1})
    run = pretrain(load_config(alone / "mpmae_every.yaml"))
    folder = alone / "mpmae_every" / "checkpoints"
    steps = [load_file(folder / f"step-{step:08d}" / "model.safetensors") for step in range(2, STEPS + 1)]
    averages = [load_file(folder / f"step-{step:08d}" / "averages.safetensors") for step in range(2, STEPS + 1)]
    for name in dict(run.module.named_parameters()):
        for before, after, weight in zip(averages[:-1], averages[1:], steps[1:], strict=True):
            torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * weight[name], atol=1e-6, rtol=1e-5)
    found = checkpoint.open_checkpoint(alone / "mpmae_every")
    found.load_weights(run.module)
    assert all(torch.equal(value, averages[-1][name]) for name, value in run.module.named_parameters())


# -- where processes come from, and what does not divide


def test_slurm_says_how_many_processes_there_are(folder: Path) -> None:
    config = load_config(folder / "mpmae_one.yaml", ["devices=3"])
    assert placement(config, {}) == (3, 1)
    environment = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "pretraining"}
    environment |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert placement(config, environment) == (4, 2)
        with pytest.raises(UserError, match=r"9 tasks do not spread evenly over 2 nodes; ask for --ntasks-per-node"):
            placement(config, environment | {"SLURM_NTASKS": "9"})
        for lacking, told in (("NTASKS_PER_NODE", "instead of --ntasks ask for"), ("STEP_ID", "start it with srun")):
            with pytest.raises(UserError, match=told):
                placement(config, {name: x for name, x in environment.items() if name != f"SLURM_{lacking}"})


def test_a_batch_that_does_not_divide_is_refused(folder: Path) -> None:
    config = load_config(folder / "mpmae_one.yaml")
    assert rank_batch(config, 2) == 2
    with pytest.raises(UserError, match=r"batch_size: 8 does not divide into 3 devices x 2 parts; use a multiple of 6"):
        rank_batch(config, 3)
