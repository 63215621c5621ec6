"""`mmbuild sandbox conformance`: documented expressions, asked of the offline Earth Engine or of the live one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mmbuild.cli.options import JsonOption, console, user_errors
from mmbuild.errors import UserError

if TYPE_CHECKING:
    from mmbuild.sources import SourceSpec
    from mmbuild.sources.earthengine.conformance import Result

OnlyOption = Annotated[str, typer.Option(metavar="GLOB", help="Only cases whose id or group matches.")]
ProjectOption = Annotated[str | None, typer.Option(help="The Google Cloud project that pays for --live.")]
UrlOption = Annotated[str | None, typer.Option(help="Another endpoint for --live, e.g. a running `mmbuild sandbox`.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="The cassette of --live; ee-conformance-<date>.json if not named.")
]
ReplayOption = Annotated[
    Path | None, typer.Option(metavar="CASSETTE", help="List where the sandbox differs from what was recorded live.")
]


def conformance(
    live: Annotated[bool, typer.Option("--live", help="Ask the live service with your credentials.")] = False,
    project: ProjectOption = None,
    url: UrlOption = None,
    only: OnlyOption = "*",
    as_json: JsonOption = False,
    output: OutputOption = None,
    replay: ReplayOption = None,
) -> None:
    """Ask documented expressions of the offline Earth Engine, or with --live of the real one, and compare."""
    from mmbuild.sources.earthengine.conformance import read_cases, read_cassette, run_cases

    _refuse_misfits(live=live, only_live={"--project": project, "--url": url, "--output": output}, replay=replay)
    spec = _spec(live=live, project=project, url=url)
    cases = read_cases(only)
    cassette = None if replay is None else read_cassette(replay)
    date = datetime.now(UTC).date().isoformat()
    path = _writable(output or Path(f"ee-conformance-{date}.json")) if live else None
    results = run_cases(spec, cases)
    if path is not None:
        _write(results, spec, path, date)
    wrong = {result.case.id: result.wrong for result in results if result.wrong is not None}
    if cassette is not None:
        wrong = _compared(results, cassette)
    if as_json:
        assumed = {result.case.id: result.case.rule for result in results if result.case.assumed}
        console.print_json(json.dumps({"groups": _counts(results, wrong), "failed": wrong, "assumed": assumed}))
    else:
        _show(results, wrong)
    raise typer.Exit(1 if wrong else 0)


def _refuse_misfits(*, live: bool, only_live: Mapping[str, Any], replay: Path | None) -> None:
    given = [name for name, value in only_live.items() if value is not None]
    if given and not live:
        raise UserError("only goes with --live", given[0], "add --live, or leave it out to ask the sandbox")
    if replay is not None and live:
        raise UserError("compares the sandbox with a cassette", "--replay", "leave out --live")


def _spec(*, live: bool, project: str | None, url: str | None) -> SourceSpec:
    from mmbuild.sources import SANDBOX, SourceSpec

    return SourceSpec(name="earthengine", project=project, url=url) if live else SourceSpec(name=SANDBOX)


def _writable(path: Path) -> Path:
    """The path; refused before a request is spent when nothing can be written there."""
    is_new = not path.exists()
    with user_errors(path, "name a file that can be written with -o"), path.open("a", encoding="utf-8"):
        pass
    if is_new:
        path.unlink()
    return path


def _write(results: Sequence[Result], spec: SourceSpec, path: Path, date: str) -> None:
    from mmbuild.sources.earthengine.conformance import as_cassette

    with user_errors(path, "name a file that can be written with -o"):
        path.write_text(json.dumps(as_cassette(results, spec, date), indent=1, sort_keys=True) + "\n", "utf-8")


def _compared(results: Sequence[Result], cassette: Mapping[str, Any]) -> dict[str, str]:
    from mmbuild.sources.earthengine.conformance import replay

    return replay(results, cassette)


def _counts(results: Sequence[Result], wrong: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Per group, and over all: how many pass, how many do not, and how many of all are assumptions."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for group in (result.case.group, "all"):
            one = counts.setdefault(group, Counter())
            one["failed" if result.case.id in wrong else "passed"] += 1
            one["assumed"] += result.case.assumed
    names = [*sorted(counts.keys() - {"all"}), "all"]
    return {name: {word: counts[name][word] for word in ("passed", "failed", "assumed")} for name in names}


def _show(results: Sequence[Result], wrong: Mapping[str, str]) -> None:
    if wrong:
        table = Table("case", "what differs", "rule")
        for result in results:
            if result.case.id in wrong:
                rule = f"{result.case.rule} {result.case.page}"
                table.add_row(*(escape(text) for text in (result.case.id, wrong[result.case.id], rule)))
        console.print(table)
    for name, count in _counts(results, wrong).items():
        console.print(f"{name}: {count['passed']} passed, {count['failed']} failed, {count['assumed']} assumed")
