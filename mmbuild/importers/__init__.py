"""Published files into a corpus that streams, splits and is catalogued like one built here: the way back of exports.

One file here is one layout, its name is the format's. Nothing is invented: what the files do not say (a date, a grid,
whether pixels are synthetic) is null, with the reason in ``recipe.lock.json``. A shard is read, packed and recorded
before the next is begun, so an import of any size needs little memory and goes on where it was interrupted.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import yaml

from mmbuild.commit import valid_mask
from mmbuild.cube import (
    LOCK,
    ArrayLayout,
    Corpus,
    chip_digest,
    layouts,
    open_corpus,
    pack_shard,
    packing_reasons,
    put_if_changed,
)
from mmbuild.errors import UserError
from mmbuild.explain import suggest
from mmbuild.finish import finish
from mmbuild.foreign.files import ordered
from mmbuild.modality import Modality
from mmbuild.recipe import Recipe, recipe_from_resolved
from mmbuild.records import committed_shards, write_record
from mmbuild.store import Store, open_store
from mmbuild.tree import write_tree

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int, int], None]
# Raw bytes of a shard (design rule 1), and the fewest and most samples it may hold here.
_SHARD_BYTES, _FEWEST, _MOST = 256 * 2**20, 8, 32
NO_DATA = "no data in the imported file"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """When and from which scenes a chip is, as far as the file says."""

    datetime: datetime | None = None
    scene_ids: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a foreign file; chips and what is known of them by (modality, time)."""

    sample_id: str
    lon: float
    lat: float
    epsg: int | None
    x0: float | None
    y0: float | None
    anchor_time: datetime | None
    tags: Mapping[str, Any]
    chips: Mapping[tuple[str, int], np.ndarray | None]
    seen: Mapping[tuple[str, int], Seen] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An opened foreign file or folder.

    recipe: what it amounts to as a recipe, without store. modalities: those it holds. files: what was opened, by name
    with its size. synthetic: None where the file does not say. unknown: what the file does not say -> why. places: one
    row a sample with sample_id, lon, lat, epsg, x0, y0, date and tags (JSON). read: the samples of a range of rows.
    """

    format: str
    recipe: Mapping[str, Any]
    modalities: Mapping[str, Modality]
    files: Mapping[str, int]
    synthetic: bool | None
    unknown: Mapping[str, str]
    places: pd.DataFrame
    read: Callable[[range], Sequence[Sample]]


class Format(Protocol):
    """What a file of this folder offers."""

    def open(self, path: Path, name: str | None) -> Foreign: ...


def formats() -> list[str]:
    """The layouts that can be imported: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def import_corpus(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus of published files, or finish one that was begun; the corpus, opened.

    name: what the corpus is called; the files' own name by default. progress: (shards done, shards, chunk bytes).
    Raises UserError for a format that does not exist, files that are not of it, and a folder of something else.
    """
    if format not in formats():
        raise UserError(f"there is no format {format!r} to import", "FORMAT", suggest(format, formats()))
    if not Path(path).exists():
        raise UserError("there is no such file or folder", os.fspath(path), "check the path")
    module: Any = importlib.import_module(f"{__name__}.{format}")
    return pack(module.open(Path(path), name), out, threads=threads, progress=progress)


def pack(
    foreign: Foreign, out: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> Corpus:
    """Write an opened foreign file as a corpus, shard by shard, then its splits, statistics and catalogue."""
    recipe = _recipe(foreign)
    store = open_store(out)
    with store.lease("runs/lease"):
        store.sweep()
        _prepare(store, foreign, recipe)
        size, count = recipe.store.samples_per_shard, len(foreign.places)
        done = set(committed_shards(store))
        todo = [shard for shard in range(-(-count // size)) if shard not in done]
        arrays = layouts(recipe)
        written = 0

        def work(shard: int) -> int:
            rows = range(shard * size, min(count, (shard + 1) * size))
            return _write_shard(store, shard, arrays, foreign.read(rows), rows)

        for number, length in enumerate(ordered(work, todo, threads or min(4, os.cpu_count() or 1), ahead=2), start=1):
            written += length
            if progress is not None:
                progress(len(done) + number, len(done) + len(todo), written)
        finish(open_corpus(out))
    return open_corpus(out)


# -- before the shards ------------------------------------------------------------------------------------------------


def _recipe(foreign: Foreign) -> Recipe:
    """The recipe with shards as large as the rules allow."""
    written = {**foreign.recipe, "samples": len(foreign.places), "source": {"name": "imported"}}
    trial = recipe_from_resolved(written, foreign.modalities)
    raw = sum(
        int(np.prod(trial.shape(name))) * modality.np_dtype.itemsize for name, modality in trial.modality_defs.items()
    )
    fit = max(_FEWEST, min(_MOST, _SHARD_BYTES // raw))
    return recipe_from_resolved({**written, "store": {"samples_per_shard": fit}}, foreign.modalities)


def _prepare(store: Store, foreign: Foreign, recipe: Recipe) -> None:
    """Write the lock, the places and the cube's metadata, or check that what is there is of the same files."""
    lock = {
        "digest": recipe.digest,
        "samples": len(foreign.places),
        "source": {
            "name": "imported", "format": foreign.format, "files": dict(foreign.files),
            "synthetic": foreign.synthetic, "unknown": dict(foreign.unknown),
        },
        "recipe": recipe.resolved(),
        "modalities": {name: m.model_dump(mode="json") for name, m in foreign.modalities.items()},
        "packing": packing_reasons(recipe),
        "versions": {"mmbuild": version("mmbuild"), "numcodecs": version("numcodecs")},
    }  # fmt: skip
    if store.exists(LOCK):
        old = json.loads(store.get(LOCK))
        for key in ("source", "digest", "samples"):
            if old[key] != lock[key]:
                raise UserError(
                    "there is a corpus of something else here already", store.url, "import into another folder"
                )
        return
    if any(key.startswith(("cube.zarr/", "shards/")) for key in store.list()):
        raise UserError("there are files of something else here", store.url, "import into an empty folder")
    put_if_changed(store, "locations.parquet", _locations(foreign, recipe))
    resolved = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    put_if_changed(store, "recipe.yaml", resolved.encode())
    write_tree(store, layouts(recipe), len(foreign.places), None, {"name": recipe.name})
    store.put(LOCK, json.dumps(lock, indent=1, ensure_ascii=False).encode())


def _locations(foreign: Foreign, recipe: Recipe) -> bytes:
    """The places as GeoParquet, in the columns of a built corpus."""
    import io

    import geopandas as gpd

    places = foreign.places
    table = gpd.GeoDataFrame(
        {
            "slot": np.arange(len(places)), "alternate": np.zeros(len(places), np.int16),
            **{name: places[name] for name in ("sample_id", "lon", "lat")},
            "epsg": places["epsg"].astype("Int32"),
            **{name: places[name].astype("Float64") for name in ("x0", "y0")},
            "gsd": recipe.gsd_of_grid, "size": np.full(len(places), recipe.grid.size, np.int32),
            "date": places["date"].astype("datetime64[ms, UTC]"), "tags": places["tags"],
        },
        geometry=gpd.points_from_xy(places["lon"], places["lat"]), crs="EPSG:4326",
    )  # fmt: skip
    sink = io.BytesIO()
    table.to_parquet(sink, index=False, compression="zstd")
    return sink.getvalue()


# -- one shard --------------------------------------------------------------------------------------------------------


def _write_shard(
    store: Store, shard: int, arrays: Mapping[str, ArrayLayout], samples: Sequence[Sample], slots: range
) -> int:
    """Arrays first, the record last; the number of bytes of the arrays."""
    rows: list[dict[str, Any]] = []
    total = 0
    for name, layout in arrays.items():
        first = shard * layout.samples_per_shard
        chunks: list[bytes | None] = []
        for slot in range(first, first + layout.samples_per_shard):
            sample = samples[slot - first] if slot in slots else None
            for time in range(layout.times):
                chip = None if sample is None else sample.chips.get((name, time))
                chunks.append(None if chip is None else layout.encode(chip))
        data, places = pack_shard(chunks)
        if any(chunk is not None for chunk in chunks):
            store.put(layout.key(shard), data)
            total += len(data)
        for slot, sample in zip(slots, samples, strict=True):
            for time in range(layout.times):
                offset, length = places[(slot - first) * layout.times + time]
                rows.append({**_row(sample, slot, layout, time), "offset": offset, "length": length})
    write_record(store, shard, sorted(rows, key=lambda row: int(row["slot"])))
    return total


def _row(sample: Sample, slot: int, layout: ArrayLayout, time: int) -> dict[str, Any]:
    """The record of one chip, without its place in the shard object; what is not known is null."""
    chip = sample.chips.get((layout.name, time))
    seen = sample.seen.get((layout.name, time), Seen()) if chip is not None else Seen()
    days = None
    if seen.datetime is not None and sample.anchor_time is not None:
        days = (seen.datetime - sample.anchor_time).total_seconds() / 86400
    return {
        "slot": slot, "sample_id": sample.sample_id, "alternate": 0, "sample_status": "stored",
        "lon": sample.lon, "lat": sample.lat, "epsg": sample.epsg, "x0": sample.x0, "y0": sample.y0,
        "gsd": layout.gsd, "height": layout.chip[1] if layout.gsd else None,
        "width": layout.chip[2] if layout.gsd else None,
        "tags": json.dumps(dict(sample.tags), sort_keys=True), "anchor_time": sample.anchor_time,
        "modality": layout.name, "time": time, "status": "no_data" if chip is None else "stored",
        "reason": NO_DATA if chip is None else "", "scene_ids": list(seen.scene_ids), "datetime": seen.datetime,
        "scene_count": len(seen.scene_ids), "delta_days": days,
        "valid_fraction": None if chip is None else _valid_fraction(chip, layout.modality),
        "sha256": None if chip is None else chip_digest(chip),
    }  # fmt: skip


def _valid_fraction(chip: np.ndarray, modality: Modality) -> float:
    """Share of valid values in the bands that have any."""
    valid = valid_mask(chip, modality.fill)
    return float(valid[valid.reshape(len(valid), -1).any(axis=1)].mean())


def places_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of places, of one mapping a sample."""
    import pandas as pd

    columns = ("sample_id", "lon", "lat", "epsg", "x0", "y0", "date", "tags")
    table = pd.DataFrame({name: [row[name] for row in rows] for name in columns})
    table["date"] = pd.to_datetime(table["date"], utc=True)
    return table
