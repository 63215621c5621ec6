"""Where a decoded chip goes: its window, its turn and its values, written once into the arrays of the batch.

A whole chip of stored values is decoded right into its place; everything else passes through memory of the thread that
stays in the processor's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmbuild.stream.chunks import Encoded, decode_chunk
from mmbuild.stream.index import ChipTable


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One square window a sample, in units that divide every pixel-level chip: ``units`` of them make a side.

    rows, cols: (n,) upper-left corners; size: the window's side; all in units. A chip with Y rows has
    Y / units pixels a unit, so that the window covers the same ground in modalities of every GSD.
    """

    units: int
    size: int
    rows: np.ndarray
    cols: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the samples of a batch are cut and turned; None leaves them whole, or as they lie.

    flips, turns: (n,) left-right flip (bool) first, then quarter turns counter-clockwise (0..3).
    """

    crop: Crop | None = None
    flips: np.ndarray | None = None
    turns: np.ndarray | None = None

    @property
    def is_whole(self) -> bool:
        return self.crop is None and self.flips is None and self.turns is None


WHOLE = Geometry()
# (stored chip in any strides, place for its values, place for its mask, memory of the thread) -> None
Convert = Callable[[np.ndarray, np.ndarray, np.ndarray, "Scratch"], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the chips of one member go: data and mask are (n, time, band, y, x) or (n, time, band).

    bands: which of the member's bands, in which order; None for all as they lie. convert: from stored values to those
    of the batch; None keeps the stored ones, and there is no mask then. missing: what stands where no chip is.
    """

    table: ChipTable
    data: np.ndarray
    missing: Any
    mask: np.ndarray | None = None
    convert: Convert | None = None
    bands: np.ndarray | None = None
    geometry: Geometry = WHOLE

    @cached_property
    def is_direct(self) -> bool:
        """A chip can be decoded right into its place."""
        return self.convert is None and self.bands is None and not (self._is_pixel and not self.geometry.is_whole)

    @cached_property
    def _is_pixel(self) -> bool:
        return len(self.table.layout.chip) == 3

    def address(self, position: int, time: int) -> int:
        """Where in memory a chip of all bands begins; it lies there in one piece."""
        first, per_position, per_time = self._places
        return first + position * per_position + time * per_time

    @cached_property
    def _places(self) -> tuple[int, int, int]:
        assert self.data[0, 0].flags.c_contiguous
        return self.data.ctypes.data, self.data.strides[0], self.data.strides[1]

    def clear(self, position: int | np.ndarray, time: int | np.ndarray) -> None:
        """Say that there is no chip."""
        self.data[position, time] = self.missing
        if self.mask is not None:
            self.mask[position, time] = False

    def place(self, chip: np.ndarray, position: int, time: int, scratch: Scratch) -> None:
        """Write a whole decoded chip into its place."""
        view = chip if self.bands is None else chip[self.bands]
        if self._is_pixel:
            view = turned(view[window(self.geometry.crop, position, view.shape[1:])], self.geometry, position)
        if self.convert is None or self.mask is None:
            self.data[position, time] = view
            return
        self.convert(view, self.data[position, time], self.mask[position, time], scratch)


class Scratch(threading.local):
    """Memory of one thread for one chip at a time."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...], Any], np.ndarray] = {}
        self._chips: dict[tuple[tuple[int, ...], Any], tuple[np.ndarray, int]] = {}

    def chip(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, int]:
        """Memory for a decoded chip, and its address."""
        if (shape, dtype) not in self._chips:
            array = np.empty(shape, dtype)
            self._chips[shape, dtype] = array, array.ctypes.data
        return self._chips[shape, dtype]

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        if (use, shape, dtype) not in self._arrays:
            self._arrays[use, shape, dtype] = np.empty(shape, dtype)
        return self._arrays[use, shape, dtype]


def decode(target: Target, chunk: Encoded, position: int, time: int, scratch: Scratch) -> np.ndarray:
    """Decode a chunk: into its place if that is all there is to do, else for ``place``; ValueError when damaged."""
    if target.is_direct:
        chip: np.ndarray = target.data[position, time]
        address = target.address(position, time)
    else:
        chip, address = scratch.chip(target.table.layout.chip, target.table.layout.modality.np_dtype)
    decode_chunk(chunk, address, chip.nbytes)
    return chip


def window(crop: Crop | None, position: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The slices of a (band, y, x) chip, shape (y, x), that the crop window of a batch position covers."""
    if crop is None:
        return (slice(None),)
    top, left, size = int(crop.rows[position]), int(crop.cols[position]), crop.size
    y, x = (side // crop.units for side in shape)
    return (slice(None), slice(top * y, (top + size) * y), slice(left * x, (left + size) * x))


def turned(pixels: np.ndarray, geometry: Geometry, position: int) -> np.ndarray:
    """A view of (..., y, x) with the flip and the quarter turns of a batch position; chips have to be square."""
    if geometry.flips is not None and geometry.flips[position]:
        pixels = pixels[..., ::-1]
    turns = 0 if geometry.turns is None else int(geometry.turns[position])
    if turns % 2:
        pixels = pixels.swapaxes(-2, -1)
    # Counter-clockwise: transpose and reverse the rows, reverse both, transpose and reverse the columns.
    views: tuple[np.ndarray, ...] = (pixels, pixels[..., ::-1, :], pixels[..., ::-1, ::-1], pixels[..., ::-1])
    return views[turns]


def cropped(shape: tuple[int, ...], crop: Crop | None, name: str) -> tuple[int, ...]:
    """The shape of a chip after the crop; ValueError when its pixels do not divide into the units."""
    if crop is None or len(shape) != 3:
        return shape
    if any(side % crop.units for side in shape[1:]):
        raise ValueError(f"{name}: {shape[1:]} pixels do not divide into {crop.units} units")
    return (shape[0], *(side // crop.units * crop.size for side in shape[1:]))
