"""Pixels of a lattice by index: which windows to fetch for them, and their values out of those windows.

It knows rows and columns only; where they lie on the Earth and what is in the windows is told by who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.values import EarthEngineError

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
"""Values and mask of one band on a grid, both float64 (height, width); mask 0 = no data, 1 = valid, else partly."""

# One native window larger than this ends the request as the real service would, instead of the machine's memory.
MAX_WINDOW_PIXELS = 2**27

Fetch = Callable[[int, int, int, int], Pair]
"""(row, column, height, width) of a window -> its pixels."""
# The index of a place that a projection does not reach.
NOWHERE = -(2**50)


def gather(
    fetch: Fetch, rows: NDArray[np.int64], cols: NDArray[np.int64], offsets: Sequence[tuple[int, int]] = ((0, 0),)
) -> list[Pair]:
    """Pixels at (row + dr, column + dc) for every offset, through as few and as small windows as the indices allow.

    rows, cols: broadcastable int arrays; an index below -2^40 means "nowhere" and stays masked.
    """
    shape = np.broadcast_shapes(rows.shape, cols.shape)
    reach = 1 + max(dr for dr, _ in offsets), 1 + max(dc for _, dc in offsets)
    row_runs, col_runs = _runs(rows), _runs(cols)
    if len(row_runs) == len(col_runs) == 1 and min(rows.min(), cols.min()) > NOWHERE:
        pair = _fetched(fetch, row_runs[0], col_runs[0], reach)
        r, c = rows - row_runs[0][0], cols - col_runs[0][0]
        return [(_pick(pair[0], r + dr, c + dc), _pick(pair[1], r + dr, c + dc)) for dr, dc in offsets]
    result = [(np.zeros(shape), np.zeros(shape)) for _ in offsets]
    for row_run in row_runs:
        for col_run in col_runs:
            here = ((rows >= row_run[0]) & (rows <= row_run[1])) & ((cols >= col_run[0]) & (cols <= col_run[1]))
            if not here.any():
                continue
            values, mask = _fetched(fetch, row_run, col_run, reach)
            r, c = (a[here] for a in np.broadcast_arrays(rows - row_run[0], cols - col_run[0]))
            for (dr, dc), (out_values, out_mask) in zip(offsets, result, strict=True):
                out_values[here], out_mask[here] = values[r + dr, c + dc], mask[r + dr, c + dc]
    return result


def _fetched(fetch: Fetch, rows: tuple[int, int], cols: tuple[int, int], reach: tuple[int, int]) -> Pair:
    height, width = rows[1] - rows[0] + reach[0], cols[1] - cols[0] + reach[1]
    if height * width > MAX_WINDOW_PIXELS:
        raise EarthEngineError("User memory limit exceeded.")
    return fetch(rows[0], cols[0], height, width)


def _pick(values: Array, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Array:
    """values[rows, cols]; a view where rows and columns are consecutive."""
    if rows.shape[1] != 1 or cols.shape[0] != 1:
        return values[rows, cols]
    row, col = (_consecutive(index.ravel()) for index in (rows, cols))
    return values[row][:, col]


def _consecutive(index: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """The indices as a slice where they count up by one."""
    first, last = int(index[0]), int(index[-1])
    counts_up = last - first == index.size - 1 and bool((np.diff(index) == 1).all())
    return slice(first, last + 1) if counts_up else index


def indices(position: Array) -> NDArray[np.int64]:
    """floor of positions as integers; NaN becomes NOWHERE."""
    floored = np.floor(position)
    if np.isnan(floored).any():
        floored = np.where(np.isnan(floored), float(NOWHERE), floored)
    return floored.astype(np.int64)


def _runs(index: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last index wanted, in two runs when the indices lie in two distant groups (the antimeridian)."""
    inside = index[index > NOWHERE]
    if inside.size == 0:
        return []
    low, high = int(inside.min()), int(inside.max())
    if high - low <= 4 * max(index.shape) + 64:
        return [(low, high)]
    unique = np.unique(inside)
    gaps = np.diff(unique)
    widest = int(np.argmax(gaps))
    if gaps[widest] * 2 < high - low:
        return [(low, high)]
    return [(low, int(unique[widest])), (int(unique[widest + 1]), high)]
