"""Join.*: pairing the elements of two collections by a condition.

The measure of a pair is what Filter.maxDifference or Filter.withinDistance found: the difference, or metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmbuild.sandbox.algorithms.filters import plain
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature, Filter

Match = tuple[Any, float | None]
"""A matching element of the secondary collection and the measure of the pair."""


@dataclass(frozen=True, eq=False)
class Join:
    """keep(element, its matches) -> the elements it puts into the result; measured: it cannot do without a measure."""

    keep: Callable[[Any, Sequence[Match]], list[Any]]
    measured: bool = False


@algorithm("Join.simple")
def simple(context: Context) -> Join:
    return Join(lambda element, matches: [element] if matches else [])


@algorithm("Join.inverted")
def inverted(context: Context) -> Join:
    return Join(lambda element, matches: [] if matches else [element])


@algorithm("Join.inner")
def inner(context: Context, primaryKey: str, secondaryKey: str, measureKey: str | None) -> Join:
    """A feature without geometry per pair, with both elements as properties."""

    def pair(element: Any, other: Any, measure: float | None) -> Feature:
        properties = {primaryKey: element, secondaryKey: other}
        found = properties if measureKey is None else {**properties, measureKey: measure}
        return Feature(None, found, f"{element.get('system:index')}_{other.get('system:index')}")

    return Join(lambda one, matches: [pair(one, *match) for match in matches], measured=measureKey is not None)


@algorithm("Join.saveBest")
def save_best(context: Context, matchKey: str, measureKey: str, outer: bool) -> Join:
    """The match with the least measure; of equals the first."""

    def keep(element: Any, matches: Sequence[Match]) -> list[Any]:
        if not matches:
            return [element] if outer else []
        best = min(matches, key=lambda match: match[1] if match[1] is not None else float("inf"))
        return [element.with_properties({matchKey: _with_measure(best, measureKey)})]

    return Join(keep, measured=True)


@algorithm("Join.saveFirst")
def save_first(
    context: Context, matchKey: str, ordering: str | None, ascending: bool, measureKey: str | None, outer: bool
) -> Join:
    def keep(element: Any, matches: Sequence[Match]) -> list[Any]:
        found = _ordered(matches, ordering, ascending)
        if not found:
            return [element] if outer else []
        return [element.with_properties({matchKey: _with_measure(found[0], measureKey)})]

    return Join(keep, measured=measureKey is not None)


@algorithm("Join.saveAll")
def save_all(
    context: Context, matchesKey: str, ordering: str | None, ascending: bool, measureKey: str | None, outer: bool
) -> Join:
    def keep(element: Any, matches: Sequence[Match]) -> list[Any]:
        found = [_with_measure(match, measureKey) for match in _ordered(matches, ordering, ascending)]
        return [element.with_properties({matchesKey: found})] if found or outer else []

    return Join(keep, measured=measureKey is not None)


def _with_measure(match: Match, key: str | None) -> Any:
    element, measure = match
    return element if key is None or measure is None else element.with_properties({key: measure})


def _ordered(matches: Sequence[Match], ordering: str | None, ascending: bool) -> list[Match]:
    if ordering is None:
        return list(matches)
    return sorted(matches, key=lambda match: plain(match[0].get(ordering)), reverse=not ascending)


@algorithm("Join.apply")
def apply(context: Context, join: Join, primary: Collection, secondary: Collection, condition: Filter) -> Collection:
    if join.measured and condition.measure is None:
        raise EarthEngineError(
            "Join.apply: The join needs a measure, which only Filter.maxDifference and Filter.withinDistance produce."
        )

    def matches(one: Any) -> list[Match]:
        measure = condition.measure or (lambda left, right: None)
        return [(other, measure(one, other)) for other in secondary.elements if condition(one, other)]

    return primary.derive(lambda: [kept for one in primary.elements for kept in join.keep(one, matches(one))])
