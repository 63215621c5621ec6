"""Named quirks of published corpora: what ``mode: faithful`` changes in a recipe, and what it leaves to an export.

The table is ``quirks.yaml``; a recipe lists the names of those that its corpus has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, model_validator

from mmbuild.recipe.places import Strict, Text
from mmbuild.yamlfile import read_yaml

TABLE = Path(__file__).with_name("quirks.yaml")


class Quirk(Strict):
    """One thing that a published corpus does and mmbuild by itself does not."""

    about: Text
    set: dict[str, Any] | None = Field(None, description="keys of a recipe, dotted, and their values")
    export: str | None = Field(None, description="the foreign layout that has it")
    left_out: str | None = Field(None, description="why it is not repeated")

    @model_validator(mode="after")
    def _is_somewhere(self) -> Quirk:
        if sum(where is not None for where in (self.set, self.export, self.left_out)) != 1:
            raise ValueError("needs exactly one of set, export and left_out")
        return self

    @property
    def where(self) -> str:
        """Who brings it about, in a few words."""
        if self.set is not None:
            return "recipe"
        return f"mmbuild export --format {self.export}" if self.export else f"not repeated: {self.left_out}"

    @property
    def is_repeated(self) -> bool:
        return self.left_out is None


@cache
def known_quirks() -> dict[str, Quirk]:
    """Every quirk by name, in the order of the table."""
    return TypeAdapter(dict[str, Quirk]).validate_python(read_yaml(TABLE).data)


def settings(names: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """(quirk, dotted key, value) of everything that these quirks change in a recipe; unknown names change nothing."""
    table: Mapping[str, Quirk] = known_quirks()
    for name in names:
        for key, value in ((table[name].set or {}) if name in table else {}).items():
            yield name, key, value
