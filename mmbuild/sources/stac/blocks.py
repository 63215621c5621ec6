"""The ``sources.stac`` block of a modality file: in which collections a catalogue keeps it, and under which names.

One entry per kind of catalogue. Which of them an item belongs to follows from its collection and its assets, so that an
API, a static catalogue and a table of the same items are read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from mmbuild.errors import UserError
from mmbuild.modality import Modality

Item = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BandAsset(_Strict):
    """Where one band lies: an asset of the item, and which band of that file (the first is 1)."""

    asset: str
    band: int = Field(1, ge=1)


class Harmonise(_Strict):
    """A shift that products carry from some processing baseline on, and that is added here to take it out again.

    applied: the property that is true where the provider took it out already. baseline: the property with the baseline;
    since: the first that carries the shift. minimum: the lowest value that is left, as the harmonised product has it.
    """

    applied: str | None = None
    baseline: str
    since: str
    add: float
    minimum: float


class Entry(_Strict):
    """One collection: filters, asset names, what its numbers mean.

    bands: our band -> asset; by default the asset of the same name. nodata: a stored number that is no measurement,
    where the files do not say so. decibel: the files hold linear power. composite: how several items of a static
    product become one. optional_bands: a band without an asset is stored as missing.
    """

    collection: str
    where: dict[str, str | float | bool] = Field(default_factory=dict)
    cloud_property: str | None = None
    composite: Literal["mosaic", "first"] = "mosaic"
    optional_bands: bool = False
    nodata: float | None = None
    decibel: bool = False
    harmonise: Harmonise | None = None
    bands: dict[str, str | BandAsset] = Field(default_factory=dict)

    def band(self, name: str) -> BandAsset:
        """Where our band ``name`` lies."""
        found = self.bands.get(name, name)
        return BandAsset(asset=found) if isinstance(found, str) else found

    def fits(self, item: Item, modality: Modality) -> bool:
        """True when an item is of this collection, passes its filters and has the assets that the bands need."""
        properties, assets = item["properties"], item["assets"]
        has = [self.band(name).asset in assets for name in modality.band_names]
        return (
            item.get("collection") == self.collection
            and all(properties.get(key) == value for key, value in self.where.items())
            and (any(has) if self.optional_bands else all(has))
        )

    def shift(self, item: Item) -> float:
        """What is added to the files' numbers of an item so that they mean the same as all others."""
        rule, properties = self.harmonise, item["properties"]
        if rule is None or (rule.applied is not None and properties.get(rule.applied) is True):
            return 0.0
        baseline = properties.get(rule.baseline)
        return rule.add if baseline is not None and _version(baseline) >= _version(rule.since) else 0.0


def _version(text: Any) -> tuple[int, ...]:
    """A processing baseline such as "04.00" in parts that compare."""
    return tuple(int(part) for part in str(text).split("."))


class Block(RootModel[dict[str, Entry]]):
    """Entries by the name of the kind of catalogue."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _has_one(self) -> Block:
        if not self.root:
            raise ValueError("name at least one kind of catalogue with its collection")
        return self

    @property
    def collections(self) -> list[str]:
        return sorted({entry.collection for entry in self.root.values()})

    def entry(self, item: Item, modality: Modality) -> Entry | None:
        """The entry that an item belongs to, None when it is not of this modality."""
        return next((entry for entry in self.root.values() if entry.fits(item, modality)), None)


def block_of(modality: Modality) -> Block:
    """The checked block; UserError names the modality, the key and the fix."""
    try:
        block = Block.model_validate(modality.sources["stac"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("sources", "stac", *(part for part in first["loc"] if part != "root"))))
        raise UserError(
            first["msg"], f"modality {modality.name}: {key}", "see the modality files of mmbuild"
        ) from error
    _check_bands(modality, block.root)
    return block


def _check_bands(modality: Modality, entries: Mapping[str, Entry]) -> None:
    """Refuse names of bands that the modality does not have, and products that a catalogue of scenes cannot give."""
    where = f"modality {modality.name}: sources.stac"
    for kind, entry in entries.items():
        strange = sorted(set(entry.bands) - set(modality.band_names))
        if strange and not _is_subset_of_bands(modality, entry):
            raise UserError(
                f"{strange[0]!r} is no band of it", f"{where}.{kind}.bands", "correct the name or remove it"
            )
    if modality.level != "pixel" or modality.time not in ("scene", "static"):
        raise UserError(
            f"a {modality.level} product of time {modality.time} is not read from items", where, "remove the block"
        )


def _is_subset_of_bands(modality: Modality, entry: Entry) -> bool:
    """True when a recipe took only some of the bands that the entry names."""
    return set(modality.band_names) < set(entry.bands)
