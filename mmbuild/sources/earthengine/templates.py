"""Pixel requests as text with gaps: the client takes milliseconds to write an expression, filling one in takes none.

Chips of one modality differ from sample to sample in their scenes, times and ground, not in what is done with them. An
expression is written once by the client for stand-ins of those, and what it wrote is kept with gaps where they stood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import ee

from mmbuild.choose import Choice, Sample, scene_index
from mmbuild.sources.earthengine.expressions import millis

# Draws one chip: its choice, what its bands are called before their numbers, the ground's left, bottom, right and top,
# and their CRS.
Draw = Callable[[Choice, str, Sequence[float], str], Any]

# Stand-ins. A text is a name between two marks, which no asset's name has; a number is a time in years, or a corner at
# distances, of no image.
_MARK = "~"
_FIRST_TIME, _APART = datetime(4000, 1, 1, tzinfo=UTC), timedelta(days=10)
_CORNERS = {"left": -9e14 - 1.5, "bottom": -9e14 - 2.5, "right": 9e14 + 3.5, "top": 9e14 + 4.5}
# The images that tell of a scene are looked for from a day before it to a day after.
_DAYS = {"before": timedelta(days=-1), "at": timedelta(0), "after": timedelta(days=1)}
_STAND_IN = re.compile(rf"{_MARK}(?:(id\d+){_MARK}/{_MARK}\w+|(\w+)){_MARK}|(?<![\d.])(-?\d{{14,15}}(?:\.5)?)(?![\d.])")
# Digits of a value's number in its chip; the chip's number stands before them.
_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Template:
    """Text with gaps: ``parts`` are text and names of gaps in turn, text first and last.

    Its values are numbered; ``root`` is the last digits of the one that is the image.
    """

    parts: tuple[str, ...]
    root: str

    def fill(self, gaps: Mapping[str, str]) -> str:
        return "".join(gaps[part] if at % 2 else part for at, part in enumerate(self.parts))


class Templates:
    """The templates of one source, made as they are needed; threads may share them."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._known: dict[tuple[Any, ...], Template] = {}

    def request(self, sample: Sample, choices: Sequence[Choice], grid: Mapping[str, Any]) -> str:
        """The body of a request for NPY in which band b of the choice at position p is called ``m<p>_<b>``."""
        box = sample.grid().boundingbox
        ground = dict(zip(_CORNERS, map(json.dumps, box.bbox), strict=True)) | {"crs": f"EPSG:{sample.epsg}"}
        values, image = [], ""
        for positions in _units(choices):
            unit = [choices[position] for position in positions]
            template = self._template(unit)
            values.append(template.fill(ground | _gaps(unit, positions)))
            drawn = f'{{"valueReference": "{positions[0] + 1}{template.root}"}}'
            image = _added(image, drawn) if image else drawn
        expression = f'{{"result": "0", "values": {{{", ".join(values)}, "0": {image}}}}}'
        return f'{{"expression": {expression}, "fileFormat": "NPY", "grid": {json.dumps(grid)}}}'

    def _template(self, unit: Sequence[Choice]) -> Template:
        kind = tuple(map(_kind, unit))
        if kind not in self._known:
            self._known[kind] = _written(self._draw, unit)
        return self._known[kind]


def _units(choices: Sequence[Choice]) -> list[list[int]]:
    """Positions of what is written together: a composite and the number of its observations have one set of scenes.

    Apart they would be sent, and computed, twice.
    """
    units: dict[Any, list[int]] = {}
    for position, choice in enumerate(choices):
        key = position if choice.reduce is None else (choice.window, *(scene.scene_id for scene in choice.scenes))
        units.setdefault(key, []).append(position)
    return list(units.values())


def _kind(choice: Choice) -> tuple[Any, ...]:
    """What two choices have in common whose expressions differ in ids, times and ground only."""
    scenes = tuple((scene.bands, scene.time is None) for scene in choice.scenes)
    return choice.modality, choice.reduce, choice.window is None, scenes


def _added(image: str, more: str) -> str:
    """An image with the bands of another behind its own."""
    arguments = f'"dstImg": {image}, "srcImg": {more}'
    return f'{{"functionInvocationValue": {{"functionName": "Image.addBands", "arguments": {{{arguments}}}}}}}'


def _gaps(unit: Sequence[Choice], positions: Sequence[int]) -> dict[str, str]:
    """What goes into the gaps of a unit, as JSON writes it inside a text."""
    found = {"number": str(positions[0] + 1)} | {f"chip{i}": str(position) for i, position in enumerate(positions)}
    for i, scene in enumerate(unit[0].scenes):
        found[f"id{i}"], found[f"index{i}"] = json.dumps(scene.scene_id)[1:-1], json.dumps(scene_index(scene))[1:-1]
    return found | {name: str(millis(when)) for name, when in _times(unit[0])}


def _times(choice: Choice) -> Iterator[tuple[str, datetime]]:
    """The moments that an expression may hold, by the names of their gaps."""
    yield from ((f"window{i}", when) for i, when in enumerate(choice.window or ()))
    for i, scene in enumerate(choice.scenes):
        if scene.time is not None:
            yield from ((f"{name}{i}", scene.time + days) for name, days in _DAYS.items())


# -- writing ------------------------------------------------------------------------------------------------------


def _written(draw: Draw, unit: Sequence[Choice]) -> Template:
    """Let the client write what is drawn for stand-ins, and leave gaps where those stand."""
    alike = [_stand_in(choice) for choice in unit]
    corners, crs = list(_CORNERS.values()), f"{_MARK}crs{_MARK}"
    images = [draw(choice, f"m{_MARK}chip{i}{_MARK}", corners, crs) for i, choice in enumerate(alike)]
    written = ee.serializer.encode(ee.Image.cat(images))
    values = {_numbered(name): _renumbered(value) for name, value in written["values"].items()}
    numbers = {json.dumps(value): name for name, value in _CORNERS.items()}
    numbers |= {str(millis(when)): name for name, when in _times(alike[0])}
    return Template(
        parts=tuple(_cut(json.dumps(values)[1:-1], numbers)), root=_numbered(written["result"])[-_DIGITS:]
    )  # fmt: skip


def _stand_in(choice: Choice) -> Choice:
    """A choice of the same kind that no real one is equal to in any id or time."""
    scenes = tuple(
        replace(
            scene, scene_id=f"{_MARK}id{i}{_MARK}/{_MARK}index{i}{_MARK}",
            time=None if scene.time is None else _FIRST_TIME + (i + 3) * _APART,
        )
        for i, scene in enumerate(choice.scenes)
    )  # fmt: skip
    window = None if choice.window is None else (_FIRST_TIME, _FIRST_TIME + _APART)
    return replace(choice, scenes=scenes, window=window)


def _cut(text: str, numbers: Mapping[str, str]) -> Iterator[str]:
    """Text and names of gaps in turn; KeyError for a number that is made of a stand-in's and is none itself."""
    end = 0
    for found in _STAND_IN.finditer(text):
        yield text[end : found.start()]
        yield found[1] or found[2] or numbers[found[3]]
        end = found.end()
    yield text[end:]


def _numbered(name: str) -> str:
    """The name of a value, with a gap for the number of its chip."""
    return f"{_MARK}number{_MARK}{int(name):0{_DIGITS}d}"


def _renumbered(node: Any) -> Any:
    """A value node with new names for the values that it refers to."""
    if isinstance(node, list):
        return [_renumbered(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _numbered(item) if key in _REFERENCES and isinstance(item, str)
        else item if key == "constantValue" else _renumbered(item)
        for key, item in node.items()
    }  # fmt: skip


# Where a value node names another one.
_REFERENCES = ("valueReference", "functionReference", "body")
