"""Coarse global fields, read smoothly anywhere on the sphere: what real geography gives the synthetic Earth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_noise import Floats, Points


@dataclass(frozen=True, eq=False)
class SphereGrid:
    """A coarse global field (north-up, cell centres), read by cubic B-splines: twice differentiable."""

    cells: NDArray[np.float64]
    step: float

    def __call__(self, p: Points) -> Floats:
        """The field at the points."""
        return self._at(p) if p.mesh is None else p.mesh.fields(self, lambda nodes: (self._at(nodes),))[0]

    def _at(self, p: Points) -> Floats:
        cols = self.cells.shape[1]
        row = (90.0 - p.lat) / self.step - 0.5 + 2.0
        col = (p.lon + 180.0) / self.step - 0.5 + 2.0
        row0, col0 = np.floor(row), np.floor(col)
        wr, wc = _bspline(row - row0), _bspline(col - col0)
        base = (row0.astype(np.int64) - 1) * cols + col0.astype(np.int64) - 1
        flat = self.cells.ravel()
        # A small window lies in one cell: then the sixteen values around are numbers, not gathered arrays.
        first: Any = base if p.size == 0 or base.min() != base.max() else int(base[0])
        total = np.zeros(p.size)
        for i in range(4):
            line = np.zeros(p.size)
            for j in range(4):
                line += wc[j] * flat[first + (i * cols + j)]
            total += wr[i] * line
        return total


def sphere_grid(cells: NDArray[np.float64]) -> SphereGrid:
    """A grid of (rows, 2 rows) cells, made constant at the poles and padded around them and the antimeridian."""
    step = 180.0 / cells.shape[0]
    cells = cells.astype(np.float64)
    edge = np.arange(cells.shape[0]) + 0.5
    from_pole = np.minimum(edge, edge[::-1]) * step
    keep = np.clip((from_pole - 3 * step) / (4 * step), 0.0, 1.0)[:, None]
    cells = cells.mean(axis=1, keepdims=True) * (1 - keep) + cells * keep
    half = cells.shape[1] // 2
    over = np.roll(cells, half, axis=1)
    cells = np.concatenate([over[1::-1], cells, over[:-3:-1]], axis=0)
    return SphereGrid(np.ascontiguousarray(np.concatenate([cells[:, -2:], cells, cells[:, :3]], axis=1)), step)


def _bspline(t: Floats) -> Sequence[Floats]:
    """Weights of the four cells around a fraction t of the way from the second to the third."""
    u = 1.0 - t
    return (
        u * u * u / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        t * t * t / 6.0,
    )
