"""Checkpoints of a run: one folder a step, complete or absent, safe to load, the last three kept.

Nothing is unpickled: weights are safetensors, the rest is JSON, YAML, or what torch loads with ``weights_only``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmbuild.errors import UserError

KEEP = 3
_PARTIAL = ".partial"
_WEIGHTS, _AVERAGES = "model.safetensors", "averages.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint folder.

    about: what the weights are (the model's name and arguments, its corpus and normalisation), plain JSON.
    """

    path: Path
    about: dict[str, Any]
    config: str
    loader: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    @property
    def is_averaged(self) -> bool:
        """There are averaged weights beside those that were trained."""
        return (self.path / _AVERAGES).exists()

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The trained weights by name, or their averages."""
        found: dict[str, Tensor] = load_file(self.path / _WEIGHTS)
        return found | load_file(self.path / _AVERAGES) if averaged else found

    def load_weights(self, module: nn.Module) -> None:
        """Put the saved weights into ``module``, which must have exactly these; averaged ones where there are any."""
        module.load_state_dict(self.weights(averaged=self.is_averaged))

    def state(self) -> dict[str, Any]:
        """Optimiser, random state and counters."""
        state: dict[str, Any] = torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        return state


def save(
    run: Path,
    step: int,
    *,
    weights: Mapping[str, Tensor],
    averages: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any],
    about: Mapping[str, Any],
    config: str,
    loader: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step: everything under a temporary name, then one rename; older than KEEP are removed.

    Whoever is killed while writing leaves a ``.partial`` folder, which the next save sweeps.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08d}"
    partial = folder / (final.name + _PARTIAL)
    partial.mkdir()
    save_file({k: v.contiguous() for k, v in weights.items()}, partial / _WEIGHTS)
    if averages is not None:
        save_file({k: v.contiguous() for k, v in averages.items()}, partial / _AVERAGES)
    torch.save(dict(state), partial / "state.pt")
    (partial / "model.json").write_text(json.dumps(about, indent=1) + "\n")
    (partial / "loader.json").write_text(json.dumps(loader, indent=1) + "\n")
    (partial / "config.yaml").write_text(config)
    for path in (*partial.iterdir(), partial):
        _fsync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _fsync(folder)
    _point_latest(folder, final.name)
    for old in _steps(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def find(path: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, or the checkpoint folder itself; None when there is none."""
    if (path / _WEIGHTS).exists():
        return _open(path.resolve())
    steps = _steps(path / "checkpoints")
    return _open(steps[-1]) if steps else None


def open_checkpoint(path: Path) -> Checkpoint:
    """As ``find``; UserError when there is none."""
    found = find(path)
    if found is None:
        fix = "give the `out` folder of a training run, or one of its checkpoints/step-* folders"
        raise UserError("there is no checkpoint here", str(path), fix)
    return found


def _open(path: Path) -> Checkpoint:
    return Checkpoint(
        path=path,
        about=json.loads((path / "model.json").read_text()),
        config=(path / "config.yaml").read_text(),
        loader=json.loads((path / "loader.json").read_text()),
    )


def _steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.name.endswith(_PARTIAL))


def _point_latest(folder: Path, name: str) -> None:
    """``latest`` is for people; programs take the highest step."""
    link = folder / f"latest{_PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(folder / "latest")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
