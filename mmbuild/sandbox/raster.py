"""Pixels on demand: a grid is pulled down a tree of nodes, and only nodes with a lattice of their own ever resample.

The rules are closed formulas. Nearest: the native pixel that contains the output pixel's centre, floor((x - c) / a).
Bilinear: between native pixel centres, in float64, weighted by the mask. Coarser requests read a level of 2^L native
pixels per side, made by the band's pyramiding policy, or drawn by the dataset; L is the largest that is not coarser
than the request. GDAL has no part in it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.assets import Affine6, BandInfo, Dataset, DrawsLevels, ImageInfo
from mmbuild.sandbox.modes import mode
from mmbuild.sandbox.picking import MAX_WINDOW_PIXELS, NOWHERE, Array, Fetch, Pair, gather, indices
from mmbuild.sandbox.values import EarthEngineError, Projection, is_geographic, transformer

STRIP_PIXELS = 2**22
MEMO_BYTES = 256 * 2**20
# 0.01 of an octave: the scale between two UTM zones varies by under 0.7 %, and neighbours must read the same level.
LEVEL_TOLERANCE = 0.01


@dataclass(frozen=True)
class Grid:
    """A window of pixels: CRS, affine transform of the outer corner, width and height."""

    crs: str
    transform: Affine6
    width: int
    height: int

    @cached_property
    def upright(self) -> bool:
        return self.transform[1] == 0.0 and self.transform[3] == 0.0

    def at(self, col: Any, row: Any) -> tuple[Any, Any]:
        """CRS coordinates of a pixel position (0, 0 is the outer corner of the first pixel)."""
        a, b, c, d, e, f = self.transform
        if self.upright:
            return c + a * col, f + e * row
        return c + a * col + b * row, f + d * col + e * row

    def centres(self) -> tuple[Array, Array]:
        """x and y of the pixel centres: (1, width) and (height, 1) when upright, else both (height, width)."""
        cols = np.arange(self.width, dtype=np.float64)[None, :] + 0.5
        rows = np.arange(self.height, dtype=np.float64)[:, None] + 0.5
        x, y = self.at(cols, rows)
        return np.asarray(x), np.asarray(y)


class Pixels(Protocol):
    """A node of the tree; compared and remembered by identity."""

    def read(self, reader: Reader, grid: Grid) -> Pair:
        """Values and mask on the grid; arrays may be shared, so nobody writes into them."""
        ...


class Reader:
    """What one request has already worked out: band windows and projected coordinates, least recently used go first."""

    def __init__(self, memo_bytes: int = MEMO_BYTES) -> None:
        self._memo: OrderedDict[tuple[int, Grid], tuple[Pixels, Pair]] = OrderedDict()
        self._coordinates: OrderedDict[tuple[Grid, str], tuple[Array, Array]] = OrderedDict()
        self._levels: dict[tuple[Grid, Projection], int] = {}
        self._bytes, self._memo_bytes = 0, memo_bytes

    def read(self, node: Pixels, grid: Grid) -> Pair:
        """The node's pixels on the grid, computed once per request while they fit in the memo."""
        key = (id(node), grid)
        found = self._memo.get(key)
        if found is not None:
            self._memo.move_to_end(key)
            return found[1]
        pair = node.read(self, grid)
        self._memo[key] = (node, pair)
        self._bytes += _nbytes(pair)
        while self._bytes > self._memo_bytes and len(self._memo) > 1:
            _, (_, old) = self._memo.popitem(last=False)
            self._bytes -= _nbytes(old)
        return pair

    def coordinates(self, grid: Grid, crs: str) -> tuple[Array, Array]:
        """Pixel centres of the grid in `crs`; broadcastable to (height, width)."""
        if grid.crs == crs:
            return grid.centres()
        key = (grid, crs)
        if key not in self._coordinates:
            x, y = np.broadcast_arrays(*grid.centres())
            self._coordinates[key] = transformer(grid.crs, crs).transform(x, y)
            if len(self._coordinates) > 32:
                self._coordinates.popitem(last=False)
        return self._coordinates[key]

    def level(self, grid: Grid, projection: Projection) -> int:
        """`level_of`, worked out once per request."""
        key = (grid, projection)
        if key not in self._levels:
            self._levels[key] = level_of(grid, projection)
        return self._levels[key]


def _nbytes(pair: Pair) -> int:
    return sum(8 if 0 in array.strides else array.nbytes for array in pair)


def lattice_offset(grid: Grid, projection: Projection) -> tuple[int, int] | None:
    """(row, column) of the grid's first pixel on the projection's lattice, None when the grid is not on it."""
    if grid.crs != projection.crs:
        return None
    a, b, c, d, e, f = projection.transform
    own = (grid.transform[i] for i in (0, 1, 3, 4))
    same = all(abs(mine - theirs) <= 1e-9 * abs(theirs) for mine, theirs in zip(own, (a, b, d, e), strict=True))
    if not same or not grid.upright:
        return (0, 0) if grid.transform == projection.transform else None
    col, row = (grid.transform[2] - c) / a, (grid.transform[5] - f) / e
    if abs(col - round(col)) > 1e-6 or abs(row - round(row)) > 1e-6:
        return None
    return round(row), round(col)


def level_of(grid: Grid, projection: Projection) -> int:
    """The pyramid level for this request: how often the native pixel can be doubled and still not be coarser."""
    x, y = grid.at(
        np.array([grid.width / 2, grid.width / 2 + 1, grid.width / 2]),
        np.array([grid.height / 2, grid.height / 2, grid.height / 2 + 1]),
    )
    if grid.crs != projection.crs:
        x, y = transformer(grid.crs, projection.crs).transform(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return 0
    dx, dy = np.diff(np.asarray(x))[[0]], np.diff(np.asarray(y))[[0]]
    dx, dy = np.append(dx, x[2] - x[0]), np.append(dy, y[2] - y[0])
    if is_geographic(projection.crs):
        dx = (dx + 180.0) % 360.0 - 180.0
    a, b, _, d, e, _ = projection.transform
    det = a * e - b * d
    cols, rows = math.hypot(*((e * dx - b * dy) / det)), math.hypot(*((a * dy - d * dx) / det))
    ratio = min(cols, rows)
    return max(0, math.floor(math.log2(ratio) + LEVEL_TOLERANCE)) if ratio > 0 else 0


def coarser(projection: Projection, level: int) -> Projection:
    """The lattice of pyramid level `level`: same origin, pixels 2^level as large."""
    if level == 0:
        return projection
    a, b, c, d, e, f = projection.transform
    n = float(2**level)
    return Projection(projection.crs, (a * n, b * n, c, d * n, e * n, f))


def positions(reader: Reader, grid: Grid, projection: Projection) -> tuple[Array, Array]:
    """Fractional (row, column) of the grid's pixel centres on a lattice; NaN where the projection does not reach."""
    x, y = reader.coordinates(grid, projection.crs)
    a, b, c, d, e, f = projection.transform
    if b == 0.0 and d == 0.0:
        return _finite((y - f) / e), _finite((x - c) / a)
    det = a * e - b * d
    dx, dy = x - c, y - f
    return _finite((a * dy - d * dx) / det), _finite((e * dx - b * dy) / det)


def _finite(position: Array) -> Array:
    return position if np.isfinite(position).all() else np.where(np.isfinite(position), position, np.nan)


@dataclass(frozen=True, eq=False)
class Stored:
    """A band of an image in the world."""

    dataset: Dataset
    image: ImageInfo
    band: BandInfo
    projection: Projection

    def read(self, reader: Reader, grid: Grid) -> Pair:
        offset = lattice_offset(grid, self.projection)
        if offset is not None and self._holds(*offset, grid):
            return self._native(*offset, grid.height, grid.width)
        level = reader.level(grid, self.projection)
        rows, cols = (indices(p) for p in positions(reader, grid, coarser(self.projection, level)))
        n = 2**level
        width = None if self.band.width is None else -(-self.band.width // n)
        height = None if self.band.height is None else -(-self.band.height // n)
        turn = self._turn(n)
        if turn is not None:
            cols = np.where(cols > NOWHERE, cols % turn, cols)
        rows, cols = _within(rows, height), _within(cols, width)
        return gather(lambda *window: self._level_window(n, *window), rows, cols)[0]

    def _holds(self, row: int, col: int, grid: Grid) -> bool:
        """Whether the band has a pixel for every pixel of a grid on its lattice that starts here."""
        height, width = self.band.height, self.band.width
        down = height is None or 0 <= row <= height - grid.height
        return down and (width is None or 0 <= col <= width - grid.width)

    def _turn(self, n: int) -> int | None:
        """Pixels of level n once around the globe (180.001 E is 179.999 W); None where they are no whole number."""
        if not is_geographic(self.band.crs):
            return None
        turn = 360.0 / (abs(self.band.transform[0]) * n)
        return round(turn) if abs(turn - round(turn)) < 1e-6 else None

    def _level_window(self, n: int, row0: int, col0: int, height: int, width: int) -> Pair:
        if n == 1:
            return self._native(row0, col0, height, width)
        if isinstance(self.dataset, DrawsLevels):
            values, mask = self.dataset.level_window(self.image, self.band.id, n, row0, col0, height, width)
            return np.asarray(values, dtype=np.float64), np.asarray(mask, dtype=np.float64)
        if height * width * n * n > MAX_WINDOW_PIXELS * 4:
            raise EarthEngineError("User memory limit exceeded.")
        step = max(1, STRIP_PIXELS // (width * n * n))
        spans = [(row, min(step, row0 + height - row)) for row in range(row0, row0 + height, step)]
        natives = (self._native(row * n, col0 * n, rows * n, width * n) for row, rows in spans)
        strips = [_blocks(native, n, self.band.pyramiding) for native in natives]
        values, mask = np.concatenate([v for v, _ in strips]), np.concatenate([m for _, m in strips])
        # A level is stored in the band's own type: means of integers are rounded.
        return (values if np.dtype(self.band.dtype).kind == "f" else np.floor(values + 0.5)), mask

    def _native(self, row0: int, col0: int, height: int, width: int) -> Pair:
        """A native window, asked for only where the image has pixels and padded with mask 0 elsewhere."""
        last_row = row0 + height if self.band.height is None else min(row0 + height, self.band.height)
        last_col = col0 + width if self.band.width is None else min(col0 + width, self.band.width)
        values, mask = self.dataset.window(self.image, self.band.id, row0, col0, last_row - row0, last_col - col0)
        if mask.dtype == bool and mask.all():
            values, mask = np.asarray(values, dtype=np.float64), np.broadcast_to(np.float64(1.0), mask.shape)
        else:
            mask = np.asarray(mask, dtype=np.float64)
            values = np.where(mask > 0, np.asarray(values, dtype=np.float64), 0.0)
        if mask.shape == (height, width):
            return values, mask
        pad = ((0, height - mask.shape[0]), (0, width - mask.shape[1]))
        return np.pad(values, pad), np.pad(mask, pad)


@contextmanager
def together(nodes: Sequence[Pixels]) -> Iterator[None]:
    """Tell datasets which of their images this thread is about to read; some work faster on many than on each."""
    images: dict[int, tuple[Dataset, list[ImageInfo]]] = {}
    for node in nodes:
        if isinstance(node, Stored) and hasattr(node.dataset, "expecting"):
            images.setdefault(id(node.dataset), (node.dataset, []))[1].append(node.image)
    with ExitStack() as stack:
        for dataset, found in images.values():
            stack.enter_context(dataset.expecting(found))  # type: ignore[attr-defined]
        yield


def _within(index: NDArray[np.int64], size: int | None) -> NDArray[np.int64]:
    return index if size is None else np.where((index >= 0) & (index < size), index, NOWHERE)


def _blocks(pair: Pair, n: int, policy: str) -> Pair:
    """One value per n x n block: mean of what is valid with the mean of the masks, upper-left sample, or mode."""
    values, mask = pair
    height, width = values.shape[0] // n, values.shape[1] // n
    if policy == "SAMPLE":
        return values[::n, ::n], mask[::n, ::n]
    v, m = (a.reshape(height, n, width, n).transpose(1, 3, 0, 2).reshape(n * n, height, width) for a in pair)
    if policy == "MODE":
        return mode(v, m), m.mean(axis=0)
    weight = m.sum(axis=0)
    return np.divide((v * m).sum(axis=0), weight, out=np.zeros_like(weight), where=weight > 0), m.mean(axis=0)


@dataclass(frozen=True, eq=False)
class Reprojected:
    """The inner pixels computed on a lattice of their own, then nearest from it; never from a pyramid."""

    inner: Pixels
    projection: Projection

    def read(self, reader: Reader, grid: Grid) -> Pair:
        if lattice_offset(grid, self.projection) is not None:
            return reader.read(self.inner, grid)
        rows, cols = (indices(p) for p in positions(reader, grid, self.projection))
        return gather(on_lattice(reader, self.inner, self.projection), rows, cols)[0]


@dataclass(frozen=True, eq=False)
class Bilinear:
    """The inner pixels on their default lattice (or a coarser level of it), interpolated between its pixel centres."""

    inner: Pixels
    projection: Projection

    def read(self, reader: Reader, grid: Grid) -> Pair:
        if lattice_offset(grid, self.projection) is not None:
            return reader.read(self.inner, grid)
        lattice = coarser(self.projection, reader.level(grid, self.projection))
        row, col = (p - 0.5 for p in positions(reader, grid, lattice))
        rows, cols = indices(row), indices(col)
        dr, dc = row - np.floor(row), col - np.floor(col)
        corners = gather(on_lattice(reader, self.inner, lattice), rows, cols, ((0, 0), (0, 1), (1, 0), (1, 1)))
        weights = ((1 - dr) * (1 - dc), (1 - dr) * dc, dr * (1 - dc), dr * dc)
        return _weighted(corners, weights)


def _weighted(corners: Sequence[Pair], weights: Sequence[Array]) -> Pair:
    """Mean of the valid corners and the share of the weight they carry; no division where all are valid."""
    if all(bool((m == 1.0).all()) for _, m in corners):
        total = sum((w * v for w, (v, _) in zip(weights, corners, strict=True)), start=np.zeros(()))
        return total, np.broadcast_to(np.float64(1.0), total.shape)
    total = sum((w * m * v for w, (v, m) in zip(weights, corners, strict=True)), start=np.zeros(()))
    share = sum((w * m for w, (_, m) in zip(weights, corners, strict=True)), start=np.zeros(()))
    full = np.logical_and.reduce([m == 1.0 for _, m in corners])
    share = np.nan_to_num(share)
    safe = np.where(full | (share <= 0.0), 1.0, share)
    return np.where(share > 0.0, total / safe, 0.0), np.where(full, 1.0, share)


def on_lattice(reader: Reader, inner: Pixels, projection: Projection) -> Fetch:
    """A window reader of `inner` on a lattice, counted from the lattice's origin."""

    def fetch(row0: int, col0: int, height: int, width: int) -> Pair:
        whole = Grid(projection.crs, projection.transform, 0, 0)
        a, b, _, d, e, _ = projection.transform
        x, y = whole.at(float(col0), float(row0))
        return reader.read(inner, Grid(projection.crs, (a, b, x, d, e, y), width, height))

    return fetch


@dataclass(frozen=True, eq=False)
class Local:
    """A pixel-by-pixel function of other nodes on the same grid."""

    inputs: tuple[Pixels, ...]
    compute: Callable[..., Pair]

    def read(self, reader: Reader, grid: Grid) -> Pair:
        return self.compute(*(reader.read(node, grid) for node in self.inputs))


@dataclass(frozen=True, eq=False)
class Constant:
    """The same value everywhere; masked everywhere when `valid` is False."""

    value: float
    valid: bool = True

    def read(self, reader: Reader, grid: Grid) -> Pair:
        shape = (grid.height, grid.width)
        return np.broadcast_to(np.float64(self.value), shape), np.broadcast_to(np.float64(self.valid), shape)
