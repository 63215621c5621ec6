"""From stored values to training values: masked, then normalised; class codes to indexes; windows and turns.

What happens to a modality follows from its level and values alone, never from its name. Nodata never becomes a
number that a model could take for a measurement: it is 0 with mask False, or the ignore index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.stream.order import sample_draws
from mmbuild.stream.reader import Chips
from mmbuild.stream.targets import Crop, Geometry, window

# Which of several time steps a sample has: all, one drawn for each sample and epoch, or a fixed one.
Time = int | Literal["all", "random"]
# What losses ignore (CrossEntropyLoss(ignore_index=-1)): nodata, and codes that the modality does not define.
IGNORE_INDEX = -1


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of the valid stored values by band; NaN for a band that was never observed."""

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Field:
    """One entry of a batch: a modality, or an alias that stands for whichever of its members a sample has.

    bands: those that all members have, in the first member's order. shape: (time, band, y, x) or (time, band).
    n_classes: K of a categorical field, else 0. statistics: by member, None where values stay as stored.
    """

    name: str
    members: tuple[Modality, ...]
    bands: tuple[str, ...]
    shape: tuple[int, ...]
    gsd: float | None
    n_classes: int
    statistics: tuple[Statistics | None, ...]

    @property
    def is_alias(self) -> bool:
        return self.name != self.members[0].name

    @property
    def is_categorical(self) -> bool:
        return self.members[0].values == "categorical"

    @property
    def is_pixel(self) -> bool:
        return self.members[0].level == "pixel"


@dataclass(frozen=True, kw_only=True)
class Values:
    """One field of a batch. data: float32 or int64 (classes); mask: bool, same shape, True = valid.

    level: (n,) int64, the place in ``Field.members`` that a sample's values come from, -1 for none.
    """

    data: np.ndarray
    mask: np.ndarray
    level: np.ndarray


def valid_mask(stored: np.ndarray, nodata: np.generic) -> np.ndarray:
    """True where a stored value is a measurement: not nodata, and for floats neither NaN nor infinite."""
    valid: np.ndarray = stored != nodata
    return valid & np.isfinite(stored) if np.issubdtype(stored.dtype, np.floating) else valid


def normalise(stored: np.ndarray, nodata: np.generic, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """(stored - mean) / std as float32 and its mask; masked values are exactly 0.

    stored: (n, time, band, ...). A band without a single valid training value has no scale and stays masked; a
    constant band (std 0) is only shifted.
    """
    shape = (-1,) + (1,) * (stored.ndim - 3)
    known = np.isfinite(statistics.mean) & np.isfinite(statistics.std)
    mean = np.where(known, statistics.mean, 0).astype(np.float32).reshape(shape)
    scale = np.where(known & (statistics.std > 0), statistics.std, 1).astype(np.float32).reshape(shape)
    mask = valid_mask(stored, nodata) & known.reshape(shape)
    values = np.where(mask, stored, 0).astype(np.float32)
    values -= mean
    values /= scale
    values[~mask] = 0
    return values, mask


def as_stored(stored: np.ndarray, nodata: np.generic) -> tuple[np.ndarray, np.ndarray]:
    """The stored values as float32, NaN where masked, and the mask: what ``normalize=False`` gives."""
    mask = valid_mask(stored, nodata)
    return np.where(mask, stored, np.nan).astype(np.float32), mask


def class_indexes(stored: np.ndarray, codes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Class codes to int64 0..K-1 in the order of ``codes``, any other value to IGNORE_INDEX; and the mask."""
    low, high = min(codes) - 1, max(codes) + 1
    table = np.full(high - low + 1, IGNORE_INDEX, dtype=np.int64)
    table[np.asarray(codes) - low] = np.arange(len(codes))
    # Clipping sends every code out of range to one of the two ends, which are no class.
    indexes = table[np.clip(stored.astype(np.int64), low, high) - low]
    return indexes, indexes != IGNORE_INDEX


def transform(field: Field, chips: Mapping[str, Chips]) -> Values:
    """The values of one field of a batch from its members' chips; the first member that is stored is taken."""
    first = chips[field.members[0].name]
    shape = (*first.data.shape[:2], len(field.bands), *first.data.shape[3:])
    data = np.full(shape, masked_value(field), dtype=np.int64 if field.is_categorical else np.float32)
    mask = np.zeros(shape, dtype=bool)
    level = np.full(len(first.data), -1, dtype=np.int64)
    for place, modality in enumerate(field.members):
        rows = np.flatnonzero(chips[modality.name].stored.any(axis=1) & (level == -1))
        if len(rows):
            data[rows], mask[rows] = _member_values(field, place, chips[modality.name].data[rows])
            level[rows] = place
    return Values(data=data, mask=mask, level=level)


def _member_values(field: Field, place: int, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    modality, statistics = field.members[place], field.statistics[place]
    if modality.band_names != field.bands:
        stored = stored[:, :, [modality.band_names.index(name) for name in field.bands]]
    if field.is_categorical:
        return class_indexes(stored, modality.class_codes)
    return as_stored(stored, modality.fill) if statistics is None else normalise(stored, modality.fill, statistics)


def masked_value(field: Field) -> float:
    """What stands where there is no measurement: the ignore index, 0 of normalised values, NaN of stored ones."""
    if field.is_categorical:
        return IGNORE_INDEX
    return 0.0 if field.statistics[0] is not None else math.nan


# -- windows, flips and turns: one draw a sample, the same ground in every modality


def crop_units(sides: Mapping[str, int], crop: int) -> tuple[int, int]:
    """(units, size) of a window of ``crop`` finest pixels, in common units of chips with these sides (pixels).

    Raises UserError when such a window would cut through the pixels of a coarser modality.
    """
    finest = max(sides.values())
    units = math.gcd(*sides.values())
    step = finest // units
    if 0 < crop <= finest and crop % step == 0:
        return units, crop // step
    coarsest = min(sides, key=lambda name: sides[name])
    if not 0 < crop <= finest:
        raise UserError(f"crop: {crop} must be 1 to {finest} pixels", fix="chips are not larger than that")
    raise UserError(
        f"crop: {crop} cuts through the pixels of {coarsest} ({sides[coarsest]} where the finest has {finest})",
        fix=f"use a multiple of {step}, or leave the coarser modalities out",
    )


def window_units(fields: Sequence[Field], crop: int | None, *, augment: bool) -> tuple[int, int] | None:
    """(units, size) of the crop window, None without one; UserError when chips cannot be cut or turned so."""
    sides = {field.name: field.shape[-1] for field in fields if field.is_pixel}
    for field in fields:
        if (augment or crop) and field.is_pixel and field.shape[-1] != field.shape[-2]:
            raise UserError(
                f"{field.name}: chips of {field.shape[-2:]} pixels are not square",
                fix="set crop=None, augment=False",
            )
    if crop is None:
        return None
    if not sides:
        raise UserError(f"crop: {crop}, but no pixel-level modality was asked for", fix="leave crop out")
    return crop_units(sides, crop)


def cropped(field: Field, units: tuple[int, int] | None) -> Field:
    """The field with the shape that its chips have after the crop."""
    if units is None or not field.is_pixel:
        return field
    side = field.shape[-1] // units[0] * units[1]
    return replace(field, shape=(*field.shape[:-2], side, side))


def choose_moments(sample_ids: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """(n,) a whole number a sample from (seed, epoch, sample id): modulo T, its time step in a modality that has T."""
    draws = [sample_draws("time", seed=seed, epoch=epoch, sample_id=one)[0] for one in sample_ids]
    return (np.array(draws, np.uint64) >> np.uint64(1)).astype(np.int64)


def at_time(fields: Sequence[Field], time: Time) -> tuple[Field, ...]:
    """The fields as they are with ``time``: of one step unless all are asked for. UserError for a step none has."""
    if time == "all":
        return tuple(fields)
    most = max((field.shape[0] for field in fields), default=1)
    if time != "random" and not 0 <= time < most:
        raise UserError(f"time: {time} must be 0 to {most - 1}, all or random", fix="count the corpus's steps from 0")
    return tuple(replace(field, shape=(1, *field.shape[1:])) for field in fields)


def choose_geometry(
    sample_ids: Sequence[str], units: tuple[int, int] | None, *, augment: bool, seed: int, epoch: int
) -> Geometry:
    """Draw the geometry of each sample from (seed, epoch, sample id); without augment it is the centre window.

    units: as ``crop_units`` returns it, None for no window.
    """
    n = len(sample_ids)
    if not augment:
        crop = None
        if units is not None:
            corner = np.full(n, (units[0] - units[1]) // 2, dtype=np.int64)
            crop = Crop(units=units[0], size=units[1], rows=corner, cols=corner)
        return Geometry(crop=crop, flips=None, turns=None)
    draws = np.zeros((n, 8), dtype=np.uint64)
    for i, sample_id in enumerate(sample_ids):
        draws[i] = sample_draws("augment", seed=seed, epoch=epoch, sample_id=sample_id)
    crop = None
    if units is not None:
        room = np.uint64(units[0] - units[1] + 1)
        rows, cols = ((draws[:, k] % room).astype(np.int64) for k in (0, 1))
        crop = Crop(units=units[0], size=units[1], rows=rows, cols=cols)
    flips = (draws[:, 2] & np.uint64(1)).astype(bool)
    return Geometry(crop=crop, flips=flips, turns=(draws[:, 3] & np.uint64(3)).astype(np.int64))


def turn(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Flip and turn each sample of (n, time, band, y, x); chips have to be square."""
    if geometry.flips is None or geometry.turns is None:
        return pixels
    turned = np.empty_like(pixels)
    for i, (flip, turns) in enumerate(zip(geometry.flips.tolist(), geometry.turns.tolist(), strict=True)):
        one = pixels[i, ..., ::-1] if flip else pixels[i]
        turned[i] = np.rot90(one, turns, axes=(-2, -1))
    return turned


def cut(chips: Chips, geometry: Geometry, *, pixels: bool) -> Chips:
    """Whole chips with the window and the turn of each sample; those without pixels as they are."""
    if not pixels or geometry.is_whole:
        return chips
    data = chips.data
    if geometry.crop is not None:
        shape = data.shape[3:]
        windows = [one[(slice(None), *window(geometry.crop, i, shape))] for i, one in enumerate(data)]
        data = np.stack(windows) if windows else data
    return Chips(data=turn(data, geometry), stored=chips.stored)


# -- which fields a batch has


def make_fields(
    modalities: Mapping[str, Modality],
    shapes: Mapping[str, tuple[int, ...]],
    gsds: Mapping[str, float | None],
    statistics: Mapping[str, Statistics] | None,
    *,
    names: Sequence[str] | None = None,
    one_of: Sequence[str] = (),
) -> tuple[Field, ...]:
    """The fields for ``names`` (modalities or aliases), or for all, with the ``one_of`` members merged.

    statistics: by continuous modality, None to leave values as stored. Raises UserError for an unknown name and
    for an alias whose members cannot share one array.
    """
    aliases = dict.fromkeys(m.alias for m in modalities.values() if m.alias)
    groups = {alias: tuple(m for m in modalities.values() if m.alias == alias) for alias in aliases}
    if names is None:
        merged = {name: modalities[name].alias for name in one_of if modalities[name].alias}
        names = list(dict.fromkeys(merged.get(name) or name for name in modalities))
    made = []
    for name in dict.fromkeys(names):
        members = (modalities[name],) if name in modalities else groups.get(name, ())
        if not members:
            known = ", ".join([*modalities, *groups])
            raise UserError(f"modalities: no modality or alias {name!r} in this corpus", fix=f"choose from {known}")
        made.append(_field(name, members, shapes, gsds, statistics))
    return tuple(made)


def _field(
    name: str,
    members: tuple[Modality, ...],
    shapes: Mapping[str, tuple[int, ...]],
    gsds: Mapping[str, float | None],
    statistics: Mapping[str, Statistics] | None,
) -> Field:
    first = members[0]
    bands = tuple(band for band in first.band_names if all(band in m.band_names for m in members))
    forms = {(m.values, m.class_codes, shapes[m.name][0], shapes[m.name][2:]) for m in members}
    if len(forms) > 1 or not bands:
        reason = (
            f"{', '.join(m.name for m in members)} cannot share the alias {name}: they differ in values, shape or bands"
        )
        raise UserError(reason, fix="name the modalities themselves")
    continuous = first.values == "continuous" and statistics is not None
    return Field(
        name=name,
        members=members,
        bands=bands,
        shape=(shapes[first.name][0], len(bands), *shapes[first.name][2:]),
        gsd=gsds[first.name],
        n_classes=len(first.class_codes),
        statistics=tuple(_pick(statistics[m.name], m, bands) if continuous else None for m in members),  # type: ignore[index]
    )


def _pick(statistics: Statistics, modality: Modality, bands: tuple[str, ...]) -> Statistics:
    places = [modality.band_names.index(band) for band in bands]
    return Statistics(mean=statistics.mean[places], std=statistics.std[places])


def read_statistics(stats: Mapping[str, Any], modality: Modality) -> Statistics:
    """The statistics of one modality from the content of stats.json; a band without any is NaN."""
    bands = stats["modalities"].get(modality.name, {}).get("bands", {})
    found = [bands.get(name) or {} for name in modality.band_names]
    mean, std = (np.array([band.get(key) for band in found], dtype=float) for key in ("mean", "std"))
    return Statistics(mean=mean, std=std)
