"""CROMA and Scale-ALiBi train, stop, resume and give features through the same commands as MP-MAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmbuild.cube import open_corpus
from mmbuild.errors import UserError
from tests.shards import write_corpus
from train import checkpoint, log
from train.config import load_config
from train.pretrain import Run, pretrain
from train.probe import probe

SMALL = {"dim": 32, "depth": 2, "heads": 4, "decoder_dim": 32, "crop": 24, "patch": 4, "mask_ratio": 0.5}
FIRST, SECOND = ({"modality": "radar", "bands": [band]} for band in ("VV", "VH"))
METHODS: dict[str, dict[str, Any]] = {
    "croma": {"name": "croma", "radar": FIRST, "optical": SECOND, **SMALL, "crop": 12},
    "scale_alibi": {
        "name": "scale_alibi", "radar": FIRST, "lores": SECOND, "hires": {"modality": "optic"}, **SMALL,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path)
    return path


def run(corpus: Path, folder: Path, method: str, *, steps: int = 12, resume: bool = False, **changes: Any) -> Run:
    whole = {
        "corpus": str(corpus), "out": str(folder / method), "model": METHODS[method], "batch_size": 5, "steps": steps,
        "optim": {"lr": 0.002, "warmup_steps": 2}, "log_every": 2, "checkpoint_every": 4, "seed": 3, **changes,
    }  # fmt: skip
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(whole))
    return pretrain(load_config(path), resume=resume)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_its_loss_falls(method: str, corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path, method, steps=24)
    rows = log.read_rows(tmp_path / method / "log.csv")
    first, last = log.loss_change(rows, "loss")
    assert last < first
    roles = [name for name in METHODS[method] if isinstance(METHODS[method][name], dict)]
    assert {name.removeprefix("loss:") for name in rows[0] if name.startswith("loss:")} == {"contrastive", *roles}
    about = checkpoint.open_checkpoint(tmp_path / method).about
    names = {"croma": ["radar"], "scale_alibi": ["radar", "optic"]}
    assert [one["name"] for one in about["inputs"]] == names[method]
    assert all(one["patch"] == 4 for one in about["inputs"])


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_gives_features_to_the_probe(method: str, corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path, method, steps=2)
    found = probe(tmp_path / method, open_corpus(str(corpus)), ["zone"])
    assert found["dimensions"]["pretrained encoder"] == 32


def test_a_model_of_sensors_refuses_tasks_in_words(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this model reconstructs its own sensors") as refused:
        run(corpus, tmp_path, "croma", tasks=["optic"])
    assert "remove tasks from the config" in str(refused.value)


def test_a_resumed_croma_has_the_weights_of_a_straight_run(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(corpus, tmp_path / "a", "croma")
    stopped = run(corpus, tmp_path / "b", "croma")
    steps = stopped.out / "checkpoints"
    for later in ("step-00000008", "step-00000012"):
        for file in (steps / later).iterdir():
            file.unlink()
        (steps / later).rmdir()
    run(corpus, tmp_path / "b", "croma", resume=True)
    a, b = (load_file(tmp_path / one / "croma/checkpoints/step-00000012/model.safetensors") for one in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
