"""The command line: parses, calls, prints. Exit codes: 0 well, 1 some samples failed, 2 wrong input, 3 quota stop."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from mmbuild.cli import sandbox, tasters
from mmbuild.cli.exports import export, import_
from mmbuild.cli.options import (
    INTERRUPTED,
    ArchiveOption,
    ArchiveRootOption,
    JsonOption,
    KeyOption,
    MaxEecuOption,
    MaxGbOption,
    MaxMinutesOption,
    MaxRequestsOption,
    OutArg,
    RecipeArg,
    RecordOption,
    ReplayOption,
    SamplesOption,
    SetOption,
    SourceOption,
    console,
    eecu_hours,
    errors,
    no_archive,
    text_of,
    user_errors,
)
from mmbuild.cli.plans import forecast_of, print_forecast, print_mode, print_plan, print_survey, survey_of
from mmbuild.cli.progress import print_status, progress_of_build
from mmbuild.cli.streams import bench
from mmbuild.errors import MMBuildError, QuotaStop, UserError

if TYPE_CHECKING:
    from mmbuild.recipe import Recipe
    from mmbuild.sources import SourceSpec

app = typer.Typer(
    help="Build co-registered, catalogued Earth-observation corpora from a recipe, and look at them.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(sandbox.app, name="sandbox")
app.command()(export)
app.command("import")(import_)
app.command()(tasters.taster)
app.command()(bench)


def main() -> None:
    """Run a command; every error of ours is one readable line and its exit code."""
    try:
        app()
    except MMBuildError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(error.exit_code)


@app.command()
def modalities(as_json: JsonOption = False) -> None:
    """List the modalities mmbuild knows."""
    from mmbuild.registry import load_modalities

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
    recipe: RecipeArg,
    samples: SamplesOption = None,
    probe: Annotated[int | None, typer.Option(min=1, help="Ask for so many samples really, and forecast.")] = None,
    places: Annotated[bool, typer.Option("--places", help="Ask a live source for what the sampler needs.")] = False,
    source: SourceOption = None,
    archive: ArchiveOption = None,
    archive_root: ArchiveRootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a build will ask and store; spends nothing unless a probe is asked for."""
    from mmbuild.plan import count_places, estimate

    found = _recipe(recipe, overrides, samples)
    spec = _source(found, source, archive, archive_root)
    wanted = samples or found.samples or count_places(found)
    told = survey_of(found, spec, wanted, may_ask=places)
    work = estimate(found, wanted if told is None else told.places)
    forecast = None if probe is None else forecast_of(found, spec, work.samples, probe)
    if as_json:
        more: dict[str, Any] = {} if forecast is None else {"probe": asdict(forecast)}
        more |= {} if told is None else {"sampler": asdict(told)}
        more["mode"] = found.mode
        more["quirks"] = found.quirks if found.mode == "faithful" else []
        print(json.dumps(asdict(work) | {"raw_bytes": work.raw_bytes} | more, indent=1))
        return
    print_plan(found.name, work)
    print_survey(found.sampler.kind, told)
    print_mode(found)
    if forecast is not None:
        print_forecast(forecast)


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
    key: KeyOption = None,
    record: RecordOption = None,
    replay: ReplayOption = None,
    max_requests: MaxRequestsOption = None,
    max_eecu_hours: MaxEecuOption = None,
    max_gb: MaxGbOption = None,
    max_minutes: MaxMinutesOption = None,
    overrides: SetOption = None,
) -> None:
    """Build a corpus, or finish, retry or extend one."""
    from dataclasses import replace

    from mmbuild.build import build_corpus
    from mmbuild.throttle import Budget

    budget = Budget(
        max_requests=max_requests, max_eecu_hours=eecu_hours(max_eecu_hours), max_gb=max_gb, max_minutes=max_minutes
    )

    found = _recipe(recipe, overrides, samples)
    spec = _source(found, source, archive, archive_root)
    spec = replace(spec, key=text_of(key), record=text_of(record), replay=text_of(replay))
    try:
        with progress_of_build() as show:
            corpus = build_corpus(
                found, out, samples=samples, source=spec, workers=workers, scheduler=scheduler, budget=budget,
                progress=show,
            )  # fmt: skip
    except QuotaStop as stop:
        errors.print(f"stopped: {escape(str(stop))}")
        errors.print(f"go on with: {escape(shlex.join(['mmbuild', *sys.argv[1:]]))}")
        raise typer.Exit(stop.exit_code) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept, run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    if print_status(corpus) > 0:
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
        print_status(corpus)


@app.command()
def show(
    out: OutArg,
    sample_id: Annotated[str, typer.Argument(metavar="ID", help="A sample's id, such as 000003.")],
    picture: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the PNG.")] = None,
) -> None:
    """Draw one sample with all its modalities, and print its scenes and dates."""
    from mmbuild.cube import open_corpus
    from mmbuild.report.picture import sample_picture
    from mmbuild.report.words import chip_name

    corpus = open_corpus(out)
    rows = [row for row in corpus.records().to_pylist() if row["sample_id"] == sample_id]
    if not rows:
        ids = sorted(set(corpus.records()["sample_id"].to_pylist()))
        if not ids:
            raise UserError("no sample is built yet", out, "run the build again; it goes on")
        raise UserError(f"there is no sample {sample_id!r}", out, f"ids go from {ids[0]} to {ids[-1]}")
    path = picture or Path(f"{corpus.recipe.name}_{sample_id}.png")
    with user_errors(path, "choose another place with -o"):
        sample_picture(corpus, sample_id, path)
    table = Table(Column("modality", no_wrap=True), "status", Column("date", no_wrap=True), "days", "scenes")
    for row in rows:
        days = "" if row["delta_days"] is None else f"{row['delta_days']:+.1f}"
        date = _window(row) or (f"{row['datetime']:%Y-%m-%d %H:%M}" if row["datetime"] else "")
        scenes = ", ".join(row["scene_ids"][:2]) + (
            f" and {len(row['scene_ids']) - 2} more" if len(row["scene_ids"]) > 2 else ""
        )
        name = chip_name(row, corpus.shape(row["modality"])[0])
        table.add_row(name, row["status"], date, days, scenes or row["reason"])
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
    from mmbuild.cube import open_corpus
    from mmbuild.finish import finish

    # Opened once to know that there is one (a lease makes folders), and again when nobody else can change it.
    with open_corpus(out).store.lease("runs/lease"):
        finish(open_corpus(out), again=True)
    console.print(f"{out}: index.npz, splits.json, stats.json, items.parquet, collection.json")


# -- helpers --------------------------------------------------------------------------------------------------------


def _recipe(name: str, overrides: list[str] | None, samples: int | None = None) -> Recipe:
    from mmbuild.recipe import load_recipe

    number = [] if samples is None else [f"samples={samples}"]
    return load_recipe(name, [*(overrides or ()), *number])


def _source(recipe: Recipe, name: str | None, archive: Path | None, root: Path | None) -> SourceSpec:
    from dataclasses import replace

    from mmbuild.build import spec_of

    spec = spec_of(recipe, name if archive is None else "sandbox")
    if archive is not None:
        spec = replace(spec, archive=text_of(archive), archive_root=None)
    if root is not None:
        if spec.archive is None:
            raise no_archive()
        spec = replace(spec, archive_root=text_of(root))
    return spec
