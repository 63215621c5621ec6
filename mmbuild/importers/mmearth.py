"""MMEarth's HDF5 file with its tile_info JSON, as MMEarth-data publishes it and ``mmbuild export`` writes it.

Rows are the samples. The file says neither where a chip's pixels lie exactly nor which scenes they are from, and only
the date of the Sentinel-2 image: all else is null.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mmbuild.errors import UserError
from mmbuild.foreign.recode import Layout, Recoder, load_layout, recoders
from mmbuild.importers import Foreign, Sample, Seen
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = {
    "transform": "the layout has a tile's centre and CRS, not its corner",
    "scene ids": "the layout does not keep them",
    "dates": "the layout keeps the day of the Sentinel-2 image only",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_DAY = np.iinfo(np.int64).min
_READ = 2**20


def open(path: Path, name: str | None) -> Foreign:
    """Open ``path``, the HDF5 file or its folder.

    Raises UserError when a file, a dataset or a tile's entry is missing.
    """
    source = _file(path)
    layout, known = load_layout("mmearth"), load_modalities()
    file = _opened(source)
    if "metadata" not in file or not set(layout.datasets) & set(file):
        raise UserError(
            "is no MMEarth file: it has no dataset metadata", str(source), "name the .h5 file of the layout"
        )
    tiles = _tiles(source, file["metadata"], tuple(layout.one_of.values()))
    modalities = dict(_modalities(file, layout, known))
    side = _side(file, layout, source)
    reader = Reader(file, recoders(_present(layout, file), modalities), layout, tiles)
    info = source.with_name(f"{source.stem}_tile_info.json")
    synthetic = {"yes": True, "no": False}.get(str(file.attrs.get("mmbuild:synthetic")))
    return Foreign(
        format="mmearth", recipe=_recipe(name or source.stem, modalities, layout, side), modalities=modalities,
        files={part.name: part.stat().st_size for part in (source, info)}, synthetic=synthetic,
        unknown={**UNKNOWN, **({} if synthetic is not None else {"synthetic": "the file does not say"})},
        places=tiles.places(), read=reader.read,
    )  # fmt: skip


def _file(path: Path) -> Path:
    """The HDF5 file that a person named, or the only one in the folder they named."""
    found = [path] if path.is_file() else sorted(path.glob("*.h5"))
    if len(found) != 1:
        fix = "name the .h5 file" if found else "name the folder that holds the .h5 file and its JSON files"
        raise UserError(f"has {len(found)} .h5 files", str(path), fix)
    if not h5py.is_hdf5(found[0]):
        raise UserError("is no HDF5 file", str(found[0]), "download it again; it may be cut short")
    return found[0]


def _opened(source: Path) -> h5py.File:
    try:
        return h5py.File(source, "r")
    except OSError as error:
        raise UserError(f"cannot be read: {error}", str(source), "download it again; it may be cut short") from error


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """What tile_info says of every row, a column each: a million tiles are some hundred megabytes.

    day: days since 1970, the least integer where there is none. epsg: 0 for none. product: index into ``products``.
    """

    ids: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    epsg: np.ndarray
    day: np.ndarray
    product: np.ndarray
    products: tuple[str, ...]

    def date(self, row: int) -> datetime | None:
        day = int(self.day[row])
        return None if day == _NO_DAY else _EPOCH + timedelta(days=day)

    def places(self) -> pd.DataFrame:
        """The table of places that an import keeps."""
        import pandas as pd

        days = np.where(self.day == _NO_DAY, np.datetime64("NaT"), self.day.astype("datetime64[D]"))
        return pd.DataFrame(
            {
                "sample_id": self.ids, "lon": self.lon, "lat": self.lat,
                "epsg": pd.array(self.epsg, "Int32").astype("Int32"), "x0": None, "y0": None,
                "date": pd.to_datetime(days.astype("datetime64[ms]"), utc=True), "tags": "{}",
            }
        ).assign(epsg=lambda table: table["epsg"].where(table["epsg"] != 0))  # fmt: skip


def _tiles(source: Path, metadata: Any, products: Sequence[str]) -> Tiles:
    """The rows of the file with what tile_info says of each; UserError for a row without an entry."""
    info = source.with_name(f"{source.stem}_tile_info.json")
    if not info.is_file():
        raise UserError(f"{info.name} is missing", str(source.parent), "it is published beside the .h5 file")
    ids = np.array([tile.decode() for tile in metadata["tile_id"]], object)
    row_of = {tile: row for row, tile in enumerate(ids)}
    n = len(ids)
    tiles = Tiles(
        ids=ids, lon=np.full(n, np.nan), lat=np.full(n, np.nan), epsg=np.zeros(n, np.int32),
        day=np.full(n, _NO_DAY), product=np.full(n, -1, np.int8), products=tuple(products),
    )  # fmt: skip
    for tile, entry in entries_of(info):
        row = row_of.get(tile)
        if row is not None:
            _fill(tiles, row, entry, info)
    if len(lost := np.flatnonzero(tiles.product < 0)):
        fix = "take the file that belongs to the .h5 file"
        raise UserError(f"has no entry of tile {ids[lost[0]]}", str(info), fix)
    return tiles


def _fill(tiles: Tiles, row: int, entry: Mapping[str, Any], info: Path) -> None:
    product, day, crs = entry.get("S2_type"), entry.get("S2_DATE"), entry.get("CRS")
    if product not in tiles.products:
        known = ", ".join(tiles.products)
        raise UserError(f"tile {tiles.ids[row]} has S2_type {product!r}", str(info), f"the layout has {known}")
    tiles.product[row] = tiles.products.index(product)
    tiles.lon[row], tiles.lat[row] = entry["lon"], entry["lat"]
    tiles.epsg[row] = 0 if crs is None else int(crs.partition(":")[2])
    if day is not None:
        tiles.day[row] = (date.fromisoformat(day) - _EPOCH.date()).days


def entries_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a JSON object one by one: tile_info of 1.2 M tiles does not fit in memory as a whole."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(_READ).lstrip()
        if not text.startswith("{"):
            raise UserError("is no JSON object", str(path), "download it again")
        text = text[1:]
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("}"):
                return
            try:
                key, end = decoder.raw_decode(text)
                value, stop = decoder.raw_decode(text, text.index("{", end))
            except ValueError as error:
                more = file.read(_READ)
                if not more:
                    raise UserError(f"is cut short or damaged: {error}", str(path), "download it again") from None
                text += more
                continue
            yield key, value
            text = text[stop:]


def _present(layout: Layout, file: h5py.File) -> dict[str, Any]:
    return {name: rule for name, rule in layout.datasets.items() if name in file}


def _modalities(file: h5py.File, layout: Layout, known: Mapping[str, Modality]) -> Iterator[tuple[str, Modality]]:
    """The definitions of what the file holds; datasets of nothing that is defined here are left out."""
    for rule in _present(layout, file).values():
        for name in rule.modalities:
            if name in known:
                yield name, known[name]


def _side(file: h5py.File, layout: Layout, source: Path) -> int:
    sides = {name: file[name].shape[-1] for name, rule in _present(layout, file).items() if not rule.vector}
    if len(set(sides.values())) != 1:
        raise UserError(f"its datasets have different sizes: {sides}", str(source), "take a whole file")
    return int(next(iter(sides.values())))


def _recipe(name: str, modalities: Mapping[str, Modality], layout: Layout, side: int) -> dict[str, Any]:
    """What the file amounts to: listed places on a UTM grid, dated by one of two products."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name.lower())
    return {
        "name": plain, "title": f"{name}, imported from MMEarth's layout", "licence": "CC-BY-4.0",
        "sampler": {"kind": "points", "file": "locations.parquet", "date_column": "date", "id_column": "sample_id"},
        "grid": {"kind": "utm", "gsd": layout.gsd, "size": side},
        "anchor": {"one_of": [product for product in layout.one_of if product in modalities]},
        "modalities": {name: {} for name in modalities},
    }  # fmt: skip


class Reader:
    """Rows of the file as samples; threads may share it."""

    def __init__(self, file: h5py.File, recoders: Mapping[str, Recoder], layout: Layout, tiles: Tiles) -> None:
        self._file, self._recoders, self._tiles = file, recoders, tiles
        self._modalities = next(iter(recoders.values())).modalities
        self._products = {short: name for name, short in layout.one_of.items()}
        self._lock = threading.Lock()

    def read(self, rows: range) -> list[Sample]:
        """The samples of some rows."""
        return [self._sample(row) for row in rows]

    def _sample(self, row: int) -> Sample:
        tiles, when = self._tiles, self._tiles.date(row)
        product = self._products[tiles.products[int(tiles.product[row])]]
        found: dict[str, np.ndarray] = {}
        for name, recoder in self._recoders.items():
            recoder.decode(self._row(name, row), found, product)
        chips = {(name, 0): chip if self._is_data(name, chip) else None for name, chip in found.items()}
        return Sample(
            sample_id=str(tiles.ids[row]), lon=float(tiles.lon[row]), lat=float(tiles.lat[row]),
            epsg=int(tiles.epsg[row]) or None, x0=None, y0=None, anchor_time=when, tags={}, chips=chips,
            seen={(product, 0): Seen(datetime=when)},
        )  # fmt: skip

    def _is_data(self, name: str, chip: np.ndarray) -> bool:
        return bool((chip != self._modalities[name].fill).any())

    def _row(self, name: str, row: int) -> np.ndarray:
        """One row of a dataset, decompressed outside of HDF5's lock where its chunks are plain gzip."""
        with self._lock:
            dataset = self._file[name]
            if dataset.compression != "gzip" or dataset.shuffle or dataset.chunks != (1, *dataset.shape[1:]):
                values: np.ndarray = dataset[row]
                return values
            mask, data = dataset.id.read_direct_chunk((row, *(0,) * (dataset.ndim - 1)))
            shape, dtype = dataset.shape[1:], dataset.dtype
        return np.frombuffer(data if mask else zlib.decompress(data), dtype).reshape(shape)
