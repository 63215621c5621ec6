"""Statistics of arrays with a no-data value, by plane: counted here, or restated from those of a corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbuild.foreign.recode import Rule

KEYS = ("mean", "std", "min", "max")


@dataclass(kw_only=True)
class Moments:
    """Count, sum, sum of squares, minimum and maximum of the data of each plane, in float64."""

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, nodata: np.generic) -> Moments:
        """array: (plane, ...)."""
        values = array.reshape(len(array), -1).astype(np.float64)
        is_data = np.isfinite(values) & (array.reshape(len(array), -1) != nodata)
        some = np.where(is_data, values, 0)
        return cls(
            count=is_data.sum(axis=1), total=some.sum(axis=1), squares=(some**2).sum(axis=1),
            low=np.where(is_data, values, np.inf).min(axis=1), high=np.where(is_data, values, -np.inf).max(axis=1),
        )  # fmt: skip

    def add(self, other: Moments, weight: int) -> None:
        """``other`` as if it were seen ``weight`` times."""
        self.count = self.count + weight * other.count
        self.total, self.squares = self.total + weight * other.total, self.squares + weight * other.squares
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def summary(self) -> dict[str, list[float]]:
        """mean, std (dividing by the count), min and max; NaN for a plane without data, as the published files have."""
        is_seen = self.count > 0
        count = np.where(is_seen, self.count, 1)
        mean = self.total / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0))
        found = dict(zip(KEYS, (mean, std, self.low, self.high), strict=True))
        return {key: np.where(is_seen, values, np.nan).tolist() for key, values in found.items()}


def stored_moments(rule: Rule, modalities: Sequence[str], statistics: Mapping[str, Any]) -> dict[str, list[float]]:
    """The same of a corpus's statistics (the content of stats.json), in the values of the layout.

    modalities: those whose bands fill the planes. A band that was never observed is NaN.
    """
    found = {key: [math.nan] * len(rule.planes) for key in KEYS}
    for name in modalities:
        bands = statistics["modalities"].get(name, {}).get("bands", {})
        for plane, band in rule.bands(name):
            for key in KEYS:
                value = bands.get(band, {}).get(key)
                if value is not None:
                    scaled = value * rule.factor(plane)
                    found[key][plane] = scaled if key == "std" else scaled + rule.add
    return found
