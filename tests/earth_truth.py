"""The synthetic Earth as it must look in a corpus: native pixels from its public fields, places from pyproj.

Where a band's pixels lie is asked of the genuine ee client; what they hold, of `Earth`, point by point; the way from
there to a chip is tests/truth.py's own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Geod

from mmbuild.sandbox.earth import Earth
from tests.truth import Bools, Filled, Floats, Lattice, bilinear, centres, moved, nearest

Field = Callable[[Floats, Floats], Floats]
"""A field at longitudes and latitudes in the product's own numbers, before they are rounded."""
Ints = NDArray[np.int64]

# Second derivatives are measured at steps of an eighth of a native pixel, and of 5 m at most: an eighth of the
# shortest waves of the ground's texture. Slivers between two jumps of a field that are narrower go unseen.
STEPS, STEP_M = 8, 5.0
METRES_PER_DEGREE = 111_320.0


# -- what a band holds --------------------------------------------------------------------------------------------


# Metres (or digital numbers) that a product's field may lie off the exact one: tests/test_earth_noise.py.
NODES_OFF = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Native:
    """One band of one image: its pixels, and the smooth field they are samples of (None: none that is public)."""

    lattice: Lattice
    field: Field | None = None
    quantum: float = 0.0  # step of the product's own numbers: 0 where they are not rounded
    is_inexact: bool = False  # made by arithmetic of ours, so a tie of rounding may go either way


def native(
    earth: Earth, images: Sequence[str], band: str, *, field: Field | None = None, dtype: str = "float64"
) -> Native:
    """A band on the lattice of the first of some images, valid where any of them is.

    With a field, values are the field at native pixel centres in the product's dtype; without, the product's values.
    """
    epsg, (width, _, left, _, height, top) = projection(images[0], band)

    def fetch(rows: Ints, columns: Ints) -> tuple[Floats, Bools]:
        y, x = np.meshgrid(top + (rows + 0.5) * height, left + (columns + 0.5) * width, indexing="ij")
        lon, lat = _degrees(epsg, x, y)
        found = [earth.product(*asset_and_index(earth, image), band, lon, lat) for image in images]
        valid = np.logical_or.reduce([mask for _, mask in found])
        if field is None:
            return np.select([mask for _, mask in found], [values for values, _ in found]).astype(np.float64), valid
        exact = field(lon, lat)
        # Products interpolate the field between nodes: so near to a tie of rounding it is theirs to say.
        tied = np.abs(exact % 1.0 - 0.5) < (0.0 if dtype.startswith("float") else NODES_OFF)
        told = np.select([mask for _, mask in found], [values for values, _ in found]).astype(np.float64)
        return np.where(tied & valid & (np.abs(told - exact) < 1.0), told, _kept(exact, dtype)), valid

    lattice = Lattice(epsg=epsg, left=left, top=top, width=width, height=-height, fetch=fetch)
    return Native(lattice=lattice, field=field, quantum=0.0 if dtype.startswith("float") else 1.0)


def _kept(values: Floats, dtype: str) -> Floats:
    kept: Floats = (values if dtype.startswith("float") else np.rint(values)).astype(dtype).astype(np.float64)
    return kept


@cache
def projection(image: str, band: str) -> tuple[int, tuple[float, ...]]:
    """EPSG code and affine transform of a band, as the genuine client tells."""
    import ee

    told = ee.Image(image).select(band).projection().getInfo()
    transform = tuple(told["transform"])
    assert transform[1] == transform[3] == 0
    return int(told["crs"].removeprefix("EPSG:")), transform


def asset_and_index(earth: Earth, image: str) -> tuple[str, str]:
    """A lone image has no index."""
    if earth.world.dataset(image) is not None:
        return image, ""
    asset, index = image.rsplit("/", 1)
    return asset, index


def _degrees(epsg: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    lon, lat = moved(epsg, 4326, x, y)
    return np.where(np.abs(lon) > 180.0, (lon + 180.0) % 360.0 - 180.0, lon), lat


def natives(earth: Earth, row: dict[str, Any], bands: Sequence[str]) -> dict[str, Native | None]:
    """The native pixels behind every band of a stored chip of one image; None: the scene lacks the band."""
    name, scenes = row["modality"], row["scene_ids"]
    index = scenes[0].rsplit("/", 1)[-1]
    elevation: Field = lambda lon, lat: np.maximum(earth.elevation(lon, lat), 0.0)  # noqa: E731
    canopy: Field = lambda lon, lat: np.clip(earth.canopy_height(lon, lat), 0.0, 60.0)  # noqa: E731
    match name:
        case "sentinel2_l2a" | "sentinel2_l1c":
            level = name.removeprefix("sentinel2_").upper()
            fields = {band: _reflectance(earth, band, index, level) for band in bands}
            return {band: native(earth, scenes, band, field=f, dtype="uint16") for band, f in fields.items()}
        case "sentinel1_asc" | "sentinel1_desc":
            held = [band.id for band in earth.world.synthetic_dataset("COPERNICUS/S1_GRD").image(index).bands]
            fields = {band: _backscatter(earth, band, index) for band in bands if band in held}
            return {b: native(earth, scenes, b, field=fields[b]) if b in fields else None for b in bands}
        case "sentinel2_scl" | "cloud_score_plus":
            return {band: native(earth, scenes, band) for band in bands}
        case "aster_gdem":
            whole = native(earth, scenes, "b1", field=elevation, dtype="int16")
            return {"elevation": whole, "slope": Native(lattice=slope_hundredths(whole.lattice), is_inexact=True)}
        case "copernicus_dem":
            return {"DEM": native(earth, scenes, "DEM", field=elevation, dtype="float32")}
        case "esa_worldcover":
            return {"Map": native(earth, scenes, "Map", field=earth.land_cover, dtype="uint8")}
        case "canopy_height":
            height, deviation = sorted(scenes, key=lambda scene: "SD" in scene)
            full = native(earth, [height], "b1", field=canopy, dtype="uint8")
            return {"height": full, "std": native(earth, [deviation], "b1")}
        case _:
            raise KeyError(name)


def _reflectance(earth: Earth, band: str, index: str, level: str) -> Field:
    """Digital numbers start at 1: 0 is kept for missing pixels."""
    return lambda lon, lat: np.maximum(1e4 * earth.reflectance(band, lon, lat, index, level=level), 1.0)


def _backscatter(earth: Earth, band: str, index: str) -> Field:
    return lambda lon, lat: earth.backscatter(band, lon, lat, index)


def slope_hundredths(heights: Lattice) -> Lattice:
    """Slope in hundredths of a degree, from the four neighbours of each pixel; distances along the WGS 84 ellipsoid."""
    geod = Geod(ellps="WGS84")

    def fetch(rows: Ints, columns: Ints) -> tuple[Floats, Bools]:
        north, south = heights.fetch(rows - 1, columns), heights.fetch(rows + 1, columns)
        west, east = heights.fetch(rows, columns - 1), heights.fetch(rows, columns + 1)
        _, lat = heights.places(rows + 0.5, np.zeros(len(rows)))
        same = np.zeros(len(rows))
        across = geod.inv(same - heights.width, lat, same + heights.width, lat)[2][:, None]
        along = geod.inv(same, lat - heights.height, same, lat + heights.height)[2][:, None]
        rise = np.hypot((east[0] - west[0]) / across, (north[0] - south[0]) / along)
        valid = np.logical_and.reduce([part[1] for part in (north, south, west, east, heights.fetch(rows, columns))])
        return 100.0 * np.degrees(np.arctan(rise)), valid

    return Lattice(**{**vars(heights), "fetch": fetch})


# -- what a chip must hold ----------------------------------------------------------------------------------------


def expected(lattice: Lattice, row: dict[str, Any], rule: str) -> Filled:
    """The chip's grid filled by the modality's resampling rule."""
    return (nearest if rule == "nearest" else bilinear)(lattice, row["epsg"], *centres(row))


@dataclass(frozen=True, kw_only=True, eq=False)
class Closeness:
    """How far stored values are from the field, and how far they may be, per valid pixel (both 1-D)."""

    error: Floats
    bound: Floats


def closeness(chip: np.ndarray, band: Native, row: dict[str, Any], nodata: float) -> Closeness:
    """|stored - field| beside h²/8 (max|f_xx| + max|f_yy|) of the native cell around each pixel, plus quantisation.

    Quantisation: half a step of the product's own numbers and half a step of the stored ones.
    """
    rows, columns = (p - 0.5 for p in band.lattice.positions(row["epsg"], *centres(row)))
    step = 1.0 if chip.dtype.kind in "iu" else 4.0 * float(np.spacing(np.abs(chip).max()))
    valid = chip != nodata
    error = np.abs(chip - field_at(band, rows, columns))
    bound = curvature(band, rows, columns) / 8 + 0.5 * band.quantum + 0.5 * step
    return Closeness(error=error[valid], bound=bound[valid])


def field_at(band: Native, rows: Floats, columns: Floats) -> Floats:
    """The field at fractional native positions counted from the centre of pixel (0, 0)."""
    assert band.field is not None
    lon, lat = _degrees(band.lattice.epsg, *band.lattice.places(rows + 0.5, columns + 0.5))
    return np.asarray(band.field(lon, lat), dtype=np.float64)


def curvature(band: Native, rows: Floats, columns: Floats) -> Floats:
    """Largest h² (|f_xx| + |f_yy|) in the cell between the four native centres around each position.

    By second differences at fractions of the native pixel. Where the field jumps they exceed the jump itself, so a
    bound made of them holds there too, and says nothing.
    """
    height_m = band.lattice.height * (METRES_PER_DEGREE if band.lattice.epsg == 4326 else 1.0)
    steps = max(STEPS, math.ceil(height_m / STEP_M))
    r, c = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    total = np.zeros(rows.shape)
    for here in _groups(c):
        r0, c0 = int(r[here].min()), int(c[here].min())
        n_rows, n_columns = int(r[here].max()) - r0 + 1, int(c[here].max()) - c0 + 1
        fine_rows = r0 + np.arange(-1, n_rows * steps + 2) / steps
        fine_columns = c0 + np.arange(-1, n_columns * steps + 2) / steps
        fine = field_at(band, *np.meshgrid(fine_rows, fine_columns, indexing="ij"))
        down = np.abs(fine[2:, 1:-1] - 2 * fine[1:-1, 1:-1] + fine[:-2, 1:-1]) * steps**2
        across = np.abs(fine[1:-1, 2:] - 2 * fine[1:-1, 1:-1] + fine[1:-1, :-2]) * steps**2
        cells = _largest_in_cells(down, steps) + _largest_in_cells(across, steps)
        total[here] = cells[r[here] - r0, c[here] - c0]
    return total


def _largest_in_cells(fine: Floats, steps: int) -> Floats:
    """Largest of the (steps + 1) x (steps + 1) values that each cell has inside and on its border."""
    windows = np.lib.stride_tricks.sliding_window_view(fine, (steps + 1, steps + 1))
    result: Floats = windows[::steps, ::steps].max(axis=(2, 3))
    return result


def _groups(columns: Ints) -> Iterator[Bools]:
    """Everything at once, or two groups where the antimeridian parts the columns."""
    low, high = int(columns.min()), int(columns.max())
    is_parted = high - low > 100_000  # far more native pixels than a chip spans
    yield from [columns <= (low + high) // 2, columns > (low + high) // 2] if is_parted else [columns >= low]


def displacement_m(chip: np.ndarray, band: Native, row: dict[str, Any], nodata: float) -> list[tuple[float, float]]:
    """By how many metres east and north the chip lies off its field, each with its standard error.

    Least squares of stored - f on the gradient of f at the sample pixels' centres; empty where the field is flat.
    Interpolation errs alike within a native pixel, so only native pixels count as independent.
    """
    assert band.field is not None
    x, y = centres(row)

    def at(east_m: float, north_m: float) -> Floats:
        lon, lat = _degrees(row["epsg"], x + east_m, y + north_m)
        return np.asarray(band.field(lon, lat), dtype=np.float64)[chip != nodata]  # type: ignore[misc]

    half = 0.5  # metres: far below any wavelength of the fields
    slopes = np.stack([at(half, 0) - at(-half, 0), at(0, half) - at(0, -half)], axis=1) / (2 * half)
    off = at(0, 0) - chip[chip != nodata].astype(np.float64)
    if np.linalg.matrix_rank(slopes) < 2:
        return []
    moved_m, *_ = np.linalg.lstsq(slopes, off, rcond=None)
    native_m = band.lattice.width * (111_320.0 if band.lattice.epsg == 4326 else 1.0)
    alike = max(native_m / row["gsd"], 1.0) ** 2
    spread = np.linalg.inv(slopes.T @ slopes) * np.var(off - slopes @ moved_m) * alike
    return list(zip(moved_m.tolist(), np.sqrt(np.diag(spread)).tolist(), strict=True))


# -- composites and climate ---------------------------------------------------------------------------------------


def modes(earth: Earth, row: dict[str, Any], band: str) -> tuple[NDArray[np.int64], Bools]:
    """How often each code was seen at each pixel of a composite's chip (code, y, x), and where any was (y, x)."""
    lattices: dict[str, tuple[int, tuple[float, ...]]] = {}
    counts = np.zeros((256, row["height"], row["width"]), dtype=np.int64)
    for scene in row["scene_ids"]:
        tile = scene.rsplit("_", 1)[-1]
        if tile not in lattices:
            lattices[tile] = projection(scene, band)
        epsg, (width, _, left, _, height, top) = lattices[tile]
        x, y = moved(row["epsg"], epsg, *centres(row))
        cx = left + (np.floor((x - left) / width) + 0.5) * width
        cy = top + (np.floor((y - top) / height) + 0.5) * height
        codes, valid = earth.product(*asset_and_index(earth, scene), band, *_degrees(epsg, cx, cy))
        at = np.nonzero(valid)
        np.add.at(counts, (codes[at].astype(np.int64), *at), 1)
    return counts, counts.sum(axis=0) > 0


def climate(earth: Earth, row: dict[str, Any], band: str) -> float | None:
    """A band of the climate modality from the monthly images, None where any of its months is masked."""
    span, rest = band.split("_", 1)
    back = {"prev": [1], "current": [0], "year": list(range(11, -1, -1))}[span]
    source, reduce = {
        "temperature_mean": ("temperature_2m", np.mean), "temperature_min": ("temperature_2m_min", np.min),
        "temperature_max": ("temperature_2m_max", np.max), "precipitation": ("total_precipitation_sum", np.sum),
    }[rest]  # fmt: skip
    last = row["anchor_time"].year * 12 + row["anchor_time"].month - 1
    months = [f"{(last - b) // 12}{(last - b) % 12 + 1:02d}" for b in back]
    found = [earth.product("ECMWF/ERA5_LAND/MONTHLY_AGGR", m, source, row["lon"], row["lat"]) for m in months]
    return float(reduce([value for value, _ in found])) if all(valid for _, valid in found) else None
