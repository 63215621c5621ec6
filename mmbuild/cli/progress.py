"""What a person sees while a corpus is built and when it is: progress, and the tables of what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mmbuild.cli.options import console, in_time

if TYPE_CHECKING:
    from mmbuild.build import BuildReport
    from mmbuild.cube import Corpus


def progress_of_build() -> Any:
    """A bar on a terminal, a line every few seconds elsewhere."""
    return _Bar() if console.is_terminal else _Lines()


class _Bar:
    def __enter__(self) -> Callable[[BuildReport], None]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("building"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.bar.start()
        self.task = self.bar.add_task("building", total=None, rate="")
        return self._update

    def _update(self, report: BuildReport) -> None:
        done = sum(report.statuses.values())
        rate = f"{done} samples, {report.rate:.1f}/s"
        self.bar.update(self.task, total=report.shards_total, completed=report.shards_done, rate=rate)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


class _Lines:
    def __enter__(self) -> Callable[[BuildReport], None]:
        self.printed_at = 0.0
        return self._update

    def _update(self, report: BuildReport) -> None:
        if report.seconds - self.printed_at < 5 and report.shards_done < report.shards_total:
            return
        self.printed_at = report.seconds
        # A build that a budget stops may have results without a finished shard: nothing to carry a time over from.
        per_shard = report.seconds / report.shards_done if report.shards_done else None
        left = "" if per_shard is None else f", {in_time(per_shard * (report.shards_total - report.shards_done))} left"
        console.print(
            f"{report.shards_done}/{report.shards_total} shards, {sum(report.statuses.values())} samples, "
            f"{report.rate:.1f} samples/s{left}"
        )

    def __exit__(self, *error: object) -> None:
        return None


def print_status(corpus: Corpus) -> int:
    """Print the status tables; the number of failed samples."""
    from mmbuild.status import summary

    found = summary(corpus)
    kind = "SYNTHETIC corpus" if found["synthetic"] else "corpus"
    console.print(
        f"{kind} {found['name']} at {found['location']}: {found['stored']} of {found['samples']} samples stored"
    )
    if found["synthetic"] is None:
        console.print("  imported from files that do not say whether their pixels are synthetic")
    counted = ("stored", "no data", "rejected", "failed", "not asked")
    table = Table("modality", *counted, "valid pixels", "why not (most frequent)")
    for name, entry in found["modalities"].items():
        counts = [str(entry[key]) for key in ("stored", "no_data", "rejected", "failed", "not_asked")]
        valid = "" if entry["valid_fraction"] is None else f"{entry['valid_fraction']:.1%}"
        why = next(iter(entry["reasons"].items()), None)
        table.add_row(name, *counts, valid, f"{why[1]} x {_short(why[0])}" if why else "")
    console.print(table)
    if found["alternates"]:
        console.print(f"{found['alternates']} samples are at an alternate place, because their first had no data")
    if found["missing"]:
        console.print(f"{found['missing']} samples not built yet; run the same build to go on")
    failed = int(found["statuses"].get("failed", 0))
    if failed:
        console.print(f"{failed} samples failed; run the same command again to retry them")
    return failed


def _short(text: str, limit: int = 70) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
