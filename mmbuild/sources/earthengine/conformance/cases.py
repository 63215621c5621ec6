"""The conformance table: expressions over the client's `ee`, the answer the public documentation states, and where.

One YAML file is one group of cases. A case whose answer the documentation does not state outright says `assumed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmbuild.errors import UserError
from mmbuild.yamlfile import read_yaml

FOLDER = Path(__file__).parent


class Case(BaseModel):
    """One expression and what must come of it: a value, or a refusal whose text contains `error`.

    tolerance: how far a number that is not whole may be off, absolute; whole numbers and text must be equal.
    page: the public page that states the rule; rule: the rule itself, in one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    group: str
    expression: str
    value: Any = None
    error: str | None = None
    tolerance: float = Field(default=1e-9, ge=0)
    page: str = Field(pattern=r"^https://")
    rule: str = Field(min_length=1)
    assumed: bool = False

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if (self.error is None) == ("value" not in self.model_fields_set):
            raise ValueError("a case has either a value (null counts) or an error")
        return self


def read_cases(only: str = "*") -> list[Case]:
    """The cases whose id or group matches a glob, in the order of the files.

    Raises UserError when none does.
    """
    found = [case for case in _all_cases() if fnmatchcase(case.id, only) or fnmatchcase(case.group, only)]
    if not found:
        groups = ", ".join(sorted({case.group for case in _all_cases()}))
        raise UserError(f"no case is called {only!r}", "--only", f"name an id or a group ({groups}); * stands for any")
    return found


@lru_cache(maxsize=1)
def _all_cases() -> Sequence[Case]:
    cases = [case for path in sorted(FOLDER.glob("*.yaml")) for case in _read_group(path)]
    (often, count), *_ = Counter(case.id for case in cases).most_common(1)
    if count > 1:
        raise UserError(f"case {often} is there twice", str(FOLDER), "give each case its own id")
    return cases


def _read_group(path: Path) -> list[Case]:
    document = read_yaml(path, shown=f"conformance/{path.name}")
    cases = []
    for place, fields in enumerate(document.data["cases"]):
        try:
            cases.append(Case(group=path.stem, **fields))
        except (ValidationError, TypeError) as error:
            raise UserError(str(error), document.place(("cases", place)), "see the fields of Case") from error
    return cases
