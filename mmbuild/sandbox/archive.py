"""Real pixels behind the same protocol: a YAML file says which GeoTIFFs stand for which Earth Engine images.

    name: my files
    datasets:
      COPERNICUS/S2_HARMONIZED:            # an asset id; products Earth Engine does not have go under projects/archive/
        licence: ...                       # licence and attribution are required
        attribution: ...
        images:
          - files: s2/{place}/L1C.tif      # {word} matches within one folder or file name; {band} is one file per band
            index: "{place}"               # system:index; default {folder}, the name of the file's folder
            bands: [B1, B2, B3]            # names in the order of the file's bands, or {name: number}
            dtype: uint16                  # default: the file's
            time: "{date}"                 # system:time_start in ISO 8601, here from the path; `end` likewise
            add: -1000                     # stored value = file value * multiply + add, after remap
            nodata: 0                      # masked, besides NaN and the nodata the file declares
            pyramiding: MEAN               # MEAN, SAMPLE or MODE
            properties: {instrumentMode: IW}
            each:                          # per index: anything above but files, index and bands
              place_one: {time: 2021-07-23T13:22:41Z, add: 0, properties: {...}}

Windows are read with rasterio and never resampled by GDAL. Nothing is guessed: a file, key or value that is not
understood is a ValueError that names it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import yaml
from numpy.typing import NDArray
from rasterio.windows import Window

from mmbuild.sandbox.assets import BandInfo, Bounds, ImageInfo, Kind
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.values import EarthEngineError

DATASET_KEYS = {"licence", "attribution", "title", "note", "images"}
IMAGE_KEYS = {
    "files", "index", "bands", "dtype", "time", "end", "add", "multiply", "remap", "nodata", "pyramiding", "properties",
    "each", "note",
}  # fmt: skip
EACH_KEYS = IMAGE_KEYS - {"files", "index", "bands", "each"}
PYRAMIDING = ("MEAN", "SAMPLE", "MODE")


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """Where one band's pixels are and how file values become the product's."""

    path: Path
    number: int
    dtype: str
    add: float
    multiply: float
    remap: Mapping[float, float] | None
    nodata: float | None

    def read(self, row0: int, col0: int, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Values and validity of a window inside the file."""
        with rasterio.open(self.path) as file:
            raw = file.read(self.number, window=Window(col0, row0, width, height)).astype(np.float64)
            declared = file.nodatavals[self.number - 1]
        valid = np.isfinite(raw)
        for nodata in (self.nodata, declared):
            if nodata is not None and np.isfinite(nodata):
                valid &= raw != nodata
        values = self._remapped(np.where(valid, raw, 0.0), valid) * self.multiply + self.add
        self._check_range(values, valid)
        return np.where(valid, values, 0.0), valid

    def _remapped(self, raw: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.remap is None:
            return raw
        known = np.array(sorted(self.remap), dtype=np.float64)
        unknown = np.setdiff1d(raw[valid], known)
        if unknown.size:
            raise EarthEngineError(f"{self.path}: value {unknown[0]:g} is not in 'remap' of the archive.")
        targets = np.array([self.remap[key] for key in sorted(self.remap)], dtype=np.float64)
        return targets[np.clip(np.searchsorted(known, raw), 0, len(known) - 1)]

    def _check_range(self, values: NDArray[np.float64], valid: NDArray[np.bool_]) -> None:
        kind = np.dtype(self.dtype)
        if kind.kind == "f" or not valid.any():
            return
        info, low, high = np.iinfo(kind), values[valid].min(), values[valid].max()
        if low < info.min or high > info.max:
            raise EarthEngineError(
                f"{self.path}: values {low:g} to {high:g} do not fit the archive's dtype {kind.name}."
            )


class ArchiveDataset:
    """The images of one asset id."""

    kind: Kind = "image_collection"

    def __init__(self, id: str, about: Mapping[str, Any], images: Sequence[ImageInfo]) -> None:
        self.id, self._about = id, dict(about)
        self._images = sorted(images, key=lambda image: image.index)

    def info(self) -> dict[str, Any]:
        return {"synthetic": False, **self._about}

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        return [
            image
            for image in self._images
            if (start_ms is None or image.start_ms is None or image.start_ms >= start_ms)
            and (end_ms is None or image.start_ms is None or image.start_ms < end_ms)
        ]

    def image(self, index: str) -> ImageInfo:
        return self._by_index[index]

    @cached_property
    def _by_index(self) -> dict[str, ImageInfo]:
        return {image.index: image for image in self._images}

    def window(
        self, image: ImageInfo, band: str, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        info = next(b for b in image.bands if b.id == band)
        values, mask = np.zeros((height, width)), np.zeros((height, width), dtype=bool)
        top, left = max(row0, 0), max(col0, 0)
        bottom, right = min(row0 + height, info.height or 0), min(col0 + width, info.width or 0)
        if bottom > top and right > left:
            here = (slice(top - row0, bottom - row0), slice(left - col0, right - col0))
            values[here], mask[here] = image.private[band].read(top, left, bottom - top, right - left)
        return values, mask

    def features(self) -> Sequence[tuple[Any, Mapping[str, Any]]]:
        return []


class ArchiveWorld:
    """Only what an archive file maps; nothing else exists in it."""

    synthetic = False

    def __init__(self, version: str, datasets: Mapping[str, ArchiveDataset]) -> None:
        self.version, self._datasets = version, dict(datasets)

    def dataset(self, asset_id: str) -> ArchiveDataset | None:
        return self._datasets.get(asset_id)

    def ids(self) -> Sequence[str]:
        return sorted(self._datasets)


def open_archive(path: str | Path, root: str | Path | None = None) -> ArchiveWorld:
    """The world of an archive file; `root` is the folder its paths start from (default: the file's own).

    Raises ValueError, or FileNotFoundError for a missing file or folder, saying which key asks for it.
    """
    path = Path(path)
    folder = path.parent if root is None else Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"archive root {folder} is not a folder")
    text = path.read_text("utf-8")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    data = _mapping(data, "the archive", {"name", "note", "datasets", "shared"})
    entries = _mapping(data.get("datasets"), "datasets", None)
    if not entries:
        raise ValueError("datasets: is empty; name at least one asset id")
    datasets = {str(id): _dataset(str(id), entry, folder) for id, entry in entries.items()}
    digest = hashlib.sha256(text.encode())
    for used in sorted({band.path for d in datasets.values() for i in d.images() for band in i.private.values()}):
        digest.update(f"{used.relative_to(folder)} {used.stat().st_size}\n".encode())
    return ArchiveWorld(f"archive-{data.get('name', path.stem)}-{digest.hexdigest()[:12]}", datasets)


def _mapping(value: Any, key: str, known: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: must be a mapping, is {type(value).__name__}")
    unknown = set(map(str, value)) - known if known is not None else set()
    if unknown:
        raise ValueError(f"{key}: unknown key '{min(unknown)}'; known are {', '.join(sorted(known or ()))}")
    return dict(value)


def _dataset(id: str, entry: Any, root: Path) -> ArchiveDataset:
    key = f"datasets.{id}"
    entry = _mapping(entry, key, DATASET_KEYS)
    for needed in ("licence", "attribution", "images"):
        if not entry.get(needed):
            raise ValueError(f"{key}.{needed}: is missing")
    images: dict[str, ImageInfo] = {}
    for position, source in enumerate(entry["images"]):
        for image in _images(
            id, _mapping(source, f"{key}.images[{position}]", IMAGE_KEYS), f"{key}.images[{position}]", root
        ):
            if image.index in images:
                raise ValueError(f"{key}.images[{position}].index: two images are called '{image.index}'")
            images[image.index] = image
    about = {k: v for k, v in entry.items() if k not in ("images", "note")}
    return ArchiveDataset(id, about, list(images.values()))


def _images(id: str, source: dict[str, Any], key: str, root: Path) -> list[ImageInfo]:
    """One image per match of the file pattern."""
    for needed in ("files", "bands"):
        if needed not in source:
            raise ValueError(f"{key}.{needed}: is missing")
    each = _mapping(source.get("each") or {}, f"{key}.each", None)
    matches = _matches(str(source["files"]), root)
    if not matches:
        raise FileNotFoundError(f"{key}.files: no file under {root} matches '{source['files']}'")
    images = []
    for words in matches:
        index = _filled(str(source.get("index", "{folder}")), words, f"{key}.index")
        special = _mapping(each.pop(index, None) or {}, f"{key}.each.{index}", EACH_KEYS)
        properties = {**(source.get("properties") or {}), **(special.get("properties") or {})}
        images.append(_image(id, index, {**source, **special, "properties": properties}, words, key, root))
    if each:
        found = ", ".join(image.index for image in images)
        raise ValueError(f"{key}.each: no image is called '{min(map(str, each))}'; found are {found}")
    return images


def _matches(pattern: str, root: Path) -> list[dict[str, str]]:
    """Words of the pattern per image: files that differ only in {band} belong together."""
    names = re.findall(r"\{(\w+)\}", pattern)
    parts = re.split(r"\{\w+\}", pattern)
    groups = [f"(?P<{n}>[^/]+?)" if n not in names[:i] else f"(?P={n})" for i, n in enumerate(names)]
    text = "".join(re.escape(part) + (groups[i] if i < len(groups) else "") for i, part in enumerate(parts))
    regex = re.compile(text)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(root.glob(re.sub(r"\{\w+\}", "*", pattern))):
        match = regex.fullmatch(path.relative_to(root).as_posix())
        if match:
            words = {k: v for k, v in match.groupdict().items() if k != "band"}
            found.setdefault(tuple(words.values()), {**words, "folder": path.parent.name})
    return list(found.values())


def _filled(template: str, words: Mapping[str, str], key: str) -> str:
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{key}: '{template}' names a word that the file pattern does not have: {error}") from error


def _image(id: str, index: str, spec: dict[str, Any], words: Mapping[str, str], key: str, root: Path) -> ImageInfo:
    pattern = str(spec["files"])
    bands = spec["bands"]
    numbers = dict(bands) if isinstance(bands, Mapping) else {name: i for i, name in enumerate(bands, start=1)}
    if "{band}" in pattern:
        numbers = dict.fromkeys(numbers, 1)
    files = {
        str(name): _band_file(root / _filled(pattern, {**words, "band": str(name)}, f"{key}.files"), number, spec, key)
        for name, number in numbers.items()
    }
    infos = tuple(_band_info(name, band, str(spec.get("pyramiding", "MEAN")), key) for name, band in files.items())
    return ImageInfo(
        id=f"{id}/{index}",
        index=index,
        bands=infos,
        start_ms=_instant(spec.get("time"), words, f"{key}.time"),
        end_ms=_instant(spec.get("end"), words, f"{key}.end"),
        footprint=_footprint(infos),
        properties=dict(spec["properties"]),
        private=files,
    )


def _band_file(path: Path, number: Any, spec: Mapping[str, Any], key: str) -> BandFile:
    if not path.is_file():
        raise FileNotFoundError(f"{key}.bands: {path} does not exist")
    with rasterio.open(path) as file:
        count, own = file.count, file.dtypes[0]
    if not isinstance(number, int) or not 1 <= number <= count:
        raise ValueError(f"{key}.bands: {path} has {count} bands, band {number} is asked for")
    remap = spec.get("remap")
    numbers = {name: spec.get(name) for name in ("add", "multiply", "nodata")}
    for name, value in numbers.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{key}.{name}: must be a number, is '{value}'")
    try:
        dtype = np.dtype(spec.get("dtype", own)).name
    except TypeError as error:
        raise ValueError(f"{key}.dtype: '{spec.get('dtype')}' is not a numpy type") from error
    return BandFile(
        path=path,
        number=number,
        dtype=dtype,
        add=float(numbers["add"] or 0.0),
        multiply=1.0 if numbers["multiply"] is None else float(numbers["multiply"]),
        remap=None if remap is None else {float(k): float(v) for k, v in _mapping(remap, f"{key}.remap", None).items()},
        nodata=None if numbers["nodata"] is None else float(numbers["nodata"]),
    )


def _band_info(name: str, band: BandFile, pyramiding: str, key: str) -> BandInfo:
    if pyramiding not in PYRAMIDING:
        raise ValueError(f"{key}.pyramiding: '{pyramiding}' is none of {', '.join(PYRAMIDING)}")
    with rasterio.open(band.path) as file:
        crs, transform, shape = file.crs, file.transform, file.shape
    if crs is None:
        raise ValueError(f"{key}.files: {band.path} has no CRS")
    epsg = crs.to_epsg()
    return BandInfo(
        id=name,
        dtype=band.dtype,
        crs=crs.to_wkt() if epsg is None else f"EPSG:{epsg}",
        transform=tuple(transform)[:6],
        width=shape[1],
        height=shape[0],
        pyramiding=pyramiding,  # type: ignore[arg-type]
    )


def _footprint(bands: Sequence[BandInfo]) -> Any:
    """Where every band has pixels: the meeting of the bands' outlines, in lon/lat."""
    outlines = {(band.crs, band.transform, band.width or 0, band.height or 0) for band in bands}
    shapes = []
    for crs, (a, b, c, d, e, f), width, height in outlines:
        corners = [
            (c + a * i + b * j, f + d * i + e * j) for i, j in ((0, 0), (width, 0), (width, height), (0, height))
        ]
        shapes.append(Geometry(shapely.Polygon(corners), crs, geodesic=False).lonlat)
    return shapely.intersection_all(shapes)


def _instant(value: Any, words: Mapping[str, str], key: str) -> int | None:
    """Milliseconds since 1970 UTC of an ISO 8601 text (basic or extended) or a YAML date; naive times are UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _filled(value, words, key)
    try:
        when = datetime.fromisoformat(value) if isinstance(value, str) else value
        when = when if isinstance(when, datetime) else datetime(when.year, when.month, when.day)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{key}: '{value}' is not a date and time") from error
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return round(when.timestamp() * 1000)
