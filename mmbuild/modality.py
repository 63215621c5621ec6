"""What is measured: bands, units, dtype, nodata, pixel size, classes, clear rules, licence, and where sources keep it.

Modalities are data: one YAML file each, in this package's ``modalities/`` and in a folder of that name beside a recipe.
A file that could store a missing pixel as a plausible value, or mix class codes, is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmbuild.explain import Problem, cross_error, suggest

NAME = r"^[a-z][a-z0-9_]*$"
DType = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def _listed(minimum: int = 0, **extra: Any) -> Any:
    """A field that a person writes as a list and that is kept as a tuple."""
    return Field(strict=False, min_length=minimum, **extra)


def _plain(value: float) -> float:
    """A whole number as int, so that it is written as 255 and not as 255.0."""
    return int(value) if value.is_integer() else value


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Band(_Strict):
    """One measured quantity; physical value = stored value * scale + offset."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", description="letters, digits and _")
    description: str = Field("", description="what the band measures")
    wavelength_um: float | None = Field(None, gt=0, le=1e6, description="centre wavelength in micrometres")
    fwhm_um: float | None = Field(None, gt=0, le=1e6, description="full width at half maximum in micrometres")
    gsd: float | None = Field(None, gt=0, le=1e6, description="native pixel size in metres")
    unit: str | None = Field(None, description="unit of the physical value, such as dB, m, K; 1 for a ratio")
    scale: float = Field(1.0, description="physical = stored * scale + offset")
    offset: float = Field(0.0, description="physical = stored * scale + offset")
    valid_range: Annotated[tuple[float, float], Field(strict=False)] = Field(
        description="[lowest, highest] stored value that is a measurement"
    )


class ClassDef(_Strict):
    """One class of a categorical modality."""

    code: int = Field(description="the stored value that means this class")
    name: str = Field(min_length=1, description="what the class is called")
    color: str | None = Field(None, pattern=r"^#[0-9a-f]{6}$", description="colour as #rrggbb, lower case")


class Clear(_Strict):
    """How clear ground is told from cloud: class codes of a categorical modality, or a limit for a continuous one."""

    modality: str = Field(pattern=NAME, description="the modality that is looked at")
    band: str | None = Field(None, description="the band of it; its first when left out")
    codes: tuple[int, ...] = Field((), strict=False, description="its class codes that count as clear ground")
    at_least: float | None = Field(None, description="lowest stored value that counts as clear ground")
    at_most: float | None = Field(None, description="highest stored value that counts as clear ground")

    @model_validator(mode="after")
    def _one_rule(self) -> Clear:
        if sum((bool(self.codes), self.at_least is not None, self.at_most is not None)) != 1:
            reason = "needs exactly one of codes, at_least and at_most"
            raise cross_error([Problem(key=(), reason=reason, fix="list codes of classes, or give one limit")])
        return self

    def is_clear(self, chip: np.ndarray, judge: Modality) -> np.ndarray:
        """True on clear ground, (y, x), told by a chip of ``judge`` (band, y, x); a missing pixel is not clear."""
        band = chip[judge.band_names.index(self.band or judge.band_names[0])]
        if self.codes:
            clear = np.isin(band, self.codes)
        else:
            clear = band >= self.at_least if self.at_least is not None else band <= self.at_most
        found: np.ndarray = clear & np.not_equal(band, judge.fill)
        return found


class Provider(_Strict):
    """Who made, processed or hosts the data (the STAC Provider Object)."""

    name: str = Field(min_length=1, description="name of the organisation")
    url: str | None = Field(None, description="its page about the data")
    roles: tuple[Literal["licensor", "producer", "processor", "host"], ...] = _listed(1, description="STAC roles")


class Display(_Strict):
    """How ``mmbuild show`` paints it: one band with a colour map, or three as red, green and blue."""

    bands: tuple[str, ...] | None = Field(None, strict=False, min_length=1, max_length=3, description="1 or 3 names")
    range: Annotated[tuple[float, float], Field(strict=False)] | None = Field(None, description="stored [low, high]")
    cmap: str | None = Field(None, description="name of a matplotlib colour map")


class Modality(_Strict):
    """What is measured, independent of any corpus; (level, values) decides shape, resampling, statistics and loss."""

    name: str = Field(pattern=NAME, description="lower case letters, digits and _, the same as the file's name")
    title: str = Field(min_length=1, description="one line for people")
    description: str = Field("", description="what it is, what to know before using it")
    level: Literal["pixel", "image"] = Field(description="a raster, or one vector for the whole chip")
    values: Literal["continuous", "categorical"] = Field(description="measurements, or class codes")
    gsd: float | None = Field(
        None, gt=0, le=1e5, description="pixel size of a stored chip in metres, unless the grid is coarser"
    )
    dtype: DType = Field(description="numpy name of the stored type")
    nodata: Annotated[float, AfterValidator(_plain)] = Field(
        description="stored where nothing was measured, outside every valid_range"
    )
    resampling: Literal["nearest", "bilinear"] = Field("nearest", description="how it is put on the sample's grid")
    time: Literal["scene", "static", "year", "months"] = Field(
        description="how its date follows from the anchor: a scene near it, none, its calendar year, months up to it"
    )
    months: tuple[int, ...] | None = Field(
        None,
        strict=False,
        min_length=2,
        max_length=2,
        description="[first, last] calendar month asked for, relative to the anchor's month (0), both included",
    )
    same_scene_as: str | None = Field(
        None, pattern=NAME, description="always the very scene chosen for that modality, or for one of that alias"
    )
    alias: str | None = Field(None, pattern=NAME, description="a name the loader also offers it under")
    bands: tuple[Band, ...] = _listed(1, description="in the order of the array")
    classes: tuple[ClassDef, ...] = Field((), strict=False, description="class codes with their names")
    count_of: str | None = Field(
        None, pattern=NAME, description="counts the valid observations behind each pixel of that modality's composites"
    )
    land_cover: bool = Field(False, description="true when its classes are land cover, whose shares tasters keep")
    clear: Clear | None = Field(None, description="which pixels count as clear ground")
    clear_others: tuple[Clear, ...] = Field((), strict=False, description="other rules that a recipe may choose")
    licence: str = Field(min_length=1, description="SPDX identifier, or the name of the provider's terms")
    licence_url: str | None = Field(None, pattern=r"^https?://", description="where the licence can be read")
    attribution: str = Field(min_length=1, description="the sentence users have to print")
    providers: tuple[Provider, ...] = _listed(1, description="who made and who hosts it")
    sources: dict[str, dict[str, Any]] = Field(min_length=1, description="where each source keeps it, by source name")
    display: Display = Field(default_factory=Display, description="how mmbuild show paints it")

    @model_validator(mode="after")
    def _consistent(self) -> Modality:
        problems = [
            *_shape_problems(self),
            *_value_problems(self),
            *_class_problems(self),
            *_time_problems(self),
        ]
        if problems:
            raise cross_error(problems)
        return self

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def np_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def fill(self) -> np.generic:
        """The nodata value as a numpy scalar of the stored type."""
        scalar: np.generic = self.np_dtype.type(self.nodata)
        return scalar

    @property
    def class_codes(self) -> tuple[int, ...]:
        return tuple(sorted(definition.code for definition in self.classes))

    @property
    def is_derived(self) -> bool:
        """True when it is computed from the sample itself and never asked of a source of pixels."""
        return "derived" in self.sources

    def judged_by(self, name: str | None) -> Modality:
        """The same modality with clear ground told by the rule that looks at ``name``, where it has one."""
        other = next((rule for rule in self.clear_others if rule.modality == name), None)
        return self if other is None else self.model_copy(update={"clear": other})

    def subset(self, bands: tuple[str, ...] | list[str]) -> Modality:
        """The same modality with these bands only, in the modality's own order."""
        kept = tuple(band for band in self.bands if band.name in bands)
        shown = self.display
        if not set(shown.bands or ()) <= set(bands):
            shown = shown.model_copy(update={"bands": None})
        return self.model_copy(update={"bands": kept, "display": shown})


def _shape_problems(m: Modality) -> list[Problem]:
    found: list[Problem] = []
    if (m.level == "pixel") != (m.gsd is not None):
        fix = "give its pixel size in metres" if m.level == "pixel" else "remove it: one vector per chip has no pixels"
        found.append(Problem(key=("gsd",), reason=f"does not fit level: {m.level}", fix=fix))
    names = m.band_names
    for index, name in enumerate(names):
        if name in names[:index]:
            found.append(Problem(key=("bands", index, "name"), reason="is used twice", fix="rename or remove one"))
    for name in m.display.bands or ():
        if name not in names:
            found.append(Problem(key=("display", "bands"), reason=f"has no band {name!r}", fix=suggest(name, names)))
    if len(m.display.bands or ()) == 2:
        found.append(Problem(key=("display", "bands"), reason="two bands make no picture", fix="name one or three"))
    return found


def _value_problems(m: Modality) -> list[Problem]:
    found: list[Problem] = []
    low, high = dtype_range(m.dtype)
    exact = np.issubdtype(m.dtype, np.floating) or float(m.nodata).is_integer()
    if not (low <= m.nodata <= high and exact and float(np.array(m.nodata).astype(m.dtype)) == m.nodata):
        fix = f"choose a value that {m.dtype} can hold, {low:g} to {high:g}"
        found.append(Problem(key=("nodata",), reason=f"is not a {m.dtype}", fix=fix))
    for index, band in enumerate(m.bands):
        key = ("bands", index, "valid_range")
        first, last = band.valid_range
        if first > last:
            found.append(Problem(key=key, reason="starts above its end", fix="write [lowest, highest]"))
        if not (low <= first and last <= high):
            found.append(Problem(key=key, reason=f"does not fit {m.dtype}", fix=f"stay within {low:g} to {high:g}"))
        if first <= m.nodata <= last:
            reason = f"lies inside the valid range [{first:g}, {last:g}] of band {band.name}"
            found.append(Problem(key=("nodata",), reason=reason, fix="choose a value that no measurement can have"))
        if band.scale == 0:
            found.append(Problem(key=("bands", index, "scale"), reason="makes every value equal", fix="remove it"))
    return found


def _class_problems(m: Modality) -> list[Problem]:
    if m.values == "continuous":
        fix = "remove them or set values: categorical"
        keys = [key for key, given in (("classes", m.classes), ("land_cover", m.land_cover)) if given]
        return [Problem(key=(key,), reason="a continuous modality has no classes", fix=fix) for key in keys]
    found: list[Problem] = []
    if m.resampling != "nearest":
        reason = "mixes class codes into codes that mean something else"
        found.append(Problem(key=("resampling",), reason=reason, fix="use nearest for a categorical modality"))
    if np.issubdtype(m.dtype, np.floating):
        found.append(Problem(key=("dtype",), reason="class codes are whole numbers", fix="use uint8 or uint16"))
    if not m.classes:
        found.append(Problem(key=("classes",), reason="is missing", fix="list every class: {code: ..., name: ...}"))
    for index, definition in enumerate(m.classes):
        key = ("classes", index, "code")
        if definition.code in [other.code for other in m.classes[:index]]:
            found.append(Problem(key=key, reason="is used twice", fix="give each class its own code"))
        for band in m.bands:
            if not band.valid_range[0] <= definition.code <= band.valid_range[1]:
                reason = f"is outside the valid range of band {band.name}"
                found.append(Problem(key=key, reason=reason, fix="correct the code or widen valid_range"))
    return found


def _time_problems(m: Modality) -> list[Problem]:
    found: list[Problem] = []
    if (m.time == "months") != (m.months is not None):
        fix = "add it, such as [-11, 0]" if m.time == "months" else "remove it or set time: months"
        found.append(Problem(key=("months",), reason=f"does not fit time: {m.time}", fix=fix))
    if m.months is not None and m.months[0] > m.months[-1]:
        found.append(
            Problem(key=("months",), reason="starts after its end", fix="write [first, last], 0 = anchor's month")
        )
    if m.same_scene_as is not None and m.time != "scene":
        fix = "set time: scene, or remove same_scene_as"
        found.append(Problem(key=("same_scene_as",), reason=f"does not fit time: {m.time}", fix=fix))
    if m.count_of is not None and (m.time != "scene" or m.same_scene_as is not None):
        fix = "set time: scene and remove same_scene_as"
        found.append(Problem(key=("count_of",), reason="counts scenes, and has none of its own", fix=fix))
    if m.same_scene_as == m.name:
        found.append(Problem(key=("same_scene_as",), reason="names itself", fix="name the modality it accompanies"))
    return found


def dtype_range(dtype: str) -> tuple[float, float]:
    """Lowest and highest value that a numpy type can hold."""
    if np.issubdtype(dtype, np.floating):
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
