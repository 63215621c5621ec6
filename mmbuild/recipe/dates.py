"""The keys that give a sample several time steps: dates a season apart, or calendar months."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mmbuild.explain import Problem, cross_error
from mmbuild.recipe.places import Strict
from mmbuild.times import parse_date


def _written_out(value: Any) -> Any:
    """YAML reads an unquoted date as one; it is kept as text."""
    return value.isoformat() if isinstance(value, date) else value


def _a_day(value: str) -> str:
    parse_date(value)
    return value


Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_a_day), BeforeValidator(_written_out)]


class Seasons(Strict):
    """Dates some months apart, all moved back together by a number of days drawn for each sample."""

    kind: Literal["seasons"]
    dates: list[Date] = Field(min_length=2, max_length=120, description="rising dates, one for each time step")
    phase_days: int = Field(364, ge=0, le=36600, description="most whole days by which a sample's dates go back")
    max_days: float = Field(gt=0, le=36600, description="most days between a step's date and its anchor")
    at_least: int | None = Field(None, ge=1, description="steps that must have an anchor; all when left out")

    @property
    def count(self) -> int:
        return len(self.dates)

    @model_validator(mode="after")
    def _rises(self) -> Seasons:
        if sorted(set(self.dates)) != self.dates:
            fix = f"write {', '.join(sorted(set(self.dates)))}"
            raise cross_error([Problem(key=("dates",), reason="must rise without repeats", fix=fix)])
        return self


class Months(Strict):
    """Calendar months one after the other, from January of the anchor's year."""

    kind: Literal["months"]
    count: int = Field(12, ge=2, le=120, description="how many months, one for each time step")
    at_least: int | None = Field(None, ge=1, description="steps that must have an anchor; all when left out")
