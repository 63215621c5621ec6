"""Reads the YAML files people write, remembers the line of every key, and says what is wrong in one line each.

It accepts plain text, numbers, lists and mappings only: no object tags, no duplicate keys, no files that are not text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmbuild.errors import UserError

Key = tuple[str | int, ...]

# A recipe or modality is a few kilobytes; a raster given by mistake should not be parsed.
MAX_BYTES = 4 * 2**20
# Aliases of aliases can unfold a short file into more values than memory holds.
MAX_VALUES = 200_000
# The C parser reads the same language ten times as fast where libyaml is built in.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")}
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a file says, and where: ``places`` maps a key path to ``file:line``."""

    path: str
    data: dict[str, Any]
    places: Mapping[Key, str]

    def place(self, key: Key) -> str:
        """``file:line`` of a key, or of its nearest ancestor that is written down."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.path)


def read_yaml(path: Path, *, shown: str | None = None) -> Document:
    """Read one YAML mapping; ``shown`` is the name used in messages.

    Raises UserError naming file, line and remedy for anything that is not a mapping of plain values.
    """
    name = shown or str(path)
    text = _read_text(path, name)
    return _Reader(name).document(_compose(text, name))


def parse_value(text: str, where: str) -> Any:
    """The value of a ``--set key=value`` override, read as YAML."""
    node = _compose(text, where)
    return None if node is None else _Reader(where).convert(node, ())


def merge(base: Document, top: Document) -> Document:
    """``top`` over ``base``: mappings merge key by key, anything else is replaced.

    A mapping of another ``kind`` replaces the whole mapping, since its keys mean something else.
    """
    places = dict(base.places)
    data = _merge(base.data, top.data, (), places, top.places)
    places[()] = top.places.get((), top.path)
    return Document(path=top.path, data=data, places=places)


def _merge(
    base: Mapping[str, Any],
    top: Mapping[str, Any],
    key: Key,
    places: dict[Key, str],
    above: Mapping[Key, str],
) -> dict[str, Any]:
    merged = dict(base)
    for name, value in top.items():
        here, old = (*key, name), merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[name] = _merge(old, value, here, places, above)
        else:
            merged[name] = value
            for stale in [place for place in places if place[: len(here)] == here]:
                del places[stale]
            places.update({place: at for place, at in above.items() if place[: len(here)] == here})
        if here in above:
            places[here] = above[here]
    return merged


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError("there is no such file", name, "check the path") from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a YAML file", name, "name the .yaml file inside it") from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", name, "check its permissions") from None
    if len(raw) > MAX_BYTES:
        raise UserError("more than 4 MB, which no YAML file of this kind is", name, "check the path")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(name, raw[: error.start], f"byte 0x{raw[error.start]:02x}") from None
    if "\0" in text:
        raise _not_text(name, text.split("\0", 1)[0].encode(), "a zero byte")
    return text


def _not_text(name: str, before: bytes, found: str) -> UserError:
    line = before.count(b"\n") + 1
    return UserError(f"{found} -> this is a binary file, not UTF-8 text", f"{name}:{line}", "give a YAML text file")


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else _line(name, mark.line)
        problem = " ".join(str(error.problem or error.context).split())
        raise UserError(f"not valid YAML -> {problem}", where, "check indentation, quotes and brackets") from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"not valid YAML -> {problem}", _line(name, 0), "give a YAML text file") from None
    return node


def _line(name: str, line: int) -> str:
    """``file:line`` counted from 1; a command-line option has no lines."""
    return name if name.startswith("--") else f"{name}:{line + 1}"


class _Reader:
    """Turns YAML nodes into plain values and notes the line of each key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Key, str] = {}
        self.scalars = yaml.SafeLoader("")
        self.open: set[int] = set()
        self.count = 0

    def document(self, node: yaml.Node | None) -> Document:
        if node is None:
            raise UserError("the file is empty", f"{self.name}:1", "write a mapping of keys to values")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else repr(shorten(node.value))
            raise UserError(
                f"{kind} -> the file must be a mapping",
                self._at(node),
                "write keys with values, such as 'name: tiny'",
            )
        data: dict[str, Any] = self.convert(node, ())
        return Document(path=self.name, data=data, places={**self.places, (): f"{self.name}:1"})

    def convert(self, node: yaml.Node, key: Key) -> Any:
        self.places.setdefault(key, self._at(node))
        self.count += 1
        if id(node) in self.open or self.count > MAX_VALUES:
            raise self._refuse(node, key, "an alias that unfolds without end", "write the values out")
        self.open.add(id(node))
        try:
            return self._convert(node, key)
        finally:
            self.open.discard(id(node))

    def _convert(self, node: yaml.Node, key: Key) -> Any:
        match node:
            case yaml.MappingNode() if node.tag == "tag:yaml.org,2002:map":
                return dict(self._pairs(node, key))
            case yaml.SequenceNode() if node.tag == "tag:yaml.org,2002:seq":
                return [self.convert(item, (*key, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode() if node.tag in _PLAIN_TAGS:
                return self._scalar(node, key)
        raise self._refuse(node, key, f"{node.tag} -> YAML tags are not read", "remove the tag and write a plain value")

    def _pairs(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for name, value in node.value:
            if name.tag == "tag:yaml.org,2002:merge":
                raise self._refuse(name, key, "<< -> merge keys are not read", "use 'extends:' or write the keys out")
            if name.tag != "tag:yaml.org,2002:str":
                shown = shorten(str(name.value))
                raise self._refuse(name, key, f"{shown} -> a key must be text", f'put it in quotes: "{shown}"')
            if name.value in seen:
                raise self._refuse(name, (*key, name.value), "this key is written twice", "keep one of them")
            seen.add(name.value)
            self.places[(*key, name.value)] = self._at(name)
            yield name.value, self.convert(value, (*key, name.value))

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text, tag = str(node.value), node.tag.rsplit(":", 1)[-1]
        plain = not node.style  # None from the Python scanner, "" from libyaml
        if plain and tag == "str" and _EXPONENT.fullmatch(text):
            return float(text)  # YAML 1.1 wants a dot and a sign here; people write 1e6
        if tag in ("str", "timestamp") or (plain and ":" in text):
            return text  # dates stay as written; 12:30 is not the base-60 number of YAML 1.1
        try:
            return self.scalars.construct_object(node)
        except (ValueError, yaml.YAMLError):
            raise self._refuse(node, key, f"{shorten(text)!r} -> not a {tag}", "correct the value") from None

    def _at(self, node: yaml.Node) -> str:
        return _line(self.name, node.start_mark.line)

    def _refuse(self, node: yaml.Node, key: Key, message: str, fix: str) -> UserError:
        return UserError(message, ": ".join(filter(None, (self._at(node), dotted(key)))), fix)


def dotted(key: Sequence[str | int]) -> str:
    """A key path as people write it: ``modalities.naip.bands.0``."""
    return ".".join(map(str, key))


def shorten(text: str, limit: int = 60) -> str:
    """One line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
