"""Train a model on a corpus: ``python -m train.pretrain CONFIG [--set a.b=c] [--resume]``.

A run that is stopped, by a signal or a kill, and resumed ends with the weights of an uninterrupted one, bit for bit on
CPU with the same number of threads and processes: order, masks, augmentation and learning rate are functions of seed
and position, all else is in the checkpoint. Other numbers of processes see the same samples in the same batches.
Start several with torchrun, with SLURM, or with ``devices`` in the config.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import MMBuildError, UserError
from mmbuild.stream.loader import Loader
from mmbuild.stream.transforms import Field
from train import checkpoint, distributed, log, optim
from train.config import FREE_TO_CHANGE, Settings, load_config, model_file, read_dumped
from train.ema import Ema
from train.loop import NonFiniteLoss, Run, Stopped, restore, train
from train.validate import Validation
from train.views import SCALINGS, Viewer
from train.watch import Watch

__all__ = ["NonFiniteLoss", "Run", "Stopped", "anchor_name", "main", "pretrain"]

SPLIT = "train"


def pretrain(config: Settings, *, resume: bool = False) -> Run:
    """Train as ``config`` says and return the finished run; with ``resume`` from its newest checkpoint, if any.

    Raises UserError when corpus and config do not fit, NonFiniteLoss, and Stopped on SIGINT and SIGTERM.
    """
    corpus = open_corpus(config.corpus)
    found = _found(config, resume)
    run = _prepare(config, corpus)
    if found is not None:
        restore(run, found)
    train(run)
    if run.fabric.is_global_zero:
        _summary(run)
    return run


# -- making a run


def _found(config: Settings, resume: bool) -> checkpoint.Checkpoint | None:
    """The checkpoint to continue from; UserError when the folder holds a run that must not be overwritten or mixed."""
    found = checkpoint.find(Path(config.out))
    if found is None:
        return None
    differences = _differences(read_dumped(found.config).model_dump(), config.model_dump())
    changed = [line for key, line in differences if key.split(".")[0] not in FREE_TO_CHANGE]
    if changed:
        fix = "restore these settings, or choose another `out` for a new run"
        raise UserError(f"this folder holds a run with other settings: {'; '.join(changed)}", config.out, fix)
    if not resume and not found.about["finished"]:
        fix = "add --resume to continue it, or choose another `out`"
        raise UserError(f"this folder holds an unfinished run at step {found.step}", config.out, fix)
    return found


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", f"{prefix}{key} was {before!r}, is {after!r}"


def _prepare(config: Settings, corpus: Corpus) -> Run:
    """A run at step 0."""
    fabric = distributed.launch(config)
    if fabric.device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
    batch = distributed.rank_batch(config, fabric.world_size)
    loader, view, arguments = _data(config, corpus, fabric, batch)
    module = model_file(config.model.name).build(arguments, torch.Generator().manual_seed(config.seed))
    about = _about(config, corpus, loader, view, arguments, module.inputs)
    watch = _watch(config, corpus, list(module.inputs), fabric)
    names = [field.name for field in loader.fields]
    looks = config.validate_every is not None
    validation = Validation(corpus, config, names, batch=batch, fabric=fabric) if looks else None
    # Static shapes: inductor cannot compile masked grids of symbolic size (torch 2.13 on CPU).
    model = fabric.setup_module(torch.compile(module, dynamic=False) if config.compile else module)
    optimizer = optim.adamw(
        module, weight_decay=config.optim.weight_decay, betas=(config.optim.betas[0], config.optim.betas[1])
    )
    return Run(
        config=config, fabric=fabric, loader=loader, view=view, module=module, model=model,
        optimizer=fabric.setup_optimizers(optimizer), about=about, watch=watch, validation=validation,
        total=config.steps or max(1, len(loader) * (config.epochs or 0) // config.accumulate),
        ema=None if config.ema is None else Ema(module, config.ema),
    )  # fmt: skip


def _data(config: Settings, corpus: Corpus, fabric: Fabric, batch: int) -> tuple[Loader, Viewer, dict[str, Any]]:
    """Where batches come from, what the model sees of them, and the model's arguments that follow from it."""
    file, anchor = model_file(config.model.name), anchor_name(corpus)
    names = file.modalities(config.model, anchor=anchor, tasks=config.tasks)
    loader = Loader(
        corpus, split=SPLIT, modalities=names, batch_size=batch, seed=config.seed, rank=fabric.global_rank,
        world_size=fabric.world_size, crop=None if config.view.window else config.model.crop, augment=config.augment,
        time=config.view.time, drop_last=config.drop_last, threads=config.threads, device=fabric.device,
    )  # fmt: skip
    view = Viewer(config.view, loader.fields, side=config.model.crop, seed=config.seed, batch=batch)
    fields = {one.name: one for one in view.fields}
    return loader, view, file.arguments(config.model, fields, anchor=anchor, tasks=config.tasks)


def _watch(config: Settings, corpus: Corpus, inputs: list[str], fabric: Fabric) -> Watch | None:
    if config.probe is None:
        return None
    return Watch(corpus, config.probe, inputs=inputs, view=config.view, crop=config.model.crop, device=fabric.device)


def anchor_name(corpus: Corpus) -> str:
    """The anchor's modality, or the alias its alternatives share."""
    products = corpus.recipe.anchor.products
    alias = corpus.modalities[products[0]].alias
    return alias if len(products) > 1 and alias else products[0]


def _about(
    config: Settings, corpus: Corpus, loader: Loader, view: Viewer, arguments: dict[str, Any], inputs: Mapping[str, int]
) -> dict[str, Any]:
    """What the weights are, for whoever opens a checkpoint without its corpus; inputs: name -> side of its patches."""
    sources = [one for one in view.fields if one.name in inputs]
    statistics = {
        member.name: {"mean": _plain(s.mean), "std": _plain(s.std)}
        for source in sources
        for member, s in zip(source.members, source.statistics, strict=True)
        if s is not None
    }
    return {
        "model": config.model.name,
        "arguments": arguments,
        "corpus": {"name": corpus.recipe.name, "digest": corpus.digest, "synthetic": corpus.synthetic},
        "samples": loader.n_samples,
        "inputs": [
            {
                "name": one.name,
                "bands": list(one.bands),
                "gsd": one.gsd,
                "side": one.shape[-1],
                "patch": inputs[one.name],
            }
            for one in sources
        ],
        "normalisation": {
            "method": f"{SCALINGS[config.view.scaling]}, of the train split",
            "statistics": statistics,
        },
        "licences": _licences(loader.fields),
    }


def _licences(fields: Sequence[Field]) -> list[dict[str, str]]:
    """Of everything that the model saw or had to predict."""
    members = {member.name: member for field in fields for member in field.members}
    return [{"modality": name, "licence": one.licence, "attribution": one.attribution} for name, one in members.items()]


def _plain(values: np.ndarray) -> list[float | None]:
    """JSON numbers; None for a band that was never observed."""
    return [None if math.isnan(value) else value for value in values.tolist()]


# -- the end


def _summary(run: Run) -> None:
    """Say what came out and where it lies."""
    rows = log.read_rows(run.out / "log.csv")
    log.draw_curve(rows, run.out / "loss.png", title=f"{run.about['corpus']['name']}: {run.config.model.name}")
    synthetic = " (synthetic data)" if run.about["corpus"]["synthetic"] else ""
    print(f"trained {run.total} steps on {run.about['samples']} samples{synthetic}; loss at the start -> at the end:")
    for column in ["loss", *(key for key in rows[0] if key.startswith(log.TASK))]:
        first, last = log.loss_change(rows, column)
        name = column.removeprefix(log.TASK)
        looked = f"   on val {rows[-1][log.VALIDATION + name]:9.4f}" if log.VALIDATION + name in rows[-1] else ""
        print(f"  {name:<24} {first:9.4f} -> {last:9.4f}{looked}")
    print(f"checkpoint  {run.out / 'checkpoints' / 'latest'}")
    print(f"log         {run.out / 'log.csv'}")
    print(f"loss curve  {run.out / 'loss.png'}")


# -- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 wrong input, 1 other errors, 128 + signal when stopped."""
    parser = argparse.ArgumentParser(prog="python -m train.pretrain", description="Train a model on a corpus.")
    parser.add_argument("config", type=Path, help="YAML file, such as train/configs/tiny.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as optim.lr=1e-3"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in `out`, if any")
    options = parser.parse_args(arguments)
    try:
        pretrain(load_config(options.config, options.set), resume=options.resume)
    except MMBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
