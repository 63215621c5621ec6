"""One training run, step by step: parts of a batch, gradients, the guard against numbers that are none, the log.

What is computed depends on seed and position alone, not on the number of processes: every process takes its share of
each part of a batch, losses are means over all of them, and all stop at the same step.

Raises NonFiniteLoss before any weight has changed, and Stopped after a signal.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mmbuild.errors import MMBuildError, UserError
from mmbuild.stream.loader import Loader
from train import checkpoint, distributed, log, optim, speed
from train.config import Settings, dump
from train.ema import Ema
from train.losses import Losses, same_counts
from train.validate import Validation
from train.views import Viewer
from train.watch import Watch

WARMUP_SHARE = 0.05
# Operations are counted on so many samples at most: attention keeps its scores in memory while they are.
COUNTED = 8


class NonFiniteLoss(MMBuildError):
    """Loss or gradient is NaN or infinite; the weights are still those before the step."""


class Stopped(MMBuildError):
    """A signal ended the run; its progress is kept. The exit code is the shell's: 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(kw_only=True)
class Run:
    """Everything that one training run holds. module: the model itself; model: as Fabric wraps it."""

    config: Settings
    fabric: Fabric
    loader: Loader
    view: Viewer
    module: Any
    model: Any
    optimizer: Any
    about: dict[str, Any]
    total: int
    ema: Ema | None = None
    watch: Watch | None = None
    validation: Validation | None = None
    step: int = 0
    stop_signal: int = 0
    stopping: bool = False
    operations: float = 0.0
    matrix_rate: float = 0.0
    meter: log.Meter = field(default_factory=log.Meter)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def rate(self) -> float:
        """Learning rate of the step that comes next, taken at its middle, so that neither end of the schedule is 0."""
        settings = self.config.optim
        peak = optim.peak_rate(lr=settings.lr, base_lr=settings.base_lr, batch=self.config.batch_size)
        total = math.inf if settings.schedule == "constant" else self.total
        return optim.learning_rate(self.step + 0.5, peak=peak, warmup=self.warmup, total=total)

    @property
    def warmup(self) -> float:
        """Steps of warm-up."""
        settings = self.config.optim
        if settings.warmup_epochs is not None:
            return settings.warmup_epochs * len(self.loader) / self.config.accumulate
        return round(WARMUP_SHARE * self.total) if settings.warmup_steps is None else settings.warmup_steps


def train(run: Run) -> None:
    """Take the steps that are left."""
    if run.step >= run.total:
        return
    book = _open_book(run)
    report = log.reporter(run.total, run.step, first=run.fabric.is_global_zero)
    try:
        with _signals(run):
            for parts in _steps(run):
                take_step(run, parts)
                ends = run.step >= run.total or run.stopping
                found = _look(run)
                saves = ends or run.step % run.config.checkpoint_every == 0
                if saves or found or run.step % run.config.log_every == 0:
                    _record(run, parts[-1], found, book, report)
                if saves:
                    save(run)
                if ends:
                    break
    finally:
        report.close()
        if book is not None:
            book.close()
    if run.step < run.total:
        _say_stopped(run)


def _open_book(run: Run) -> log.Book | None:
    if not run.fabric.is_global_zero:
        return None
    run.out.mkdir(parents=True, exist_ok=True)
    more = [log.VALIDATION + name for name in run.module.loss_names] if run.validation else []
    columns = log.columns(run.module.loss_names, [*more, *(run.watch.columns if run.watch else ())])
    return log.Book(run.out, columns, step=run.step, tensorboard=run.config.tensorboard)


def _say_stopped(run: Run) -> None:
    number = run.stop_signal or signal.SIGTERM  # another process had the signal
    message = f"{run.config.out}: stopped by {signal.Signals(number).name} at step {run.step} of {run.total}"
    raise Stopped(f"{message}; add --resume to continue", number)


# -- a step


def _steps(run: Run) -> Iterator[list[dict[str, Any]]]:
    """The batches of each step; a step at the end of an epoch may take its last parts from the next."""
    batches = _batches(run)
    while True:
        yield list(islice(batches, run.config.accumulate))


def _batches(run: Run) -> Iterator[dict[str, Any]]:
    """Batches without end, epoch after epoch; UserError when an epoch has none."""
    while True:
        empty = True
        for batch in run.meter.timed(run.loader):
            empty = False
            yield run.view(batch)
        if empty:
            raise UserError(f"an epoch of {run.loader!r} has no batch", run.config.corpus, "lower batch_size")


def take_step(run: Run, parts: Sequence[dict[str, Any]]) -> None:
    """One optimiser step; ``run.step`` counts those done."""
    counts = _mean_counts(run.fabric)
    if not run.matrix_rate:
        _measure(run, parts[0], counts)
    run.optimizer.zero_grad(set_to_none=True)
    found: list[Losses] = []
    for i, batch in enumerate(parts):
        masks = run.module.masks(batch, seed=run.config.seed, epoch=batch["epoch"])
        with run.fabric.no_backward_sync(run.model, enabled=i + 1 < len(parts)):
            losses: Losses = run.model(batch, masks, counts)
            run.fabric.backward(losses.total / len(parts))
        found.append(losses)
    limit = run.config.optim.clip or float("inf")
    norm = run.fabric.clip_gradients(run.model, run.optimizer, max_norm=limit, error_if_nonfinite=False)
    assert norm is not None, "clipping by norm returns the norm"
    values, weights = _numbers(run, found, distributed.whole(norm))
    _check_finite(run, parts, found, values)
    optim.set_rate(run.optimizer, run.rate)
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update()
    run.step += 1
    samples = sum(len(batch["id"]) for batch in parts) * run.fabric.world_size
    run.meter.add(values, weights=weights, samples=samples)


def _mean_counts(fabric: Fabric) -> Any:
    if fabric.world_size == 1:
        return same_counts
    return lambda counts: fabric.all_reduce(counts, reduce_op="mean")


def _measure(run: Run, batch: Mapping[str, Any], counts: Any) -> None:
    """Operations of a sample's forward, and the rate of the device."""
    few = {k: v[:COUNTED] if isinstance(v, Tensor | list) else v for k, v in batch.items()}
    masks = run.module.masks(few, seed=run.config.seed, epoch=few["epoch"])
    with run.fabric.autocast():
        run.operations = speed.forward_operations(lambda: run.module(few, masks, counts)) / len(few["id"])
    run.matrix_rate = speed.matrix_rate(run.fabric.device, half=run.config.precision != "32-true")


def _numbers(run: Run, found: Sequence[Losses], norm: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """The step's values and how many targets stand behind each task's, over all parts and processes, in one transfer.

    The same transfer says whether any process wants to stop.
    """
    tasks = list(found[0].per_task)
    counts = [torch.stack([one.counts[task] for one in found]).float() for task in tasks]
    means = [
        (torch.stack([one.per_task[task] for one in found]).float() * n).sum() / n.sum().clamp(min=1e-9)
        for task, n in zip(tasks, counts, strict=True)
    ]
    total = torch.stack([one.total.detach() for one in found]).float().mean()
    stop = torch.tensor(float(run.stop_signal > 0), device=total.device)
    local = torch.stack([total, norm.detach().float(), *means, *(n.sum() for n in counts), stop])
    numbers = torch.as_tensor(run.fabric.all_reduce(local, reduce_op="mean")).tolist()
    run.stopping = numbers.pop() > 0
    names = [log.TASK + task for task in tasks]
    split = 2 + len(names)
    return (
        dict(zip(["loss", "grad_norm", *names], numbers[:split], strict=True)),
        dict(zip(names, numbers[split:], strict=True)),
    )


def _check_finite(
    run: Run, parts: Sequence[Mapping[str, Any]], found: Sequence[Losses], values: Mapping[str, float]
) -> None:
    """NonFiniteLoss naming tasks and samples, before any weight has changed.

    The samples are those of the parts, of any process, whose loss is at fault; all of them where only a gradient is.
    """
    bad = [f"{key} is {value}" for key, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    own = [(math.isfinite(loss.total.item()), batch["id"]) for batch, loss in zip(parts, found, strict=True)]
    everyone = [one for process in distributed.gather_objects(own) for one in process]
    if all(finite for finite, _ in everyone):
        everyone = [(False, ids) for _, ids in everyone]
    ids = [one for finite, part in everyone if not finite for one in part]
    raise NonFiniteLoss(
        f"step {run.step + 1}: {', '.join(bad)} in the batch with samples {', '.join(ids)}; "
        "look at them with `mmbuild show`, or lower the learning rate"
    )


# -- what a run says and keeps


def _look(run: Run) -> dict[str, float]:
    """Validation losses and scores of the features, when it is time; of the averaged weights where there are any."""
    looks = [one for one in (run.validation, run.watch) if one is not None and one.is_due(run.step, run.total)]
    found: dict[str, float] = {}
    with run.fabric.autocast(), run.ema.applied() if run.ema is not None and looks else nullcontext():
        for look in looks:
            found |= look.score(run.module)
    return found


def _record(
    run: Run, batch: Mapping[str, Any], found: Mapping[str, float], book: log.Book | None, report: log.Report
) -> None:
    """One row of the log and one line of progress."""
    means = run.meter.take()
    speed_now = means["samples_per_s"] / run.fabric.world_size
    means["mfu"] = speed.FORWARDS_A_STEP * run.operations * speed_now / run.matrix_rate
    row = {"step": run.step, "epoch": batch["epoch"], "lr": run.optimizer.param_groups[0]["lr"], **means, **found}
    if book is not None:
        book.add(row)
    left = (run.total - run.step) * run.config.batch_size
    report.update(run.step, log.progress_text(row, eta_s=left / row["samples_per_s"]))


def save(run: Run) -> None:
    """Checkpoint the run; every process gives its share of the weights, the first writes, all wait."""
    weights = distributed.weights(run.module)
    averages = run.ema.state() if run.ema is not None else None
    state = {
        "optimizer": distributed.optimizer_state(run.module, run.optimizer.optimizer),
        "rng": torch.get_rng_state(),
    }
    if run.fabric.is_global_zero:
        checkpoint.save(
            run.out, run.step, weights=weights, averages=averages, state=state, config=dump(run.config),
            about=run.about | {"step": run.step, "finished": run.step >= run.total}, loader=run.loader.state_dict(),
        )  # fmt: skip
    run.fabric.barrier()


def restore(run: Run, found: checkpoint.Checkpoint) -> None:
    """Put the run where a checkpoint was."""
    state = found.state()
    distributed.put_weights(run.module, found.weights())
    distributed.put_optimizer_state(run.module, run.optimizer.optimizer, state["optimizer"])
    if run.ema is not None:
        run.ema.load(found.weights(averaged=True))
    torch.set_rng_state(state["rng"])
    run.loader.load_state_dict(found.loader)
    run.step = found.step
    done = run.step >= run.total
    verb = "already trained:" if done else "resuming"
    run.fabric.print(f"{verb} {run.config.out} at step {run.step} of {run.total}")


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
