"""Modalities that need no pixels from anywhere: a sample's own place, date and tags as values.

It refuses a tag that the sampler did not give; that is a recipe error, not missing data.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mmbuild.choose import Choice, Sample
from mmbuild.modality import Modality


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


def value(modality: Modality, sample: Sample, choice: Choice) -> np.ndarray:
    """The values of one derived modality, (band,) in its dtype; nodata where the sample does not know."""
    block = block_of(modality)
    filled = np.full(len(modality.bands), modality.fill, dtype=modality.np_dtype)
    match block.rule:
        case "tag":
            tag = sample.tags.get(block.key or modality.name)
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
