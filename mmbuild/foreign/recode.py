"""How the arrays of a foreign layout are made of stored chips, and chips of its arrays: what is lost is in the rules.

The rules are data (the YAML files beside this one): which band goes to which plane, what stands for no data, and what
is added, scaled or turned into one-hot labels. A missing pixel stays missing both ways; where a foreign type cannot
hold the layout's own no-data value the file says what is written instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbuild.explain import validate
from mmbuild.modality import Modality
from mmbuild.yamlfile import read_yaml

FOLDER = Path(__file__).parent
Chips = Mapping[str, np.ndarray | None]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Rule(Strict):
    """One array of the layout; see the head of ``mmearth.yaml`` for the keys."""

    dtype: str
    fill: float
    planes: tuple[str, ...] = Field(strict=False)
    one_of: tuple[str, ...] = Field((), strict=False)
    lacking: float | None = None
    multiply: tuple[float, ...] | None = Field(None, strict=False)
    add: float = 0
    top: float | None = None
    codes: tuple[int, ...] | None = Field(None, strict=False)
    faithful: float | None = None
    vector: bool = False
    optional: bool = False
    statistics: bool = False
    by_product: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Rule:
        if self.multiply is not None and len(self.multiply) != len(self.planes):
            raise ValueError("multiply needs a factor for each plane")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it is made of, in its order."""
        return self.one_of or tuple(dict.fromkeys(plane.partition(".")[0] for plane in self.planes))

    @property
    def width(self) -> int:
        return len(self.codes or self.planes)

    @property
    def np_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def nodata(self) -> np.generic:
        scalar: np.generic = self.np_dtype.type(self.fill)
        return scalar

    def bands(self, modality: str) -> Iterator[tuple[int, str]]:
        """(plane, band) of every plane that a modality gives."""
        for index, plane in enumerate(self.planes):
            name, dot, band = plane.partition(".")
            if not dot:
                yield index, name
            elif name == modality:
                yield index, band

    def factor(self, plane: int) -> float:
        return 1 if self.multiply is None else self.multiply[plane]


class TileInfo(Strict):
    """What the layout says of a sample beside its arrays.

    bands: group -> name in the layout -> ``modality.band``, or ``product.band`` for the sample's product. labels: the
    one-hot arrays whose label is repeated. groups: vectors that are repeated in equal parts under these names.
    """

    bands: dict[str, dict[str, str]]
    labels: tuple[str, ...] = Field(strict=False)
    groups: dict[str, Annotated[tuple[str, ...], Field(strict=False)]]


class Layout(Strict):
    """The rules of one layout by the name of the array. one_of: modality -> the layout's name of that product."""

    version: str
    gsd: float
    one_of: dict[str, str]
    tile_info: TileInfo
    datasets: dict[str, Rule]


def load_layout(name: str) -> Layout:
    """The rules that come with mmbuild."""
    return validate(Layout, read_yaml(FOLDER / f"{name}.yaml"))


@dataclass(frozen=True, kw_only=True)
class Recoder:
    """One rule with the definitions of the modalities it is made of (those that the corpus has)."""

    rule: Rule
    modalities: Mapping[str, Modality]

    @cached_property
    def _label_of(self) -> dict[int, int]:
        return {code: label for label, code in enumerate(self.rule.codes or ())}

    def encode(self, chips: Chips, shape: tuple[int, ...], *, faithful: bool = False) -> np.ndarray:
        """The layout's array (plane, *shape) of a sample; a modality without a chip is no data.

        shape: (y, x), or () at image level. faithful: masked pixels of chips as the published files have them.
        """
        rule = self.rule
        found = np.full((rule.width, *shape), rule.nodata)
        for name in rule.modalities:
            chip = chips.get(name)
            if chip is None:
                continue
            modality = self.modalities[name]
            if rule.codes is not None:
                self._one_hot(found, chip, modality)
                continue
            for plane, band in rule.bands(name):
                if band in modality.band_names:
                    stored = chip[modality.band_names.index(band)]
                    found[plane] = self._plane(stored, plane, modality, faithful)
                elif rule.lacking is not None:
                    found[plane] = rule.lacking
        return found

    def _plane(self, stored: np.ndarray, plane: int, modality: Modality, faithful: bool) -> np.ndarray:
        rule = self.rule
        is_valid = np.not_equal(stored, modality.fill) & ~np.isnan(stored.astype(np.float64))
        masked = rule.nodata if rule.faithful is None or not faithful else rule.np_dtype.type(rule.faithful)
        values = self._forward(np.where(is_valid, stored, 0), plane, faithful)
        return np.where(is_valid, values, masked)

    def _forward(self, stored: np.ndarray, plane: int, faithful: bool) -> np.ndarray:
        """Stored values as the layout has them; wholly in whole numbers where nothing is scaled."""
        rule, factor = self.rule, self.rule.factor(plane)
        if factor == 1 and rule.add == 0 and rule.top is None:
            return stored.astype(rule.np_dtype)
        values = np.trunc(np.round(stored.astype(np.float64) * factor + rule.add, 6))
        limits = np.iinfo(rule.np_dtype)
        top = limits.max if rule.top is None or faithful else rule.top
        return np.clip(values, limits.min, top).astype(rule.np_dtype)

    def _one_hot(self, found: np.ndarray, chip: np.ndarray, modality: Modality) -> None:
        """One at the label of the code; a code that the layout does not have stays no data."""
        label = self._label_of.get(int(chip[0]))
        if chip[0] != modality.fill and label is not None:
            found[:] = 0
            found[label] = 1

    def label(self, chips: Chips) -> int | None:
        """The layout's number of the sample's class, None for none that it has."""
        chip = chips.get(self.rule.modalities[0])
        return None if chip is None else self._label_of.get(int(chip[0]))

    def is_unknown(self, chips: Chips) -> bool:
        """Whether the sample has a class and the layout does not."""
        name = self.rule.modalities[0]
        chip = chips.get(name)
        return chip is not None and chip[0] != self.modalities[name].fill and self.label(chips) is None

    def decode(self, array: np.ndarray, chips: dict[str, np.ndarray], product: str | None = None) -> None:
        """Put the values of an array (plane, ...) into chips (band, ...), which are made where they are not yet.

        product: which alternative of ``one_of`` the sample has; only it gets values. A chip may be of several arrays.
        """
        for name in self.rule.modalities:
            if name not in self.modalities or (self.rule.one_of and name != product):
                continue
            modality = self.modalities[name]
            if name not in chips:
                chips[name] = np.full((len(modality.bands), *array.shape[1:]), modality.fill)
            if self.rule.codes is not None:
                self._from_one_hot(chips[name], array)
                continue
            for plane, band in self.rule.bands(name):
                if band in modality.band_names:
                    chips[name][modality.band_names.index(band)] = self._back(array[plane], plane, modality)

    def _from_one_hot(self, chip: np.ndarray, array: np.ndarray) -> None:
        hot = np.flatnonzero(array == 1)
        if len(hot) == 1 and int((array != 0).sum()) == 1:
            chip[0] = (self.rule.codes or ())[int(hot[0])]

    def _back(self, plane: np.ndarray, index: int, modality: Modality) -> np.ndarray:
        rule = self.rule
        is_valid = ~np.isnan(plane) if np.isnan(rule.fill) else np.not_equal(plane, rule.nodata)
        is_valid &= np.isfinite(plane)
        values = np.where(is_valid, plane, 0)
        if rule.factor(index) != 1 or rule.add != 0:
            values = np.round((values.astype(np.float64) - rule.add) / rule.factor(index))
        low, high = modality.bands[0].valid_range if modality.values == "categorical" else (-np.inf, np.inf)
        is_valid &= (values >= low) & (values <= high)
        return np.where(is_valid, values, modality.fill).astype(modality.np_dtype)


def recoders(rules: Mapping[str, Rule], modalities: Mapping[str, Modality]) -> dict[str, Recoder]:
    """A recoder for every rule, over the modalities that there are."""
    return {name: Recoder(rule=rule, modalities=modalities) for name, rule in rules.items()}
