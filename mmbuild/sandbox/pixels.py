"""The pixel endpoints: a grid message, the limits of an answer, and the two file formats (NPY, GeoTIFF).

Masked pixels come back as 0 in NPY, as the real service does; in a GeoTIFF they carry its nodata value.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from mmbuild.sandbox.graph import Context
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.raster import Grid, Pair
from mmbuild.sandbox.values import EarthEngineError, crs_object

# Limits of image:computePixels (REST reference): answers of 48 MB, counted with one mask byte per value.
RESPONSE_LIMIT_BYTES = 48 * 2**20
MAX_SIDE, MAX_BANDS = 32768, 1024


def grid_from(message: Mapping[str, Any] | None, image: Image) -> Grid:
    """The grid of a PixelGrid message; what it leaves out comes from the image's first band."""
    message = message or {}
    first = image.bands[0]
    crs = str(message.get("crsCode") or message.get("crsWkt") or first.projection.crs)
    crs_object(crs)
    affine = message.get("affineTransform")
    transform = first.projection.transform if affine is None else _affine(affine)
    size = message.get("dimensions")
    if size is None and affine is None and crs == first.projection.crs and first.size is not None:
        size = {"width": first.size[0], "height": first.size[1]}
    if size is None:
        raise EarthEngineError("The grid has no dimensions, and the image has no size of its own on it.")
    try:
        width, height = int(size["width"]), int(size["height"])
    except (KeyError, TypeError, ValueError) as error:
        raise EarthEngineError(f"Invalid grid dimensions: {size}.") from error
    if width <= 0 or height <= 0:
        raise EarthEngineError(f"Grid dimensions must be positive, found {width}x{height}.")
    return Grid(crs, transform, width, height)


def _affine(message: Mapping[str, Any]) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = (
        float(message.get(key, 0.0))
        for key in ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
    )  # fmt: skip
    if a * e - b * d == 0.0:
        raise EarthEngineError("Invalid affineTransform: the pixels have no area.")
    return a, b, c, d, e, f


def check_limits(image: Image, grid: Grid) -> None:
    """EarthEngineError with the real service's text when the answer would be too large."""
    if grid.width > MAX_SIDE or grid.height > MAX_SIDE:
        raise EarthEngineError(
            f"Pixel grid dimensions ({grid.width}x{grid.height}) must be less than or equal to {MAX_SIDE}."
        )
    if len(image.bands) > MAX_BANDS:
        raise EarthEngineError(f"Too many bands: {len(image.bands)}; at most {MAX_BANDS} are allowed.")
    size = sum(band.type.dtype.itemsize + 1 for band in image.bands) * grid.width * grid.height
    if size > RESPONSE_LIMIT_BYTES:
        raise EarthEngineError(
            f"Total request size ({size} bytes) must be less than or equal to {RESPONSE_LIMIT_BYTES} bytes."
        )


def compute_pixels(context: Context, image: Any, body: Mapping[str, Any]) -> bytes:
    """The file of an image on the requested grid."""
    if not isinstance(image, Image):
        raise EarthEngineError(f"Expected an Image, found {type(image).__name__}.")
    wanted: Sequence[str] | None = body.get("bandIds")
    if wanted:
        image = context.call("Image.select", input=image, bandSelectors=list(wanted))
    if not image.bands:
        raise EarthEngineError("The image has no bands.")
    grid = grid_from(body.get("grid"), image)
    check_limits(image, grid)
    if body.get("visualizationOptions"):
        raise EarthEngineError("The offline Earth Engine does not implement visualizationOptions.")
    form = body.get("fileFormat", "AUTO_JPEG_PNG")
    if form not in _WRITERS:
        raise EarthEngineError(
            f"The offline Earth Engine does not write the file format '{form}', only NPY and GEO_TIFF."
        )
    pairs = (context.reader.read(band.node, grid) for band in image.bands)
    return _WRITERS[form](image, grid, pairs)


def as_stored(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """float64 as the pixel type: integers clamped and truncated, floats rounded."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.trunc(np.nan_to_num(values, nan=0.0)), float(info.min), float(info.max)).astype(dtype)


def _npy(image: Image, grid: Grid, pairs: Any) -> bytes:
    record = np.dtype([(band.name, band.type.dtype) for band in image.bands])
    pixels = np.zeros((grid.height, grid.width), dtype=record)
    for band, (values, mask) in zip(image.bands, pairs, strict=True):
        pixels[band.name] = as_stored(np.where(mask > 0, values, 0.0), band.type.dtype)
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def _geotiff(image: Image, grid: Grid, pairs: Any) -> bytes:
    """One type for all bands; nodata is 0 for unsigned, the minimum for signed, -inf for floating types."""
    dtype = np.result_type(*(band.type.dtype for band in image.bands)).newbyteorder("=")
    dtype = np.dtype("float64") if dtype == np.dtype("int64") else dtype
    nodata = -np.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)
    profile = {
        "driver": "GTiff", "width": grid.width, "height": grid.height, "count": len(image.bands), "dtype": dtype.name,
        "crs": rasterio.crs.CRS.from_user_input(crs_object(grid.crs)), "transform": Affine(*grid.transform),
        "nodata": nodata, "compress": "deflate",
    }  # fmt: skip
    with MemoryFile() as file:
        with file.open(**profile) as target:
            for position, (band, pair) in enumerate(zip(image.bands, pairs, strict=True), start=1):
                target.write(_with_nodata(pair, dtype, nodata), position)
                target.set_band_description(position, band.name)
        return bytes(file.read())


def _with_nodata(pair: Pair, dtype: np.dtype[Any], nodata: float) -> NDArray[Any]:
    values, mask = pair
    stored = as_stored(np.where(mask > 0, values, 0.0), dtype)
    return np.where(mask > 0, stored, np.asarray(nodata, dtype=dtype))


_WRITERS = {"NPY": _npy, "GEO_TIFF": _geotiff}
