"""The signatures of Earth Engine's algorithms, as the earthengine-api wheel itself ships them.

The list (991 algorithms) is read from `ee/tests/algorithms.json` of the installed client, Copyright Google LLC,
Apache License 2.0; the client is not imported. It is what the real service answers to `algorithms.list`, so the genuine
client builds its methods from it, and the evaluator takes argument names, types and defaults from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REQUIRED = object()
"""Stands for "this argument has no default"."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of an algorithm: `kind` is Earth Engine's type name without its parameters ("List", "Image")."""

    name: str
    kind: str
    item: str
    default: Any


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Name and arguments of one algorithm, in positional order."""

    name: str
    returns: str
    arguments: tuple[Argument, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the arguments."""
        return frozenset(argument.name for argument in self.arguments)


def algorithms_path() -> Path:
    """Where the installed client keeps the list; FileNotFoundError with the remedy when it does not."""
    spec = find_spec("ee")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("earthengine-api is not installed; the offline Earth Engine reads its algorithm list")
    path = Path(spec.origin).parent / "tests" / "algorithms.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install the earthengine-api version named in constraints.txt")
    return path


@lru_cache(maxsize=1)
def algorithms_json() -> bytes:
    """The list as the bytes that `algorithms.list` answers."""
    return algorithms_path().read_bytes()


@lru_cache(maxsize=1)
def signatures() -> dict[str, Signature]:
    """Every algorithm the real service knows, by name."""
    entries = json.loads(algorithms_json())["algorithms"]
    return {entry["name"].removeprefix("algorithms/"): _signature(entry) for entry in entries}


def _signature(entry: dict[str, Any]) -> Signature:
    arguments = tuple(_argument(argument) for argument in entry.get("arguments", ()))
    name = entry["name"].removeprefix("algorithms/")
    return Signature(name=name, returns=entry.get("returnType", "Object"), arguments=arguments)


def _argument(entry: dict[str, Any]) -> Argument:
    kind, _, rest = entry.get("type", "Object").partition("<")
    default = entry.get("defaultValue") if entry.get("optional") else REQUIRED
    return Argument(name=entry["argumentName"], kind=kind, item=rest.removesuffix(">"), default=default)
