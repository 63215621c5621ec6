"""The ``sources.earthengine`` block of a modality file: where Earth Engine keeps it and how its bands are made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmbuild.choose import Choice
from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.times import month_start


class BandSource(BaseModel):
    """Where one band comes from: an asset's band, optionally of another image, derived or scaled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    band: str
    image: str | None = None
    terrain: Literal["slope"] | None = None
    multiply: float = 1.0
    months: tuple[int, int] | None = None  # first and last month offset from the anchor's month, inclusive
    reduce: Literal["mean", "min", "max", "sum"] = "mean"


class Block(BaseModel):
    """``collection`` or ``image``, filters, composite rule and bands of one modality."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    collection: str | None = None
    image: str | None = None
    where: dict[str, str | float | list[str]] = Field(
        default_factory=dict
    )  # equal, or a list that contains all of these
    cloud_property: str | None = None
    composite: Literal["mode", "mosaic", "first"] | None = None
    optional_bands: bool = False
    bands: dict[str, str | BandSource] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_place(self) -> Block:
        named = all(isinstance(band, BandSource) and band.image for band in self.bands.values()) and self.bands
        if self.collection and self.image:
            raise ValueError("name a collection or an image, not both")
        if not (self.collection or self.image or named):
            raise ValueError("name a collection or an image")
        return self

    def band(self, name: str) -> BandSource:
        """The source of our band ``name``; by default the asset's band of the same name."""
        source = self.bands.get(name, name)
        return BandSource(band=source) if isinstance(source, str) else source

    def source_bands(self, modality: Modality) -> list[str]:
        """The asset's bands that a modality needs, each once, in order."""
        return list(dict.fromkeys(self.band(name).band for name in modality.band_names))

    def images(self, modality: Modality) -> set[str]:
        """The named assets of a modality without a collection."""
        found = {self.band(name).image or self.image for name in modality.band_names}
        return {image for image in found if image}

    def assets(self, modality: Modality) -> set[str]:
        """Every asset that a modality is made of."""
        return self.images(modality) | ({self.collection} if self.collection else set())

    def is_part_of(self, host: Block) -> bool:
        """Whether the images of ``host``, as a search tells them, are those of this block too."""
        same = (self.collection, self.where) == (host.collection, host.where)
        return same and (host.optional_bands or not self.optional_bands)

    def columns(self, modality: Modality) -> list[str]:
        """What the search asks of each image: index, and time, crs, cloud, bands where they matter."""
        columns = ["index"]
        if modality.time != "static":
            columns.append("time")
        if modality.time == "scene":
            columns.append("crs")
        if self.cloud_property:
            columns.append("cloud")
        if self.optional_bands:
            columns.append("bands")
        return columns

    def months_of(self, source: BandSource, modality: Modality, choice: Choice) -> set[datetime]:
        """First instants of the months that feed a band; the choice's window starts at the modality's first offset."""
        assert source.months is not None, "a band of a monthly product says which months feed it"
        assert modality.months is not None
        assert choice.window is not None
        first = modality.months[0]
        return {month_start(choice.window[0], offset - first) for offset in _span(source.months)}


def _span(ends: tuple[int, int]) -> Iterable[int]:
    return range(ends[0], ends[1] + 1)


def block_of(modality: Modality) -> Block:
    """The checked block; UserError names the modality, the key and the fix."""
    try:
        return Block.model_validate(modality.sources["earthengine"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("sources", "earthengine", *first["loc"])))
        raise UserError(
            first["msg"], f"modality {modality.name}: {key}", "see the modality files of mmbuild"
        ) from error
