"""The filter language of asset listings: conditions on times, properties and place, joined by AND.

    startTime >= "2020-01-01T00:00:00Z" AND properties.CLOUDY < 10 AND intersects("{'type': 'Point', ...}")

What cannot be read is refused, never ignored. A property that an asset lacks fulfils no condition but `!=`.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shapely

from mmbuild.sandbox.coerce import parse_date
from mmbuild.sandbox.values import EarthEngineError

_TERM = re.compile(
    r"""\s*(?:intersects\(\s*"(?P<place>[^"]*)"\s*\)
          |(?P<name>[\w.:\-]+)\s*(?P<sign>>=|<=|!=|==|=|<|>)\s*(?:"(?P<text>[^"]*)"|(?P<word>[^\s"]+)))\s*""",
    re.VERBOSE,
)
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
TIMES = ("startTime", "endTime")


@dataclass(frozen=True)
class Condition:
    """One condition: a comparison of a named fact with a value, or a place to meet.

    value: milliseconds since 1970 UTC for a time, a number where the text is one, else the text.
    """

    name: str = ""
    sign: str = ""
    value: Any = None
    place: shapely.Geometry | None = None

    @classmethod
    def meets(cls, text: str) -> Condition:
        """To intersect a geometry given as GeoJSON (single quotes will do) or WKT, planar in lon/lat."""
        return cls(place=_place(text))

    def holds(self, properties: Mapping[str, Any], times: Mapping[str, int | None], footprint: Any) -> bool:
        """Whether an asset fulfils it; one without a footprint is everywhere."""
        if self.place is not None:
            return footprint is None or bool(shapely.intersects(footprint, self.place))
        found = times.get(self.name) if self.name in TIMES else properties.get(self.name)
        if isinstance(found, str) != isinstance(self.value, str) and found is not None:
            return str(found) == str(self.value) if self.sign in ("=", "==") else self.sign == "!="
        return self.sign == "!=" if found is None else _SIGNS[self.sign](found, self.value)


def conditions(text: str) -> list[Condition]:
    """All conditions of a filter; EarthEngineError naming what cannot be read."""
    found: list[Condition] = []
    rest = text
    while rest.strip():
        match = _TERM.match(rest)
        if match is None:
            raise EarthEngineError(f"Invalid filter: cannot read '{rest.strip()}' in '{text}'.")
        found.append(_condition(match))
        rest = rest[match.end() :]
        if rest and not rest.startswith("AND ") and rest != "AND":
            raise EarthEngineError(f"Invalid filter: expected AND before '{rest}' in '{text}'; OR is not read.")
        rest = rest.removeprefix("AND")
    return found


def _condition(match: re.Match[str]) -> Condition:
    if match["place"] is not None:
        return Condition.meets(match["place"])
    name = match["name"].removeprefix("properties.")
    if match["name"] in TIMES:
        return Condition(name, match["sign"], int(parse_date(match["text"] or match["word"] or "").ms))
    return Condition(name, match["sign"], match["text"] if match["text"] is not None else _number(match["word"]))


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _place(text: str) -> shapely.Geometry:
    try:
        if text.lstrip().startswith("{"):
            return shapely.geometry.shape(json.loads(text.replace("'", '"')))
        return shapely.from_wkt(text)
    except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as error:
        raise EarthEngineError(f"Invalid geometry '{text}': {error}") from error


def time_window(asked: Sequence[Condition]) -> tuple[int | None, int | None]:
    """The earliest start and the end (not included) that start times of fitting images can have; a superset will do."""
    starts = [c.value for c in asked if c.name == "startTime" and c.sign in (">=", ">", "=", "==")]
    ends = [c.value + 1 for c in asked if c.name in TIMES and c.sign in ("<", "<=", "=", "==")]
    return max(starts, default=None), min(ends, default=None)


def region_of(asked: Sequence[Condition]) -> shapely.Geometry | None:
    """One of the places to meet, if any."""
    return next((c.place for c in asked if c.place is not None), None)
