"""The keys of a recipe, their limits and what they mean; ``Recipe.digest`` names everything but ``samples``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from mmbuild.explain import Problem, cross_error
from mmbuild.grid import MERCATOR_EDGE_M
from mmbuild.modality import NAME, Modality
from mmbuild.recipe.dates import Date, Months, Seasons
from mmbuild.recipe.places import Sampler, Strict, Text

# Where a recipe names files: (section, key). A value of ecoregions or cities is a file only when it looks like one.
FILE_KEYS = (("sampler", "file"), ("sampler", "ecoregions"), ("sampler", "cities"), ("source", "archive"))

ModalityName = Annotated[str, Field(pattern=NAME)]


class UtmGrid(Strict):
    """Square chips in the UTM zone of their centre, on the Sentinel-2 lattice."""

    kind: Literal["utm"]
    gsd: float = Field(10.0, ge=0.1, le=1000, description="finest pixel size in metres")
    size: int = Field(ge=1, le=4096, description="pixels along a side; chips are usually 64 to 264 px")


class WebmercatorGrid(Strict):
    """Exact XYZ tiles of web maps."""

    kind: Literal["webmercator"]
    zoom: int = Field(ge=0, le=24, description="zoom level; 10 m pixels are near 14")
    size: int = Field(256, ge=1, le=4096, description="pixels along a side; tiles are usually 256 or 512 px")


class Anchor(Strict):
    """The scene that gives a sample its date; all other dates follow from it."""

    modality: ModalityName | None = Field(None, description="the modality whose scene dates the sample")
    one_of: list[ModalityName] | None = Field(None, min_length=1, description="modalities, one of which is drawn")
    years: list[Annotated[int, Field(ge=2015, le=2100)]] = Field(
        default_factory=list, description="calendar years from 2015 to 2100, one of which is drawn"
    )
    max_cloud: float | None = Field(None, ge=0, le=100, description="most cloud of a whole scene in percent")
    min_clear: float | None = Field(None, ge=0, le=1, description="least clear share of the sample's own ground")
    clear_by: ModalityName | None = Field(
        None, description="the modality that tells clear ground; what the modality file puts first when left out"
    )
    pick: Literal["random", "least_cloudy", "nearest", "latest"] = Field(
        "random", description="which acceptable scene is taken"
    )
    required: bool = Field(True, description="a place without an anchor scene is given up for its next alternate")
    max_days: float | None = Field(None, gt=0, le=36600, description="days around the place's own date")
    draws: Literal["counter", "published_seeds"] = Field(
        "counter", description="draws of our own, or MMEarth's seeds for year, product and image of a place"
    )
    windows: list[Annotated[list[Date], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="[first day, day after the last] for each of years, instead of the calendar's"
    )

    @property
    def products(self) -> tuple[str, ...]:
        """The modalities that can be the anchor."""
        return tuple(self.one_of or [name for name in (self.modality,) if name])

    @model_validator(mode="after")
    def _one_choice(self) -> Anchor:
        problems = []
        if (self.modality is None) == (self.one_of is None):
            reason = "needs exactly one of modality and one_of"
            problems.append(Problem(key=(), reason=reason, fix="name one modality, or several under one_of"))
        if len(set(self.products)) < len(self.products):
            problems.append(Problem(key=("one_of",), reason="names a modality twice", fix="name each once"))
        if sorted(set(self.years)) != self.years:
            fix = f"write {sorted(set(self.years))}"
            problems.append(Problem(key=("years",), reason="must rise without repeats", fix=fix))
        if problems:
            raise cross_error(problems)
        return self


Codec = Literal["auto", "zstd", "lz4", "lz4hc"]


class ModalityUse(Strict):
    """How this recipe uses a modality."""

    max_days: float | None = Field(None, gt=0, le=36600, description="most days between its scene and the anchor")
    bands: list[Text] | None = Field(None, min_length=1, description="names of the bands to store; all when left out")
    gsd: float | None = Field(None, ge=0.1, le=100_000, description="pixel size to store, in metres")
    required: bool = Field(False, description="a place without it is given up for its next alternate")
    source: ModalityName | None = Field(None, description="another source for this modality alone")
    variant: ModalityName | None = Field(None, description="another definition that is stored under this name")
    finer: int | None = Field(None, ge=1, le=64, description="pixels along a side for each pixel of the grid")
    composite: Literal["median", "mean"] | None = Field(
        None, description="of all clear observations of a time step, instead of one scene"
    )
    pick: Literal["nearest", "latest"] = Field(
        "nearest", description="the scene nearest to the anchor, or the last of the anchor's window"
    )
    max_cloud: float | None = Field(None, ge=0, le=100, description="most cloud of a whole scene in percent")
    max_scenes: int | None = Field(
        None, ge=1, le=500, description="most scenes in one composite, the least cloudy first; all when left out"
    )
    codec: Codec | None = Field(None, description="another Blosc compressor for this modality alone")


class Source(Strict):
    """Where pixels come from and how it is reached."""

    name: ModalityName = Field(description="earthengine, sandbox or stac")
    url: str | None = Field(None, pattern=r"^https?://", description="address of another server of the same protocol")
    project: Text | None = Field(None, description="Google Cloud project the requests are charged to")
    catalog: Text | None = Field(None, description="STAC catalogue: catalog.json, stac-geoparquet file, or a URL")
    archive: Text | None = Field(None, description="YAML file that maps rasters to asset ids, for the sandbox")
    archive_root: Text | None = Field(None, description="folder with those rasters")


class Store(Strict):
    """How the cube is cut and packed."""

    samples_per_shard: int = Field(32, ge=8, le=256, description="samples written together as one shard")
    codec: Codec = Field("auto", description="Blosc compressor; auto is the measured one of the kind of values")
    level: int | None = Field(None, ge=0, le=9, description="compression level; a good one when left out")


class Splits(Strict):
    """Spatial blocks held out for validation and test."""

    val: float = Field(0.1, ge=0, le=1, description="share of blocks for validation")
    test: float = Field(0.1, ge=0, le=1, description="share of blocks for test")
    block_km: float = Field(50.0, ge=1, le=5000, description="side of a block in kilometres")
    buffer_m: float = Field(
        1000.0, ge=0, le=1e6, description="train samples this near to a held-out block get no split"
    )

    @model_validator(mode="after")
    def _leaves_train(self) -> Splits:
        if self.val + self.test >= 1:
            reason = f"val + test = {self.val + self.test:g} leaves nothing to train on"
            raise cross_error([Problem(key=("val",), reason=reason, fix="keep their sum below 1")])
        return self


def named_source(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def bare_uses(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: {} if use is None else use for name, use in value.items()}


class Recipe(Strict):
    """What a person asks for. ``modality_defs`` are the modalities used, with their band subset, in recipe order."""

    extends: Text | None = Field(None, description="name or relative path of a recipe that this one changes")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="lower case letters, digits, - and _")
    title: Text = Field(description="one line for people")
    description: str | None = Field(None, description="what the corpus is for")
    licence: Text = Field(description="licence of the corpus, SPDX where possible")
    mode: Literal["fixed", "faithful"] = Field(
        "fixed", description="corrected, or with the quirks of the published corpus"
    )
    quirks: list[Text] = Field(
        default_factory=list, description="names of what mode: faithful switches on; mmbuild plan lists them"
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="all random choices follow from it")
    samples: int | None = Field(None, ge=1, le=1_000_000_000, description="how many samples")
    sampler: Annotated[Sampler, Field(discriminator="kind")] = Field(description="how places are chosen")
    grid: Annotated[UtmGrid | WebmercatorGrid, Field(discriminator="kind")] = Field(description="the chips' grid")
    anchor: Anchor = Field(description="the scene that dates a sample")
    times: Annotated[Seasons | Months, Field(discriminator="kind")] | None = Field(
        None, description="several time steps of each sample; one when left out"
    )
    modalities: Annotated[dict[ModalityName, ModalityUse], BeforeValidator(bare_uses)] = Field(
        min_length=1, description="what is stored, in this order"
    )
    source: Annotated[Source, BeforeValidator(named_source)] = Field(
        default_factory=lambda: Source(name="earthengine"), description="where pixels come from"
    )
    store: Store = Field(default_factory=Store, description="how the cube is cut and packed")
    splits: Splits = Field(default_factory=Splits, description="what is held out")
    alternates: int = Field(4, ge=0, le=100, description="places tried when a slot's first fails")
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict, description="sha256 of each file the recipe names; mmbuild writes it"
    )

    _known: dict[str, Modality] = PrivateAttr(default_factory=dict)
    _paths: dict[str, Path] = PrivateAttr(default_factory=dict)
    # What the definitions were made of, and they themselves: asked for many times a sample, and a millisecond to make.
    _made: tuple[object, object, dict[str, Modality]] | None = PrivateAttr(None)

    @property
    def known_modalities(self) -> dict[str, Modality]:
        """Every modality that is defined, used or not, all bands."""
        return self._known

    @property
    def modality_defs(self) -> dict[str, Modality]:
        if self._made is None or self._made[0] is not self.modalities or self._made[1] is not self.anchor:
            self._made = self.modalities, self.anchor, {name: self._definition(name) for name in self.modalities}
        return self._made[2]

    def _definition(self, name: str) -> Modality:
        use = self.modalities[name]
        own = self._known[use.variant or name].judged_by(self.anchor.clear_by)
        own = own if own.name == name else own.model_copy(update={"name": name})
        return own if use.bands is None else own.subset(list(use.bands))

    def hosts(self, asked: str) -> list[str]:
        """The modalities that go by a name: the one of that name, or those of that alias."""
        return [name for name, modality in self.modality_defs.items() if asked in (name, modality.alias)]

    @property
    def definitions(self) -> dict[str, Modality]:
        """The definitions that a corpus depends on: its modalities, and those that tell clear ground."""
        screens = {m.clear.modality for m in self.modality_defs.values() if m.clear}
        used = screens | {use.variant or name for name, use in self.modalities.items()}
        return {name: definition for name, definition in self._known.items() if name in used}

    @property
    def gsd_of_grid(self) -> float:
        """Pixel size of the sample grid in metres of its CRS."""
        if isinstance(self.grid, UtmGrid):
            return self.grid.gsd
        side: float = 2 * MERCATOR_EDGE_M / 2**self.grid.zoom
        return side / self.grid.size

    def gsd(self, name: str) -> float | None:
        """Pixel size at which a modality is stored; None for image-level ones.

        What the recipe says; else on a UTM grid the modality's own, but not finer than the grid; else the tile's.
        """
        use, own = self.modalities[name], self.modality_defs[name].gsd
        asked = use.gsd if use.finer is None else self.gsd_of_grid / use.finer
        if own is None or asked is not None:
            return None if own is None else asked
        return max(own, self.gsd_of_grid) if isinstance(self.grid, UtmGrid) else self.gsd_of_grid

    @property
    def steps(self) -> int:
        """How many time steps a sample has."""
        return 1 if self.times is None else self.times.count

    def steps_of(self, name: str) -> int:
        """How many of them a modality has: what is static or made once a year has one."""
        return self.steps if self.modality_defs[name].time in ("scene", "months") else 1

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one sample of a modality: (time, band, y, x), or (time, band) at image level."""
        bands, gsd, times = len(self.modality_defs[name].bands), self.gsd(name), self.steps_of(name)
        if gsd is None:
            return (times, bands)
        side = round(self.gsd_of_grid * self.grid.size / gsd)
        return (times, bands, side, side)

    def file(self, written: str) -> Path:
        """Absolute path of a file the recipe names, which is relative to the recipe and not to the working folder."""
        return self._paths.get(written, Path(written))

    def resolved(self) -> dict[str, Any]:
        """Everything written out as JSON-able data that loads again: ``extends`` and ``--set`` applied, no None."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"extends"})

    @property
    def digest(self) -> str:
        """sha256 over everything that determines the corpus.

        Left out: samples (a larger corpus keeps the smaller), quirks (their effect is in the other keys), and by whom
        and from where the same source is reached.
        Files count by their content, modalities by their definition and order.
        """
        data = self.resolved()
        sums = data.pop("files")
        for section, key in FILE_KEYS:
            if data[section].get(key) in sums:
                data[section][key] = sums[data[section][key]]
        data.pop("samples", None)
        data.pop("quirks")
        for key in ("project", "url", "catalog", "archive_root"):
            data["source"].pop(key, None)
        data["modalities"] = list(data["modalities"].items())
        data["definitions"] = [m.model_dump(mode="json") for _, m in sorted(self.definitions.items())]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
