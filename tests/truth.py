"""Independent truths for stored chips: pyproj moves the places, plain numpy interpolates, rasterio reads the files.

Nothing here comes from mmbuild or its sandbox: what is read of a corpus is read with pyarrow and zarr.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import zarr
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Fetch = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Floats, Bools]]
"""Values and validity (row, column) of native pixels at the given rows and columns (each sorted and unique)."""

# A stored pixel is valid when its inputs carry at least this share of the weight; nearer than the slack to it, float
# arithmetic decides.
FULLY_VALID, VALID_SLACK = 0.999, 1e-6


# -- what a corpus says of itself ---------------------------------------------------------------------------------


def record_rows(corpus: Path) -> list[dict[str, Any]]:
    """Every row of every commit record."""
    files = sorted((corpus / "shards").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()


def stored_chip(corpus: Path, row: dict[str, Any]) -> np.ndarray:
    """The chip of a record row through zarr-python: (band, y, x), or (band,) of an image-level modality."""
    chip: np.ndarray = _group(str(corpus / "cube.zarr"))[f"{row['modality']}/data"][row["slot"], row["time"]]
    return chip


@cache
def _group(path: str) -> Any:
    return zarr.open_group(path, mode="r")


def centres(row: dict[str, Any]) -> tuple[Floats, Floats]:
    """Coordinates of the chip's pixel centres in its CRS, both (y, x)."""
    x = row["x0"] + (np.arange(row["width"]) + 0.5) * row["gsd"]
    y = row["y0"] - (np.arange(row["height"]) + 0.5) * row["gsd"]
    return tuple(np.meshgrid(x, y))  # type: ignore[return-value]


# -- native pixels ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """Native pixels of one band: north-up, `left` and `top` are the outer corner of row 0, column 0."""

    epsg: int
    left: float
    top: float
    width: float
    height: float  # pixel sizes, both positive
    fetch: Fetch

    def positions(self, epsg: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Fractional (row, column) of places; pixel (0, 0) spans 0 to 1."""
        x, y = moved(epsg, self.epsg, x, y)
        return (self.top - y) / self.height, (x - self.left) / self.width

    def places(self, row: Floats, column: Floats) -> tuple[Floats, Floats]:
        """Coordinates of fractional positions."""
        return self.left + column * self.width, self.top - row * self.height

    def pixels(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[Floats, Bools]:
        """Values and validity at (row, column) pairs of any shape."""
        some_rows, at_row = np.unique(rows, return_inverse=True)
        some_columns, at_column = np.unique(columns, return_inverse=True)
        values, valid = self.fetch(some_rows, some_columns)
        at = (at_row.reshape(rows.shape), at_column.reshape(columns.shape))
        return values[at], valid[at]


@cache
def _transformer(source: int, target: int) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def moved(source: int, target: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates (x or longitude first) in another CRS."""
    if source == target:
        return x, y
    moved_x, moved_y = _transformer(source, target).transform(x, y)
    return np.asarray(moved_x), np.asarray(moved_y)


def file_lattice(path: Path, band: int = 1, *, offset: float = 0.0, nodata: float | None = None) -> Lattice:
    """A band of a GeoTIFF (rasterio counts from 1); `offset` is added to its values, `nodata` and beyond is invalid."""
    with rasterio.open(path) as file:
        a, b, left, d, e, top = file.transform[:6]
        shape, epsg = file.shape, file.crs.to_epsg()
    assert b == d == 0.0, f"{path} is not north-up"

    def fetch(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[Floats, Bools]:
        inside = ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))[None, :]
        r, c = np.clip(rows, 0, shape[0] - 1), np.clip(columns, 0, shape[1] - 1)
        window = ((int(r.min()), int(r.max()) + 1), (int(c.min()), int(c.max()) + 1))
        with rasterio.open(path) as file:
            raw = file.read(band, window=window).astype(np.float64)
        values = raw[np.ix_(r - r.min(), c - c.min())]
        valid = inside if nodata is None else inside & (values != nodata)
        return values + offset, valid & np.isfinite(values)

    return Lattice(epsg=epsg, left=left, top=top, width=a, height=-e, fetch=fetch)


# -- the three ways to fill a grid --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Filled:
    """A grid filled from a lattice: values, how much of the weight was valid, and where rounding decides that."""

    values: Floats
    share: Floats
    unsure: Bools


def nearest(lattice: Lattice, epsg: int, x: Floats, y: Floats, *, edge_px: float = 0.0) -> Filled:
    """The native pixel that contains each place; unsure within `edge_px` of a native pixel's edge."""
    row, column = lattice.positions(epsg, x, y)
    values, valid = lattice.pixels(np.floor(row).astype(np.int64), np.floor(column).astype(np.int64))
    off = np.minimum(np.abs(row - np.rint(row)), np.abs(column - np.rint(column)))
    return Filled(values=values, share=valid.astype(np.float64), unsure=off <= edge_px if edge_px else off < 0)


def bilinear(lattice: Lattice, epsg: int, x: Floats, y: Floats) -> Filled:
    """Between native pixel centres, in float64, over the valid ones; unsure where the valid share is at the limit."""
    row, column = (position - 0.5 for position in lattice.positions(epsg, x, y))
    r, c = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    down, right = row - r, column - c
    total, share = np.zeros(x.shape), np.zeros(x.shape)
    for dr, dc, weight in (
        (0, 0, (1 - down) * (1 - right)),
        (0, 1, (1 - down) * right),
        (1, 0, down * (1 - right)),
        (1, 1, down * right),
    ):
        values, valid = lattice.pixels(r + dr, c + dc)
        total += np.where(valid, weight * values, 0.0)
        share += np.where(valid, weight, 0.0)
    all_valid = share > 1 - 1e-12
    mean = np.divide(total, np.where(all_valid, 1.0, share), out=np.zeros(x.shape), where=share > 0)
    return Filled(values=mean, share=share, unsure=np.abs(share - FULLY_VALID) < VALID_SLACK)


def by_gdal(path: Path, band: int, row: dict[str, Any], *, rule: str) -> tuple[Floats, Bools]:
    """The chip's grid filled by GDAL (rasterio's WarpedVRT) straight from a file, in the file's dtype, and its mask."""
    # Without these, GDAL interpolates coordinates along a line (an eighth of a pixel is its default tolerance) and
    # averages more than four pixels where native ones are 5 % smaller than the chip's.
    exact = {"tolerance": 1e-9, "XSCALE": 1, "YSCALE": 1}
    transform = Affine(row["gsd"], 0, row["x0"], 0, -row["gsd"], row["y0"])
    with (
        rasterio.open(path) as file,
        WarpedVRT(
            file, crs=f"EPSG:{row['epsg']}", transform=transform, width=row["width"], height=row["height"],
            resampling=Resampling[rule], **exact,
        ) as warped,
    ):  # fmt: skip
        return warped.read(band).astype(np.float64), warped.read_masks(band) > 0


# -- comparing ----------------------------------------------------------------------------------------------------


def as_stored(filled: Filled, dtype: np.dtype[Any], nodata: float) -> np.ndarray:
    """What a chip holds: integers rounded half up, nodata wherever not (nearly) all of the weight is valid."""
    values = np.floor(filled.values + 0.5) if dtype.kind in "iu" else filled.values
    result: np.ndarray = np.where(filled.share >= FULLY_VALID, values, nodata).astype(dtype)
    return result


def differing(chip: np.ndarray, truth: np.ndarray, sure: Bools) -> int:
    """How many pixels differ: any difference of integers, more than one step of float32 of others."""
    if chip.dtype.kind in "iu":
        return int(((chip != truth) & sure).sum())
    step = np.spacing(np.maximum(np.abs(chip), np.abs(truth)))
    return int(((np.abs(chip - truth) > step) & sure).sum())


def in_bands(chip: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The planes of a chip by band name."""
    assert len(chip) == len(names)
    return dict(zip(names, chip, strict=True))
