"""Published weights of MP-MAE into our model, and ours out in that layout.

Published files come from sparse convolutions and name tasks as MMEarth does, in the order of their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmbuild.errors import UserError
from train import layouts
from train.layouts import DECODERS, HEADS
from train.models.mpmae import MPMAE
from train.weights import Loaded, State, put_weights, read

# Layers of the dense reference's encoder that pretraining never calls, ours has them for fine-tuning only.
UNUSED_THERE = ("encoder.norm.", "encoder.head.")
# Weights that belong to a list of tasks, here and in the file.
OF_TASKS = ("heads.", "image_norm.", "loss.", "decoders.")
OF_TASKS_THERE = (HEADS, "layer_norm_tmp.", "loss_fn.")


def band_places(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """For each of our bands its place among theirs; UserError for one they lack."""
    lacking = [band for band in ours if band not in theirs]
    if lacking:
        raise UserError(f"no weights for band {', '.join(lacking)}", fix=f"published are {', '.join(theirs)}")
    return [list(theirs).index(band) for band in ours]


def load_mpmae(
    model: MPMAE, path: Path, *, tasks: Mapping[str, str] | None = None, places: Sequence[int] | None = None
) -> Loaded:
    """Take a pretraining file of MMEarth-train, sparse or dense.

    tasks: our task -> the file's, for heads and task weights; None leaves these as they are. places: for each channel
    of the model's input its channel in the file (``band_places``), where their order differs.
    """
    content = read(path)
    state = {name: value for name, value in content.get("model", content).items() if isinstance(value, Tensor)}
    unused = [name for name in state if name.startswith(UNUSED_THERE) or not _is_wanted(name, tasks)]
    theirs = dict(layouts.densify(name, value) for name, value in state.items() if name not in unused)
    found = _named(theirs) | _decoders(model, theirs, tasks, path)
    if tasks is not None:
        found |= _heads(model, theirs, tasks, [name.split(".")[1] for name in state if name.startswith(HEADS)])
    if places is not None:
        _reorder_input(model, found, list(places))
    own = model.state_dict()
    wanted = {name: own[name] for name in own if tasks is not None or not name.startswith(OF_TASKS)}
    put_weights(found, wanted, path, "MP-MAE")
    return Loaded(loaded=tuple(wanted), unused=tuple(unused))


def _is_wanted(name: str, tasks: Mapping[str, str] | None) -> bool:
    """Whether a weight of the file has a place: of heads only those of named tasks do."""
    if not name.startswith(OF_TASKS_THERE):
        return True
    if tasks is None:
        return False
    return not name.startswith(HEADS) or name.split(".")[1] in tasks.values()


def _named(theirs: State) -> State:
    """The file's weights by our names, without decoders and heads; what we cannot name keeps its own."""
    back = layouts.renamer(layouts.inverse(layouts.MPMAE))
    kept = {name: value for name, value in theirs.items() if not name.startswith((DECODERS, HEADS))}
    return {back(name) or name: value for name, value in kept.items()}


def _heads(model: MPMAE, theirs: State, tasks: Mapping[str, str], order: Sequence[str]) -> State:
    """Heads and task weights of the model's tasks; order: the file's tasks, as their weights are ordered there."""
    found = {}
    for ours, one in tasks.items():
        for kind in ("weight", "bias"):
            if (value := theirs.get(f"{HEADS}{one}.{kind}")) is not None:
                found[f"heads.{ours}.{kind}"] = value.flatten(1) if value.ndim == 4 else value
    once = list(dict.fromkeys(order))
    wanted = [tasks.get(task.name) for task in model.tasks]
    if "loss_fn.log_vars" in theirs and set(wanted) <= set(once):
        found["loss.log_vars"] = theirs["loss_fn.log_vars"][[once.index(str(one)) for one in wanted]]
    return found


def _decoders(model: MPMAE, theirs: State, tasks: Mapping[str, str] | None, path: Path) -> State:
    """One decoder is stored under every task's name; UserError where a shared one would have to be several."""
    by_task: dict[str, State] = {}
    for name, value in theirs.items():
        if name.startswith(DECODERS):
            _, task, rest = name.split(".", 2)
            by_task.setdefault(task, {})[rest] = value
    if hasattr(model, "decoders"):
        parts = [(ours, by_task.get(one, {})) for ours, one in (tasks or {}).items()]
        return {f"decoders.{ours}.{rest}": value for ours, part in parts for rest, value in part.items()}
    first = next(iter(by_task.values()), {})
    for task, part in by_task.items():
        if part.keys() != first.keys() or any(not torch.equal(value, first[rest]) for rest, value in part.items()):
            reason = f"the decoder of {task} differs from the others, this model has one for all"
            raise UserError(reason, str(path), "set model.decoder: separate")
    return {f"decoder.{rest}": value for rest, value in first.items()}


def _reorder_input(model: MPMAE, found: State, places: list[int]) -> None:
    """Exchange the input's channels in the first convolution, and in the head that predicts the input."""
    for name in ("encoder.initial_conv.0.weight", "encoder.stem_orig.0.weight"):
        if name in found:
            found[name] = found[name][:, places]
    for kind in ("weight", "bias"):
        name = f"heads.{model.input}.{kind}"
        if name in found:
            value = found[name].unflatten(0, (-1, len(places)))
            found[name] = value[:, places].flatten(0, 1)


def export_mpmae(model: MPMAE, path: Path, *, tasks: Mapping[str, str], sparse: bool = True) -> None:
    """Write a pretraining file that MMEarth-train loads; tasks: our task -> the name there.

    UserError for separate decoders, which that layout calls by the same names but means as one.
    """
    if hasattr(model, "decoders"):
        raise UserError("separate decoders have no place in that layout", str(path), "use model.decoder: shared")
    rename = layouts.renamer(layouts.MPMAE)
    state: State = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().clone()
        if (theirs := rename(name)) is not None:
            is_sparse = sparse and name.startswith("encoder.")
            theirs, value = layouts.sparsify(theirs, value) if is_sparse else (theirs, value)
            state[theirs] = value
        elif name.startswith("decoder."):
            state |= {f"{DECODERS}{one}.{name.removeprefix('decoder.')}": value for one in tasks.values()}
    for task in model.tasks:
        head = model.heads[task.name]
        weight = head.weight.detach().cpu().clone()
        theirs = f"{HEADS}{tasks[task.name]}"
        state[f"{theirs}.weight"] = weight[:, :, None, None] if task.level == "pixel" else weight
        state[f"{theirs}.bias"] = head.bias.detach().cpu().clone()
    torch.save({"model": state}, path)
