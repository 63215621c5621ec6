"""`mmbuild export` and `mmbuild import`: corpora in the layouts of other people's readers, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from mmbuild.cli.options import INTERRUPTED, JsonOption, OutArg, console, errors, in_bytes, in_time
from mmbuild.cli.progress import print_status

Show = Callable[[int, int, int], None]


def export(
    out: OutArg,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder, or that of the same export begun.")],
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Which layout; see the list below.")],
    name: Annotated[str | None, typer.Option(help="Stem of the files, where readers insist on one.")] = None,
    split: Annotated[str | None, typer.Option(help="Only the samples of this split.")] = None,
    modalities: Annotated[str | None, typer.Option(metavar="A,B", help="Only these modalities.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Crop the centre, in pixels of the finest modality.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the layout, where there are several.")] = None,
    samples_per_file: Annotated[int | None, typer.Option(min=1, help="Where files hold several samples.")] = None,
    faithful: Annotated[
        bool | None,
        typer.Option("--faithful/--fixed", help="Quirks of the published files, or none; else the corpus's own mode."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Write what the corpus lacks as the layout's no-data.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Encoders; as many as there are cores.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a corpus in another layout: geotiff, mmearth, pmtiles, ssl4eo or webdataset. Run again to go on."""
    from mmbuild.cube import open_corpus
    from mmbuild.export import Options, export_corpus

    options = Options(
        name=name, split=split, modalities=_names(modalities), size=size, version=version,
        samples_per_file=samples_per_file, faithful=faithful, allow_missing=allow_missing,
    )  # fmt: skip
    began = time.monotonic()
    try:
        with shown("exporting", quiet=as_json) as show:
            done = export_corpus(open_corpus(out), dest, format=format, options=options, threads=threads, progress=show)
    except KeyboardInterrupt:
        errors.print("interrupted; run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps(asdict(done) | {"seconds": round(seconds, 3)}, indent=1))
        return
    kept = f", {done.reused} were finished already" if done.reused else ""
    console.print(
        f"{done.dest}: {done.samples} samples as {done.format}; wrote {done.files} files, {in_bytes(done.bytes)} "
        f"in {in_time(seconds)} ({in_bytes(done.bytes / max(seconds, 1e-3))}/s){kept}"
    )
    if done.faithful is not None:
        console.print(f"  mode: {_mode(done.faithful, faithful)}")
    for sentence in done.lost:
        console.print(f"  not carried: {escape(sentence)}")


def _mode(is_faithful: bool, asked: bool | None) -> str:
    """Which mode the files have, why, and how to have the other."""
    why = "as asked" if asked is not None else "as the corpus's recipe says"
    if is_faithful:
        return f"faithful, {why}: with the quirks of the published files; --fixed leaves them out"
    return f"fixed, {why}; --faithful adds the quirks of the published files"


def import_(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="mmearth, pmtiles or ssl4eo.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The published file, or the folder that holds it.")],
    out: OutArg,
    name: Annotated[str | None, typer.Option(help="What the corpus is called.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Shards at a time.")] = None,
) -> None:
    """Make a corpus of published files, without asking anyone for pixels. Run again to go on."""
    from mmbuild.importers import import_corpus

    try:
        with shown("importing") as show:
            corpus = import_corpus(path, out, format=format, name=name, threads=threads, progress=show)
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept, run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    print_status(corpus)
    for what, why in corpus.lock["source"]["unknown"].items():
        console.print(f"  {what} not known: {escape(why)}")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[Show]:
    """A bar on a terminal, a line every few seconds elsewhere: units done, units in all, bytes written."""
    if quiet:
        yield lambda done, total, size: None
    elif console.is_terminal:
        columns = (*Progress.get_default_columns()[:-1], TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=None, rate="")
            began = time.monotonic()

            def update(done: int, total: int, size: int) -> None:
                rate = f"{in_bytes(size / max(time.monotonic() - began, 1e-3))}/s"
                bar.update(task, completed=done, total=total, rate=rate)

            yield update
    else:
        yield _lines(what)


def _lines(what: str) -> Show:
    began = printed = time.monotonic()

    def line(done: int, total: int, size: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= 5:
            printed = now
            left = (now - began) / done * (total - done)
            console.print(f"{what}: {done}/{total}, {in_bytes(size / (now - began))}/s, {in_time(left)} left")

    return line
