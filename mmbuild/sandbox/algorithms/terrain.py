"""Terrain.*: slope, aspect and hillshade from the four neighbours of each pixel, on the elevation's own lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image
from mmbuild.sandbox.picking import Array, Pair, gather, indices
from mmbuild.sandbox.raster import Grid, Local, Pixels, Reader, coarser, level_of, positions
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


def zone_area_m2(lat: Array) -> Array:
    """Area of the WGS 84 ellipsoid between the equator and a parallel, negative in the south.

    Source: Snyder, Map Projections: A Working Manual (USGS 1395), equation 3-12, times pi b^2.
    """
    root = math.sqrt(ECCENTRICITY2)
    sine = np.sin(np.radians(lat))
    minor2 = SEMI_MAJOR_M**2 * (1 - ECCENTRICITY2)
    return np.asarray(math.pi * minor2 * (sine / (1 - ECCENTRICITY2 * sine**2) + np.arctanh(root * sine) / root))


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
            # Downhill direction, clockwise from north; 0 on flat ground (assumed).
            flat = (east == 0) & (north == 0)
            values = np.where(flat, 0.0, np.degrees(np.arctan2(-east, -north)) % 360.0)
        return np.where(valid > 0, values, 0.0), valid

    def _pixel_size_m(self, grid: Grid) -> tuple[Any, Any]:
        """Signed metres east per column and north per row, for the rows inside the window's margin."""
        a, e = grid.transform[0], grid.transform[4]
        if not is_geographic(grid.crs):
            return a, e
        _, y = grid.centres()
        per_lon, per_lat = degree_lengths_m(y[1:-1])
        return a * per_lon, e * per_lat


SLOPE, ASPECT = PixelType("float", 0.0, 90.0), PixelType("float", 0.0, 360.0)
HILLSHADE = PixelType("int", 0.0, 255.0)
# Where the light of Terrain.products comes from; the defaults of Terrain.hillshade.
AZIMUTH_DEG, ELEVATION_DEG = 270.0, 45.0


def _elevation(input: Image) -> Band:
    """The only band, or of several the one named `elevation`."""
    band = input.bands[0] if len(input.bands) == 1 else input.band("elevation")
    if band is None:
        raise EarthEngineError(
            f"Terrain: Need a single band or a band named 'elevation', found [{', '.join(input.names)}]."
        )
    if band.projection.transform[1] or band.projection.transform[3]:
        raise EarthEngineError("The offline Earth Engine computes terrain on upright lattices only.")
    return band


def _gradient(elevation: Band, name: str, kind: PixelType) -> Band:
    node = Gradient(elevation.node, elevation.projection, name)
    return replace(elevation, name=name, type=kind, node=node, size=None)


def _hillshade(elevation: Band, azimuth: float, height: float) -> Band:
    """Cosine of the angle between the light and the surface's normal, 0 to 255, rounded; 0 in the shade."""
    slope, aspect = _gradient(elevation, "slope", SLOPE), _gradient(elevation, "aspect", ASPECT)
    zenith = math.radians(90.0 - height)

    def compute(steep: Pair, facing: Pair) -> Pair:
        tilt, turn = np.radians(steep[0]), np.radians(azimuth - facing[0])
        light = math.cos(zenith) * np.cos(tilt) + math.sin(zenith) * np.sin(tilt) * np.cos(turn)
        mask = np.minimum(steep[1], facing[1])
        return np.where(mask > 0, np.floor(np.clip(light, 0.0, 1.0) * 255.0 + 0.5), 0.0), mask

    return replace(slope, name="hillshade", type=HILLSHADE, node=Local((slope.node, aspect.node), compute))


@algorithm("Terrain.slope")
def slope(context: Context, input: Image) -> Image:
    return input.with_bands([_gradient(_elevation(input), "slope", SLOPE)])


@algorithm("Terrain.aspect")
def aspect(context: Context, input: Image) -> Image:
    return input.with_bands([_gradient(_elevation(input), "aspect", ASPECT)])


@algorithm("Terrain.hillshade")
def hillshade(context: Context, input: Image, azimuth: float, elevation: float) -> Image:
    return input.with_bands([_hillshade(_elevation(input), azimuth, elevation)])


@algorithm("Terrain.products")
def products(context: Context, input: Image) -> Image:
    """The input's bands, then slope, aspect and hillshade."""
    band = _elevation(input)
    made = [_gradient(band, "slope", SLOPE), _gradient(band, "aspect", ASPECT)]
    return input.with_bands([*input.bands, *made, _hillshade(band, AZIMUTH_DEG, ELEVATION_DEG)])
