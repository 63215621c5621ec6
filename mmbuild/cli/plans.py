"""What a person reads of a plan: what will be asked and stored, and what a probe says that it will cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mmbuild.cli.options import console, errors, in_bytes, in_time
from mmbuild.recipe.quirks import known_quirks

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmbuild.plan import Plan
    from mmbuild.probe import Forecast, Interval
    from mmbuild.recipe import Recipe
    from mmbuild.samplers import Survey
    from mmbuild.sources import SourceSpec


def print_plan(name: str, work: Plan) -> None:
    """The counts that follow from the recipe alone."""
    steps = f" of {work.steps} time steps" if work.steps > 1 else ""
    console.print(f"{name}: {work.samples} samples{steps} in {work.shards} shards, {len(work.modalities)} modalities")
    console.print(f"  raw pixels: {in_bytes(work.raw_bytes_per_sample)} a sample, {in_bytes(work.raw_bytes)} in all")
    total = work.pixel_requests + work.metadata_requests
    console.print(
        f"  requests: {work.pixel_requests} for pixels + {work.metadata_requests} for metadata = "
        f"{total / work.samples:.2f} a sample, when every first place works"
    )
    console.print(f"  at Earth Engine's limits (40 at a time, 1 s each, believed): {in_time(work.seconds_at_quota)}")


def print_mode(recipe: Recipe) -> None:
    """Which quirks of the published corpus the recipe's mode switches on, or how to."""
    if not recipe.quirks:
        return
    repeated = sum(known_quirks()[name].is_repeated for name in recipe.quirks)
    if recipe.mode == "fixed":
        many = f"{repeated} quirks of the published corpus"
        console.print(f"  mode: fixed; --set mode=faithful switches on {many}")
        return
    console.print(f"  mode: faithful, which switches on {repeated} quirks of the published corpus")
    table = Table("quirk", "what the published corpus does", "brought about by")
    for name in recipe.quirks:
        quirk = known_quirks()[name]
        keys = ", ".join(quirk.set or ())
        table.add_row(name, quirk.about, keys or quirk.where)
    console.print(table)


# So many strata are printed; lists of countries are longer.
MOST_STRATA = 14


def print_survey(kind: str, told: Survey | None) -> None:
    """What the sampler does: places by stratum, and its remarks."""
    if told is None:
        console.print(f"  places by {kind}: not counted, the source would have to be asked; add --places")
        return
    console.print(f"  places by {kind}: {told.places}")
    shown = list(told.strata[:MOST_STRATA])
    if len(told.strata) > MOST_STRATA:
        rest = told.strata[MOST_STRATA:]
        shown.append((f"{len(rest)} more", sum(count for _, count in rest)))
    for name, count in shown:
        console.print(f"    {count:>9} {escape(name)}")
    for note in told.notes:
        console.print(f"    {escape(note)}")


def survey_of(recipe: Recipe, spec: SourceSpec, samples: int | None, *, may_ask: bool) -> Survey | None:
    """What the sampler does; None when that has to be asked of a service and may not."""
    from mmbuild.plan import asks_source, survey
    from mmbuild.sources import SANDBOX, open_source

    if not asks_source(recipe):
        return survey(recipe, samples=samples)
    if not may_ask and spec.name != SANDBOX:
        return None
    return survey(recipe, samples=samples, source=open_source(spec, recipe.known_modalities, {}))


def forecast_of(recipe: Recipe, spec: SourceSpec, samples: int, probed: int) -> Forecast:
    """Probe with a bar on a terminal."""
    from mmbuild.governor import Governor
    from mmbuild.probe import probe
    from mmbuild.threads import Work

    gate = Governor(Work(out="", recipe=recipe, source=spec).limits(0))
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("probing", total=min(probed, samples))
        return probe(
            recipe,
            spec,
            samples=samples,
            probed=probed,
            gate=gate,
            progress=lambda done: bar.update(task, completed=done),
        )


def print_forecast(forecast: Forecast) -> None:
    """The forecast with its bounds, and what the probe took."""
    spent = forecast.spent
    table = Table("forecast", "expected", "90 % between")
    rows: list[tuple[str, Interval | None, Callable[[float], str]]] = [
        ("requests", forecast.requests, lambda value: f"{value:,.0f}"),
        ("received", forecast.bytes, in_bytes),
        ("EECU-hours", forecast.eecu_hours, lambda value: f"{value:.3g}"),
        ("time here", forecast.seconds, in_time),
    ]
    for name, value, show in rows:
        bounds = ("not told by this service", "") if value is None else (
            show(value.expected), f"{show(value.low)} and {show(value.high)}"
        )  # fmt: skip
        table.add_row(name, *bounds)
    console.print(table)
    console.print(
        f"  the probe asked for {forecast.probed} samples ({forecast.stored} could be stored) and spent "
        f"{spent.requests} requests, {in_bytes(spent.bytes)}, {spent.eecu_seconds / 3600:.3g} EECU-hours, "
        f"{in_time(forecast.spent_s)}; its pixels are not kept"
    )
