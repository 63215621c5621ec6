"""Reading SSL4EO-S12 v1.0: a folder a location, a folder a scene in it, a GeoTIFF a band."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from pyproj import Transformer
from rasterio.errors import RasterioIOError

from mmbuild.errors import UserError

_STAMP = re.compile(r"\d{8}T\d{6}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One date of a location in one folder: where its files are and what is known of it."""

    folder: Path
    datetime: datetime | None
    scene_id: str
    step: int | None
    properties: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a location is; the corner only of files on a metric grid of the layout's pixel size."""

    lon: float
    lat: float
    epsg: int | None
    x0: float | None
    y0: float | None
    side: int


def locations(root: Path, folders: Sequence[str]) -> list[str]:
    """The names of all locations in any of the folders."""
    return sorted({path.name for folder in folders for path in (root / folder).glob("*") if path.is_dir()})


def scenes(folder: Path) -> list[Scene]:
    """The scenes of a location by step or date; names without either keep their order."""
    found = [_scene(path) for path in sorted(folder.glob("*")) if path.is_dir()]
    return sorted(found, key=lambda scene: (scene.step if scene.step is not None else -1, scene.datetime or _EPOCH))


def _scene(path: Path) -> Scene:
    """What metadata.json says; the date that the scene's name begins with where it says none."""
    file = path / "metadata.json"
    properties = json.loads(file.read_text()) if file.is_file() else {}
    properties = {**properties, **properties.get("properties", {})}
    start, stamp = properties.get("system:time_start"), _STAMP.search(path.name)
    when = None
    if start is not None:
        when = _EPOCH + timedelta(milliseconds=int(start))
    elif stamp:
        when = datetime.strptime(stamp[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return Scene(
        folder=path, datetime=when, scene_id=str(properties.get("system:id") or path.name),
        step=properties.get("mmbuild:step"), properties=properties,
    )  # fmt: skip


def place_of(path: Path, gsd: float) -> Place:
    """Where a GeoTIFF of the finest pixel size lies.

    Raises UserError when it cannot be read or has no place at all.
    """
    with _opened(path) as image:
        crs, affine, (height, width) = image.crs, image.transform, image.shape
        if crs is None:
            raise UserError("has no CRS", str(path), "take the published files, which have one")
        a, b, c, d, e, f = affine[:6]
        east, north = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
        to_degrees = Transformer.from_crs(crs.to_wkt(), "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(east, north)
        is_metric = crs.is_projected and (affine.a, affine.b, affine.d, affine.e) == (gsd, 0, 0, -gsd)
        epsg = crs.to_epsg() if is_metric else None
        corner = (affine.c, affine.f) if epsg else (None, None)
        return Place(lon=lon, lat=lat, epsg=epsg, x0=corner[0], y0=corner[1], side=width)


def read_band(path: Path, side: int) -> tuple[np.ndarray, float | None]:
    """(side, side) values and nodata of a GeoTIFF; coarser pixels are repeated.

    Raises UserError for a size that does not divide ``side``.
    """
    with _opened(path) as image:
        values: np.ndarray = image.read(1)
        nodata = image.nodata
    if side % values.shape[0] or values.shape[0] != values.shape[1]:
        reason = f"has {values.shape[1]} x {values.shape[0]} pixels, which do not fit into {side}"
        raise UserError(reason, str(path), "take the published files")
    factor = side // values.shape[0]
    return values.repeat(factor, axis=0).repeat(factor, axis=1), nodata


def _opened(path: Path) -> Any:
    try:
        return rasterio.open(path)
    except RasterioIOError as error:
        raise UserError(f"cannot be read: {error}", str(path), "download it again") from error


def bands(scene: Scene, names: Mapping[str, str], side: int) -> Iterator[tuple[str, np.ndarray, float | None]]:
    """(band of the modality, values, nodata) of every band that is there."""
    for foreign, own in names.items():
        path = scene.folder / f"{foreign}.tif"
        if path.is_file():
            yield own, *read_band(path, side)
