"""Image.*: loading, choosing and naming bands, casts, replacement. Pixel by pixel, no change of grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mmbuild.sandbox.algorithms.terrain import degree_lengths_m, zone_area_m2
from mmbuild.sandbox.assets import find_image
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, constant_image, default_projection, within_edges
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Grid, Local, Reader, positions
from mmbuild.sandbox.values import EarthEngineError, PixelType, Projection, is_geographic, pixel_type

# Earth Engine's cast names and the numpy types they clamp to.
CASTS = {
    "uint8": "u1", "toUint8": "u1", "byte": "u1", "toByte": "u1", "int8": "i1", "toInt8": "i1",
    "uint16": "u2", "toUint16": "u2", "int16": "i2", "toInt16": "i2", "short": "i2", "toShort": "i2",
    "uint32": "u4", "toUint32": "u4", "int32": "i4", "toInt32": "i4", "int": "i4", "toInt": "i4",
    "int64": "i8", "toInt64": "i8", "long": "i8", "toLong": "i8",
    "float": "f4", "toFloat": "f4", "double": "f8", "toDouble": "f8",
}  # fmt: skip


@algorithm("Image.load")
def load(context: Context, id: str, version: int) -> Image:
    found = find_image(context.world, id)
    if found is None:
        raise EarthEngineError(
            f"Image.load: Image asset '{id}' not found (does not exist or caller does not have access)."
        )
    return context.image(*found)


@algorithm("Image.constant")
def constant(context: Context, value: Any) -> Image:
    return constant_image(value)


@algorithm("Image.select")
def select(context: Context, input: Image, bandSelectors: Sequence[Any], newNames: Sequence[str] | None) -> Image:
    chosen = [band for selector in bandSelectors for band in _matching(input, selector)]
    image = input.with_bands(chosen)
    return image if newNames is None else _renamed(image, newNames, "Image.select")


def _matching(image: Image, selector: Any) -> list[Band]:
    """Bands by index, exact name, or full match of a regular expression."""
    if isinstance(selector, int | float):
        if not -len(image.bands) <= selector < len(image.bands):
            raise EarthEngineError(
                f"Image.select: Band index {int(selector)} is out of range for {len(image.bands)} bands."
            )
        return [image.bands[int(selector)]]
    exact = image.band(str(selector))
    if exact is not None:
        return [exact]
    try:
        found = [band for band in image.bands if re.fullmatch(str(selector), band.name)]
    except re.error as error:
        raise EarthEngineError(f"Image.select: Invalid band pattern '{selector}': {error}.") from error
    if not found:
        raise EarthEngineError(
            f"Image.select: Band pattern '{selector}' did not match any bands. "
            f"Available bands: [{', '.join(image.names)}]"
        )
    return found


@algorithm("Image.rename")
def rename(context: Context, input: Image, names: Sequence[str]) -> Image:
    return _renamed(input, names, "Image.rename")


def _renamed(image: Image, names: Sequence[str], algorithm_name: str) -> Image:
    if len(names) != len(image.bands):
        raise EarthEngineError(
            f"{algorithm_name}: The number of names ({len(names)}) must match the number of bands ({len(image.bands)})."
        )
    if len(set(names)) != len(names):
        raise EarthEngineError(f"{algorithm_name}: Duplicate band names: [{', '.join(names)}].")
    return image.with_bands([replace(band, name=name) for band, name in zip(image.bands, names, strict=True)])


@algorithm("Image.addBands")
def add_bands(context: Context, dstImg: Image, srcImg: Image, names: Sequence[str] | None, overwrite: bool) -> Image:
    added = srcImg.bands if names is None else [band for name in names for band in _matching(srcImg, name)]
    bands = list(dstImg.bands)
    for band in added:
        place = next((i for i, old in enumerate(bands) if old.name == band.name), None)
        if place is not None and overwrite:
            bands[place] = band
        else:
            bands.append(replace(band, name=unused_name(band.name, bands)))
    return dstImg.with_bands(bands)


def unused_name(name: str, bands: Iterable[Band]) -> str:
    """The name, with _1, _2, ... appended when a band already has it."""
    taken = {band.name for band in bands}
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken)


@algorithm("Image.cat")
def concatenate(context: Context, images: Sequence[Any]) -> Image:
    parts = [item if isinstance(item, Image) else constant_image(item) for item in images]
    if not parts:
        return Image(())
    result = parts[0]
    for part in parts[1:]:
        result = add_bands(context, result, part, None, False)
    return result


@algorithm("Image.bandNames")
def band_names(context: Context, image: Image) -> list[str]:
    return image.names


@algorithm("Image.bandTypes")
def band_types(context: Context, image: Image) -> dict[str, PixelType]:
    return {band.name: band.type for band in image.bands}


# -- values -----------------------------------------------------------------------------------------------------------


@algorithm("Image.where")
def where(context: Context, input: Image, test: Image, value: Image) -> Image:
    def compute(pair: Pair, tested: Pair, new: Pair) -> Pair:
        change = (pair[1] > 0) & (tested[1] > 0) & (tested[0] != 0) & (new[1] > 0)
        return np.where(change, new[0], pair[0]), pair[1]

    tests = tuple(test.bands) * len(input.bands) if len(test.bands) == 1 else test.bands
    values = tuple(value.bands) * len(input.bands) if len(value.bands) == 1 else value.bands
    if not len(tests) == len(values) == len(input.bands):
        raise EarthEngineError("Image.where: 'test' and 'value' must have one band, or as many as 'input'.")
    bands = [
        replace(band, type=band.type.union(v.type), node=Local((band.node, t.node, v.node), compute))
        for band, t, v in zip(input.bands, tests, values, strict=True)
    ]
    return input.with_bands(bands)


@algorithm("Image.remap")
def remap(
    context: Context, image: Image, from_: Sequence[Any], to: Sequence[Any], defaultValue: Any, bandName: str | None
) -> Image:
    """One band, renamed `remapped`; unlisted values become defaultValue, or masked without one."""
    if len(from_) != len(to):
        raise EarthEngineError(f"Image.remap: 'from' has {len(from_)} values and 'to' has {len(to)}.")
    band = image.bands[0] if bandName is None else _matching(image, bandName)[0]
    default = None if defaultValue is None else _as_image(defaultValue).bands[0]
    results = [*to, *([] if default is None or default.type.low is None else [default.type.low])]
    kind = "int" if all(isinstance(v, int) or float(v).is_integer() for v in results) else "double"
    keys = np.array(from_, dtype=np.float64)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], np.array(to, dtype=np.float64)[order]

    def compute(pair: Pair, *other: Pair) -> Pair:
        place = np.minimum(np.searchsorted(keys, pair[0]), max(len(keys) - 1, 0))
        hit = keys[place] == pair[0] if len(keys) else np.zeros(pair[0].shape, dtype=bool)
        found = numbers[place] if len(keys) else np.zeros(pair[0].shape)
        fill = other[0][0] if other else np.zeros(pair[0].shape)
        valid = np.where(hit | bool(other), pair[1], 0.0)
        return np.where(valid > 0, np.where(hit, found, fill), 0.0), valid

    nodes = (band.node,) if default is None else (band.node, default.node)
    pixel = PixelType(kind, float(min(results)), float(max(results))) if results else band.type
    return image.with_bands([replace(band, name="remapped", type=pixel, node=Local(nodes, compute))])


def _as_image(value: Any) -> Image:
    return value if isinstance(value, Image) else constant_image(value)


@algorithm("Image.blend")
def blend(context: Context, bottom: Image, top: Image) -> Image:
    """The top over the bottom, masks as opacity; one band serves all bands of the other image."""

    def compute(low: Pair, high: Pair) -> Pair:
        under = low[1] * (1 - high[1])
        opacity = high[1] + under
        total = high[0] * high[1] + low[0] * under
        return np.divide(total, opacity, out=np.zeros(np.shape(total)), where=opacity > 0), opacity

    count = max(len(bottom.bands), len(top.bands))
    lows, highs = (tuple(i.bands) * (count if len(i.bands) == 1 else 1) for i in (bottom, top))
    if len(lows) != len(highs):
        raise EarthEngineError(f"Image.blend: Images of {len(lows)} and {len(highs)} bands cannot be blended.")
    named = lows if len(bottom.bands) == count else highs
    bands = [
        replace(low, name=name.name, type=low.type.union(high.type), node=Local((low.node, high.node), compute))
        for low, high, name in zip(lows, highs, named, strict=True)
    ]
    return bottom.with_bands(bands)


@algorithm("Image.clamp")
def clamp(context: Context, input: Image, low: float, high: float) -> Image:
    def compute(pair: Pair) -> Pair:
        return np.where(pair[1] > 0, np.clip(pair[0], low, high), 0.0), pair[1]

    bands = [
        replace(b, type=PixelType(b.type.precision, low, high), node=Local((b.node,), compute)) for b in input.bands
    ]
    return input.with_bands(bands)


def cast_band(band: Band, dtype: str) -> Band:
    """Clamp to the type's range and truncate towards zero; float rounds to single precision."""
    kind = np.dtype(dtype)

    def compute(pair: Pair) -> Pair:
        with np.errstate(over="ignore", invalid="ignore"):
            return cast_values(pair[0], kind), pair[1]

    return replace(band, type=pixel_type(kind.name), node=Local((band.node,), compute))


def cast_values(values: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """float64 values as they are after a cast to `kind`; NaN becomes 0 in an integer type."""
    if kind.kind == "f":
        return np.asarray(values.astype(kind).astype(np.float64))
    info = np.iinfo(kind)
    return np.asarray(np.clip(np.trunc(np.nan_to_num(values, nan=0.0)), float(info.min), float(info.max)))


def _cast_image(context: Context, value: Image, *, dtype: str) -> Image:
    return value.with_bands([cast_band(band, dtype) for band in value.bands])


for _name, _dtype in CASTS.items():
    algorithm(f"Image.{_name}")(partial(_cast_image, dtype=_dtype))


@algorithm("Image.cast")
def cast(context: Context, image: Image, bandTypes: Mapping[str, Any], bandOrder: Sequence[str] | None) -> Image:
    unknown = set(bandTypes) - set(image.names)
    if unknown:
        raise EarthEngineError(f"Image.cast: No band named '{sorted(unknown)[0]}' was found.")
    bands = [_cast_to(band, bandTypes[band.name]) if band.name in bandTypes else band for band in image.bands]
    ordered = bands if bandOrder is None else [next(b for b in bands if b.name == name) for name in bandOrder]
    return image.with_bands(ordered)


def _cast_to(band: Band, kind: Any) -> Band:
    if isinstance(kind, PixelType):
        return replace(cast_band(band, kind.dtype.name), type=kind)
    if kind not in CASTS:
        raise EarthEngineError(f"Image.cast: Unknown pixel type '{kind}'.")
    return cast_band(band, CASTS[kind])


# -- coordinates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LonLat:
    """Longitude (0) or latitude (1) of the pixel centres, degrees."""

    axis: int

    def read(self, reader: Reader, grid: Grid) -> Pair:
        shape = (grid.height, grid.width)
        values = np.broadcast_to(reader.coordinates(grid, "EPSG:4326")[self.axis], shape)
        return values, np.broadcast_to(np.float64(1.0), shape)


@algorithm("Image.pixelLonLat")
def pixel_lon_lat(context: Context) -> Image:
    longitude = Band("longitude", PixelType("double", -180.0, 180.0), LonLat(0))
    return Image((longitude, Band("latitude", PixelType("double", -90.0, 90.0), LonLat(1))))


@dataclass(frozen=True, eq=False)
class Coordinate:
    """x (0) or y (1) of the pixel centres in a projection, in pixels of its transform."""

    axis: int
    projection: Projection

    def read(self, reader: Reader, grid: Grid) -> Pair:
        row, col = positions(reader, grid, self.projection)
        shape = (grid.height, grid.width)
        return np.broadcast_to((col, row)[self.axis], shape), np.broadcast_to(np.float64(1.0), shape)


@algorithm("Image.pixelCoordinates")
def pixel_coordinates(context: Context, projection: Projection) -> Image:
    """Bands x and y; a projection without a transform counts in units of its CRS."""
    kinds = zip(("x", "y"), (Coordinate(0, projection), Coordinate(1, projection)), strict=True)
    return Image(tuple(Band(name, PixelType("double"), node) for name, node in kinds))


class PixelArea:
    """Square metres of each pixel on the WGS 84 ellipsoid: exact on a grid of meridians and parallels.

    Elsewhere it is the quadrangle of the pixel's corners, so pixels should be small on the globe.
    """

    def read(self, reader: Reader, grid: Grid) -> Pair:
        a, b, c, d, e, f = grid.transform
        corners = Grid(grid.crs, (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2), grid.width + 1, grid.height + 1)
        lon, lat = (np.asarray(p) for p in np.broadcast_arrays(*reader.coordinates(corners, "EPSG:4326")))
        if is_geographic(grid.crs) and grid.upright:
            zone = np.abs(np.diff(zone_area_m2(np.clip(lat, -90.0, 90.0)), axis=0)[:, :-1])
            return zone * abs(a) / 360.0, np.broadcast_to(np.float64(1.0), zone.shape)
        middle = (lat[:-1, :-1] + lat[1:, 1:]) / 2.0
        per_lon, per_lat = degree_lengths_m(middle)
        (dx, dy), (ex, ey) = _diagonals(lon), _diagonals(lat)
        area = np.abs(dx * ey - dy * ex) / 2.0 * per_lon * per_lat
        return area, np.broadcast_to(np.float64(1.0), area.shape)


def _diagonals(corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return corner[1:, 1:] - corner[:-1, :-1], corner[1:, :-1] - corner[:-1, 1:]


@algorithm("Image.pixelArea")
def pixel_area(context: Context) -> Image:
    return Image((Band("area", PixelType("double"), PixelArea()),))


@algorithm("Image.metadata")
def metadata(context: Context, image: Image, property: str, name: str | None) -> Image:
    value = image.get(property)
    if not isinstance(value, int | float):
        raise EarthEngineError(f"Image.metadata: Property '{property}' is not a number: {value}.")
    return constant_image({name or property: float(value)})


@algorithm("Image.normalizedDifference")
def normalized_difference(context: Context, input: Image, bandNames: Sequence[str] | None) -> Image:
    """(first - second) / (first + second); masked where an input is negative or the sum is 0."""
    names = bandNames or input.names[:2]
    left, right = (_matching(input, name)[0] for name in names)

    def compute(a: Pair, b: Pair) -> Pair:
        total = a[0] + b[0]
        valid = np.where((a[0] >= 0) & (b[0] >= 0) & (total != 0), np.minimum(a[1], b[1]), 0.0)
        return np.divide(a[0] - b[0], total, out=np.zeros(total.shape), where=valid > 0), valid

    node = Local((left.node, right.node), compute)
    band = Band("nd", PixelType("float", -1.0, 1.0), node, default_projection(left, right))
    kept = {key: value for key, value in input.properties.items() if key == "system:index"}
    return replace(input.with_bands([within_edges(band, left, right)]), properties=kept)
