"""Projection.* and the Image functions that give, change or use a lattice: reproject, resample, default projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import DEFAULT_PROJECTION, Image
from mmbuild.sandbox.raster import Bilinear, Reprojected
from mmbuild.sandbox.values import EarthEngineError, Projection, crs_object


@algorithm("Projection")
def projection(context: Context, crs: Any, transform: Sequence[Any] | None, transformWkt: str | None) -> Projection:
    if transformWkt is not None:
        raise EarthEngineError("Projection: the offline Earth Engine does not read 'transformWkt'.")
    if isinstance(crs, Projection):
        crs = crs.crs
    if not isinstance(crs, str):
        raise EarthEngineError(f"Projection: The CRS must be a string, not {type(crs).__name__}.")
    crs_object(crs)
    return Projection(crs) if transform is None else Projection(crs, _six(transform))


def _six(transform: Sequence[Any]) -> tuple[float, float, float, float, float, float]:
    if len(transform) != 6:
        raise EarthEngineError(f"Projection: The transform must have 6 elements, not {len(transform)}.")
    a, b, c, d, e, f = (float(value) for value in transform)
    return a, b, c, d, e, f


@algorithm("Projection.atScale")
def at_scale(context: Context, projection: Projection, meters: float) -> Projection:
    return projection.at_scale(meters)


@algorithm("Projection.nominalScale")
def nominal_scale(context: Context, proj: Projection) -> float:
    return proj.nominal_scale()


@algorithm("Projection.crs")
def crs(context: Context, projection: Projection) -> str:
    return projection.crs


@algorithm("Projection.transform")
def transform(context: Context, projection: Projection) -> str:
    """The transform as parameter WKT, as the real service writes it."""
    a, b, c, d, e, f = projection.transform
    names = {"elt_0_0": a, "elt_0_1": b, "elt_0_2": c, "elt_1_0": d, "elt_1_1": e, "elt_1_2": f}
    rows = [f'  PARAMETER["{name}", {value!r}]' for name, value in names.items()]
    return 'PARAM_MT["Affine", \n  PARAMETER["num_row", 3], \n  PARAMETER["num_col", 3], \n' + ", \n".join(rows) + "]"


@algorithm("Projection.wkt")
def wkt(context: Context, projection: Projection) -> str:
    return str(crs_object(projection.crs).to_wkt("WKT1_GDAL"))


@algorithm("Projection.scale")
def scale(context: Context, projection: Projection, x: float, y: float) -> Projection:
    a, b, c, d, e, f = projection.transform
    return Projection(projection.crs, (a * x, b * y, c, d * x, e * y, f))


@algorithm("Projection.translate")
def translate(context: Context, projection: Projection, x: float, y: float) -> Projection:
    a, b, c, d, e, f = projection.transform
    return Projection(projection.crs, (a, b, c + a * x + b * y, d, e, f + d * x + e * y))


@algorithm("Image.projection")
def image_projection(context: Context, image: Image) -> Projection:
    if not image.bands:
        raise EarthEngineError("Image.projection: The image has no bands.")
    found = {band.projection for band in image.bands}
    if len(found) > 1:
        raise EarthEngineError(
            "Image.projection: The bands of the specified image contains different projections. "
            "Use Image.select to pick a single band."
        )
    return image.bands[0].projection


def chosen_projection(given: Projection, crs_transform: Sequence[float] | None, scale: float | None) -> Projection:
    """A projection from the crs, crsTransform and scale arguments that many algorithms share."""
    if crs_transform is not None:
        if scale is not None:
            raise EarthEngineError("Can't specify both 'crsTransform' and 'scale'.")
        return Projection(given.crs, _six(crs_transform))
    return given if scale is None else given.at_scale(scale)


@algorithm("Image.reproject")
def reproject(
    context: Context, image: Image, crs: Projection, crsTransform: Sequence[float] | None, scale: float | None
) -> Image:
    target = chosen_projection(crs, crsTransform, scale)
    return image.with_bands(
        [replace(b, projection=target, node=Reprojected(b.node, target), size=None) for b in image.bands]
    )


@algorithm("Image.setDefaultProjection")
def set_default_projection(
    context: Context, image: Image, crs: Projection, crsTransform: Sequence[float] | None, scale: float | None
) -> Image:
    target = chosen_projection(crs, crsTransform, scale)
    return image.with_bands([replace(band, projection=target, size=None) for band in image.bands])


@algorithm("Image.resample")
def resample(context: Context, image: Image, mode: str) -> Image:
    """Bilinear at the next change of grid; without effect on a composite, which has no lattice of its own."""
    if mode != "bilinear":
        raise EarthEngineError(f"The offline Earth Engine does not implement Image.resample with mode '{mode}'.")
    bands = [
        band if band.projection == DEFAULT_PROJECTION else replace(band, node=Bilinear(band.node, band.projection))
        for band in image.bands
    ]
    return image.with_bands(bands)
