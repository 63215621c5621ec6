"""The pixel endpoints: which image, on which grids, within which limits; the files are written by files.py."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmbuild.sandbox.files import Layer, image_file
from mmbuild.sandbox.geometry import from_geojson
from mmbuild.sandbox.graph import Context
from mmbuild.sandbox.images import Band, Image
from mmbuild.sandbox.limits import DOWNLOAD_LIMIT_BYTES, DOWNLOAD_MAX_SIDE, MAX_BANDS, MAX_SIDE, RESPONSE_LIMIT_BYTES
from mmbuild.sandbox.raster import Grid
from mmbuild.sandbox.values import EarthEngineError, crs_object


@dataclass(frozen=True)
class Ceiling:
    """How large one answer may be: pixels per side, and bytes counted with one mask byte per value."""

    side: int
    size_bytes: int


ANSWER = Ceiling(MAX_SIDE, RESPONSE_LIMIT_BYTES)
DOWNLOAD = Ceiling(DOWNLOAD_MAX_SIDE, DOWNLOAD_LIMIT_BYTES)
NO_SIZE = "The grid has no dimensions, and the image has no size of its own on it."


def grid_from(message: Mapping[str, Any] | None, image: Image) -> Grid:
    """The grid of a PixelGrid message; what it leaves out comes from the image's first band."""
    message = message or {}
    first = image.bands[0]
    crs = str(message.get("crsCode") or message.get("crsWkt") or first.projection.crs)
    crs_object(crs)
    affine = message.get("affineTransform")
    transform = first.projection.transform if affine is None else _affine(affine)
    size = message.get("dimensions")
    if size is None and affine is None and crs == first.projection.crs:
        return own_grid(first)
    if size is None:
        raise EarthEngineError(NO_SIZE)
    try:
        width, height = int(size["width"]), int(size["height"])
    except (KeyError, TypeError, ValueError) as error:
        raise EarthEngineError(f"Invalid grid dimensions: {size}.") from error
    if width <= 0 or height <= 0:
        raise EarthEngineError(f"Grid dimensions must be positive, found {width}x{height}.")
    return Grid(crs, transform, width, height)


def own_grid(band: Band) -> Grid:
    """The window that the band has on its own lattice; EarthEngineError when it has no edges."""
    if band.size is None:
        raise EarthEngineError(NO_SIZE)
    whole = Grid(band.projection.crs, band.projection.transform, *band.size)
    a, b, _, d, e, _ = whole.transform
    x, y = whole.at(float(band.origin[0]), float(band.origin[1]))
    return Grid(whole.crs, (a, b, x, d, e, y), *band.size)


def _affine(message: Mapping[str, Any]) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = (
        float(message.get(key, 0.0))
        for key in ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
    )  # fmt: skip
    if a * e - b * d == 0.0:
        raise EarthEngineError("Invalid affineTransform: the pixels have no area.")
    return a, b, c, d, e, f


def check_limits(layers: Sequence[Layer], ceiling: Ceiling) -> None:
    """EarthEngineError with the real service's text when the answer would be too large."""
    for _, grid in layers:
        if max(grid.width, grid.height) > ceiling.side:
            raise EarthEngineError(
                f"Pixel grid dimensions ({grid.width}x{grid.height}) must be less than or equal to {ceiling.side}."
            )
    if len(layers) > MAX_BANDS:
        raise EarthEngineError(f"Too many bands: {len(layers)}; at most {MAX_BANDS} are allowed.")
    size = sum((band.type.dtype.itemsize + 1) * grid.width * grid.height for band, grid in layers)
    if size > ceiling.size_bytes:
        raise EarthEngineError(
            f"Total request size ({size} bytes) must be less than or equal to {ceiling.size_bytes} bytes."
        )


def layers_of(context: Context, image: Any, body: Mapping[str, Any], ceiling: Ceiling) -> list[Layer]:
    """The bands a request asks for, each with its grid; one file per band keeps each band's own.

    Raises EarthEngineError when there is nothing to compute, or too much.
    """
    image = _selected(context, image, body)
    if body.get("visualizationOptions"):
        raise EarthEngineError("The offline Earth Engine does not implement visualizationOptions.")
    if body.get("fileFormat") == "ZIPPED_GEO_TIFF_PER_BAND" and not body.get("grid"):
        layers = [(band, own_grid(band)) for band in image.bands]
    else:
        grid = grid_from(body.get("grid"), image)
        layers = [(band, grid) for band in image.bands]
    check_limits(layers, ceiling)
    return layers


def _selected(context: Context, image: Any, body: Mapping[str, Any]) -> Image:
    """The image with `bandIds` and `region` applied."""
    if not isinstance(image, Image):
        raise EarthEngineError(f"Expected an Image, found {type(image).__name__}.")
    if body.get("bandIds"):
        image = context.call("Image.select", input=image, bandSelectors=list(body["bandIds"]))
    if body.get("region"):
        image = context.call("Image.clip", input=image, geometry=from_geojson({"geodesic": False, **body["region"]}))
    if not isinstance(image, Image) or not image.bands:
        raise EarthEngineError("The image has no bands.")
    return image


def compute_pixels(context: Context, image: Any, body: Mapping[str, Any]) -> bytes:
    """The file of an image on the requested grid."""
    return pixels_file(context, image, body, ANSWER, "pixels")[2]


@lru_cache(maxsize=1)
def _computer(process: int) -> ThreadPoolExecutor:
    """The one thread of a process that computes files; processes run in parallel.

    Threads that compute side by side wait for each other's interpreter, push each other's ground out of the caches, and
    each has memory of its own to fault in: a third of the time, measured with forty.
    """
    return ThreadPoolExecutor(1, "pixels")


def pixels_file(
    context: Context, image: Any, body: Mapping[str, Any], ceiling: Ceiling, prefix: str
) -> tuple[str, str, bytes]:
    """(file name, content type, bytes) of the image that a request asks for."""
    layers = layers_of(context, image, body, ceiling)
    form = str(body.get("fileFormat", "AUTO_JPEG_PNG"))
    read = context.reader.read
    return (
        _computer(os.getpid())
        .submit(image_file, layers, lambda band, grid: read(band.node, grid), form, prefix)
        .result()
    )
