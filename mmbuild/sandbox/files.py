"""The files of an answer: pixels as NPY, GeoTIFF or zipped GeoTIFFs, features as CSV or GeoJSON.

Masked pixels are 0 in NPY, as the real service has them; in a GeoTIFF they carry its nodata value. The same request
gives the same bytes: zip members have no date.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from mmbuild.sandbox.encode import planar_feature_json
from mmbuild.sandbox.images import Band
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Grid
from mmbuild.sandbox.values import EarthEngineError, Feature, crs_object

Layer = tuple[Band, Grid]
"""A band and the grid on which it is wanted."""
Read = Callable[[Band, Grid], Pair]
"""Computes values and mask of a band on a grid; called once per layer, so that one band at a time is in memory."""

ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# What the real service writes for a feature without a geometry, by the CSV files users show.
NO_GEOMETRY = {"type": "MultiPoint", "coordinates": []}


def as_stored(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """float64 as the pixel type: integers clamped and truncated, floats rounded."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.trunc(np.nan_to_num(values, nan=0.0)), float(info.min), float(info.max)).astype(dtype)


def npy(layers: Sequence[Layer], read: Read) -> bytes:
    """A structured array (height, width) with one field per band, each in its own type."""
    grid = layers[0][1]
    record = np.dtype([(band.name, band.type.dtype) for band, _ in layers])
    pixels = np.zeros((grid.height, grid.width), dtype=record)
    for band, _ in layers:
        values, mask = read(band, grid)
        pixels[band.name] = as_stored(np.where(mask > 0, values, 0.0), band.type.dtype)
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def geotiff(layers: Sequence[Layer], read: Read) -> bytes:
    """One type for all bands; nodata is 0 for unsigned, the minimum for signed, -inf for floating types."""
    grid = layers[0][1]
    dtype = np.result_type(*(band.type.dtype for band, _ in layers)).newbyteorder("=")
    dtype = np.dtype("float64") if dtype == np.dtype("int64") else dtype
    nodata = -np.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)
    profile = {
        "driver": "GTiff", "width": grid.width, "height": grid.height, "count": len(layers), "dtype": dtype.name,
        "crs": rasterio.crs.CRS.from_user_input(crs_object(grid.crs)), "transform": Affine(*grid.transform),
        "nodata": nodata, "compress": "deflate",
    }  # fmt: skip
    with MemoryFile() as file:
        with file.open(**profile) as target:
            for position, (band, _) in enumerate(layers, start=1):
                target.write(_with_nodata(read(band, grid), dtype, nodata), position)
                target.set_band_description(position, band.name)
        return bytes(file.read())


def _with_nodata(pair: Pair, dtype: np.dtype[Any], nodata: float) -> NDArray[Any]:
    values, mask = pair
    stored = as_stored(np.where(mask > 0, values, 0.0), dtype)
    return np.where(mask > 0, stored, np.asarray(nodata, dtype=dtype))


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip of these files, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)
    return buffer.getvalue()


def image_file(layers: Sequence[Layer], read: Read, form: str, prefix: str) -> tuple[str, str, bytes]:
    """(file name, content type, bytes) of an image in one of IMAGE_FORMATS.

    Zipped, a GeoTIFF is called `prefix.tif`; one per band, `prefix.band.tif`.
    """
    check_format(form, IMAGE_FORMATS)
    if form == "NPY":
        return f"{prefix}.npy", "application/octet-stream", npy(layers, read)
    if form == "GEO_TIFF":
        return f"{prefix}.tif", "image/tiff", geotiff(layers, read)
    if form == "ZIPPED_GEO_TIFF":
        members = {f"{prefix}.tif": geotiff(layers, read)}
    else:
        members = {f"{prefix}.{layer[0].name}.tif": geotiff([layer], read) for layer in layers}
    return f"{prefix}.zip", "application/zip", zipped(members)


IMAGE_FORMATS = ("NPY", "GEO_TIFF", "ZIPPED_GEO_TIFF", "ZIPPED_GEO_TIFF_PER_BAND")


def table_file(
    features: Iterable[Feature], form: str, selectors: Sequence[str] | None, name: str
) -> tuple[str, str, bytes]:
    """(file name, content type, bytes) of features in one of TABLE_FORMATS; selectors name the properties to keep."""
    check_format(form, TABLE_FORMATS)
    suffix, kind, write = TABLE_FORMATS[form]
    return f"{name}.{suffix}", kind, write([planar_feature_json(feature) for feature in features], selectors)


def _csv(features: Sequence[dict[str, Any]], selectors: Sequence[str] | None) -> bytes:
    """One row per feature: system:index, the properties by name, the geometry as GeoJSON; or the selectors in order."""
    rows = [_row(feature) for feature in features]
    between = sorted({key for row in rows for key in row} - {"system:index", ".geo"})
    columns = list(selectors) if selectors else ["system:index", *between, ".geo"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue().encode()


def _row(feature: Mapping[str, Any]) -> dict[str, Any]:
    index = feature.get("id")
    return {**feature["properties"], "system:index": index, ".geo": feature["geometry"] or NO_GEOMETRY}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _geojson(features: Sequence[dict[str, Any]], selectors: Sequence[str] | None) -> bytes:
    if selectors:
        features = [
            {**feature, "properties": {key: feature["properties"].get(key) for key in selectors if key != ".geo"}}
            for feature in features
        ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


Writer = Callable[[Sequence[dict[str, Any]], Sequence[str] | None], bytes]
TABLE_FORMATS: dict[str, tuple[str, str, Writer]] = {
    "CSV": ("csv", "text/csv", _csv),
    "GEO_JSON": ("geojson", "application/json", _geojson),
    "JSON": ("geojson", "application/json", _geojson),
}


def check_format(form: Any, known: Iterable[str]) -> None:
    """EarthEngineError for a file format that is not among these."""
    *most, last = known
    if form not in (*most, last):
        raise EarthEngineError(
            f"The offline Earth Engine does not write the file format '{form}', only {', '.join(most)} and {last}."
        )
