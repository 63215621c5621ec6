"""Train a model on a corpus: ``python -m train.pretrain CONFIG [--set a.b=c] [--resume]``.

A run that is stopped, by a signal or a kill, and resumed ends with the weights of an uninterrupted one, bit for bit on
CPU with the same number of threads: order, masks, augmentation and learning rate are functions of seed and position,
all else is in the checkpoint.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import MMBuildError, UserError
from mmbuild.stream.loader import Loader
from train import checkpoint, log, optim
from train.config import FREE_TO_CHANGE, Settings, dump, load_config, model_file, read_dumped
from train.losses import Losses, same_counts

SPLIT = "train"
WARMUP_SHARE = 0.05


class NonFiniteLoss(MMBuildError):
    """Loss or gradient is NaN or infinite; the weights are still those before the step."""


class Stopped(MMBuildError):
    """A signal ended the run; its progress is kept. The exit code is the shell's: 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(kw_only=True)
class Run:
    """Everything that one training run holds."""

    config: Settings
    fabric: Fabric
    loader: Loader
    module: Any
    model: Any
    optimizer: torch.optim.Optimizer
    about: dict[str, Any]
    total: int
    step: int = 0
    stop_signal: int = 0
    meter: log.Meter = field(default_factory=log.Meter)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def rate(self) -> float:
        """Learning rate of the step that comes next, taken at its middle, so that neither end of the schedule is 0."""
        settings = self.config.optim
        batch = self.config.batch_size * self.fabric.world_size
        peak = optim.peak_rate(lr=settings.lr, base_lr=settings.base_lr, batch=batch)
        warmup = settings.warmup_steps
        warmup = round(WARMUP_SHARE * self.total) if warmup is None else warmup
        return optim.learning_rate(self.step + 0.5, peak=peak, warmup=warmup, total=self.total)


def pretrain(config: Settings, *, resume: bool = False) -> Run:
    """Train as ``config`` says and return the finished run; with ``resume`` from its newest checkpoint, if any.

    Raises UserError when corpus and config do not fit, NonFiniteLoss, and Stopped on SIGINT and SIGTERM.
    """
    corpus = open_corpus(config.corpus)
    found = _found(config, resume)
    run = _prepare(config, corpus)
    if found is not None:
        _restore(run, found)
    with _signals(run):
        _train(run)
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
    fabric = Fabric(accelerator="auto", devices="auto", precision=config.precision)
    fabric.launch()
    if fabric.device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
    loader, arguments = _loader_and_arguments(config, corpus, fabric)
    module = model_file(config.model.name).build(arguments, torch.Generator().manual_seed(config.seed))
    optimizer = optim.adamw(
        module, weight_decay=config.optim.weight_decay, betas=(config.optim.betas[0], config.optim.betas[1])
    )
    model, wrapped = fabric.setup(module, optimizer)
    total = config.steps or len(loader) * (config.epochs or 0)
    about = _about(config, corpus, loader, arguments, module.inputs)
    return Run(
        config=config, fabric=fabric, loader=loader, module=module, model=model, optimizer=wrapped, about=about,
        total=total,
    )  # fmt: skip


def _loader_and_arguments(config: Settings, corpus: Corpus, fabric: Fabric) -> tuple[Loader, dict[str, Any]]:
    file, anchor = model_file(config.model.name), anchor_name(corpus)
    names = file.modalities(config.model, anchor=anchor, tasks=config.tasks)
    loader = Loader(
        corpus, split=SPLIT, modalities=names, batch_size=config.batch_size, seed=config.seed, rank=fabric.global_rank,
        world_size=fabric.world_size, crop=config.model.crop, augment=config.augment, threads=config.threads,
        device=fabric.device,
    )  # fmt: skip
    fields = {one.name: one for one in loader.fields}
    return loader, file.arguments(config.model, fields, anchor=anchor, tasks=config.tasks)


def anchor_name(corpus: Corpus) -> str:
    """The anchor's modality, or the alias its alternatives share."""
    products = corpus.recipe.anchor.products
    alias = corpus.modalities[products[0]].alias
    return alias if len(products) > 1 and alias else products[0]


def _about(
    config: Settings, corpus: Corpus, loader: Loader, arguments: dict[str, Any], inputs: Mapping[str, int]
) -> dict[str, Any]:
    """What the weights are, for whoever opens a checkpoint without its corpus; inputs: name -> side of its patches."""
    sources = [one for one in loader.fields if one.name in inputs]
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
        "normalisation": {"method": "(value - mean) / std of the train split, by band", "statistics": statistics},
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """JSON numbers; None for a band that was never observed."""
    return [None if math.isnan(value) else value for value in values.tolist()]


# -- resuming


def _restore(run: Run, found: checkpoint.Checkpoint) -> None:
    """Put the run where the checkpoint was."""
    state = found.state()
    found.load_weights(run.module)
    run.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    run.loader.load_state_dict(found.loader)
    run.step = found.step
    done = run.step >= run.total
    verb = "already trained:" if done else "resuming"
    run.fabric.print(f"{verb} {run.config.out} at step {run.step} of {run.total}")


def _save(run: Run) -> None:
    """Checkpoint the run; the first process writes, all wait."""
    if run.fabric.is_global_zero:
        checkpoint.save(
            run.out, run.step, module=run.module,
            state={"optimizer": run.optimizer.state_dict(), "rng": torch.get_rng_state()},
            about=run.about | {"step": run.step, "finished": run.step >= run.total}, config=dump(run.config),
            loader=run.loader.state_dict(),
        )  # fmt: skip
    run.fabric.barrier()


# -- training


def _train(run: Run) -> None:
    if run.step >= run.total:
        return
    first = run.fabric.is_global_zero
    run.out.mkdir(parents=True, exist_ok=True)
    book = log.CsvLog(run.out / "log.csv", log.columns(run.module.loss_names), step=run.step) if first else None
    report = log.reporter(run.total, run.step, first=first)
    try:
        for batch in _batches(run):
            _step(run, batch)
            ends = run.step >= run.total or bool(run.stop_signal)
            saves = ends or run.step % run.config.checkpoint_every == 0
            if saves or run.step % run.config.log_every == 0:
                _record(run, batch, book, report)
            if saves:
                _save(run)
            if ends:
                break
    finally:
        report.close()
        if book is not None:
            book.close()
    if run.step < run.total:
        name = signal.Signals(run.stop_signal).name
        message = f"{run.config.out}: stopped by {name} at step {run.step} of {run.total}; add --resume to continue"
        raise Stopped(message, run.stop_signal)


def _batches(run: Run) -> Iterator[dict[str, Any]]:
    """Batches without end, epoch after epoch; UserError when an epoch has none."""
    while True:
        empty = True
        for batch in run.meter.timed(run.loader):
            empty = False
            yield batch
        if empty:
            raise UserError(f"an epoch of {run.loader!r} has no batch", run.config.corpus, "lower batch_size")


def _step(run: Run, batch: dict[str, Any]) -> None:
    """One optimiser step; ``run.step`` counts those done."""
    masks = run.module.masks(batch, seed=run.config.seed, epoch=batch["epoch"])
    losses: Losses = run.model(batch, masks, _mean_counts(run.fabric))
    run.optimizer.zero_grad(set_to_none=True)
    run.fabric.backward(losses.total)
    limit = run.config.optim.clip or float("inf")
    norm = run.fabric.clip_gradients(run.model, run.optimizer, max_norm=limit, error_if_nonfinite=False)
    assert norm is not None, "clipping by norm returns the norm"
    values, weights = _numbers(run.fabric, losses, norm)
    _check_finite(run, batch, values)
    optim.set_rate(run.optimizer, run.rate)
    run.optimizer.step()
    run.step += 1
    run.meter.add(values, weights=weights, samples=len(batch["id"]) * run.fabric.world_size)


def _mean_counts(fabric: Fabric) -> Any:
    if fabric.world_size == 1:
        return same_counts
    return lambda counts: fabric.all_reduce(counts, reduce_op="mean")


def _numbers(fabric: Fabric, losses: Losses, norm: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """The step's values and how many targets stand behind each task's, over all processes, in one transfer."""
    tasks = [log.TASK + name for name in losses.per_task]
    values = [losses.total.detach(), norm.detach(), *losses.per_task.values(), *losses.counts.values()]
    reduced = fabric.all_reduce(torch.stack([value.float() for value in values]), reduce_op="mean")
    numbers = torch.as_tensor(reduced).tolist()
    split = 2 + len(tasks)
    return (
        dict(zip(["loss", "grad_norm", *tasks], numbers[:split], strict=True)),
        dict(zip(tasks, numbers[split:], strict=True)),
    )


def _check_finite(run: Run, batch: dict[str, Any], values: dict[str, float]) -> None:
    """NonFiniteLoss naming tasks and samples, before any weight has changed."""
    bad = [f"{key} is {value}" for key, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteLoss(
            f"step {run.step + 1}: {', '.join(bad)} in the batch with samples {', '.join(batch['id'])}; "
            "look at them with `mmbuild show`, or lower the learning rate"
        )


def _record(run: Run, batch: dict[str, Any], book: log.CsvLog | None, report: log.Report) -> None:
    """One row of the log and one line of progress."""
    row = {"step": run.step, "epoch": batch["epoch"], "lr": run.optimizer.param_groups[0]["lr"], **run.meter.take()}
    if book is not None:
        book.add(row)
    left = (run.total - run.step) * len(batch["id"]) * run.fabric.world_size
    report.update(run.step, log.progress_text(row, eta_s=left / row["samples_per_s"]))


@contextmanager
def _signals(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once."""

    def note(number: int, _: Any) -> None:
        if run.stop_signal:
            raise KeyboardInterrupt
        run.stop_signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(run: Run) -> None:
    """Say what came out and where it lies."""
    rows = log.read_rows(run.out / "log.csv")
    log.draw_curve(rows, run.out / "loss.png", title=f"{run.about['corpus']['name']}: {run.config.model.name}")
    synthetic = " (synthetic data)" if run.about["corpus"]["synthetic"] else ""
    print(f"trained {run.total} steps on {run.about['samples']} samples{synthetic}; loss at the start -> at the end:")
    for column in ["loss", *(key for key in rows[0] if key.startswith(log.TASK))]:
        first, last = log.loss_change(rows, column)
        print(f"  {column.removeprefix(log.TASK):<24} {first:9.4f} -> {last:9.4f}")
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
