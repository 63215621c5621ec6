"""What every command shares: the options they take, how they refuse wrong input, and how numbers are written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmbuild.errors import UserError

# Where there is no terminal to ask for its width, lines are as long as a page of a log.
console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)
# What shells report for a command that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a known recipe.")]
OutArg = Annotated[str, typer.Argument(metavar="OUT", help="The corpus: a folder or an object-store URL.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. grid.size=64."),
]
SamplesOption = Annotated[int | None, typer.Option(min=1, help="How many samples; a corpus only grows.")]
SourceOption = Annotated[str | None, typer.Option(help="earthengine (live), sandbox (offline) or stac.")]
ArchiveOption = Annotated[
    Path | None, typer.Option(help="YAML that maps GeoTIFFs to Earth Engine ids; implies --source sandbox.")
]
ArchiveRootOption = Annotated[Path | None, typer.Option(help="The folder that holds the archive's GeoTIFFs.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", envvar="GOOGLE_APPLICATION_CREDENTIALS", help="Key file of a service account, for live."),
]
RecordOption = Annotated[
    Path | None, typer.Option("--record", metavar="DIR", help="Keep every request and answer in this folder.")
]
ReplayOption = Annotated[
    Path | None, typer.Option("--replay", metavar="DIR", help="Answer from a recorded folder, without a network.")
]
_BUDGETS = "Budgets of this run"
MaxRequestsOption = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=_BUDGETS, help="Stop after so many requests, retries included (exit 3)."),
]
MaxEecuOption = Annotated[
    str | None,
    typer.Option(
        "--max-eecu-hours", metavar="HOURS|TIER", rich_help_panel=_BUDGETS,
        help="Stop after so much compute time: hours, or a tier (community 150, contributor 1000, partner 100000).",
    ),
]  # fmt: skip
MaxGbOption = Annotated[
    float | None, typer.Option(min=0, rich_help_panel=_BUDGETS, help="Stop after so many GB sent and received.")
]
MaxMinutesOption = Annotated[
    float | None, typer.Option(min=0, rich_help_panel=_BUDGETS, help="Ask for nothing more after so many minutes.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def eecu_hours(text: str | None) -> float | None:
    """The compute time that a person wrote as hours or as the name of a tier."""
    from mmbuild.throttle import TIERS

    if text is None or text in TIERS:
        return None if text is None else TIERS[text]
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 < hours < float("inf"):
        raise UserError(f"{text!r} is no number of hours", "--max-eecu-hours", f"write hours, or {', '.join(TIERS)}")
    return hours


def no_archive() -> UserError:
    return UserError("is the folder of an archive, and there is none", "--archive-root", "add --archive FILE")


@contextmanager
def user_errors(
    where: object, fix: str, kinds: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """Say why one of ``kinds`` was raised, as one line about what the user named."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(reason, str(where), fix) from error


def text_of(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def in_bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def in_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
