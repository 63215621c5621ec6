"""A source of one plane: the value of a pixel is a whole number made of its centre's coordinates.

Tests put this folder beside mmbuild's own sources: it is opened by its file name, as every source is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.modality import Modality
from mmbuild.sources import Ask, SourceSpec, Usage

TILT = 3


def open(spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: object) -> Plane:
    return Plane(gsd)


class Plane:
    def __init__(self, gsd: Mapping[str, float]) -> None:
        self.gsd, self.usage = gsd, Usage()

    def identity(self) -> dict[str, Any]:
        return {"name": "plane", "tilt": TILT, "synthetic": False}

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        self.usage.add(Usage(metadata_requests=1))
        return [
            Scene(slot=sample.slot, modality=ask.modality.name, scene_id=f"plane/{TILT}", time=None)
            for sample in samples
            for ask in asks[sample.slot]
        ]

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        raise AssertionError("a plane has no clouds to screen for")

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        self.usage.add(Usage(pixel_requests=1))
        return {name: expected(sample.grid(self.gsd[name])) for name in choices}

    def regions(self, name: str) -> Any:
        raise AssertionError("a plane has no regions")


def expected(grid: Any) -> np.ndarray:
    """The chip of a grid, (1, y, x): floor of x / gsd + TILT * y / gsd at pixel centres, modulo 1000."""
    rows, columns = np.meshgrid(*(np.arange(n) + 0.5 for n in grid.shape), indexing="ij")
    x, y = grid.affine @ (columns, rows)
    return ((x + TILT * y) / grid.affine.a // 1 % 1000).astype("int16")[None]
