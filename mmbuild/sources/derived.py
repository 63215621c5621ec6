"""Modalities that need no pixels from anywhere: a sample's own place, date and tags as values.

It refuses a tag that the sampler did not give, or that its modality cannot store: that is the user's error, not missing
data. A tag that is given as None or NaN is missing data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from numbers import Real
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mmbuild.choose import Choice, Sample
from mmbuild.errors import UserError
from mmbuild.modality import Modality, dtype_range


class DerivedBlock(BaseModel):
    """The ``sources.derived`` block of a modality file."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    rule: Literal["tag", "geolocation", "month"]
    key: str | None = None


def block_of(modality: Modality) -> DerivedBlock:
    """The checked ``sources.derived`` block of a modality."""
    raw = dict(modality.sources["derived"])
    raw["rule"] = raw.pop("from", raw.get("rule"))
    return DerivedBlock.model_validate(raw)


def check(modality: Modality, tags: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless a place's tags hold what the modality is made of; other modalities need nothing.

    where: the place, as the error names it. A number outside ``valid_range`` passes as long as the dtype can hold it:
    the synthetic Earth numbers its ecoregions beyond the real ones on purpose.
    """
    if modality.is_derived and (block := block_of(modality)).rule == "tag":
        _tag(modality, tags, block.key or modality.name, where)


def _tag(modality: Modality, tags: Mapping[str, Any], key: str, where: str) -> float | None:
    """The number that a tag gives a modality, None where it says that there is none."""
    if key not in tags:
        raise UserError(
            f"has no tag {key!r}, of which {modality.name} is made", where,
            f"add a column {key} to the places, use a sampler that gives it, or leave out modalities.{modality.name}",
        )  # fmt: skip
    tag = tags[key]
    if tag is None or tag != tag:
        return None
    low, high = dtype_range(modality.dtype)
    is_float = modality.np_dtype.kind == "f"
    is_number = isinstance(tag, Real) and not isinstance(tag, bool)
    if not (is_number and low <= tag <= high and (is_float or float(tag).is_integer())):
        kind = "a finite number" if is_float else "a whole number"
        raise UserError(
            f"tag {key}: {tag!r} is not {kind} that {modality.name} can store as {modality.dtype}", where,
            f"give a number from {low:g} to {high:g}, or leave it empty where there is none",
        )  # fmt: skip
    return tag  # type: ignore[no-any-return]


def value(modality: Modality, sample: Sample, choice: Choice) -> np.ndarray:
    """The values of one derived modality, (band,) in its dtype; nodata where the sample does not know.

    Raises UserError for a tag that ``check`` refuses.
    """
    block = block_of(modality)
    filled = np.full(len(modality.bands), modality.fill, dtype=modality.np_dtype)
    match block.rule:
        case "tag":
            tag = _tag(modality, sample.tags, block.key or modality.name, f"sample {sample.sample_id}")
            if tag is not None:
                filled[:] = tag
        case "geolocation":
            filled[:] = _geolocation(sample.lon, sample.lat)
        case "month":
            if choice.when is not None:
                filled[:] = _month(choice.when)
    return filled


def _geolocation(lon: float, lat: float) -> tuple[float, float, float, float]:
    """sin and cos of latitude, then of longitude (MMEarth stores both pairs)."""
    phi, lam = math.radians(lat), math.radians(lon)
    return math.sin(phi), math.cos(phi), math.sin(lam), math.cos(lam)


def _month(when: datetime) -> tuple[float, float]:
    """sin and cos of 2 pi m / 12 for m = 1..12 (MMEarth-data, convert_to_h5)."""
    angle = 2 * math.pi * when.month / 12
    return math.sin(angle), math.cos(angle)
