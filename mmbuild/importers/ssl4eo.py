"""SSL4EO-S12 as published: v1.1 (zarr zips of 64 locations) or v1.0 (a tree of GeoTIFFs), told apart by their files.

v1.1 says where every pixel lies and when it was seen. v1.0 as published has a made-up grid in degrees: its samples get
their centre and no grid, unless the files are on a metric one, as those that mmbuild exports are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.errors import UserError
from mmbuild.foreign import season_tree, season_zips
from mmbuild.foreign.recode import Recoder
from mmbuild.foreign.season_zips import Location, Zips, as_datetime, times_of
from mmbuild.foreign.seasons import Array, Seasons, load_seasons
from mmbuild.importers import Foreign, Sample, Seen, places_of
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities

_SYNTHETIC = {"yes": True, "no": False}
_NOT_SAID = {"synthetic": "the files do not say"}
_GRID = {"grid": "the files have a made-up affine in degrees; only the centre is taken from it"}


def open(path: Path, name: str | None) -> Foreign:
    """Open the folder that holds the splits (v1.1) or s1, s2c and s2a (v1.0)."""
    rules = load_seasons()
    if next(path.glob(f"*/*/*{season_zips.ENDING}"), None) is not None:
        return _open_zips(path, name, rules)
    if any((path / folder).is_dir() for folder in rules.v10):
        return _open_tree(path, name, rules)
    fix = f"name the folder with train/{next(iter(rules.v11))}/... (v1.1) or {', '.join(rules.v10)} (v1.0)"
    raise UserError("is no SSL4EO-S12", str(path), fix)


def _recipe(name: str, version: str, rules: Seasons, modalities: Mapping[str, Modality], side: int) -> dict[str, Any]:
    """What the files amount to: listed places on a UTM grid, at dates a season apart."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name.lower()).lstrip("-_") or "ssl4eo"
    return {
        "name": plain, "title": f"{name}, imported from the layout of SSL4EO-S12 {version}", "licence": "CC-BY-4.0",
        "sampler": {"kind": "points", "file": "locations.parquet", "date_column": "date", "id_column": "sample_id"},
        "grid": {"kind": "utm", "gsd": rules.gsd, "size": side},
        "anchor": {"modality": _anchor(rules, modalities)},
        "times": {"kind": "seasons", "dates": list(rules.dates), "max_days": 30.0},
        "modalities": {name: {} for name in modalities},
    }  # fmt: skip


def _anchor(rules: Seasons, modalities: Mapping[str, Modality]) -> str:
    """The last product there is: L2A before L1C before radar."""
    return [a.modality for a in rules.v10.values() if a.modality in modalities][-1]


def _synthetic(words: set[str | None]) -> bool | None:
    """What all files say together; None where any does not."""
    return _SYNTHETIC.get(str(next(iter(words)))) if len(words) == 1 else None


# -- v1.1 -------------------------------------------------------------------------------------------------------------


def _open_zips(path: Path, name: str | None, rules: Seasons) -> Foreign:
    known = load_modalities()
    zips = Zips(path, [array for array, rule in rules.v11.items() if rule.modality in known])
    modalities = {rules.v11[array].modality: known[rules.v11[array].modality] for array in zips.arrays}
    found = list(zips.locations(rules.gsd))
    split, file = zips.files()[0]
    _, steps, _, _, side = zips.group(split, zips.arrays[0], file)["bands"].shape
    if steps != rules.steps:
        raise UserError(f"has {steps} time steps, the layout has {rules.steps}", str(path), "take the published files")
    synthetic = _synthetic({location.synthetic for location in found})
    reader = ZipReader(zips, rules, modalities, found)
    rows = [
        {"sample_id": one.sample_id, "lon": one.lon, "lat": one.lat, "epsg": one.epsg, "x0": one.x0, "y0": one.y0,
         "date": None, "tags": "{}"} for one in found
    ]  # fmt: skip
    return Foreign(
        format="ssl4eo v1.1", recipe=_recipe(name or path.resolve().name, "v1.1", rules, modalities, side),
        modalities=modalities, synthetic=synthetic,
        files={f"{s}/{f}": (path / s / zips.arrays[0] / f).stat().st_size for s, f in zips.files()},
        unknown={} if synthetic is not None else _NOT_SAID, places=places_of(rows), read=reader.read,
    )  # fmt: skip


class ZipReader:
    """Locations of v1.1 as samples."""

    def __init__(
        self, zips: Zips, rules: Seasons, modalities: Mapping[str, Modality], locations: Sequence[Location]
    ) -> None:
        self._zips, self._rules, self._modalities, self._locations = zips, rules, modalities, locations
        self._recoders: dict[str, Recoder] = {
            name: rules.v11[name].recoder(modalities[rules.v11[name].modality]) for name in zips.arrays
        }

    def read(self, rows: range) -> list[Sample]:
        """The samples of some rows; what lies together in a file is read together."""
        chips: list[dict[tuple[str, int], np.ndarray | None]] = [{} for _ in rows]
        seen: list[dict[tuple[str, int], Seen]] = [{} for _ in rows]
        places = [self._locations[row] for row in rows]
        for split, file in dict.fromkeys((place.split, place.file) for place in places):
            own = [i for i, place in enumerate(places) if (place.split, place.file) == (split, file)]
            for name in self._zips.arrays:
                if self._zips.has(split, name, file):
                    self._read_array(name, split, file, [(i, places[i].index) for i in own], chips, seen)
        return [self._sample(place, *found) for place, *found in zip(places, chips, seen, strict=True)]

    def _read_array(
        self, name: str, split: str, file: str, own: Sequence[tuple[int, int]],
        chips: list[dict[tuple[str, int], np.ndarray | None]], seen: list[dict[tuple[str, int], Seen]],
    ) -> None:  # fmt: skip
        rule, recoder = self._rules.v11[name], self._recoders[name]
        group = self._zips.group(split, name, file)
        first, last = own[0][1], own[-1][1] + 1
        times = times_of(group)
        scenes = np.asarray(group["file_id"][:]) if "file_id" in group else None
        order = _bands(group, rule)
        for step in range(self._rules.steps):
            values = np.asarray(group["bands"][first:last, step])
            for i, index in own:
                found: dict[str, np.ndarray] = {}
                recoder.decode(values[index - first][order], found)
                chip, key = found[rule.modality], (rule.modality, step)
                chips[i][key] = chip if (chip != self._modalities[rule.modality].fill).any() else None
                scene = "" if scenes is None else str(scenes[index, step])
                when = as_datetime(times[index, step])
                seen[i][key] = Seen(datetime=when, scene_ids=[scene] if scene else [])

    def _sample(self, place: Location, chips: Any, seen: Any) -> Sample:
        dates = [one.datetime for one in seen.values() if one.datetime is not None]
        return Sample(
            sample_id=place.sample_id, lon=place.lon, lat=place.lat, epsg=place.epsg, x0=place.x0, y0=place.y0,
            anchor_time=min(dates) if dates else None, tags={"published_split": place.split}, chips=chips, seen=seen,
        )  # fmt: skip


def _bands(group: Any, rule: Array) -> list[int]:
    """Where the layout's bands are in a file."""
    names = [str(name) for name in group["band"][:]] if "band" in group else list(rule.bands)
    upper = [name.upper() for name in names]
    if missing := [name for name in rule.bands if name.upper() not in upper]:
        raise UserError(f"lacks the bands {', '.join(missing)}", str(group.store), "take the published files")
    return [upper.index(name.upper()) for name in rule.bands]


# -- v1.0 -------------------------------------------------------------------------------------------------------------


def _open_tree(path: Path, name: str | None, rules: Seasons) -> Foreign:
    known = load_modalities()
    folders = [f for f, rule in rules.v10.items() if (path / f).is_dir() and rule.modality in known]
    modalities = {rules.v10[f].modality: known[rules.v10[f].modality] for f in folders}
    reader = TreeReader(path, rules, folders, modalities)
    rows = [{**vars(reader.place(one)), "sample_id": one, "date": None, "tags": "{}"} for one in reader.names]
    if not rows:
        raise UserError("holds no location", str(path), "name the folder with s1, s2c and s2a")
    synthetic = _synthetic({reader.synthetic(one) for one in (reader.names[0], reader.names[-1])})
    is_placed = all(row["x0"] is not None for row in rows)
    return Foreign(
        format="ssl4eo v1.0",
        recipe=_recipe(name or path.resolve().name, "v1.0", rules, modalities, max(row["side"] for row in rows)),
        modalities=modalities, files={folder: len(reader.names) for folder in folders}, synthetic=synthetic,
        unknown={**({} if is_placed else _GRID), **({} if synthetic is not None else _NOT_SAID)},
        places=places_of(rows), read=reader.read,
    )  # fmt: skip


class TreeReader:
    """Locations of v1.0 as samples."""

    def __init__(self, root: Path, rules: Seasons, folders: Sequence[str], modalities: Mapping[str, Modality]) -> None:
        self._root, self._rules, self._folders, self._modalities = root, rules, folders, modalities
        self.names = season_tree.locations(root, folders)
        self._side = 0

    def place(self, name: str) -> season_tree.Place:
        """Of the finest band of a scene of the location."""
        for folder in self._folders:
            for scene in season_tree.scenes(self._root / folder / name):
                files = [scene.folder / f"{band}.tif" for band in self._finest(folder)]
                if there := [file for file in files if file.is_file()]:
                    found = season_tree.place_of(there[0], self._rules.gsd)
                    self._side = max(self._side, found.side)
                    return found
        raise UserError("has no band of 10 m", str(self._root / "*" / name), "remove the location; it is not whole")

    def _finest(self, folder: str) -> list[str]:
        rule = self._rules.v10[folder]
        bands = {band.name: band.gsd for band in self._modalities[rule.modality].bands}
        return [foreign for foreign, own in rule.bands.items() if bands[own] == self._rules.gsd]

    def synthetic(self, name: str) -> str | None:
        for folder in self._folders:
            for scene in season_tree.scenes(self._root / folder / name):
                found: str | None = scene.properties.get("mmbuild:synthetic")
                return found
        return None

    def read(self, rows: range) -> list[Sample]:
        """The samples of some rows."""
        return [self._sample(self.names[row]) for row in rows]

    def _sample(self, name: str) -> Sample:
        chips: dict[tuple[str, int], np.ndarray | None] = {}
        seen: dict[tuple[str, int], Seen] = {}
        for folder in self._folders:
            rule, found = self._rules.v10[folder], season_tree.scenes(self._root / folder / name)
            if len(found) > self._rules.steps:
                reason = f"has {len(found)} scenes, the layout has {self._rules.steps}"
                raise UserError(reason, str(self._root / folder / name), "remove those that do not belong")
            for number, scene in enumerate(found):
                key = (rule.modality, number if scene.step is None else scene.step)
                chips[key] = self._chip(scene, rule)
                seen[key] = Seen(datetime=scene.datetime, scene_ids=[scene.scene_id])
        dates = [one.datetime for one in seen.values() if one.datetime is not None]
        place = self.place(name)
        return Sample(
            sample_id=name, lon=place.lon, lat=place.lat, epsg=place.epsg, x0=place.x0, y0=place.y0,
            anchor_time=min(dates) if dates else None, tags={}, chips=chips, seen=seen,
        )  # fmt: skip

    def _chip(self, scene: season_tree.Scene, rule: Array) -> np.ndarray | None:
        modality = self._modalities[rule.modality]
        chip = np.full((len(modality.bands), self._side, self._side), modality.fill)
        for band, values, nodata in season_tree.bands(scene, rule.bands, self._side):
            is_valid = np.isfinite(values.astype(np.float64)) & (True if nodata is None else values != nodata)
            chip[modality.band_names.index(band)] = np.where(is_valid, values, modality.fill)
        return chip if (chip != modality.fill).any() else None
