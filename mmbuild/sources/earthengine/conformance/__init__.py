"""Asks an Earth Engine, offline or live, the expressions of the conformance table and compares the answers.

What the live service answered can be kept in a cassette, and the offline Earth Engine compared with it later.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ee

from mmbuild.errors import SourceError, UserError
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine import session
from mmbuild.sources.earthengine.conformance.cases import Case, read_cases
from mmbuild.sources.earthengine.conformance.compare import difference
from mmbuild.sources.earthengine.meter import last_exchange
from mmbuild.throttle import with_retries

__all__ = ["Answer", "Case", "Result", "as_cassette", "read_cases", "read_cassette", "replay", "run_cases"]

# So many answers come in one request; one refusal among them makes each be asked on its own.
BATCH = 32
# Statuses that say something about the user's account, not about the expression.
NO_RIGHTS = (401, 403)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of an expression: a JSON value, or the text of a refusal. graph: sha256 of what was sent."""

    value: Any = None
    error: str | None = None
    graph: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A case, its answer, and in what it is not as it should be (None when it is)."""

    case: Case
    answer: Answer
    wrong: str | None


def run_cases(spec: SourceSpec, cases: Sequence[Case], *, sleep: Callable[[float], None] = time.sleep) -> list[Result]:
    """Ask the cases of the spec's endpoint, and judge each answer by the table.

    Raises UserError without credentials or rights for the live service, SourceError when it stays silent.
    """
    session.connect(spec)
    answers = _ask(cases, sleep)
    return [
        Result(case=case, answer=answer, wrong=judge(case, answer)) for case, answer in zip(cases, answers, strict=True)
    ]


def judge(case: Case, answer: Answer) -> str | None:
    """What is wrong with an answer to a case; None when it is as the table says."""
    if case.error is not None:
        if answer.error is None:
            return f"{answer.value!r} instead of a refusal with {case.error!r}"
        return None if case.error.lower() in answer.error.lower() else f"refused otherwise: {answer.error}"
    if answer.error is not None:
        return f"refused: {answer.error}"
    return difference(case.value, answer.value, case.tolerance)


# -- asking -----------------------------------------------------------------------------------------------------------


def build(case: Case) -> Any:
    """The client's object for the case's expression, which sees nothing but `ee`; it is our own packaged text."""
    return eval(case.expression, {"__builtins__": {}, "ee": ee})


def graph_of(built: Any) -> str:
    """sha256 of the expression as the client sends it, independent of the order of keys."""
    text = json.dumps(json.loads(ee.serializer.toJSON(built)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _ask(cases: Sequence[Case], sleep: Callable[[float], None]) -> list[Answer]:
    found: dict[str, Answer] = {}
    graphs: list[tuple[Case, Any]] = []
    for case in cases:
        try:
            graphs.append((case, build(case)))
        except (ee.EEException, TypeError, ValueError) as error:  # the client itself refuses
            found[case.id] = Answer(error=str(error))
    calm = [pair for pair in graphs if pair[0].error is None]
    for start in range(0, len(calm), BATCH):
        found |= _ask_together(calm[start : start + BATCH], sleep)
    for case, built in graphs:
        if case.error is not None:
            found[case.id] = _ask_one(built, sleep)
    return [found[case.id] for case in cases]


def _ask_together(pairs: Sequence[tuple[Case, Any]], sleep: Callable[[float], None]) -> dict[str, Answer]:
    """One request for all; when it is refused, one for each, so that the refusal is laid at the right door."""
    together = _ask_one(ee.List([built for _, built in pairs]), sleep)
    if together.error is not None:
        return {case.id: _ask_one(built, sleep) for case, built in pairs}
    values = zip(pairs, together.value, strict=True)
    return {case.id: Answer(value=value, graph=graph_of(built)) for (case, built), value in values}


def _ask_one(built: Any, sleep: Callable[[float], None]) -> Answer:
    """The answer to one object; refusals are answers too, but neither silence nor lacking rights are."""
    graph = graph_of(built)
    try:
        value = with_retries(lambda: session.call(built.getInfo), sleep=sleep)
    except UserError as error:
        exchange = last_exchange()
        if exchange is not None and exchange.status in NO_RIGHTS:
            raise
        return Answer(error=error.message, graph=graph)
    except SourceError as error:
        if error.transient:
            raise
        return Answer(error=error.message, graph=graph)
    return Answer(value=value, graph=graph)


# -- cassettes --------------------------------------------------------------------------------------------------------


def as_cassette(results: Sequence[Result], spec: SourceSpec, date: str) -> dict[str, Any]:
    """What an endpoint answered on a date, as JSON: by case id the graph sent, the answer and whether it agrees."""
    return {
        "date": date,
        "client": ee.__version__,
        "service": session.identity(spec),
        "cases": {result.case.id: _as_record(result) for result in results},
    }


def _as_record(result: Result) -> dict[str, Any]:
    answer = result.answer
    outcome = {"answer": answer.value} if answer.error is None else {"error": answer.error}
    record = {"graph": answer.graph, "expression": result.case.expression, **outcome, "agrees": result.wrong is None}
    return record if result.wrong is None else {**record, "wrong": result.wrong}


def read_cassette(path: Path) -> dict[str, Any]:
    """A cassette that `as_cassette` made; UserError for a file that is none."""
    try:
        cassette = json.loads(path.read_text("utf-8"))
        cassette["date"], cassette["cases"].items()
    except OSError as error:
        raise UserError(str(error.strerror), str(path), "make one with: mmbuild sandbox conformance --live") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            "is no conformance cassette", str(path), "make one with: mmbuild sandbox conformance --live"
        ) from error
    assert isinstance(cassette, dict)
    return cassette


def replay(results: Sequence[Result], cassette: Mapping[str, Any]) -> dict[str, str]:
    """By case id, where these results differ from the answers in a cassette.

    A case that the cassette lacks, or holds for another expression, is reported as not recorded.
    """
    found = {}
    for result in results:
        wrong = _unlike(result, cassette["cases"].get(result.case.id))
        if wrong is not None:
            found[result.case.id] = wrong
    return found


def _unlike(result: Result, record: Mapping[str, Any] | None) -> str | None:
    if record is None or record.get("expression") != result.case.expression:
        return "not recorded: the case is newer than the cassette"
    answer = result.answer
    if "error" in record:
        # Both refuse: the texts of refusals are no interface, the table's substring is.
        return None if answer.error is not None else f"{answer.value!r} where the service refused: {record['error']}"
    if answer.error is not None:
        return f"refused: {answer.error}; the service answered {record['answer']!r}"
    return difference(record["answer"], answer.value, result.case.tolerance)
