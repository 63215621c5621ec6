"""Terrain.*: slope and aspect from the four neighbours of each pixel, on the elevation's own lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.raster import Array, Grid, Pair, Pixels, Reader, coarser, gather, indices, level_of, positions
from mmbuild.sandbox.values import EarthEngineError, PixelType, Projection, is_geographic

# WGS 84: equatorial radius in metres and squared eccentricity.
SEMI_MAJOR_M, ECCENTRICITY2 = 6378137.0, 6.69437999014e-3


def degree_lengths_m(lat: Array) -> tuple[Array, Array]:
    """Metres in one degree of longitude and of latitude, on the WGS 84 ellipsoid."""
    sine2 = np.sin(np.radians(lat)) ** 2
    normal = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY2 * sine2)
    meridian = normal * (1 - ECCENTRICITY2) / (1 - ECCENTRICITY2 * sine2)
    radian = math.pi / 180.0
    return normal * np.cos(np.radians(lat)) * radian, meridian * radian


@dataclass(frozen=True, eq=False)
class Gradient:
    """Slope or aspect in degrees of the inner pixels on a lattice, then nearest; masked where a neighbour is."""

    inner: Pixels
    projection: Projection
    output: str

    def read(self, reader: Reader, grid: Grid) -> Pair:
        lattice = coarser(self.projection, level_of(grid, self.projection))

        def fetch(row0: int, col0: int, height: int, width: int) -> Pair:
            return self._window(reader, lattice, (row0, col0, height, width))

        rows, cols = (indices(p) for p in positions(reader, grid, lattice))
        return gather(fetch, rows, cols)[0]

    def _window(self, reader: Reader, lattice: Projection, window: tuple[int, int, int, int]) -> Pair:
        row0, col0, height, width = window
        a, _, c, _, e, f = lattice.transform
        grid = Grid(lattice.crs, (a, 0.0, c + (col0 - 1) * a, 0.0, e, f + (row0 - 1) * e), width + 2, height + 2)
        z, mask = reader.read(self.inner, grid)
        dx, dy = self._pixel_size_m(grid)
        east = (z[1:-1, 2:] - z[1:-1, :-2]) / (2 * dx)
        north = (z[2:, 1:-1] - z[:-2, 1:-1]) / (2 * dy)
        valid = np.minimum.reduce([mask[1:-1, 2:], mask[1:-1, :-2], mask[2:, 1:-1], mask[:-2, 1:-1], mask[1:-1, 1:-1]])
        if self.output == "slope":
            values = np.degrees(np.arctan(np.hypot(east, north)))
        else:
            # Downhill direction, clockwise from north.
            values = np.degrees(np.arctan2(-east, -north)) % 360.0
        return np.where(valid > 0, values, 0.0), valid

    def _pixel_size_m(self, grid: Grid) -> tuple[Any, Any]:
        """Signed metres east per column and north per row, for the rows inside the window's margin."""
        a, e = grid.transform[0], grid.transform[4]
        if not is_geographic(grid.crs):
            return a, e
        _, y = grid.centres()
        per_lon, per_lat = degree_lengths_m(y[1:-1])
        return a * per_lon, e * per_lat


def _terrain(input: Image, outputs: dict[str, PixelType]) -> Image:
    if not input.bands:
        raise EarthEngineError("Terrain: The image has no bands.")
    band = input.bands[0]
    if band.projection.transform[1] or band.projection.transform[3]:
        raise EarthEngineError("The offline Earth Engine computes terrain on upright lattices only.")
    bands = [
        replace(band, name=name, type=kind, node=Gradient(band.node, band.projection, name), size=None)
        for name, kind in outputs.items()
    ]
    return input.with_bands(bands)


@algorithm("Terrain.slope")
def slope(context: Context, input: Image) -> Image:
    return _terrain(input, {"slope": PixelType("float", 0.0, 90.0)})


@algorithm("Terrain.aspect")
def aspect(context: Context, input: Image) -> Image:
    return _terrain(input, {"aspect": PixelType("float", 0.0, 360.0)})
