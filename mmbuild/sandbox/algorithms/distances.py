"""Distances between pixels of one image, and between the spectra of two: geedim's cloud masks and medoids need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, default_projection
from mmbuild.sandbox.picking import MAX_WINDOW_PIXELS, Array, Pair
from mmbuild.sandbox.raster import Grid, Local, Pixels, Reader
from mmbuild.sandbox.values import EarthEngineError, PixelType

# Distance from how far away the nearest pixel of a column is in rows, and that column is in columns.
METRICS: dict[str, Callable[[Array, float], Array]] = {
    "squared_euclidean": lambda rows, columns: rows**2 + columns**2,
    "manhattan": lambda rows, columns: rows + columns,
    "chebyshev": lambda rows, columns: np.maximum(rows, columns),
}


@dataclass(frozen=True, eq=False)
class Nearest:
    """How far each pixel is from the nearest one that is valid and not 0, in pixels of the requested grid.

    Looks no further than `reach` pixels up, down and sideways; what has none there gets the distance of `reach`
    (assumed: the documentation is silent, and geedim expects a value that it can clamp). Valid everywhere.
    """

    inner: Pixels
    reach: int
    metric: Callable[[Array, float], Array]

    def read(self, reader: Reader, grid: Grid) -> Pair:
        n = self.reach
        if (grid.height + 2 * n) * (grid.width + 2 * n) > MAX_WINDOW_PIXELS:
            raise EarthEngineError("User memory limit exceeded.")
        a, b, _, d, e, _ = grid.transform
        x, y = grid.at(float(-n), float(-n))
        values, mask = reader.read(
            self.inner, Grid(grid.crs, (a, b, x, d, e, y), grid.width + 2 * n, grid.height + 2 * n)
        )
        rows = _rows_to_nearest((values != 0) & (mask > 0))[n : n + grid.height]
        best = np.full((grid.height, grid.width), float(self.metric(np.full(1, float(n)), 0.0)[0]))
        for step in range(-n, n + 1):
            best = np.minimum(best, self.metric(rows[:, n + step : n + step + grid.width], abs(float(step))))
        return best, np.ones_like(best)


def _rows_to_nearest(wanted: NDArray[np.bool_]) -> Array:
    """(y, x): rows up or down to the nearest wanted pixel of the same column; infinite where there is none."""
    row = np.arange(wanted.shape[0], dtype=np.float64)[:, None]
    above = np.maximum.accumulate(np.where(wanted, row, -np.inf), axis=0)
    below = np.minimum.accumulate(np.where(wanted, row, np.inf)[::-1], axis=0)[::-1]
    return np.minimum(row - above, below - row)


@algorithm("Image.fastDistanceTransform")
def fast_distance_transform(context: Context, image: Image, neighborhood: int, units: str, metric: str) -> Image:
    if units != "pixels":
        raise EarthEngineError(f"Image.fastDistanceTransform: Unknown units '{units}'; only 'pixels' are supported.")
    if metric not in METRICS:
        raise EarthEngineError(f"Image.fastDistanceTransform: Unknown metric '{metric}'; known are {sorted(METRICS)}.")
    if len(image.bands) != 1 or neighborhood < 1:
        raise EarthEngineError(
            "Image.fastDistanceTransform: Needs an image of one band and a neighborhood of 1 pixel or more, found "
            f"{len(image.bands)} bands and {neighborhood}."
        )
    node = Nearest(image.bands[0].node, neighborhood, METRICS[metric])
    return image.with_bands([Band("distance", PixelType("double"), node, image.bands[0].projection)])


def _sam(left: Array, right: Array) -> Array:
    """Angle between two spectra in radians."""
    lengths = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
    return np.asarray(np.arccos(np.clip((left * right).sum(axis=0) / lengths, -1.0, 1.0)))


def _sid(left: Array, right: Array) -> Array:
    """Symmetric relative entropy of two spectra scaled to a sum of 1."""
    p, q = left / left.sum(axis=0), right / right.sum(axis=0)
    ratio = np.log(p / q)
    return np.asarray((p * ratio).sum(axis=0) - (q * ratio).sum(axis=0))


def _sed(left: Array, right: Array) -> Array:
    """Squared Euclidean distance."""
    return np.asarray(((left - right) ** 2).sum(axis=0))


SPECTRAL: dict[str, Callable[[Array, Array], Array]] = {"sam": _sam, "sid": _sid, "sed": _sed}


@algorithm("Image.spectralDistance")
def spectral_distance(context: Context, image1: Image, image2: Image, metric: str) -> Image:
    """One band, masked where any band of either image is, or where the metric has no value (a spectrum of zeros)."""
    if metric not in SPECTRAL:
        raise EarthEngineError(
            f"The offline Earth Engine does not implement Image.spectralDistance with metric '{metric}'."
        )
    if len(image1.bands) != len(image2.bands) or not image1.bands:
        raise EarthEngineError(
            "Image.spectralDistance: The images must have the same number of bands, found "
            f"{len(image1.bands)} and {len(image2.bands)}."
        )
    half = len(image1.bands)
    bands = (*image1.bands, *image2.bands)

    def compute(*pairs: Pair) -> Pair:
        with np.errstate(all="ignore"):
            found = SPECTRAL[metric](_stacked(pairs[:half]), _stacked(pairs[half:]))
        mask = np.where(np.isfinite(found), np.minimum.reduce([m for _, m in pairs]), 0.0)
        return np.where(mask > 0, found, 0.0), mask

    node = Local(tuple(band.node for band in bands), compute)
    return image1.with_bands([Band("distance", PixelType("double"), node, default_projection(*bands))])


def _stacked(pairs: Sequence[Pair]) -> Array:
    return np.stack([values for values, _ in pairs])
