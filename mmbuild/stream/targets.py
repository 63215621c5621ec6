"""Where a decoded chip goes: its window, its turn and its values, written once into the arrays of the batch.

A whole chip of stored values is decoded right into its place; everything else passes through memory of the thread that
stays in the processor's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmbuild.stream import compiled
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


@dataclass(frozen=True, kw_only=True)
class Convert:
    """From stored values to those of the batch.

    run: (stored chip in any strides, place for its values, place for its mask, memory of the thread) -> None. The rest
    is what compiled code is told instead, and nothing where it cannot do this: the kind, numbers and arrays of
    ``compiled.chip``.
    """

    run: Callable[[np.ndarray, np.ndarray, np.ndarray, Scratch], None]
    kind: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


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

    @cached_property
    def record(self) -> compiled.Chip | None:
        """What compiled code has to know of these chips, None if it cannot make them."""
        kind = compiled.STORED if self.convert is None else self.convert.kind
        if kind is None or not compiled.is_built():
            return None
        layout, (rows, cols) = self.table.layout, self._sides
        dtype = layout.modality.np_dtype
        numbers = {
            "nbytes": int(np.prod(layout.chip)) * dtype.itemsize, "planes": self.data.shape[2], "rows": rows,
            "cols": cols, "plane_stride": int(np.prod(layout.chip[1:])) * dtype.itemsize,
        }  # fmt: skip
        arrays = {} if self.bands is None else {"bands": self.bands.astype(np.int64)}
        if self.convert is not None:
            numbers, arrays = numbers | self.convert.numbers, arrays | self.convert.arrays
        return compiled.chip(compiled.DIRECT if self.is_direct else kind, dtype, numbers, arrays)

    def describe(self, record: compiled.Chip, work: np.ndarray, position: np.ndarray, time: np.ndarray) -> None:
        """Say in rows of work where chips go, and which of their pixels; position, time: (n,)."""
        assert self.data[0, 0].flags.c_contiguous
        work["chip"] = record.address
        work["place"] = self.data.ctypes.data + position * self.data.strides[0] + time * self.data.strides[1]
        if self.mask is not None:
            work["mask"] = self.mask.ctypes.data + position * self.mask.strides[0] + time * self.mask.strides[1]
        work["first"], work["row_stride"], work["col_stride"] = self._pixels(position)

    @property
    def _sides(self) -> tuple[int, int]:
        """Rows and columns of a chip in the batch; an image-level one is a pixel."""
        rows, cols = (*self.data.shape[3:], 1, 1)[:2]
        return rows, cols

    def _pixels(self, position: np.ndarray) -> tuple[np.ndarray | int, np.ndarray | int, np.ndarray | int]:
        """Where the window of a stored band begins, and its strides as turned, in bytes: what turned() does."""
        crop, flips, turns = self.geometry.crop, self.geometry.flips, self.geometry.turns
        y, x = (*self.table.layout.chip[1:], 1, 1)[:2]
        col = self.table.layout.modality.np_dtype.itemsize
        row, first = x * col, np.zeros(len(position), np.int64)
        if self._is_pixel and crop is not None:
            first += crop.rows[position] * (y // crop.units * row) + crop.cols[position] * (x // crop.units * col)
        if not self._is_pixel or flips is None or turns is None:
            return first, row, col
        last, turned = self._sides[0] - 1, turns[position]  # a window that is turned is square
        first += np.where(flips[position], last * col, 0)
        cols = np.where(flips[position], -col, col)
        odd, up, back = turned % 2 == 1, (turned == 1) | (turned == 2), turned >= 2
        rows, cols = np.where(odd, cols, row), np.where(odd, row, cols)
        first += np.where(up, last * rows, 0) + np.where(back, last * cols, 0)
        return first, np.where(up, -rows, rows), np.where(back, -cols, cols)

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
        self.convert.run(view, self.data[position, time], self.mask[position, time], scratch)


class Scratch(threading.local):
    """Memory of one thread for one chip at a time."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...], Any], np.ndarray] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        if (use, shape, dtype) not in self._arrays:
            self._arrays[use, shape, dtype] = np.empty(shape, dtype)
        return self._arrays[use, shape, dtype]


def decode(target: Target, chunk: Encoded, position: int, time: int, scratch: Scratch) -> np.ndarray:
    """Decode a chunk: into its place if that is all there is to do, else for ``place``; ValueError when damaged."""
    if target.is_direct:
        chip: np.ndarray = target.data[position, time]
    else:
        chip = scratch.array("chip", target.table.layout.chip, target.table.layout.modality.np_dtype)
    decode_chunk(chunk, chip)
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
