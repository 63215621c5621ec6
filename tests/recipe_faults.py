"""Wrong recipes made from the schema itself: every leaf with an unknown sibling, a wrong type, a value out of range.

The walk reads pydantic's JSON schema and finds lines in the dumped text by indentation, so it shares no code with what
it tests.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmbuild.errors import UserError
from mmbuild.recipe import Recipe, load_recipe

Key = tuple[str | int, ...]
# Takes the path of a recipe; gives the exit code and everything printed.
Validate = Callable[[Path], tuple[int, str]]

SCHEMA = Recipe.model_json_schema()
UNKNOWN = "zz_unknown"
PLACES = "id,lon,lat,date\na,10.0,50.0,2020-06-01\n"


def _base(sampler: dict[str, Any], grid: dict[str, Any], anchor: dict[str, Any]) -> dict[str, Any]:
    return {
        "extends": "base.yaml",
        "name": "sweep",
        "title": "A recipe that says everything",
        "description": "every key is written",
        "licence": "CC-BY-4.0",
        "seed": 1,
        "samples": 16,
        "sampler": sampler,
        "grid": grid,
        "anchor": anchor,
        "modalities": {
            "sentinel2_l1c": {"required": True},
            "sentinel2_l2a": {"bands": ["B2", "B3"], "max_days": 1.0, "gsd": grid.get("gsd"), "source": "earthengine"},
        },
        "source": {
            "name": "sandbox",
            "url": "http://localhost:8642",
            "project": "p",
            "archive": "archive.yaml",
            "archive_root": ".",
        },
        "store": {"samples_per_shard": 8, "codec": "zstd", "level": 5},
        "splits": {"val": 0.1, "test": 0.1, "block_km": 50.0, "buffer_m": 1000.0},
        "alternates": 4,
        "files": {"archive.yaml": hashlib.sha256(b"{}").hexdigest()},
    }


def bases() -> list[dict[str, Any]]:
    """Valid recipes that together write every key of the schema."""
    rest = {"years": [2019, 2020], "max_cloud": 40.0, "min_clear": 0.5, "required": True}
    points = {"kind": "points", "file": "places.csv", "date_column": "date", "id_column": "id"}
    biome = {
        "kind": "biome", "ecoregions": "RESOLVE/ECOREGIONS/2017", "biomes": [1, 4], "exclude": ["Rock and Ice"],
        "allocation": "divisor", "areas": "polygons", "points": "counter",
    }  # fmt: skip
    cities = {
        "kind": "cities", "cities": "cities.csv", "keep": "large", "top": 100, "weights": "population", "std_km": 20.0,
        "offset": "metres", "overlap": "refuse",
    }  # fmt: skip
    utm = {"kind": "utm", "gsd": 10.0, "size": 64}
    one, several = {"modality": "sentinel2_l2a"}, {"one_of": ["sentinel2_l1c", "sentinel2_l2a"]}
    tiled = [
        {"kind": "area", "file": "area.geojson"},
        {"kind": "xyz", "file": "area.geojson", "covered_by": "sentinel2_l2a"},
        {"kind": "xyz", "tiles": ["9/135/204"]},
        {"kind": "xyz", "states": ["Georgia"]},
    ]
    webmercator = [_base(s, {"kind": "webmercator", "zoom": 14, "size": 64}, one | rest) for s in tiled]
    for recipe in webmercator:
        del recipe["modalities"]["sentinel2_l2a"]["gsd"]
    return [
        _base(points, utm, several | rest | {"pick": "nearest", "max_days": 5.0}),
        _base(biome, utm, one | rest | {"pick": "random"}),
        _base(cities, utm, one | rest),
        *webmercator,
    ]


def write_neighbours(folder: Path) -> None:
    """The files that the base recipes name."""
    (folder / "base.yaml").write_text("seed: 0\n")
    (folder / "places.csv").write_text(PLACES)
    (folder / "cities.csv").write_text("name,lon,lat,population,large\nAt,10.0,50.0,1000,1\n")
    (folder / "area.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (folder / "archive.yaml").write_text("{}")


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One place in a recipe with what the schema says of it."""

    base: int
    key: Key
    schema: dict[str, Any]
    required: bool

    @property
    def name(self) -> str:
        return ".".join(map(str, self.key))


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A wrong recipe, the key that must be blamed, and text that the message must hold."""

    name: str
    document: dict[str, Any]
    key: Key
    shown: str | None

    def line(self) -> int:
        """Line of the blamed key in the dumped text, or of its nearest ancestor that is written."""
        return line_of(dump(self.document), self.key)


def dump(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=10_000, allow_unicode=True)


def line_of(text: str, key: Key) -> int:
    """1-based line of a key path in block-style YAML of two-space indentation; lists are not indented."""
    lines, at, depth = text.splitlines(), -1, 0
    for name in key:
        if isinstance(name, int):
            inside = [i for i in range(at + 1, len(lines)) if lines[i].startswith("  " * (depth - 1) + "- ")]
        else:
            pattern = re.compile(rf"{'  ' * depth}['\"]?{re.escape(name)}['\"]?:")
            inside = [i for i in range(at + 1, len(lines)) if pattern.match(lines[i])]
            name = 0
        ends = [i for i in range(at + 1, len(lines)) if depth and _indent(lines[i]) < depth and i > at]
        inside = [i for i in inside if not ends or i < ends[0] or lines[i].lstrip().startswith("- ")]
        if len(inside) <= name:
            break
        at, depth = inside[name], depth + 1
    return max(at, 0) + 1


def _indent(line: str) -> int:
    return (len(line) - len(line.lstrip(" "))) // 2


def leaves() -> list[Leaf]:
    """Every section, list and value of the schema, each once, in one of the base recipes that write it."""
    found: dict[str, Leaf] = {}
    for number, base in enumerate(bases()):
        for leaf in _walk(SCHEMA, base, (), number, True):
            found.setdefault(leaf.name, leaf)
    return list(found.values())


def _walk(schema: dict[str, Any], data: Any, key: Key, base: int, required: bool) -> Iterator[Leaf]:
    schema = resolve(schema, data)
    if key:
        yield Leaf(base=base, key=key, schema=schema, required=required)
    if "properties" in schema:
        for name, inner in schema["properties"].items():
            if name in data:
                yield from _walk(inner, data[name], (*key, name), base, name in schema.get("required", ()))
    elif inner := _of_values(schema):
        for name, value in data.items():
            yield from _walk(inner, value, (*key, name), base, False)
    elif "items" in schema:
        yield from _walk(schema["items"], data[0], (*key, 0), base, False)


def resolve(schema: dict[str, Any], data: Any) -> dict[str, Any]:
    """The schema that applies to this data: references followed, null dropped, the union's kind chosen."""
    outer = {name: value for name, value in schema.items() if name not in ("$ref", "anyOf", "oneOf")}
    if "$ref" in schema:
        return outer | resolve(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]], data)
    if "anyOf" in schema:
        (only,) = [option for option in schema["anyOf"] if option != {"type": "null"}]
        return outer | resolve(only, data)
    if "oneOf" in schema:
        return outer | resolve({"$ref": schema["discriminator"]["mapping"][data["kind"]]}, data)
    return schema


def schema_paths() -> set[str]:
    """Every property of the schema as ``Model.property``, to prove that the walk reaches them all."""
    models = {"Recipe": SCHEMA, **SCHEMA["$defs"]}
    return {f"{model}.{name}" for model, body in models.items() for name in body["properties"]}


def walked_paths() -> set[str]:
    """The same names for what the base recipes write."""
    found: set[str] = set()
    for base in bases():
        found |= _named(SCHEMA, base)
    return found


def _named(schema: dict[str, Any], data: Any) -> set[str]:
    schema = resolve(schema, data)
    found: set[str] = set()
    for name, inner in schema.get("properties", {}).items():
        if name in data:
            found |= {f"{schema['title']}.{name}"} | _named(inner, data[name])
    if inner := _of_values(schema):
        for value in data.values():
            found |= _named(inner, value)
    return found


def _of_values(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the values of a mapping with free keys."""
    patterns: dict[str, dict[str, Any]] = schema.get("patternProperties", {})
    extra = schema.get("additionalProperties")
    return next(iter(patterns.values()), extra if isinstance(extra, dict) else {})


def faults() -> list[Fault]:
    """Every leaf × {unknown sibling, wrong type, out of range, missing where it is required}."""
    made = [fault for leaf in leaves() for fault in _faults_of(leaf)]
    return list({fault.name: fault for fault in made}.values())


def _faults_of(leaf: Leaf) -> Iterator[Fault]:
    document, parent = bases()[leaf.base], leaf.key[:-1]
    if not isinstance(leaf.key[-1], int):
        sibling = _changed(document, (*parent, UNKNOWN), _unknown_value(parent))
        name = ".".join(map(str, (*parent, UNKNOWN)))
        yield Fault(name=f"unknown:{name}", document=sibling, key=(*parent, UNKNOWN), shown=None)
    for value in _wrong_types(leaf.schema):
        yield _fault("type", leaf, document, value)
    for value in _out_of_range(leaf.schema):
        yield _fault("range", leaf, document, value)
    if leaf.required:
        missing = copy.deepcopy(document)
        del _at(missing, parent)[leaf.key[-1]]
        yield Fault(name=f"missing:{leaf.name}", document=missing, key=leaf.key, shown="is missing")


def _unknown_value(parent: Key) -> Any:
    return {("modalities",): {}, ("files",): "0" * 64}.get(parent, 1)


def _fault(kind: str, leaf: Leaf, document: dict[str, Any], value: Any) -> Fault:
    changed = _changed(document, leaf.key, value)
    return Fault(name=f"{kind}:{leaf.name}={value!r}", document=changed, key=leaf.key, shown=f"{value!r} -> ")


def _changed(document: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    _at(document, key[:-1])[key[-1]] = value
    return document


def _at(data: Any, key: Key) -> Any:
    for name in key:
        data = data[name]
    return data


def _wrong_types(schema: dict[str, Any]) -> list[Any]:
    match schema.get("type"):
        case "integer":
            return ["many", 1.5, True, [1]]
        case "number":
            return ["wide", True, {"a": 1}]
        case "string":
            return [12, ["a"], {"a": 1}]
        case "boolean":
            return ["perhaps", 1]
        case "array":
            return [7, "some", {"a": 1}]
        case "object":
            return [7, ["a"]]
    raise AssertionError(f"the sweep knows no type {schema}")


def _out_of_range(schema: dict[str, Any]) -> list[Any]:
    values: list[Any] = []
    if "enum" in schema or "const" in schema:
        values.append("zz")
    if "pattern" in schema:
        values.append("!!")
    if schema.get("minLength"):
        values.append("")
    if schema.get("minItems"):
        values.append([])
    if schema.get("minProperties"):
        values.append({})
    if schema.get("type") in ("integer", "number"):
        values += [schema["minimum"] - 1] if "minimum" in schema else [schema["exclusiveMinimum"]]
        values += [schema["maximum"] + 1]
    if schema.get("type") == "number":
        values += [float("inf"), float("nan")]
    return values


NOT_A_RECIPE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "only comments": (b"# nothing yet\n", "empty"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "binary"),
    "zero bytes": (b"name: a\n\x00\x00", "binary"),
    "a TIFF": (b"II*\x00\x08\x00\x00\x00", "binary"),
    "list": (b"- name\n- title\n", "mapping"),
    "text": (b"hello\n", "mapping"),
    "number": (b"12\n", "mapping"),
    "object tag": (b"name: a\ntitle: !!python/object/apply:os.system ['true']\n", "tag"),
    "object tag at the top": (b"!!python/object:builtins.dict {name: a}\n", "tag"),
    "python name tag": (b"name: !!python/name:os.system\n", "tag"),
    "custom tag": (b"name: !mine a\n", "tag"),
    "binary tag": (b"name: !!binary aGVsbG8=\n", "tag"),
    "set tag": (b"name: !!set {a, b}\n", "tag"),
    "duplicate key": (b"name: a\nname: b\n", "twice"),
    "merge key": (b"a: &x {b: 1}\nc:\n  <<: *x\n", "merge"),
    "number as key": (b"1: a\n", "quotes"),
    "endless alias": (b"a: &x [*x]\n", "alias"),
    "unclosed bracket": (b"name: [a\n", "YAML"),
    "tab indentation": (b"grid:\n\tsize: 1\n", "YAML"),
    "two documents": (b"name: a\n---\nname: b\n", "YAML"),
}


def api(path: Path) -> tuple[int, str]:
    """Validate through ``load_recipe``; anything but UserError goes through as the bug it is."""
    try:
        load_recipe(path)
    except UserError as error:
        return error.exit_code, str(error)
    return 0, ""


def check_fault(fault: Fault, folder: Path, validate: Validate) -> None:
    """The message is one line with file, line, key, value and fix, and the exit code is 2."""
    write_neighbours(folder)
    path = folder / "recipe.yaml"
    path.write_text(dump(fault.document), encoding="utf-8")
    code, text = validate(path)
    assert code == 2, text
    key = ".".join(map(str, fault.key))
    start = f"{path}:{fault.line()}: {key}: {fault.shown or ''}"
    assert text.startswith(start), f"{text!r} does not start with {start!r}"
    check_readable(text)


def check_file(raw: bytes, word: str, folder: Path, validate: Validate) -> None:
    """A file that is no recipe at all is refused in one line that names it, a line in it, and the remedy."""
    path = folder / "recipe.yaml"
    path.write_bytes(raw)
    code, text = validate(path)
    assert code == 2, text
    assert re.match(rf"{re.escape(str(path))}:\d+: ", text), text
    assert word in text
    check_readable(text)


def check_readable(text: str) -> None:
    assert "\n" not in text, f"more than one line:\n{text}"
    assert "Traceback" not in text
    assert "pydantic" not in text
    assert len(text) < 400, text
    reason, separator, fix = text.rpartition("; ")
    assert separator, f"no fix in {text!r}"
    assert len(reason) > 10, text
    assert len(fix) > 5, text
