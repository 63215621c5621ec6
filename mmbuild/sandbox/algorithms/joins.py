"""Join.*: pairing the elements of two collections by a condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmbuild.sandbox.algorithms.filters import plain
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.values import Collection, EarthEngineError, Filter


@dataclass(frozen=True, eq=False)
class Join:
    """keep(element, its matches) -> the element as it goes into the result, or None to drop it."""

    keep: Callable[[Any, Sequence[Any]], Any]


@algorithm("Join.simple")
def simple(context: Context) -> Join:
    return Join(lambda element, matches: element if matches else None)


@algorithm("Join.inverted")
def inverted(context: Context) -> Join:
    return Join(lambda element, matches: None if matches else element)


@algorithm("Join.saveFirst")
def save_first(
    context: Context, matchKey: str, ordering: str | None, ascending: bool, measureKey: str | None, outer: bool
) -> Join:
    _unmeasured(measureKey)

    def keep(element: Any, matches: Sequence[Any]) -> Any:
        found = _ordered(matches, ordering, ascending)
        return element.with_properties({matchKey: found[0]}) if found else element if outer else None

    return Join(keep)


@algorithm("Join.saveAll")
def save_all(
    context: Context, matchesKey: str, ordering: str | None, ascending: bool, measureKey: str | None, outer: bool
) -> Join:
    _unmeasured(measureKey)

    def keep(element: Any, matches: Sequence[Any]) -> Any:
        found = _ordered(matches, ordering, ascending)
        return element.with_properties({matchesKey: found}) if found or outer else None

    return Join(keep)


def _unmeasured(measure_key: str | None) -> None:
    if measure_key is not None:
        raise EarthEngineError("The offline Earth Engine does not implement joins with a measureKey.")


def _ordered(matches: Sequence[Any], ordering: str | None, ascending: bool) -> list[Any]:
    if ordering is None:
        return list(matches)
    return sorted(matches, key=lambda element: plain(element.get(ordering)), reverse=not ascending)


@algorithm("Join.apply")
def apply(context: Context, join: Join, primary: Collection, secondary: Collection, condition: Filter) -> Collection:
    def elements() -> list[Any]:
        pairs = ((one, [other for other in secondary.elements if condition(one, other)]) for one in primary.elements)
        return [kept for one, matches in pairs if (kept := join.keep(one, matches)) is not None]

    return primary.derive(elements)
