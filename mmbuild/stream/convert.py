"""Stored chips to values and masks in arrays that are there already: what the loader runs on every chip.

The plain functions of ``transforms`` are the oracle of both ways, compiled and not: the same numbers, to the last bit,
in far fewer passes over memory, each small enough to stay in the processor's cache.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mmbuild.modality import Modality
from mmbuild.stream import compiled
from mmbuild.stream.targets import Convert, Scratch
from mmbuild.stream.transforms import IGNORE_INDEX, Field, Statistics, class_indexes


def converter(field: Field, place: int) -> Convert:
    """What turns a stored chip of the member at ``place`` into values and mask of the field, in place."""
    modality, statistics = field.members[place], field.statistics[place]
    if field.is_categorical:
        return _classes(modality)
    if statistics is None:
        return _kept(modality)
    return _normalised(modality, statistics, axes=2 if field.is_pixel else 0)


def _kept(modality: Modality) -> Convert:
    nodata = modality.fill

    def convert(stored: np.ndarray, data: np.ndarray, mask: np.ndarray, scratch: Scratch) -> None:
        flat = _laid_out(stored, scratch)
        _mask_into(flat, nodata, mask, scratch)
        np.copyto(data, flat, casting="unsafe")
        if not mask.all():
            np.copyto(data, np.nan, where=~mask)

    kind = compiled.KEPT if compiled.converts(modality.np_dtype) else None
    return Convert(run=convert, kind=kind, numbers={"nodata": nodata.item()})


def _normalised(modality: Modality, statistics: Statistics, *, axes: int) -> Convert:
    nodata = modality.fill
    known = np.isfinite(statistics.mean) & np.isfinite(statistics.std)
    shape = (-1,) + (1,) * axes
    mean = np.where(known, statistics.mean, 0).astype(np.float32).reshape(shape)
    scale = np.where(known & (statistics.std > 0), statistics.std, 1).astype(np.float32).reshape(shape)
    runs_of = lru_cache(lambda bands: (_runs(bands, True), _runs(bands, False)))

    def convert(stored: np.ndarray, data: np.ndarray, mask: np.ndarray, scratch: Scratch) -> None:
        bands = known & ~_empty(stored, nodata) if axes else known
        measured, others = runs_of(bands.tobytes())
        for own in measured:
            flat, values, valid = _laid_out(stored[own], scratch), data[own], mask[own]
            _mask_into(flat, nodata, valid, scratch)
            if flat.dtype != values.dtype:
                # A cast by itself runs at the speed of a copy; within the subtraction it takes twice as long.
                np.copyto(values, flat, casting="unsafe")
                flat = values
            np.subtract(flat, mean[own], out=values)
            np.divide(values, scale[own], out=values)
            if not valid.all():
                # As whole numbers even NaN times False is 0, and no branch is taken a pixel.
                bits = values.view(np.int32)
                np.multiply(bits, valid, out=bits)
        for own in others:
            data[own], mask[own] = 0, False

    kind = compiled.NORMALISED if compiled.converts(modality.np_dtype) else None
    arrays = {"mean": mean, "scale": scale, "known": known.astype(np.uint8)}
    return Convert(run=convert, kind=kind, numbers={"nodata": nodata.item()}, arrays=arrays)


def _empty(stored: np.ndarray, nodata: np.generic) -> np.ndarray:
    """Which bands of (band, y, x) hold nothing: a polarisation that a satellite did not send, say."""
    empty: np.ndarray = stored[:, 0, 0] == nodata
    for band in np.flatnonzero(empty).tolist():
        empty[band] = (stored[band] == nodata).all()
    return empty


def _runs(bands: bytes, value: bool) -> list[slice]:
    """Neighbouring bands of which this is the value, as slices; bands: a byte a band."""
    same = np.frombuffer(bands, bool) == value
    edges = np.flatnonzero(np.diff(same, prepend=False, append=False)).tolist()
    return [slice(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True)]


def _classes(modality: Modality) -> Convert:
    """A table of every code where the dtype has few, else the same search as ``class_indexes``."""
    codes = modality.class_codes
    if modality.np_dtype.itemsize > 2 or modality.np_dtype.kind != "u":

        def search(stored: np.ndarray, data: np.ndarray, mask: np.ndarray, scratch: Scratch) -> None:
            data[...], mask[...] = class_indexes(stored, codes)

        return Convert(run=search)
    table, _ = class_indexes(np.arange(2 ** (8 * modality.np_dtype.itemsize), dtype=modality.np_dtype), codes)

    def look_up(stored: np.ndarray, data: np.ndarray, mask: np.ndarray, scratch: Scratch) -> None:
        np.take(table, _laid_out(stored, scratch), out=data, mode="clip")
        np.not_equal(data, IGNORE_INDEX, out=mask)

    return Convert(run=look_up, kind=compiled.CLASSES, numbers={"ignore": IGNORE_INDEX}, arrays={"table": table})


def _laid_out(view: np.ndarray, scratch: Scratch) -> np.ndarray:
    """The values in C order: one pass to lay them out is cheaper than arithmetic along strides."""
    if view.flags.c_contiguous:
        return view
    flat = scratch.array("window", view.shape, view.dtype)
    np.copyto(flat, view)
    return flat


def _mask_into(flat: np.ndarray, nodata: np.generic, mask: np.ndarray, scratch: Scratch) -> None:
    np.not_equal(flat, nodata, out=mask)
    if flat.dtype.kind == "f":
        finite = scratch.array("finite", flat.shape, np.dtype(bool))
        np.isfinite(flat, out=finite)
        np.logical_and(mask, finite, out=mask)
