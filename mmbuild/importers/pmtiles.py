"""The Scale-ALiBi triple (PMTiles archives of pictures) as a corpus of web-map tiles.

A tile is exactly known ground, so samples have their grid; the archives tell no dates and no scenes. Every tile of the
zoom of the visual archive in any archive is a sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.errors import UserError
from mmbuild.foreign.archives import Archive
from mmbuild.foreign.pictures import Picture, Triple, decode_picture, known_modalities, load_triple
from mmbuild.grid import tile_bounds, tile_grid
from mmbuild.importers import Foreign, Sample, places_of
from mmbuild.modality import Modality

UNKNOWN = {
    "dates": "the archives have none",
    "scene ids": "the archives have none",
    "radar in dB": "the pictures are rendered to 8 bits",
}
_SYNTHETIC = {"yes": True, "no": False}


def open(path: Path, name: str | None) -> Foreign:
    """Open the folder that holds ``*sar_tiles*``, ``*visual_tiles*`` and ``*hires_visual_tiles*`` archives.

    Raises UserError when none of them is there, or one twice.
    """
    triple, known = load_triple(), known_modalities()
    archives = _archives(path, triple)
    zoom = _zoom(archives, triple)
    levels = {
        level.imported.modality: (archive, level.zoom, level.imported)
        for which, archive in archives.items() for level in triple.archives[which]
    }  # fmt: skip
    modalities = {name: known[name] for name in levels}
    ids = _tiles(archives, zoom)
    reader = Reader(triple, levels, modalities, zoom, ids)
    synthetic = {archive.metadata.get("mmbuild:synthetic") for archive in archives.values()}
    told = _SYNTHETIC.get(str(next(iter(synthetic)))) if len(synthetic) == 1 else None
    return Foreign(
        format="pmtiles", recipe=_recipe(name or path.resolve().name, triple, modalities, levels, zoom),
        modalities=modalities,
        files={archive.path.name: archive.path.stat().st_size for archive in archives.values()}, synthetic=told,
        unknown={**UNKNOWN, **({} if told is not None else {"synthetic": "the archives do not say"})},
        places=places_of([reader.place(row) for row in range(len(ids))]), read=reader.read,
    )  # fmt: skip


def _archives(path: Path, triple: Triple) -> dict[str, Archive]:
    found: dict[str, Archive] = {}
    for name in triple.archives:
        files = [
            file for file in sorted(path.glob(f"{name}_tiles*"))
            if file.suffix in (".pmtile", ".pmtiles")
        ]  # fmt: skip
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UserError(f"has several archives of {name}: {names}", str(path), "keep one set in the folder")
        if files:
            found[name] = Archive(files[0])
    if not found:
        names = ", ".join(f"{name}_tiles.pmtile" for name in triple.archives)
        raise UserError(f"has none of {names}", str(path), "name the folder that holds the archives")
    return found


def _zoom(archives: Mapping[str, Archive], triple: Triple) -> int:
    """The zoom of the samples: the deepest of an archive, less what it has beyond the others."""
    zooms = {
        archive.header["max_zoom"] - max(level.zoom for level in triple.archives[name])
        for name, archive in archives.items()
    }  # fmt: skip
    if len(zooms) != 1:
        raise UserError(
            f"the archives are of different zooms ({', '.join(map(str, sorted(zooms)))})",
            str(next(iter(archives.values())).path.parent), "take the archives of one set",
        )  # fmt: skip
    return int(zooms.pop())


def _tiles(archives: Mapping[str, Archive], zoom: int) -> np.ndarray:
    """Ids of the tiles of a zoom in any archive, rising: ids of a zoom follow those of all lower ones."""
    first = (4**zoom - 1) // 3
    found = [archive.ids[(archive.ids >= first) & (archive.ids < first + 4**zoom)] for archive in archives.values()]
    return np.unique(np.concatenate(found))


def _recipe(
    name: str, triple: Triple, modalities: Mapping[str, Modality], levels: Mapping[str, Any], zoom: int
) -> dict[str, Any]:
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name.lower()).lstrip("-_") or "tiles"
    side = 2**-zoom * 40075016.68557849 / triple.tile
    return {
        "name": plain, "title": f"{name}, imported from the layout of Scale-ALiBi", "licence": "other",
        "sampler": {"kind": "points", "file": "locations.parquet", "date_column": "date", "id_column": "sample_id"},
        "grid": {"kind": "webmercator", "zoom": zoom, "size": triple.tile},
        "anchor": {"modality": next(iter(modalities))},
        "modalities": {
            name: {"bands": [b for b in picture.bands if b != "-"], **({"gsd": side / 2**above} if above else {})}
            for name, (_, above, picture) in levels.items()
        },
    }  # fmt: skip


class Reader:
    """Tiles as samples; threads may share it."""

    def __init__(
        self, triple: Triple, levels: Mapping[str, tuple[Archive, int, Picture]], modalities: Mapping[str, Modality],
        zoom: int, ids: np.ndarray,
    ) -> None:  # fmt: skip
        self._triple, self._levels, self._zoom, self._ids = triple, levels, zoom, ids
        self._modalities = {
            name: modalities[name].subset([band for band in picture.bands if band != "-"])
            for name, (_, _, picture) in levels.items()
        }

    def place(self, row: int) -> dict[str, Any]:
        """Where a sample is: its id is ``z-x-y``."""
        from pmtiles.tile import tileid_to_zxy

        z, x, y = tileid_to_zxy(int(self._ids[row]))
        (west, south, east, north), corner = tile_bounds(x, y, z), tile_grid(x, y, z, size=self._triple.tile).affine
        return {
            "sample_id": f"{z}-{x}-{y}", "lon": (west + east) / 2, "lat": (south + north) / 2,
            "epsg": 3857, "x0": corner.c, "y0": corner.f, "date": None, "tags": json.dumps({"tile": f"{z}/{x}/{y}"}),
        }  # fmt: skip

    def read(self, rows: range) -> list[Sample]:
        """The samples of some rows."""
        return [self._sample(row) for row in rows]

    def _sample(self, row: int) -> Sample:
        place = self.place(row)
        chips = {(name, 0): self._chip(name, int(self._ids[row])) for name in self._levels}
        return Sample(
            sample_id=place["sample_id"], lon=place["lon"], lat=place["lat"], epsg=place["epsg"], x0=place["x0"],
            y0=place["y0"], anchor_time=None, tags=json.loads(place["tags"]), chips=chips,
        )  # fmt: skip

    def _chip(self, name: str, tile_id: int) -> np.ndarray | None:
        """The pictures of a tile's ground at a level, put together; None when no pixel of them is opaque."""
        from pmtiles.tile import tileid_to_zxy, zxy_to_tileid

        archive, above, picture = self._levels[name]
        n, size, modality = 2**above, self._triple.tile, self._modalities[name]
        z, x, y = tileid_to_zxy(tile_id)
        whole = np.zeros((n * size, n * size, 4), np.uint8)
        for j in range(n):
            for i in range(n):
                data = archive.get(zxy_to_tileid(z + above, x * n + i, y * n + j))
                if data is not None:
                    whole[j * size : (j + 1) * size, i * size : (i + 1) * size] = self._picture(
                        archive, data, (z, x, y)
                    )
        return picture.read(whole, modality) if whole[..., 3].any() else None

    def _picture(self, archive: Archive, data: bytes, tile: Sequence[int]) -> np.ndarray:
        try:
            found = decode_picture(data)
        except ValueError as error:
            where = f"{archive.path}: tile {'/'.join(map(str, tile))}"
            raise UserError(f"is no picture: {error}", where, "download the archive again") from error
        if found.shape[:2] != (self._triple.tile, self._triple.tile):
            reason = f"is {found.shape[1]} x {found.shape[0]} px, the layout has {self._triple.tile}"
            raise UserError(reason, str(archive.path), "take the published archives")
        return found
