"""Training runs on a small hand-made corpus: they learn, stop, resume to the same weights, and refuse what is wrong."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmbuild.errors import UserError
from tests.shards import write_corpus
from train import checkpoint, log
from train.config import load_config
from train.pretrain import NonFiniteLoss, Run, main, pretrain

REPO = Path(__file__).parents[1]
STEPS = 24


# As many threads here as in the processes started below: another number adds floats in another order.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def settings(corpus: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A config whose every key is written down."""
    model = {
        "name": "mpmae", "size": "atto", "input": "optic", "crop": 24, "patch": 8, "mask_ratio": 0.6,
        "norm_pix": ["optic"], "decoder_dim": 32, "decoder_depth": 1, "weighting": "uncertainty", "compat": None,
    }  # fmt: skip
    whole = {
        "corpus": str(corpus), "out": str(out), "model": model, "tasks": None,
        "optim": {
            "lr": 0.002, "base_lr": None, "weight_decay": 0.05, "betas": [0.9, 0.95], "schedule": "cosine",
            "warmup_steps": 2, "warmup_epochs": None, "clip": 1.0,
        },
        "batch_size": 5, "accumulate": 1, "drop_last": False, "epochs": None, "steps": STEPS, "augment": True,
        "view": {"scaling": "standard", "window": None, "mixup": None, "time": "all"},
        "seed": 3, "precision": "32-true", "ema": None, "compile": False, "accelerator": "auto", "devices": None,
        "nodes": 1, "strategy": "ddp", "log_every": 4, "tensorboard": False, "checkpoint_every": 5, "probe": None,
        "threads": 2,
    }  # fmt: skip
    return whole | changes


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_in_process(corpus: Path, folder: Path, *, resume: bool = False, **changes: Any) -> Run:
    folder.mkdir(exist_ok=True)
    return pretrain(load_config(write(folder / "c.yaml", settings(corpus, folder / "run", **changes))), resume=resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.open_checkpoint(folder / "run").path / "model.safetensors")


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    run_in_process(corpus, folder)
    return folder


def test_training_lowers_the_loss(corpus: Path, tmp_path: Path) -> None:
    run_in_process(corpus, tmp_path, steps=3 * STEPS)
    rows = log.read_rows(tmp_path / "run" / "log.csv")
    first, last = log.loss_change(rows, "loss")
    assert last < first - 0.3
    zone = [row["loss:zone"] for row in rows]
    assert zone[-1] < zone[0]


def test_every_modality_of_the_corpus_is_a_task(straight: Path) -> None:
    about = checkpoint.open_checkpoint(straight / "run").about
    tasks = {task["name"]: task for task in about["arguments"]["tasks"]}
    assert list(tasks) == ["optic", "radar", "cover", "climate", "zone"]
    assert (tasks["optic"]["channels"], tasks["optic"]["patch"], tasks["optic"]["norm_pix"]) == (3, 8, True)
    assert (tasks["radar"]["channels"], tasks["radar"]["patch"], tasks["radar"]["norm_pix"]) == (2, 4, False)
    assert (tasks["cover"]["classes"], tasks["cover"]["patch"]) == (4, 2)
    assert (tasks["climate"]["level"], tasks["zone"]["classes"]) == ("image", 3)


def test_the_input_is_the_anchors_alias_when_none_is_named(corpus: Path, tmp_path: Path) -> None:
    content = settings(corpus, tmp_path / "run", steps=1, tasks=["zone"])
    del content["model"]["input"], content["model"]["norm_pix"]
    run = pretrain(load_config(write(tmp_path / "c.yaml", content)))
    assert run.module.input == "optic"
    assert [task.name for task in run.module.tasks] == ["zone"]


def test_a_run_leaves_a_log_a_curve_and_the_last_three_checkpoints(straight: Path) -> None:
    run = straight / "run"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "latest", "step-00000015", "step-00000020", "step-00000024",
    ]  # fmt: skip
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000024"
    assert sorted(p.name for p in (run / "checkpoints" / "latest").iterdir()) == [
        "config.yaml", "loader.json", "model.json", "model.safetensors", "state.pt",
    ]  # fmt: skip
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [row["step"] for row in log.read_rows(run / "log.csv")] == [4, 5, 8, 10, 12, 15, 16, 20, 24]


def test_a_checkpoint_loads_without_unpickling_and_without_its_corpus(straight: Path) -> None:
    from train.models.mpmae import build

    found = checkpoint.open_checkpoint(straight / "run")
    module = build(found.about["arguments"], torch.Generator())
    found.load_weights(module)
    assert tuple(found.state()["optimizer"]["param_groups"][0]["betas"]) == (0.9, 0.95)
    batch = {"optic": torch.zeros(1, 3, 24, 24), "optic_mask": torch.ones(1, 3, 24, 24, dtype=torch.bool)}
    assert torch.isfinite(module.features(batch)).all()


# -- stopping and resuming


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "train.pretrain", str(folder / "c.yaml"), *arguments]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, *arguments),
        cwd=REPO,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there; the process that makes it has to be alive."""
    while not path.exists():
        if process.poll() is not None:
            raise AssertionError(f"ended before {path.name}: {process.communicate()}")
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_and_resumed_ends_with_the_same_weights_bit_for_bit(
    number: signal.Signals, corpus: Path, straight: Path, tmp_path: Path
) -> None:
    write(tmp_path / "c.yaml", settings(corpus, tmp_path / "run"))
    process = start(tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000005", process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    stopped_at = checkpoint.open_checkpoint(tmp_path / "run").step
    assert stopped_at < STEPS, "the run ended before the signal: this test proved nothing"
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert f"stopped by SIGTERM at step {stopped_at} of {STEPS}; add --resume to continue" in error
    run_in_process(corpus, tmp_path, resume=True)
    assert same_weights(weights(tmp_path), weights(straight))


def cut_back(straight: Path, folder: Path, *lost: str) -> None:
    """A copy of the straight run without its last checkpoints, as a kill would have left it."""
    shutil.copytree(straight / "run", folder / "run", symlinks=True)
    for name in lost:
        shutil.rmtree(folder / "run" / "checkpoints" / name)


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(corpus: Path, straight: Path, tmp_path: Path) -> None:
    """Rows that a killed run wrote after its last checkpoint are not written twice."""
    cut_back(straight, tmp_path, "step-00000020", "step-00000024")
    with (tmp_path / "run" / "log.csv").open("a") as file:
        file.write("24,4,0.1")  # a line cut short
    run_in_process(corpus, tmp_path, resume=True)
    timing = {"samples_per_s", "data_wait", "mfu"}
    ours, theirs = (log.read_rows(folder / "run" / "log.csv") for folder in (tmp_path, straight))
    assert [{k: v for k, v in row.items() if k not in timing} for row in ours] == [
        {k: v for k, v in row.items() if k not in timing} for row in theirs
    ]
    assert same_weights(weights(tmp_path), weights(straight))


def test_a_checkpoint_that_was_being_written_is_ignored_and_swept(corpus: Path, straight: Path, tmp_path: Path) -> None:
    cut_back(straight, tmp_path, "step-00000024")
    leftover = tmp_path / "run" / "checkpoints" / "step-00000099.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    run_in_process(corpus, tmp_path, resume=True)
    assert not leftover.exists()
    assert same_weights(weights(tmp_path), weights(straight))


def test_a_finished_run_is_not_trained_again(corpus: Path, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (straight / "run" / "log.csv").stat().st_mtime_ns
    run_in_process(corpus, straight)
    assert "already trained" in capsys.readouterr().out
    assert (straight / "run" / "log.csv").stat().st_mtime_ns == before


def test_an_unfinished_run_is_not_overwritten(corpus: Path, straight: Path, tmp_path: Path) -> None:
    cut_back(straight, tmp_path, "step-00000024")
    with pytest.raises(UserError, match=r"unfinished run at step 20; add --resume to continue it"):
        run_in_process(corpus, tmp_path)


def test_a_run_is_not_continued_with_other_settings(corpus: Path, straight: Path) -> None:
    with pytest.raises(UserError, match=r"other settings: seed was 3, is 4; restore"):
        run_in_process(corpus, straight, seed=4, resume=True)


def test_a_non_finite_loss_stops_and_names_the_samples(corpus: Path, straight: Path, tmp_path: Path) -> None:
    cut_back(straight, tmp_path, "step-00000024")
    path = tmp_path / "run" / "checkpoints" / "step-00000020" / "model.safetensors"
    state = load_file(path)
    state["heads.radar.bias"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(NonFiniteLoss, match=r"step 21: loss is nan.*loss:radar is nan.*samples 0\d{5}, 0\d{5}"):
        run_in_process(corpus, tmp_path, resume=True)


def test_bf16_gives_the_loss_of_fp32_to_its_precision(corpus: Path, straight: Path, tmp_path: Path) -> None:
    run_in_process(corpus, tmp_path, precision="bf16-mixed", steps=4)
    ours, theirs = (log.read_rows(folder / "run" / "log.csv")[0]["loss"] for folder in (tmp_path, straight))
    assert ours == pytest.approx(theirs, rel=2e-2)


def test_a_run_looks_at_its_features_and_writes_for_tensorboard(corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    probe = {"label": "cover", "every": 2, "samples": 8}
    run_in_process(corpus, tmp_path, probe=probe, tensorboard=True, steps=3, log_every=1)
    rows = log.read_rows(tmp_path / "run" / "log.csv")
    scores = [row["knn:cover"] for row in rows]
    assert [score == score for score in scores] == [False, True, True]
    assert all(0 <= score <= 1 for score in scores[1:])
    assert all(row["mfu"] > 0 for row in rows)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "loss/optic", "samples_per_s", "mfu", "data_wait", "knn/cover"} <= set(board.Tags()["scalars"])
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_look_at_val_is_one_at_the_averaged_weights_and_leaves_the_trained_ones(
    corpus: Path, straight: Path, tmp_path: Path
) -> None:
    run = run_in_process(corpus, tmp_path, ema=0.9, validate_every=STEPS)
    assert run.validation is not None
    assert same_weights(weights(straight), weights(tmp_path))
    found = checkpoint.open_checkpoint(tmp_path / "run")
    row = log.read_rows(tmp_path / "run" / "log.csv")[-1]
    scores = []
    for averaged in (True, False):
        run.module.load_state_dict(found.weights(averaged=averaged))
        scores.append(run.validation.score(run.module))
    logged = {name: row[name] for name in scores[0]}
    assert logged == pytest.approx(scores[0], rel=1e-5, nan_ok=True)
    assert logged != pytest.approx(scores[1], rel=1e-3, nan_ok=True)


def test_tensorboard_without_its_package_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"tensorboard: the package is not installed; pip install 'mmbuild\[tensorboard"
    ):
        run_in_process(corpus, tmp_path, tensorboard=True, steps=1)


# -- what a person can get wrong


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must end with exit code 2."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err.startswith("error: ")
    assert len(shown.err.strip().splitlines()) == 1
    return shown.err


def leaves(content: dict[str, Any], key: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in content.items():
        found += leaves(value, (*key, name)) if isinstance(value, dict) else [(*key, name)]
    return found


WHOLE: dict[str, Any] = {"probe": {"label": "zone", "every": 12, "samples": 64}}
LEAVES = leaves(settings(Path("corpus"), Path("out"), **WHOLE))


@pytest.mark.parametrize("key", LEAVES, ids=".".join)
@pytest.mark.parametrize("fault", ["unknown sibling", "wrong type"])
def test_every_key_of_a_config_is_checked(
    key: tuple[str, ...], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = settings(tmp_path, tmp_path / "run", **copy.deepcopy(WHOLE))
    part = content
    for name in key[:-1]:
        part = part[name]
    if fault == "unknown sibling":
        part[key[-1] + "x"] = 1
        wanted = ".".join((*key[:-1], key[-1] + "x"))
    else:
        part[key[-1]] = {"a": "mapping"}
        wanted = ".".join(key)
    path = write(tmp_path / "c.yaml", content)
    text = refusal([str(path)], capsys)
    assert re.search(rf"c\.yaml:\d+: {re.escape(wanted)}: ", text), text
    assert ";" in text, "the fix"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0", "optim.lr: 0 -> must be more than 0"),
        ("optim.base_lr=0.1", "needs exactly one of lr and base_lr"),
        ("epochs=3", "needs exactly one of epochs and steps"),
        ("steps=0", "steps: 0 -> must be at least 1"),
        ("model.mask_ratio=1", "model.mask_ratio: 1 -> must be less than 1"),
        ("model.patch=12", "model.patch: 12"),
        ("model.name=mae", "model.name: 'mae' -> there is no such model; did you mean mpmae?"),
        ("model.size=giant", "model.size: 'giant' -> must be"),
        ("precision=int8", "precision: 'int8' -> must be"),
        ("seed", "'seed' -> is not key=value; write it as --set optim.lr=1e-3"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(
    override: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", settings(corpus, tmp_path / "run"))
    assert message in refusal([str(path), "--set", override], capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus=nowhere/at/all", "there is no corpus here; build one"),
        ("model.input=sonar", "model.input: 'sonar' is not among what the loader gives; choose from optic"),
        ("model.input=cover", "model.input: cover is not a raster of measurements"),
        ("tasks=[cover, sonar]", "no modality or alias 'sonar'"),
        ("model.patch=16", "model.patch: 16 does not divide the 24 pixels of optic"),
        ("model.crop=999", "crop: 999 must be 1 to 24 pixels"),
        ("probe={label: climate, every: 5}", "probe.label: no categorical modality 'climate'"),
        ("view.window=[8, 99]", "view.window: 99 is more than the 24 pixels of a chip"),
        ("batch_size=3", "batch_size: 3 does not divide into 1 devices x 2 parts; use a multiple of 2, such as 4"),
        ("model.norm_pix=[cover]", "model.norm_pix: cover is not a pixel-level task of measurements"),
    ],
)
def test_a_config_that_does_not_fit_the_corpus_is_refused_in_one_line(
    override: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.yaml", settings(corpus, tmp_path / "run"))
    more = ["--set", "accumulate=2"] if override.startswith("batch_size") else []
    assert message in refusal([str(path), *more, "--set", override], capsys)
    assert not (tmp_path / "run").exists()


def test_a_corpus_without_train_samples_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = shutil.copytree(corpus, tmp_path / "corpus")
    items = pq.read_table(empty / "items.parquet")
    index = items.schema.get_field_index("split")
    pq.write_table(items.set_column(index, "split", pa.array(["val"] * len(items))), empty / "items.parquet")
    path = write(tmp_path / "c.yaml", settings(empty, tmp_path / "run"))
    assert "no sample in split 'train'" in refusal([str(path)], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n\x00", "binary"),
        (b"- a\n", "must be a mapping"),
        (b"a: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert message in refusal([str(path)], capsys)


def test_an_override_wins_over_the_file(corpus: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", settings(corpus, tmp_path / "run"))
    config = load_config(path, ["optim.lr=3e-4", "model.size=pico", "tasks=[cover]"])
    assert (config.optim.lr, config.model.size, config.tasks) == (3e-4, "pico", ["cover"])


def test_the_shipped_configs_are_valid() -> None:
    configs = sorted((REPO / "train" / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        load_config(path)
