"""What a person writes to train a model: one YAML file, checked to the last key, with ``--set a.b=c`` on top.

The part under ``model`` belongs to the model's own file. Every fault is one line: place, key, value, reason and fix.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from mmbuild.errors import UserError
from mmbuild.explain import Problem, as_user_error, cross_error, suggest, validate
from mmbuild.yamlfile import Document, Key, merge, parse_value, read_yaml

# The folder listing is the list of models.
MODELS = tuple(sorted(path.stem for path in (Path(__file__).parent / "models").glob("*.py") if path.stem != "__init__"))


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Optim(_Strict):
    """AdamW with linear warm-up and a cosine to zero."""

    lr: float | None = Field(None, gt=0, le=10, description="peak learning rate")
    base_lr: float | None = Field(None, gt=0, le=10, description="peak learning rate for a global batch of 256")
    weight_decay: float = Field(0.05, ge=0, le=10, description="decay of weights that are linear maps")
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2, description="AdamW's two averages")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="the rate after the warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="steps of linear warm-up; 5 % of all when left out")
    warmup_epochs: float | None = Field(None, ge=0, description="the same in epochs")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for no clipping")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.base_lr is None):
            reason = "needs exactly one of lr and base_lr"
            fix = "write lr: 1e-3, or base_lr: 1.5e-4 to scale with the batch"
            raise cross_error([Problem(key=(), reason=reason, fix=fix)])
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            reason = "has both warmup_steps and warmup_epochs"
            raise cross_error([Problem(key=(), reason=reason, fix="leave one of them out")])
        if not all(0 <= beta < 1 for beta in self.betas):
            problem = Problem(key=("betas",), reason="must be from 0 to less than 1", fix="write [0.9, 0.95]")
            raise cross_error([problem])
        return self


class View(_Strict):
    """What a model gets to see of a loaded sample, the same ground and moment in all modalities."""

    scaling: Literal["standard", "satmae"] = Field(
        "standard", description="(value - mean) / std, or SatMAE's: mean -+ 2 std to 0..1, clipped"
    )
    window: list[int] | None = Field(
        None, min_length=2, max_length=2, description="sides of random windows that are resized to model.crop"
    )
    mixup: float | None = Field(None, gt=0, le=10, description="alpha of mixup between neighbours in a batch")
    time: Literal["all", "random"] = Field("all", description="all time steps, or a random one of each sample")

    @property
    def still_time(self) -> Literal["all", 0]:
        """What to load where nothing is drawn: the first time step for a model that sees one."""
        return 0 if self.time == "random" else "all"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.window and not 1 <= self.window[0] <= self.window[1]:
            problem = Problem(key=("window",), value=self.window, reason="must rise", fix="write [60, 180]")
            raise cross_error([problem])
        return self


class LoopProbe(_Strict):
    """A look at the features while training: nearest neighbours among train samples, scored on validation samples."""

    label: str = Field(min_length=1, description="categorical modality of the corpus")
    every: int = Field(ge=1, description="steps between two looks")
    samples: int = Field(1024, ge=2, description="most samples of each split")


class Settings(_Strict):
    """A whole config; ``model`` is the model file's own ``Config``."""

    corpus: str = Field(min_length=1, description="folder or URL of a built corpus")
    out: str = Field(min_length=1, description="folder for log, checkpoints and loss curve")
    model: Any = Field(description="the model and its settings")
    tasks: list[str] | None = Field(
        None, min_length=1, description="modalities or aliases to predict; all of the corpus when left out"
    )
    optim: Optim
    batch_size: int = Field(ge=1, description="samples of one optimiser step, over all devices")
    accumulate: int = Field(1, ge=1, description="parts that a step's samples are taken in, one after another")
    drop_last: bool = Field(False, description="leave out the samples that do not fill a batch")
    epochs: int | None = Field(None, ge=1, description="passes over the train split")
    steps: int | None = Field(None, ge=1, description="optimiser steps")
    augment: bool = Field(True, description="random windows, flips and quarter turns, equal for all modalities")
    view: View = Field(View(), description="what the model gets to see of a sample")
    seed: int = Field(0, ge=0, description="seed of weights, order, masks and augmentation")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="arithmetic of the model")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights; none when left out")
    compile: bool = Field(False, description="compile the model with torch.compile")
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="what computes")
    devices: int | None = Field(None, ge=1, description="devices of a machine; all when left out, one on CPU")
    nodes: int = Field(1, ge=1, description="machines; torchrun and SLURM say it themselves")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="every device has all weights, or a share of them")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    tensorboard: bool = Field(False, description="write the log for TensorBoard too")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    validate_every: int | None = Field(None, ge=1, description="steps between two looks at the validation losses")
    probe: LoopProbe | None = Field(None, description="look at the features while training")
    threads: int = Field(2, ge=1, le=256, description="threads that read and decode")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            reason = "needs exactly one of epochs and steps"
            raise cross_error([Problem(key=(), reason=reason, fix="write epochs: 200, or steps: 10000")])
        return self


# What may differ between a run and its continuation: where it runs and what it tells, not what it computes.
FREE_TO_CHANGE = {
    "log_every", "tensorboard", "checkpoint_every", "threads", "out", "corpus",
    "accelerator", "devices", "nodes", "strategy", "compile",
}  # fmt: skip


def load_config(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check a config file; ``overrides`` are ``key.key=value`` with a YAML value.

    Raises UserError with one line for every fault.
    """
    document = read_yaml(path)
    for text in overrides:
        document = _override(document, text)
    module = model_module(document)
    return validate(_settings_with(module), document)


def model_file(name: str) -> ModuleType:
    """The module of a known model."""
    return importlib.import_module(f"train.models.{name}")


def model_module(document: Document) -> ModuleType:
    """The module that ``model.name`` names; UserError when there is none."""
    part = document.data.get("model")
    name = part.get("name") if isinstance(part, dict) else None
    if name in MODELS:
        return model_file(name)
    key = ("model", "name") if isinstance(part, dict) else ("model",)
    if name is None:
        problem = Problem(key=key, reason="is missing", fix=f"write model: {{name: {MODELS[0]}}}")
    else:
        problem = Problem(key=key, value=name, reason="there is no such model", fix=suggest(str(name), MODELS))
    raise as_user_error(document, [problem])


def dump(config: Settings) -> str:
    """The config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_dumped(text: str) -> Settings:
    """The config that ``dump`` wrote."""
    data = yaml.safe_load(text)
    return _settings_with(model_file(data["model"]["name"])).model_validate(data)


def _settings_with(module: ModuleType) -> type[Settings]:
    field = (module.Config, Field(description="the model and its settings"))
    return create_model("Settings", __base__=Settings, model=field)


def _override(document: Document, text: str) -> Document:
    """The document with one ``a.b=c`` on top; its place in messages is ``--set``."""
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{text!r} -> is not key=value", "--set", "write it as --set optim.lr=1e-3")
    data: Any = parse_value(value, "--set")
    for key in reversed(keys):
        data = {key: data}
    places: dict[Key, str] = {tuple(keys[: depth + 1]): "--set" for depth in range(len(keys))}
    top = Document(path="--set", data=data, places=places)
    return replace(merge(document, top), path=document.path)
