"""The command line: parses, calls, prints. Exit codes: 0 well, 1 some samples failed, 2 wrong input, 3 quota stop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from mmbuild.errors import MMBuildError, UserError

if TYPE_CHECKING:
    from mmbuild.build import BuildReport
    from mmbuild.cube import Corpus
    from mmbuild.recipe import Recipe
    from mmbuild.sources import SourceSpec

app = typer.Typer(
    help="Build co-registered, catalogued Earth-observation corpora from a recipe, and look at them.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
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
SourceOption = Annotated[str | None, typer.Option(help="earthengine (live) or sandbox (offline).")]
ArchiveOption = Annotated[
    Path | None, typer.Option(help="YAML that maps GeoTIFFs to Earth Engine ids; implies --source sandbox.")
]
ArchiveRootOption = Annotated[Path | None, typer.Option(help="The folder that holds the archive's GeoTIFFs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Run a command; every error of ours is one readable line and its exit code."""
    try:
        app()
    except MMBuildError as error:
        errors.print(f"[red]error:[/red] {_escape(str(error))}")
        sys.exit(error.exit_code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command()
def modalities(as_json: JsonOption = False) -> None:
    """List the modalities mmbuild knows."""
    from mmbuild.modality import load_modalities

    known = load_modalities()
    if as_json:
        print(json.dumps({name: m.model_dump(mode="json") for name, m in known.items()}, indent=1))
        return
    table = Table(Column("modality", no_wrap=True), "values", "bands", "gsd (m)", "dtype", "nodata", "time")
    for name, m in known.items():
        bands = f"{len(m.bands)}: {', '.join(m.band_names[:4])}{', ...' if len(m.bands) > 4 else ''}"
        gsd = f"{m.gsd:g}" if m.gsd else "-"
        table.add_row(name, f"{m.level}, {m.values}", bands, gsd, m.dtype, f"{m.nodata:g}", m.time)
    console.print(table)


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the recipes that come with mmbuild."""
    from mmbuild.recipe import known_recipes, load_recipe

    found = {name: load_recipe(str(path)) for name, path in known_recipes().items()}
    if as_json:
        print(json.dumps({name: recipe.resolved() for name, recipe in found.items()}, indent=1))
        return
    table = Table(Column("recipe", no_wrap=True), "samples", "sampler", "modalities", "title")
    for name, recipe in found.items():
        table.add_row(
            name,
            str(recipe.samples or "all places"),
            recipe.sampler.kind,
            str(len(recipe.modalities)),
            recipe.title,
        )
    console.print(table)


@app.command()
def validate(recipe: RecipeArg, overrides: SetOption = None) -> None:
    """Check a recipe; a wrong one gives file:line: key, the reason and the fix."""
    found = _recipe(recipe, overrides)
    console.print(f"{found.name}: valid, {len(found.modalities)} modalities, digest {found.digest[:12]}")


@app.command()
def plan(
    recipe: RecipeArg, samples: SamplesOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Say what a build will ask and store; spends nothing."""
    from mmbuild.plan import count_places, estimate

    found = _recipe(recipe, overrides, samples)
    work = estimate(found, samples or found.samples or count_places(found))
    if as_json:
        print(json.dumps(asdict(work) | {"raw_bytes": work.raw_bytes}, indent=1))
        return
    console.print(f"{found.name}: {work.samples} samples in {work.shards} shards, {len(work.modalities)} modalities")
    console.print(f"  raw pixels: {_bytes(work.raw_bytes_per_sample)} a sample, {_bytes(work.raw_bytes)} in all")
    total = work.pixel_requests + work.metadata_requests
    console.print(
        f"  requests: {work.pixel_requests} for pixels + {work.metadata_requests} for metadata = "
        f"{total / work.samples:.2f} a sample, when every first place works"
    )
    console.print(f"  at Earth Engine's limits (40 at a time, 1 s each, believed): {_time(work.seconds_at_quota)}")


@app.command()
def build(
    recipe: RecipeArg,
    out: OutArg,
    samples: SamplesOption = None,
    source: SourceOption = None,
    archive: ArchiveOption = None,
    archive_root: ArchiveRootOption = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 uses threads.")] = 0,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDR", help="Address of a running Dask scheduler.")] = None,
    overrides: SetOption = None,
) -> None:
    """Build a corpus, or finish, retry or extend one."""
    from mmbuild.build import build_corpus

    found = _recipe(recipe, overrides, samples)
    spec = _source(found, source, archive, archive_root)
    try:
        with _progress() as show:
            corpus = build_corpus(
                found, out, samples=samples, source=spec, workers=workers, scheduler=scheduler, progress=show
            )
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept, run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    if _print_status(corpus) > 0:
        raise typer.Exit(1)


@app.command()
def status(out: OutArg, as_json: JsonOption = False) -> None:
    """Say what is stored, and what is not and why, per modality."""
    from mmbuild.cube import open_corpus
    from mmbuild.status import summary

    corpus = open_corpus(out)
    if as_json:
        print(json.dumps(summary(corpus), indent=1))
    else:
        _print_status(corpus)


@app.command()
def show(
    out: OutArg,
    sample_id: Annotated[str, typer.Argument(metavar="ID", help="A sample's id, such as 000003.")],
    picture: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the PNG.")] = None,
) -> None:
    """Draw one sample with all its modalities, and print its scenes and dates."""
    from mmbuild.cube import open_corpus
    from mmbuild.report.picture import sample_picture

    corpus = open_corpus(out)
    rows = [row for row in corpus.records().to_pylist() if row["sample_id"] == sample_id]
    if not rows:
        ids = sorted(set(corpus.records()["sample_id"].to_pylist()))
        if not ids:
            raise UserError("no sample is built yet", out, "run the build again; it goes on")
        raise UserError(f"there is no sample {sample_id!r}", out, f"ids go from {ids[0]} to {ids[-1]}")
    path = picture or Path(f"{corpus.recipe.name}_{sample_id}.png")
    with _user_errors(path, "choose another place with -o"):
        sample_picture(corpus, sample_id, path)
    table = Table(Column("modality", no_wrap=True), "status", Column("date", no_wrap=True), "days", "scenes")
    for row in rows:
        days = "" if row["delta_days"] is None else f"{row['delta_days']:+.1f}"
        date = f"{row['datetime']:%Y-%m-%d %H:%M}" if row["datetime"] else _window(row)
        scenes = ", ".join(row["scene_ids"][:2]) + (
            f" and {len(row['scene_ids']) - 2} more" if len(row["scene_ids"]) > 2 else ""
        )
        table.add_row(row["modality"], row["status"], date, days, scenes or row["reason"])
    console.print(table)
    console.print(f"picture: {path}")


def _window(row: dict[str, Any]) -> str:
    if row["window_start"] is None:
        return ""
    return f"{row['window_start']:%Y-%m-%d} to {row['window_end']:%Y-%m-%d}"


@app.command()
def split(out: OutArg) -> None:
    """Write the splits again, and everything that follows from them."""
    _finish(out)


@app.command()
def stats(out: OutArg) -> None:
    """Write the statistics of the train split again, and the catalogue that carries them."""
    _finish(out)


@app.command()
def catalog(out: OutArg) -> None:
    """Write items.parquet and collection.json again."""
    _finish(out)


def _finish(out: str) -> None:
    from mmbuild.build import finish
    from mmbuild.cube import open_corpus

    # Opened once to know that there is one (a lease makes folders), and again when nobody else can change it.
    with open_corpus(out).store.lease("runs/lease"):
        finish(open_corpus(out), again=True)
    console.print(f"{out}: splits.json, stats.json, items.parquet, collection.json")


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8642,
    archive: ArchiveOption = None,
    archive_root: ArchiveRootOption = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer.")] = 0.0,
) -> None:
    """Serve the offline Earth Engine on this machine until interrupted."""
    from mmbuild.sandbox import bind, open_world

    if archive_root is not None and archive is None:
        raise _no_archive()
    with _user_errors(archive or "sandbox", "see recipes/archives/realdata.yaml for an archive", (OSError, ValueError)):
        world = open_world(_text(archive), _text(archive_root))
    with _user_errors(f"port {port}", "choose another --port; 0 takes a free one"):
        server = bind(world, port=port, latency_ms=latency_ms)
    server.run(ready=console.print)


# -- helpers --------------------------------------------------------------------------------------------------------


def _recipe(name: str, overrides: list[str] | None, samples: int | None = None) -> Recipe:
    from mmbuild.recipe import load_recipe

    number = [] if samples is None else [f"samples={samples}"]
    return load_recipe(name, [*(overrides or ()), *number])


def _source(recipe: Recipe, name: str | None, archive: Path | None, root: Path | None) -> SourceSpec:
    from dataclasses import replace

    from mmbuild.build import spec_of

    spec = spec_of(recipe)
    if name is not None:
        spec = replace(spec, name=name)
    if archive is not None:
        spec = replace(spec, name="sandbox", archive=_text(archive), archive_root=None)
    if root is not None:
        if spec.archive is None:
            raise _no_archive()
        spec = replace(spec, archive_root=_text(root))
    return spec


def _no_archive() -> UserError:
    return UserError("is the folder of an archive, and there is none", "--archive-root", "add --archive FILE")


@contextmanager
def _user_errors(
    where: object, fix: str, kinds: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """Say why one of ``kinds`` was raised, as one line about what the user named."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(reason, str(where), fix) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _progress() -> Any:
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
        left = report.seconds / report.shards_done * (report.shards_total - report.shards_done)
        console.print(
            f"{report.shards_done}/{report.shards_total} shards, {sum(report.statuses.values())} samples, "
            f"{report.rate:.1f} samples/s, {_time(left)} left"
        )

    def __exit__(self, *error: object) -> None:
        return None


def _print_status(corpus: Corpus) -> int:
    """Print the status tables; the number of failed samples."""
    from mmbuild.status import summary

    found = summary(corpus)
    kind = "SYNTHETIC corpus" if found["synthetic"] else "corpus"
    console.print(
        f"{kind} {found['name']} at {found['location']}: {found['stored']} of {found['samples']} samples stored"
    )
    counted = ("stored", "no data", "rejected", "failed", "not asked")
    table = Table("modality", *counted, "valid pixels", "why not (most frequent)")
    for name, entry in found["modalities"].items():
        counts = [str(entry[key]) for key in ("stored", "no_data", "rejected", "failed", "not_asked")]
        valid = "" if entry["valid_fraction"] is None else f"{entry['valid_fraction']:.1%}"
        why = next(iter(entry["reasons"].items()), None)
        table.add_row(name, *counts, valid, f"{why[1]} x {_short(why[0])}" if why else "")
    console.print(table)
    if found["missing"]:
        console.print(f"{found['missing']} samples not built yet; run the same build to go on")
    failed = int(found["statuses"].get("failed", 0))
    if failed:
        console.print(f"{failed} samples failed; run the same command again to retry them")
    return failed


def _short(text: str, limit: int = 70) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
