"""Any raster onto a sample's grid: the only resampling that happens outside Earth Engine.

The rules are those of Earth Engine, as closed formulas: a pixel at (row, col) of a lattice covers [row, row + 1) x
[col, col + 1). Nearest takes the native pixel that holds the centre of the grid's pixel; bilinear weighs the four
native centres around it by distance and by validity. A grid that is 2^L times coarser or more reads blocks of 2^L
native pixels a side (their mean, or their most frequent class), so that no pixel is skipped. Where grid and raster
share a lattice nothing is resampled. GDAL's warper has no part in it: it may approximate coordinates and take any
overview.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from mmbuild.errors import SourceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Pixels = tuple[Floats, Floats]
"""Values and how valid they are (0 to 1), both (y, x)."""

# A resampled pixel is data when all that it was made of is data; the slack is for sums of floats.
FULLY_VALID = 0.999
# Of one octave: the scale between two UTM zones varies by under 0.7 %, and neighbours must read the same level.
_LEVEL_SLACK = 0.01
# A window of more native pixels than this (1 GiB in float64) is a mistake in a grid, not a chip.
MAX_WINDOW_PIXELS = 2**27
_SAME = 1e-6


class Window(Protocol):
    """Reads native pixels inside the raster: first row, first column, rows, columns -> values and validity."""

    def __call__(self, row: int, col: int, height: int, width: int, /) -> Pixels: ...


@dataclass(frozen=True, kw_only=True)
class Raster:
    """One band on its own lattice; ``transform`` is the affine of the outer corner, ``read`` fetches a window.

    classes: its values are codes, of which a block has a most frequent one and no mean. whole: its values are whole
    numbers, and so is the mean of a block.
    """

    crs: str
    transform: Affine
    height: int
    width: int
    read: Window
    classes: bool = False
    whole: bool = False


def on_grid(raster: Raster, grid: GeoBox, *, bilinear: bool) -> Pixels:
    """The raster's pixels on a north-up grid; validity 0 outside the raster."""
    offset = _shared_lattice(raster, grid)
    height, width = grid.shape
    if offset is not None:
        return _padded(raster, *offset, height, width)
    n = 2 ** level(raster, grid)
    row, col = _positions(raster, grid, n)
    if not bilinear:
        return _gather(raster, n, _whole(row), _whole(col), ((0, 0),))[0]
    row, col = row - 0.5, col - 0.5
    down, right = row - np.floor(row), col - np.floor(col)
    corners = _gather(raster, n, _whole(row), _whole(col), ((0, 0), (0, 1), (1, 0), (1, 1)))
    weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
    return _weighted(corners, weights)


def layered(rasters: Sequence[Raster], grid: GeoBox, *, bilinear: bool) -> Pixels:
    """Several rasters as one: each covers those before it wherever it is fully valid.

    To be interpolated, tiles are first joined on the lattice of the first, which fills the half pixel along the edges
    where a tile alone has no neighbour; then each tile is interpolated on its own lattice and laid on top.
    """
    parts = list(rasters)
    if bilinear and len(parts) > 1:
        parts = [_joined(parts), *parts]
    values, valid = on_grid(parts[0], grid, bilinear=bilinear)
    for raster in parts[1:]:
        above, is_valid = on_grid(raster, grid, bilinear=bilinear)
        covers = is_valid >= FULLY_VALID
        values, valid = np.where(covers, above, values), np.where(covers, 1.0, valid)
    return values, valid


def _joined(rasters: Sequence[Raster]) -> Raster:
    """Rasters as one on the lattice of the first, without interpolation, as far as all of them reach."""
    first = rasters[0]
    boxes = [_box(raster, first) for raster in rasters]
    top, left = math.floor(min(b[0] for b in boxes)), math.floor(min(b[1] for b in boxes))
    bottom, right = math.ceil(max(b[2] for b in boxes)), math.ceil(max(b[3] for b in boxes))
    transform = first.transform @ Affine.translation(left, top)

    def read(row: int, col: int, height: int, width: int) -> Pixels:
        window = GeoBox((height, width), transform @ Affine.translation(col, row), first.crs)
        return layered(rasters, window, bilinear=False)

    return replace(first, transform=transform, height=bottom - top, width=right - left, read=read)


def _box(raster: Raster, other: Raster) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of a raster in pixels of another's lattice."""
    cols, rows = np.meshgrid(np.linspace(0, raster.width, 21), np.linspace(0, raster.height, 21))
    x, y = _at(raster.transform, cols, rows)
    if raster.crs != other.crs:
        x, y = _transformer(raster.crs, other.crs).transform(x, y)
    col, row = _at(~other.transform, np.asarray(x), np.asarray(y))
    inside = np.isfinite(row) & np.isfinite(col)
    return (
        float(row[inside].min()), float(col[inside].min()), float(row[inside].max()), float(col[inside].max())
    )  # fmt: skip


# -- where pixels lie ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def _is_geographic(crs: str) -> bool:
    return bool(CRS.from_user_input(crs).is_geographic)


def _at(transform: Affine, col: Floats, row: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = transform[:6]
    if b == 0.0 and d == 0.0:
        return c + a * col, f + e * row
    return c + a * col + b * row, f + d * col + e * row


def crs_of(grid: GeoBox) -> str:
    """The grid's CRS as text that pyproj reads."""
    assert grid.crs is not None, "a sample's grid has a CRS"
    epsg = grid.crs.to_epsg()
    return str(grid.crs.to_wkt()) if epsg is None else f"EPSG:{epsg}"


def outline(grid: GeoBox, points: int = 32) -> tuple[Floats, Floats]:
    """Longitude and latitude of a closed ring around a grid, ``points`` to a side."""
    height, width = grid.shape
    t = np.arange(points) / points
    zero, one = np.zeros(points), np.ones(points)
    col = np.concatenate([t, one, 1 - t, zero, [0.0]]) * width
    row = np.concatenate([zero, t, one, 1 - t, [0.0]]) * height
    x, y = _at(grid.affine, col, row)
    lon, lat = _transformer(crs_of(grid), "EPSG:4326").transform(x, y)
    return np.asarray(lon), np.asarray(lat)


@lru_cache(maxsize=16)
def _centres(crs: str, affine: tuple[float, ...], shape: tuple[int, int], target: str) -> tuple[Floats, Floats]:
    """Pixel centres of a grid in another CRS: (1, x) and (y, 1), or both (y, x) where they are transformed."""
    cols = np.arange(shape[1], dtype=np.float64)[None, :] + 0.5
    rows = np.arange(shape[0], dtype=np.float64)[:, None] + 0.5
    x, y = _at(Affine(*affine), cols, rows)
    if crs == target:
        return x, y
    x, y = np.broadcast_arrays(x, y)
    x, y = _transformer(crs, target).transform(x, y)
    return x, y


def _positions(raster: Raster, grid: GeoBox, n: int) -> tuple[Floats, Floats]:
    """Fractional row and column of the grid's pixel centres on the raster's n x n blocks; NaN off the map."""
    x, y = _centres(crs_of(grid), tuple(grid.affine)[:6], (grid.shape[0], grid.shape[1]), raster.crs)
    if _is_geographic(raster.crs):
        middle = raster.transform.c + raster.transform.a * raster.width / 2
        x = np.where(x - middle > 180.0, x - 360.0, np.where(x - middle < -180.0, x + 360.0, x))
    a, b, c, d, e, f = (value * n if i not in (2, 5) else value for i, value in enumerate(raster.transform[:6]))
    if b == 0.0 and d == 0.0:
        row, col = (y - f) / e, (x - c) / a
    else:
        det, dx, dy = a * e - b * d, x - c, y - f
        row, col = (a * dy - d * dx) / det, (e * dx - b * dy) / det
    return np.where(np.isfinite(row), row, np.nan), np.where(np.isfinite(col), col, np.nan)


def _shared_lattice(raster: Raster, grid: GeoBox) -> tuple[int, int] | None:
    """Row and column of the grid's first pixel on the raster's lattice; None when the grid is not on it."""
    if crs_of(grid) != raster.crs or _is_geographic(raster.crs):
        return None
    mine, theirs = grid.affine, raster.transform
    if theirs.b or theirs.d or not (math.isclose(mine.a, theirs.a) and math.isclose(mine.e, theirs.e)):
        return None
    row, col = (mine.f - theirs.f) / theirs.e, (mine.c - theirs.c) / theirs.a
    on_it = abs(row - round(row)) <= _SAME and abs(col - round(col)) <= _SAME
    return (round(row), round(col)) if on_it else None


def level(raster: Raster, grid: GeoBox) -> int:
    """How often the native pixel can be doubled and still not be coarser than the grid's, at the grid's middle."""
    height, width = grid.shape
    col = np.array([width / 2, width / 2 + 1, width / 2])
    row = np.array([height / 2, height / 2, height / 2 + 1])
    x, y = _at(grid.affine, col, row)
    if crs_of(grid) != raster.crs:
        x, y = (np.asarray(v) for v in _transformer(crs_of(grid), raster.crs).transform(x, y))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return 0
    dx, dy = x[1:] - x[0], y[1:] - y[0]
    if _is_geographic(raster.crs):
        dx = (dx + 180.0) % 360.0 - 180.0
    a, b, _, d, e, _ = raster.transform[:6]
    det = a * e - b * d
    cols, rows = math.hypot(*((e * dx - b * dy) / det)), math.hypot(*((a * dy - d * dx) / det))
    ratio = min(cols, rows)
    return max(0, math.floor(math.log2(ratio) + _LEVEL_SLACK)) if ratio > 0 else 0


# -- what they hold ------------------------------------------------------------------------------------------------

_NOWHERE = -(2**50)


def _whole(position: Floats) -> Ints:
    return np.where(np.isnan(position), float(_NOWHERE), np.floor(position)).astype(np.int64)


def _gather(raster: Raster, n: int, rows: Ints, cols: Ints, steps: Sequence[tuple[int, int]]) -> list[Pixels]:
    """The block at (row + down, col + right) for every step, all from one window; 0 outside the raster."""
    rows, cols = np.broadcast_arrays(rows, cols)
    height, width = -(-raster.height // n), -(-raster.width // n)
    reach = max(down for down, _ in steps), max(right for _, right in steps)
    inside = (rows >= -reach[0]) & (rows < height) & (cols >= -reach[1]) & (cols < width)
    if not inside.any():
        return [(np.zeros(rows.shape), np.zeros(rows.shape)) for _ in steps]
    top, left = int(rows[inside].min()), int(cols[inside].min())
    bottom, right = int(rows[inside].max()) + reach[0] + 1, int(cols[inside].max()) + reach[1] + 1
    values, valid = _blocks(raster, n, top, left, bottom - top, right - left)
    found = []
    for down, across in steps:
        r = np.where(inside, rows + down - top, 0)
        c = np.where(inside, cols + across - left, 0)
        found.append((np.where(inside, values[r, c], 0.0), np.where(inside, valid[r, c], 0.0)))
    return found


def _padded(raster: Raster, row: int, col: int, height: int, width: int) -> Pixels:
    """A native window, read where the raster has pixels and of validity 0 elsewhere."""
    if height * width > MAX_WINDOW_PIXELS:
        raise SourceError(f"a window of {height} x {width} native pixels is too large for one chip")
    values, valid = np.zeros((height, width)), np.zeros((height, width))
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + height, raster.height), min(col + width, raster.width)
    if top < bottom and left < right:
        part = slice(top - row, bottom - row), slice(left - col, right - col)
        values[part], valid[part] = raster.read(top, left, bottom - top, right - left)
        values[part] = np.where(valid[part] > 0, values[part], 0.0)
    return values, valid


def _blocks(raster: Raster, n: int, row: int, col: int, height: int, width: int) -> Pixels:
    """One value per n x n block: the mean of what is valid, or its most frequent class, and the share that is valid."""
    if n == 1:
        return _padded(raster, row, col, height, width)
    pair = _padded(raster, row * n, col * n, height * n, width * n)
    values, valid = (a.reshape(height, n, width, n).transpose(1, 3, 0, 2).reshape(n * n, height, width) for a in pair)
    if raster.classes:
        return _most_frequent(values, valid), valid.mean(axis=0)
    weight = valid.sum(axis=0)
    mean = np.divide((values * valid).sum(axis=0), weight, out=np.zeros_like(weight), where=weight > 0)
    return (np.floor(mean + 0.5) if raster.whole else mean), valid.mean(axis=0)


def _most_frequent(values: Floats, valid: Floats) -> Floats:
    """The most frequent valid value over the first axis, the lowest of several."""
    best, most = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for code in np.unique(values[valid > 0]):
        count = ((values == code) & (valid > 0)).sum(axis=0)
        best, most = np.where(count > most, code, best), np.maximum(count, most)
    return best


def _weighted(corners: Sequence[Pixels], weights: Sequence[Floats]) -> Pixels:
    """Mean of the valid corners, and the share of the weight that they carry."""
    if all(bool((valid == 1.0).all()) for _, valid in corners):
        total = sum((w * v for w, (v, _) in zip(weights, corners, strict=True)), start=np.zeros(()))
        return total, np.ones(total.shape)
    total = sum((w * m * v for w, (v, m) in zip(weights, corners, strict=True)), start=np.zeros(()))
    share = sum((w * m for w, (_, m) in zip(weights, corners, strict=True)), start=np.zeros(()))
    full = np.logical_and.reduce([m == 1.0 for _, m in corners])
    safe = np.where(full | ~(share > 0.0), 1.0, share)
    return np.nan_to_num(np.where(share > 0.0, total / safe, 0.0)), np.nan_to_num(np.where(full, 1.0, share))
