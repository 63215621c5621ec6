"""The conformance table: the offline Earth Engine answers what the public documentation states, case by case."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ee
import pytest

from mmbuild import cli
from mmbuild.errors import SourceError, UserError
from mmbuild.sandbox import open_world
from mmbuild.sandbox.graph import REGISTRY
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Server, serve
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine import conformance, session
from mmbuild.sources.earthengine.conformance import Answer, Case, Result, as_cassette, read_cases, replay, run_cases
from mmbuild.sources.earthengine.conformance.compare import difference
from tests.sandbox_worlds import disconnect

OFFLINE = SourceSpec(name="sandbox")
# What MMEarth, SSL4EO-S12 and NAIP tiling ask of Earth Engine.
# Source: their code, run through the client and looked up in its own algorithm list.
ASKED_BY_THE_REFERENCES = [
    "AggregateFeatureCollection.array", "AggregateFeatureCollection.max", "Collection.filter", "Collection.first",
    "Collection.geometry", "Collection.limit", "Collection.loadTable", "Collection.map", "Collection.size",
    "Collection.toList", "Date", "Date.difference", "Date.format", "DateRange", "Element.set", "Feature",
    "Feature.bounds", "Feature.buffer", "FeatureCollection.randomPoints", "Filter.contains",
    "Filter.dateRangeContains", "Filter.equals", "Filter.intersects", "Filter.lessThan", "Filter.listContains",
    "Filter.or", "Geometry.bounds", "Geometry.buffer", "Geometry.centroid", "Geometry.coordinates",
    "GeometryConstructors.Point", "GeometryConstructors.Polygon", "GeometryConstructors.Rectangle",
    "Image.addBands", "Image.and", "Image.bandNames", "Image.bitwiseAnd", "Image.clip",
    "Image.clipToBoundsAndScale", "Image.constant", "Image.date", "Image.divide", "Image.eq", "Image.float",
    "Image.gte", "Image.linkCollection", "Image.load", "Image.projection", "Image.reduceRegion", "Image.rename",
    "Image.reproject", "Image.resample", "Image.sampleRectangle", "Image.select", "Image.setDefaultProjection",
    "Image.updateMask", "Image.where", "ImageCollection.fromImages", "ImageCollection.load",
    "ImageCollection.mosaic", "ImageCollection.reduce", "ImageCollection.toBands", "List.get", "Number.abs",
    "Projection", "Projection.atScale", "Reducer.max", "Reducer.mean", "Reducer.min", "Reducer.sum",
    "Terrain.slope", "reduce.mean", "reduce.median", "reduce.mode",
]  # fmt: skip
PAGES = "https://developers.google.com/earth-engine/"


@pytest.fixture(scope="module")
def results() -> Iterator[list[Result]]:
    """Every case, asked of the offline Earth Engine in this process."""
    yield run_cases(OFFLINE, read_cases())
    disconnect()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(Sandbox(open_world())) as server:
        yield server
    disconnect()


def case(expression: str, **fields: Any) -> Case:
    stated = {"id": "a-case", "group": "made_up", "page": f"{PAGES}guides", "rule": "Made up for this test."}
    return Case(expression=expression, **{**stated, **fields})


def mmbuild(
    *arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmbuild", "sandbox", "conformance", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_documented_expression_has_its_documented_value(results: Sequence[Result]) -> None:
    assert {r.case.id: f"{r.wrong}; {r.case.rule}" for r in results if r.wrong is not None} == {}


def test_the_table_has_250_cases_and_80_about_grids_and_collections() -> None:
    groups = Counter(case.group for case in read_cases())
    assert groups.total() >= 250
    assert sum(groups[name] for name in ("masks", "projections", "reprojection", "collections")) >= 80


def test_the_table_asks_for_every_algorithm_of_the_references(results: Sequence[Result]) -> None:
    session.connect(OFFLINE)
    asked: set[str] = set()
    for result in results:
        if result.case.error is None:
            asked |= functions(json.loads(ee.serializer.toJSON(conformance.build(result.case))))
    assert sorted(set(ASKED_BY_THE_REFERENCES) - asked) == []


def functions(graph: Any) -> set[str]:
    """The names of all algorithms in an expression."""
    if isinstance(graph, dict):
        here = {graph["functionName"]} if "functionName" in graph else set()
        return here.union(*map(functions, graph.values()))
    return set().union(*map(functions, graph)) if isinstance(graph, list) else set()


@pytest.mark.parametrize(
    ("algorithm", "instead", "group"),
    [
        ("Image.updateMask", "Image.mask", "masks"),
        ("Image.setDefaultProjection", "Image.reproject", "reprojection"),
        ("Image.gte", "Image.gt", "image_arithmetic"),
        ("Filter.lessThan", "Filter.lessThanOrEquals", "filters"),
        ("Filter.contains", "Filter.intersects", "filters"),
        ("reduce.median", "reduce.mean", "collections"),
        ("reduce.mode", "reduce.max", "collections"),
        ("ImageCollection.mosaic", "reduce.max", "collections"),
        ("Reducer.mean", "Reducer.sum", "reducers"),
    ],
)
def test_the_table_notices_another_algorithm_in_the_place_of_one(
    algorithm: str, instead: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, algorithm, REGISTRY[instead])
    assert any(result.wrong for result in run_cases(OFFLINE, read_cases(group)))


def test_every_case_names_a_page_of_the_documentation() -> None:
    assert [case.id for case in read_cases() if not case.page.startswith(PAGES)] == []


def test_assumptions_are_marked_as_such() -> None:
    assumed = {case.id for case in read_cases() if case.assumed}
    assert {"collection-median-even", "sample-rectangle", "pixel-type-comparison"} <= assumed
    assert "collection-mode-tie" not in assumed  # stated in the sample of ee.ImageCollection.mode


def test_cases_are_chosen_by_id_or_group() -> None:
    assert {case.group for case in read_cases("masks")} == {"masks"}
    assert [case.id for case in read_cases("date-millis")] == ["date-millis"]
    with pytest.raises(UserError, match=r"no case is called 'nonsense'.*image_arithmetic"):
        read_cases("nonsense")


@pytest.mark.parametrize("fields", [{}, {"value": 1, "error": "no"}])
def test_a_case_has_a_value_or_a_refusal(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either a value"):
        case("ee.Number(1)", **fields)


def test_an_expression_sees_nothing_but_the_client() -> None:
    with pytest.raises(NameError):
        conformance.build(case("open('somewhere')", value=1))


# -- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "found", "tolerance"),
    [
        (3, 3.0, 0.0),
        (0.3, 0.1 + 0.2, 1e-9),
        (3, 2.9999999999, 1e-9),
        ({"a": [1, None]}, {"a": [1, None]}, 0.0),
        (None, None, 0.0),
        ("x", "x", 0.0),
    ],
)
def test_equal_answers_do_not_differ(expected: Any, found: Any, tolerance: float) -> None:
    assert difference(expected, found, tolerance) is None


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (3, 4, "4 instead of 3"),
        (1, True, "True instead of 1"),
        (0.5, 0.6, "0.6 instead of 0.5"),
        (100, 101, "101 instead of 100"),
        ([1, 2], [1], "1 elements instead of 2"),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, "2 instead of 1 at .a.b[0]"),
        ({"a": 1}, {"b": 1}, "missing ['a'], unexpected ['b']"),
        (None, 0, "0 instead of None"),
        ("1", 1, "1 instead of '1'"),
    ],
)
def test_a_difference_says_where_it_is(expected: Any, found: Any, said: str) -> None:
    # A tolerance that would swallow whole numbers proves that they are compared exactly.
    assert said in str(difference(expected, found, 1e-9 if isinstance(expected, float) else 5.0))


def test_a_refusal_is_judged_by_what_it_says() -> None:
    wanted = case("ee.Number(1)", error="Does not contain")
    assert conformance.judge(wanted, Answer(error="Dictionary.get: it does not contain key 'b'.")) is None
    assert "refused otherwise" in str(conformance.judge(wanted, Answer(error="no")))
    assert "instead of a refusal" in str(conformance.judge(wanted, Answer(value=1)))
    assert "refused: no" in str(conformance.judge(case("ee.Number(1)", value=1), Answer(error="no")))


# -- asking -----------------------------------------------------------------------------------------------------------


def test_one_refusal_does_not_spoil_the_answers_beside_it() -> None:
    good = case("ee.Number(1).add(1)", id="good", value=2)
    bad = case("ee.Dictionary({}).get('a')", id="bad", value=1)
    wrong = case("ee.Number(1).add(1)", id="wrong", value=3)
    unbuilt = case("ee.Image(1, 2, 3, 4)", id="unbuilt", value=1)
    found = {r.case.id: r.wrong for r in run_cases(OFFLINE, [good, bad, wrong, unbuilt])}
    assert found["good"] is None
    assert "does not contain key" in str(found["bad"])
    assert found["wrong"] == "2 instead of 3"
    assert "refused" in str(found["unbuilt"])


def test_a_busy_service_is_asked_again_and_a_closed_door_is_no_answer() -> None:
    question = [case("ee.Number(1).add(1)", value=2)]
    waits: list[float] = []
    with serve(
        Sandbox(open_world()), faults=[{"fault": "unavailable", "endpoint": "value:compute", "requests": [1]}]
    ) as one:
        (result,) = run_cases(SourceSpec(name="earthengine", url=one.url), question, sleep=waits.append)
    assert (result.wrong, len(waits)) == (None, 1)
    with serve(Sandbox(open_world()), faults=[{"fault": "project", "endpoint": "value:compute"}]) as shut:
        spec = SourceSpec(name="earthengine", url=shut.url)
        with pytest.raises(UserError, match="permission"):
            run_cases(spec, question, sleep=waits.append)
    disconnect()


def test_a_service_that_stays_silent_is_no_answer() -> None:
    with serve(Sandbox(open_world()), faults=[{"fault": "unavailable", "endpoint": "value:compute"}]) as mute:
        spec = SourceSpec(name="earthengine", url=mute.url)
        with pytest.raises(SourceError):
            run_cases(spec, [case("ee.Number(1)", value=1)], sleep=lambda seconds: None)
    disconnect()


# -- cassettes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def some() -> list[Result]:
    """One case with a value and one with a refusal, answered as the table says."""
    value, refusal = case("ee.Number(0.1)", id="v", value=0.1), case("ee.Number(1)", id="r", error="no")
    answers = [Answer(value=0.1, graph="g1"), Answer(error="no", graph="g2")]
    pairs = zip([value, refusal], answers, strict=True)
    return [Result(case=one, answer=answer, wrong=conformance.judge(one, answer)) for one, answer in pairs]


@pytest.fixture
def cassette(some: list[Result], results: Sequence[Result]) -> dict[str, Any]:
    return json.loads(json.dumps(as_cassette(some, OFFLINE, "2031-05-06")))


def test_a_cassette_holds_date_client_service_graph_and_answer(cassette: dict[str, Any]) -> None:
    assert cassette["date"] == "2031-05-06"
    assert cassette["client"] == ee.__version__
    assert cassette["service"]["synthetic"] is True
    assert cassette["cases"] == {
        "v": {"graph": "g1", "expression": "ee.Number(0.1)", "answer": 0.1, "agrees": True},
        "r": {"graph": "g2", "expression": "ee.Number(1)", "error": "no", "agrees": True},
    }


def test_the_same_answers_replay_without_a_difference(some: list[Result], cassette: dict[str, Any]) -> None:
    cassette["cases"]["v"]["answer"] += 1e-12  # within the tolerance of the case
    cassette["cases"]["r"]["error"] = "refused in other words"
    assert replay(some, cassette) == {}


def test_other_answers_are_listed(some: list[Result], cassette: dict[str, Any]) -> None:
    cassette["cases"]["v"]["answer"] = 0.2
    cassette["cases"]["r"] = {"expression": "ee.Number(1)", "answer": 7}
    assert replay(some, cassette) == {"v": "0.1 instead of 0.2", "r": "refused: no; the service answered 7"}
    cassette["cases"]["v"] = {"expression": "ee.Number(0.1)", "error": "never"}
    assert "where the service refused: never" in replay(some, cassette)["v"]


def test_a_case_that_changed_since_is_reported(some: list[Result], cassette: dict[str, Any]) -> None:
    cassette["cases"]["v"]["expression"] = "ee.Number(0.3)"
    del cassette["cases"]["r"]
    assert set(replay(some, cassette).values()) == {"not recorded: the case is newer than the cassette"}


def test_the_graph_of_a_case_does_not_depend_on_the_order_of_keys(results: Sequence[Result]) -> None:
    session.connect(OFFLINE)
    one, other = (case(f"ee.Dictionary({text})", value=0) for text in ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"))
    assert conformance.graph_of(conformance.build(one)) == conformance.graph_of(conformance.build(other))
    assert len({result.answer.graph for result in results}) > 0.99 * len(results)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed, _ = mmbuild("--only", "joins", capsys=capsys, monkeypatch=monkeypatch)
    count = len(read_cases("joins"))
    assert (code, printed.splitlines()) == (
        0,
        [f"{name}: {count} passed, 0 failed, 0 assumed" for name in ("joins", "all")],
    )


def test_the_command_prints_what_fails_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "read_cases", lambda only: [case("ee.Number(1).add(1)", id="sum", value=3)])
    code, printed, _ = mmbuild(capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "2 instead of 3" in printed
    assert "Made up for this test." in printed
    assert "all: 0 passed, 1 failed, 0 assumed" in printed
    code, printed, _ = mmbuild("--json", capsys=capsys, monkeypatch=monkeypatch)
    told = json.loads(printed)
    assert (code, told["failed"]) == (1, {"sum": "2 instead of 3"})
    assert told["groups"]["all"] == {"passed": 0, "failed": 1, "assumed": 0}
    monkeypatch.undo()
    _, printed, _ = mmbuild("--json", "--only", "terrain", capsys=capsys, monkeypatch=monkeypatch)
    assert "aspect-west" in json.loads(printed)["assumed"]


def test_the_live_path_writes_a_dated_cassette_that_replays(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = mmbuild("--live", "--url", server.url, "--only", "masks", capsys=capsys, monkeypatch=monkeypatch)
    (file,) = tmp_path.glob("ee-conformance-20??-??-??.json")
    recorded = json.loads(file.read_text())
    assert code == 0
    assert f"all: {len(recorded['cases'])} passed" in printed
    assert f"ee-conformance-{recorded['date']}.json" == file.name
    assert recorded["service"]["synthetic"] is True  # what a sandbox answers is never taken for the live service
    assert all(one["agrees"] and len(one["graph"]) == 64 for one in recorded["cases"].values())

    arguments = ("--replay", file, "--only", "masks")
    code, *_ = mmbuild(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    recorded["cases"]["unmask-zero"]["answer"] = {"constant": 5}
    file.write_text(json.dumps(recorded))
    code, printed, _ = mmbuild(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "unmask-zero" in printed
    assert "0 instead of 5" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--project", "p"), "add --live"),
        (("-o", "x.json"), "add --live"),
        (("--live", "--replay", "x.json"), "leave out --live"),
        (("--replay", "missing.json"), "conformance --live"),
        (("--only", "nonsense"), "no case is called 'nonsense'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, printed = mmbuild(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert said in printed


def test_a_file_that_is_no_cassette_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.json").write_text("[1]")
    code, _, printed = mmbuild("--replay", tmp_path / "list.json", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "is no conformance cassette" in printed


def test_a_cassette_that_cannot_be_written_is_refused_before_anything_is_asked(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = server.sandbox.requests.copy()
    place = tmp_path / "nowhere" / "x.json"
    code, _, printed = mmbuild("--live", "--url", server.url, "-o", place, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "with -o" in printed
    assert server.sandbox.requests == before


def test_the_live_service_without_credentials_names_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, printed = mmbuild("--live", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "earthengine authenticate" in printed
    assert list(tmp_path.glob("ee-conformance-*")) == []
