"""Published weights of CROMA and Scale-ALiBi into our models, and ours out; MP-MAE's are in mpmae_weights.py.

A file whose names or shapes are not those of the model is refused with the list of differences; nothing is loaded then.
Files are read with ``weights_only``: nothing in them is run.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmbuild.errors import UserError
from train import layouts
from train.models.croma import CROMA
from train.models.scale_alibi import ScaleALiBi
from train.transformer import sine_positions

State = dict[str, Tensor]
CromaLayout = Literal["released", "pretraining"]
# How many names of each kind of difference an error lists.
LISTED = 6
# Layers of the published Scale-ALiBi that are never called there.
SPARE_POOL = "GAP_FFN_hires."
# What MP-MAE's files hold beside tensors: the arguments of the run, with paths among them.
SAFE_GLOBALS = [argparse.Namespace, pathlib.PosixPath]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What came of a file: names in our model that were set, and names in the file that were not used."""

    loaded: tuple[str, ...]
    unused: tuple[str, ...]


def read(path: Path) -> dict[str, Any]:
    """The content of a torch file; UserError when there is none or it holds objects that are not known to be safe."""
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError("there is no such file", str(path), "give the path of a checkpoint file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = f"this is no checkpoint that can be read safely: {str(error).strip().splitlines()[0]}"
        fix = "download it again, or open it where you trust it and save its tensors alone"
        raise UserError(reason, str(path), fix) from error
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, not named weights", str(path), "give a checkpoint file")
    return content


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """One line for each kind of difference between two sets of named weights, none when they fit."""
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} where {tuple(value.shape)} is needed"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    return [_told(kind, names) for kind, names in kinds if names]


def _told(kind: str, names: Sequence[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind}: {', '.join(names[:LISTED])}{more}"


def put_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Copy weights into the tensors ``wanted``; UserError with every difference, and then nothing is copied."""
    faults = differences(wanted, found)
    if faults:
        fix = "check the model's size, patch, bands and tasks against the file's"
        raise UserError(f"these are not the weights of this {what}: {'; '.join(faults)}", str(path), fix)
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


# -- CROMA and Scale-ALiBi


def load_croma(model: CROMA, path: Path) -> Loaded:
    """Take a released file (encoders, pools and fusion) or a state of CROMA's pretraining code (everything)."""
    content = read(path)
    if "s1_encoder" in content:
        flat = {f"{top}/{name}": value for top, part in content.items() for name, value in part.items()}
        return _load(model, flat, layouts.CROMA_RELEASED, path, "released CROMA")
    return _load(model, content, layouts.CROMA_PRETRAINING, path, "CROMA")


def load_scale_alibi(model: ScaleALiBi, path: Path) -> Loaded:
    """Take a state of the published code, which only ``compat: reference`` has the layers for."""
    return _load(model, read(path), layouts.SCALE_ALIBI, path, "Scale-ALiBi")


def _load(model: nn.Module, state: Mapping[str, Any], table: Mapping[str, str], path: Path, what: str) -> Loaded:
    """Compare and copy under the file's names, so that an error speaks of what stands in the file."""
    rename = layouts.renamer(table)
    ours = {rename(name): value for name, value in model.state_dict().items() if rename(name) is not None}
    unused = [name for name in state if name == layouts.POSITIONS or _is_unused_pool(model, name)]
    tensors = {name: value for name, value in state.items() if name not in unused and isinstance(value, Tensor)}
    put_weights(tensors, {name: value for name, value in ours.items() if name}, path, what)
    return Loaded(loaded=tuple(name for name in model.state_dict() if rename(name)), unused=tuple(unused))


def _is_unused_pool(model: nn.Module, name: str) -> bool:
    """The published Scale-ALiBi has layers that it never calls; in compat ours has none."""
    return name.startswith(SPARE_POOL) and isinstance(model, ScaleALiBi) and "hires" not in model.pools


def export_croma(model: CROMA, path: Path, layout: CromaLayout = "released", *, tokens: int = 15) -> None:
    """Write a file that CROMA's own code loads; tokens: of a side, for the positions that its decoder stores."""
    if layout == "released":
        nested: dict[str, State] = {}
        for name, value in _exported(model, layouts.CROMA_RELEASED).items():
            top, _, rest = name.partition("/")
            nested.setdefault(top, {})[rest] = value
        torch.save(nested, path)
        return
    torch.save(_exported(model, layouts.CROMA_PRETRAINING) | _positions(model.decoder, tokens), path)


def export_scale_alibi(model: ScaleALiBi, path: Path, *, tokens: int = 16) -> None:
    """Write a file that the published code loads; UserError for a corrected model, whose layers it lacks."""
    if model.compat != "reference":
        reason = "the published code has one fusion and no pool for the fine sensor, this model has more"
        raise UserError(reason, str(path), "train with model.compat: reference to export to that layout")
    state = _exported(model, layouts.SCALE_ALIBI) | _positions(model.decoder, tokens)
    # Stored there and never used; a copy of the pool that is used instead.
    used = "GAP_FFN_optical."
    spare = {SPARE_POOL + name.removeprefix(used): value for name, value in state.items() if name.startswith(used)}
    torch.save(state | spare, path)


def _exported(model: nn.Module, table: Mapping[str, str]) -> State:
    rename = layouts.renamer(table)
    named = ((rename(name), value) for name, value in model.state_dict().items())
    return {name: value.detach().cpu().clone() for name, value in named if name is not None}


def _positions(decoder: nn.Module, tokens: int) -> State:
    width = decoder.mask_token.shape[-1]
    return {layouts.POSITIONS: sine_positions(width, tokens, tokens, torch.device("cpu"))[None].clone()}
