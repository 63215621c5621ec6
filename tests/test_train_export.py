"""Exported weights are those of the run, load without unpickling, and come with a card that says what they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from tests.runs import train_briefly
from tests.shards import TinyCorpus, write_corpus
from train import checkpoint
from train.export import main

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = {"name": "mpmae", "crop": 24, "patch": 8, "decoder_dim": 16}
    return train_briefly(corpus.path, folder, model, ema=0.9)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("exported") / "model"
    assert main([str(run), str(dest)]) == 0
    return dest


def test_the_weights_are_the_averages_of_the_run(run: Path, exported: Path) -> None:
    found = checkpoint.open_checkpoint(run)
    ours, averages = load_file(exported / "model.safetensors"), found.weights(averaged=True)
    assert ours.keys() == averages.keys()
    assert all(torch.equal(ours[name], averages[name]) for name in ours)
    assert any(not torch.equal(ours[name], value) for name, value in found.weights().items())


def test_the_card_names_corpus_normalisation_and_licences(corpus: TinyCorpus, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    digest = corpus.open().digest
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "mmbuild"
    assert f"The corpus handmade, digest `{digest}`" in card
    assert "Its pixels are synthetic: no satellite saw them." in card
    assert "(value - mean) / std by band, of the train split; missing pixels are 0." in card
    mean = corpus.stats["modalities"]["optic_a"]["bands"]["B1"]["mean"]
    assert f"| optic_a | {mean:.6g}, " in card
    for name in ("optic_a", "optic_b", "radar", "cover", "climate", "zone"):
        assert f"- {name}: CC0-1.0. made for tests" in card
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "model": "mpmae", "corpus_digest": digest}


def test_the_python_on_the_card_runs(exported: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)[0]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}\nprint(len(model.tasks))"],
        cwd=exported, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["5"], done.stderr


def test_a_folder_that_holds_something_is_left_alone(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), str(exported)]) == 2
    assert "the folder is not empty; name a new one" in capsys.readouterr().err
