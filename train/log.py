"""What a run says about itself: a CSV file with one row per interval, TensorBoard, a progress line, a loss curve.

The file of a resumed run continues after the step it resumed from; rows beyond it, written before a kill, are removed.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmbuild.errors import UserError

Item = TypeVar("Item")
Row = Mapping[str, float]


class CsvLog:
    """Appends rows of numbers to a CSV file, each flushed; opening keeps the rows up to ``step``."""

    def __init__(self, path: Path, columns: Iterable[str], *, step: int = 0) -> None:
        self.columns = list(columns)
        kept = [row for row in read_rows(path) if row["step"] <= step] if step and path.exists() else []
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(map(_plain, kept))
        partial.replace(path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self.columns)

    def add(self, row: Row) -> None:
        """A row; a column that it lacks is NaN."""
        self._writer.writerow(dict.fromkeys(self.columns, "nan") | _plain(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Book:
    """The log of a run in its folder: log.csv, and where asked for the same numbers for TensorBoard."""

    def __init__(self, folder: Path, columns: Iterable[str], *, step: int = 0, tensorboard: bool = False) -> None:
        self._boards = [_board(folder / "tensorboard", step)] if tensorboard else []
        self._csv = CsvLog(folder / "log.csv", columns, step=step)

    def add(self, row: Row) -> None:
        self._csv.add(row)
        for board in self._boards:
            for key, value in row.items():
                if key != "step" and value == value:
                    board.add_scalar(key.replace(":", "/"), value, int(row["step"]))
            board.flush()

    def close(self) -> None:
        self._csv.close()
        for board in self._boards:
            board.close()


def _board(folder: Path, step: int) -> Any:
    """A writer for TensorBoard without what a killed run wrote after ``step``; UserError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        reason = "tensorboard: the package is not installed"
        raise UserError(reason, fix="pip install 'mmbuild[tensorboard]', or write tensorboard: false") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _plain(row: Row) -> dict[str, str]:
    """Whole numbers as such, others with nine digits, enough to tell two float32 apart."""
    return {key: str(int(v)) if key in ("step", "epoch") else f"{v:.9g}" for key, v in row.items()}


def read_rows(path: Path) -> list[dict[str, float]]:
    """Every complete row of a log; a last line cut short by a kill is left out."""
    with path.open(newline="") as file:
        return [_numbers(row) for row in csv.DictReader(file) if None not in row.values() and None not in row]


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()}


class Meter:
    """Means over an interval: losses, samples per second, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.steps = self.samples = 0
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.waited, self.began = 0.0, time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counting the time it takes to get each."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            yield item

    def add(self, values: Mapping[str, float], *, weights: Mapping[str, float], samples: int) -> None:
        """One step's values; a weight of 0 leaves a value out of the mean."""
        self.steps += 1
        self.samples += samples
        for key, value in values.items():
            weight = weights.get(key, 1.0)
            self.sums[key] = self.sums.get(key, 0.0) + value * weight
            self.weights[key] = self.weights.get(key, 0.0) + weight

    def take(self) -> dict[str, float]:
        """The means since the last call, NaN where nothing was scored."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        means = {k: total / self.weights[k] if self.weights[k] else float("nan") for k, total in self.sums.items()}
        means |= {"samples_per_s": self.samples / seconds, "data_wait": self.waited / seconds}
        self._restart()
        return means


class Report(Protocol):
    """Where progress goes."""

    def update(self, step: int, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """One plain line per report."""

    def __init__(self, total: int) -> None:
        self.total = total

    def update(self, step: int, text: str) -> None:
        print(f"step {step}/{self.total}  {text}", flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A progress bar on a terminal."""

    def __init__(self, total: int, step: int) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self._progress = Progress(*columns, console=Console())
        self._task = self._progress.add_task("training", total=total, completed=step, text="")
        self._progress.start()

    def update(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, text=text)

    def close(self) -> None:
        self._progress.stop()


class Silent:
    """Every process but the first."""

    def update(self, step: int, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def reporter(total: int, step: int, *, first: bool) -> Report:
    """A bar on a terminal, lines elsewhere, silence on ranks other than the first."""
    if not first:
        return Silent()
    return Bar(total, step) if sys.stdout.isatty() else Lines(total)


def progress_text(row: Row, *, eta_s: float) -> str:
    """Epoch, loss, rate, waiting and time left in one line."""
    return (
        f"epoch {row['epoch']:.0f}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['samples_per_s']:.1f} samples/s  "
        f"MFU {row['mfu']:.0%}  waits {row['data_wait']:.0%}  ETA {clock(eta_s)}"
    )


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def loss_change(rows: list[dict[str, float]], column: str) -> tuple[float, float]:
    """Mean of a column over the first and over the last tenth of a log (at least one row each), NaN left out."""
    values = [row[column] for row in rows if row[column] == row[column]]
    n = max(1, len(values) // 10)
    if not values:
        return float("nan"), float("nan")
    return sum(values[:n]) / n, sum(values[-n:]) / n


def draw_curve(rows: list[dict[str, float]], path: Path, *, title: str) -> None:
    """The total and every task's loss over steps, as a PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    right.set_prop_cycle(color=colormaps["tab20"].colors)
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["loss"] for row in rows], color="black")
    left.set(title=title, xlabel="step", ylabel="weighted loss")
    for column in (key for key in rows[0] if key.startswith(TASK)):
        name = column.removeprefix(TASK)
        (line,) = right.plot(steps, [row[column] for row in rows], label=name)
        looks = [(row["step"], row[VALIDATION + name]) for row in rows if VALIDATION + name in row]
        looks = [(step, loss) for step, loss in looks if not math.isnan(loss)]
        right.plot(*zip(*looks, strict=True) if looks else ([], []), color=line.get_color(), linestyle="--", marker=".")
    dashed = any(key.startswith(VALIDATION) for key in rows[0])
    right.set(title="per task (dashed: validation)" if dashed else "per task", xlabel="step", ylabel="mean loss")
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=120)


TASK, VALIDATION = "loss:", "val:"


def columns(tasks: Iterable[str], more: Iterable[str] = ()) -> list[str]:
    """The columns of a training log."""
    measured = ("lr", "grad_norm", "samples_per_s", "mfu", "data_wait")
    return ["step", "epoch", "loss", *(TASK + name for name in tasks), *measured, *more]
