"""``mmbuild taster``: cut a small corpus out of a large one, and say how far it is from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Column, Table

from mmbuild.cli.options import OutArg, console, in_bytes


def taster(
    out: OutArg,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The taster: a new folder or object-store URL.")],
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples; more keep those of fewer.")] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", min=0.001, help="As many samples as fit into so many MB, instead.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of the grid to cut from each chip's middle.")] = None,
    modalities: Annotated[str | None, typer.Option(metavar="A,B", help="Only these modalities.")] = None,
    land_cover: Annotated[
        str | None, typer.Option(metavar="NAME", help="The modality whose classes are strata (one of the corpus).")
    ] = None,
) -> None:
    """Cut a small, stratified, self-contained corpus out of a large one."""
    from mmbuild.taster import cut_taster

    names = None if modalities is None else [name.strip() for name in modalities.split(",")]
    with _progress(samples) as show:
        corpus = cut_taster(
            out, dest, samples=samples, max_mb=max_mb, size=size, modalities=names, land_cover=land_cover,
            progress=show,
        )  # fmt: skip
    about = corpus.lock["taster"]
    kind = "SYNTHETIC taster" if corpus.synthetic else "taster"
    used = sum(corpus.store.size(key) for key in corpus.store.list() if not key.startswith("runs/"))
    parent = about["parent"]
    console.print(
        f"{kind} {corpus.recipe.name} at {corpus.store.url}: {about['samples']} of {parent['samples']} stored samples "
        f"of {parent['name']}, {in_bytes(used)}"
    )
    _print_distance(about["distance"]["variables"])


@contextmanager
def _progress(samples: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere nothing, for cutting takes seconds."""
    if not console.is_terminal:
        yield lambda done: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("cutting", total=samples)
        yield lambda done: bar.update(task, completed=done)


def _print_distance(variables: dict[str, dict[str, Any]]) -> None:
    """How far the shares of each label are from the parent's."""
    table = Table(
        Column("stratum", no_wrap=True), "labels here / in the parent", "distance to the parent", "of a random draw"
    )
    for name, found in variables.items():
        table.add_row(
            name.replace("_", " "), f"{found['labels_here']} / {found['labels']}",
            f"{found['total_variation']:.3f}", f"{found['random_draw']:.3f}",
        )  # fmt: skip
    console.print(table)
    console.print("distance: total variation of the shares of the labels; 0 is the same shares, 1 none in common")
