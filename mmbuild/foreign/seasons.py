"""The rules of the SSL4EO-S12 layout, which exports and imports share; the rules themselves are in ``ssl4eo.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from mmbuild.explain import validate
from mmbuild.foreign.recode import FOLDER, Recoder, Rule, Strict
from mmbuild.modality import Modality
from mmbuild.yamlfile import read_yaml

VERSIONS = ("v1.1", "v1.0")


class Array(Strict):
    """One array of v1.1, or one folder of v1.0 (which keeps the stored values and has no type of its own)."""

    modality: str
    bands: dict[str, str]
    dtype: str | None = None
    fill: float = 0
    add: float = 0
    optional: bool = False

    def recoder(self, modality: Modality) -> Recoder:
        """How chips become the array's planes, and back."""
        planes = tuple(f"{self.modality}.{band}" for band in self.bands.values())
        rule = Rule(dtype=self.dtype or modality.dtype, fill=self.fill, add=self.add, planes=planes)
        return Recoder(rule=rule, modalities={self.modality: modality})


class CloudMask(Strict):
    """A classification as the layout's cloud classes."""

    modality: str
    of: tuple[str, ...] = Field(strict=False)
    codes: dict[str, int]
    fill: int

    def encode(self, chip: np.ndarray) -> np.ndarray:
        """(y, x) uint8 of a chip (1, y, x)."""
        table = np.full(256, self.fill, np.uint8)
        for code, mask in self.codes.items():
            table[int(code)] = mask
        found: np.ndarray = table[chip[0]]
        return found


class Seasons(Strict):
    """The layout in both versions."""

    steps: int
    gsd: float
    dates: tuple[str, ...] = Field(strict=False)
    v11: Annotated[dict[str, Array], Field(alias="v1.1")]
    v10: Annotated[dict[str, Array], Field(alias="v1.0")]
    cloud_mask: CloudMask

    def arrays(self, version: str) -> Mapping[str, Array]:
        return self.v11 if version == "v1.1" else self.v10


def load_seasons() -> Seasons:
    """The rules that come with mmbuild."""
    return validate(Seasons, read_yaml(FOLDER / "ssl4eo.yaml"))
