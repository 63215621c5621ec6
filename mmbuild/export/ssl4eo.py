"""The layouts of SSL4EO-S12: v1.1 (zarr 2 in zips of 64 locations, the default) and v1.0 (a GeoTIFF a band).

v1.1: ``<split>/<S1GRD|S2L1C|S2L2A>/ssl4eos12_<split>_seasonal_data_000001.zarr.zip`` with the same locations in files
of the same name, ``splits/ssl4eos12_<split>.txt`` and ``<split>_metadata.parquet``. v1.0: ``<s1|s2c|s2a>/<location>/
<scene>/<band>.tif`` with ``metadata.json``. Names, offsets and no-data values are in ``foreign/ssl4eo.yaml``. v1.1 is
as published in any case, with its offset of 1000; ``--faithful`` gives v1.0 its bands of 132 and 44 px.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import rasterio
from affine import Affine
from rasterio.io import MemoryFile

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.export import SYNTHETIC, Job, Options, Unit, in_groups, write_units
from mmbuild.foreign.chips import Sample, SampleReader
from mmbuild.foreign.files import Files
from mmbuild.foreign.seasons import VERSIONS, Array, Seasons, load_seasons
from mmbuild.foreign.zarr2 import ZarrZip
from mmbuild.modality import Modality
from mmbuild.records import parquet_bytes, read_parquet

OPTIONS = frozenset({"split", "version", "samples_per_file", "faithful", "allow_missing"})
SAMPLES_PER_FILE = 64
_METADATA = pa.schema(
    [
        ("sample_id", pa.string()), ("time_id", pa.int64()), ("time", pa.timestamp("ms", tz="UTC")),
        ("geometry", pa.binary()), ("tile_crs", pa.int64()), ("file", pa.string()),
    ]
)  # fmt: skip
_NO_TIME = np.iinfo(np.int64).min
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arrays or folders that are written."""

    rules: Seasons
    version: str
    arrays: Mapping[str, Array]


def prepare(reader: SampleReader, options: Options) -> Plan:
    """Which modality goes where; UserError for what the corpus lacks."""
    version = options.version or VERSIONS[0]
    if version not in VERSIONS:
        raise UserError(f"there is no version {version!r}", "--version", f"choose from {', '.join(VERSIONS)}")
    rules, corpus = load_seasons(), reader.corpus
    arrays = rules.arrays(version)
    there = {name: array for name, array in arrays.items() if array.modality in corpus.modalities}
    _check(corpus, rules, arrays, there, options)
    return Plan(rules=rules, version=version, arrays=there)


def _check(
    corpus: Corpus, rules: Seasons, wanted: Mapping[str, Array], there: Mapping[str, Array], options: Options
) -> None:
    where = corpus.store.url
    missing = [f"{a.modality} (for {name})" for name, a in wanted.items() if name not in there and not a.optional]
    if not there or (missing and not options.allow_missing):
        fix = "add them to the recipe, or leave them out with --allow-missing"
        raise UserError(f"the layout needs what this corpus lacks: {', '.join(missing)}", where, fix)
    for name, array in there.items():
        modality = corpus.modalities[array.modality]
        lacks = [band for band in array.bands.values() if band not in modality.band_names]
        if lacks:
            raise UserError(f"{name} needs the bands {', '.join(lacks)} of {array.modality}", where, "store all bands")
        steps, gsd = corpus.shape(array.modality)[0], corpus.gsd(array.modality)
        if steps != rules.steps:
            fix = f"give the recipe times of {rules.steps} dates, or export to webdataset"
            raise UserError(f"{array.modality} has {steps} time steps, the layout has {rules.steps}", where, fix)
        if gsd != rules.gsd:
            fix = f"set modalities.{array.modality}.gsd to {rules.gsd:g} in the recipe"
            raise UserError(f"{array.modality} has pixels of {gsd:g} m, the layout {rules.gsd:g} m", where, fix)


def export(job: Job, plan: Plan) -> list[str]:
    """Write the files of the version; what the layout could not carry is answered in sentences."""
    return _export_zips(job, plan) if plan.version == "v1.1" else _export_tree(job, plan)


# -- v1.1: zips -------------------------------------------------------------------------------------------------------


def _export_zips(job: Job, plan: Plan) -> list[str]:
    size = job.options.samples_per_file or SAMPLES_PER_FILE
    units: list[Unit] = []
    names: dict[str, dict[str, tuple[int, ...]]] = {}
    for split in sorted(set(job.reader.splits.tolist())):
        word = split or "none"
        groups = in_groups(job.reader.slots[job.reader.splits == split], size)
        files = [f"ssl4eos12_{word}_seasonal_data_{number:06d}.zarr.zip" for number in range(1, len(groups) + 1)]
        names[word] = dict(zip(files, groups, strict=True))
        units += [
            Unit(name=f"{word}/{array}/{file}", slots=slots)
            for file, slots in names[word].items() for array in plan.arrays
        ]  # fmt: skip
    write_units(
        job, units, lambda unit, samples, files: _write_zip(job, plan, unit, samples, files), version="ssl4eo 1"
    )
    extra = Files(job.folder.root)
    for word, own in names.items():
        extra.put(f"splits/ssl4eos12_{word}.txt", "".join(f"{file}\n" for file in own).encode())
        extra.put(f"{word}_metadata.parquet", _metadata(job, plan, own))
    job.folder.count(extra)
    lost = ["radar to half precision; reflectances above 3.1767; the licence and status of each chip"]
    if "S2RGB" in plan.rules.v11 and "S2RGB" not in plan.arrays:
        lost.append(
            "S2RGB is not written: the corpus has no true colour, and how the published one was made is unknown"
        )
    return lost


def _write_zip(job: Job, plan: Plan, unit: Unit, samples: Sequence[Sample], files: Files) -> None:
    """One array of some locations as a zarr group."""
    name = unit.name.split("/")[1]
    array = plan.arrays[name]
    modality, side = job.corpus.modalities[array.modality], job.corpus.shape(array.modality)[-1]
    recoder, n, steps = array.recoder(modality), len(samples), plan.rules.steps
    ids = [f"{sample.slot:07d}" for sample in samples]
    # xarray turns values into floats where it knows of a fill value, so readers of the layout are not told of one.
    with files.open(unit.name) as file:
        group = ZarrZip(file, {"mmbuild:synthetic": SYNTHETIC[job.corpus.synthetic]})
        shape, chunk = (n, steps, len(array.bands), side, side), (1, 1, len(array.bands), side, side)
        planes = (
            recoder.encode({array.modality: job.reader.chip(sample, array.modality, step)}, (side, side))[None, None]
            for sample in samples for step in range(steps)
        )  # fmt: skip
        group.chunked("bands", ("sample", "time", "band", "y", "x"), shape, recoder.rule.np_dtype, chunk, planes)
        if name in plan.rules.cloud_mask.of and _has_mask(job.corpus, plan.rules):
            masks = (_mask(job, plan, sample, step, side) for sample in samples for step in range(steps))
            where = ("sample", "time", "y", "x")
            group.chunked("cloud_mask", where, (n, steps, side, side), np.dtype("u1"), (1, 1, side, side), masks)
        for key, dims, values, attributes in _coordinates(plan, array, samples, side):
            group.array(key, dims, values, **attributes)
        group.array("band", ("band",), np.array(list(array.bands)))
        group.array("sample", ("sample",), np.array(ids))
        for axis, length in (("time", steps), ("x", side), ("y", side)):
            group.array(axis, (axis,), np.arange(length))
        group.close()


def _has_mask(corpus: Corpus, rules: Seasons) -> bool:
    name = rules.cloud_mask.modality
    return name in corpus.modalities and corpus.shape(name)[0] == rules.steps and corpus.gsd(name) == rules.gsd


def _mask(job: Job, plan: Plan, sample: Sample, step: int, side: int) -> np.ndarray:
    rule = plan.rules.cloud_mask
    chip = job.reader.chip(sample, rule.modality, step)
    found = np.full((side, side), rule.fill, np.uint8) if chip is None else rule.encode(chip)
    return found[None, None]


def _coordinates(
    plan: Plan, array: Array, samples: Sequence[Sample], side: int
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]]:
    """What is known of each location and date, with its dimensions and attributes."""
    about = [sample.about for sample in samples]
    steps = range(plan.rules.steps)
    rows = [[sample.rows.get((array.modality, step)) for step in steps] for sample in samples]
    half, gsd = plan.rules.gsd / 2, plan.rules.gsd
    x = np.array([_number(row["x0"]) + half for row in about])[:, None] + gsd * np.arange(side)
    y = np.array([_number(row["y0"]) - half for row in about])[:, None] - gsd * np.arange(side)
    times = np.array([[_millis(None if row is None else row["datetime"]) for row in own] for own in rows])
    files = np.array([[_scene(row) for row in own] for own in rows])
    ids = np.array([[f"{sample.slot:07d}_{step}" for step in steps] for sample in samples])
    stamp = {"units": "milliseconds since 1970-01-01", "calendar": "proleptic_gregorian", "_FillValue": int(_NO_TIME)}
    yield "center_lat", ("sample",), np.array([row["lat"] for row in about]), {}
    yield "center_lon", ("sample",), np.array([row["lon"] for row in about]), {}
    yield "crs", ("sample",), np.array([row["epsg"] or 0 for row in about], np.int64), {}
    yield "file_id", ("sample", "time"), files, {}
    yield "sample_id", ("sample", "time"), ids, {}
    yield "time_", ("sample", "time"), times, stamp
    yield "x_", ("sample", "x"), x, {}
    yield "y_", ("sample", "y"), y, {}


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _millis(time: datetime | None) -> int:
    return _NO_TIME if time is None else (time - _EPOCH) // timedelta(milliseconds=1)


def _scene(row: Mapping[str, Any] | None) -> str:
    """The scene's own index, without the collection in front of it."""
    ids = row["scene_ids"] if row else ()
    return str(ids[0]).rpartition("/")[2] if ids else ""


def _metadata(job: Job, plan: Plan, files: Mapping[str, Sequence[int]]) -> bytes:
    """One row a location and date, with the true outline in degrees."""
    items = read_parquet(job.corpus.store, "items.parquet", ["geometry", "mmbuild:index"])
    outlines = dict(zip(items["mmbuild:index"].to_pylist(), items["geometry"].to_pylist(), strict=True))
    name = next(a.modality for a in plan.arrays.values())
    tables = []
    for file, slots in files.items():
        rows = [
            {
                "sample_id": f"{sample.slot:07d}", "time_id": step,
                "time": row["datetime"] if (row := sample.rows.get((name, step))) else None,
                "geometry": outlines[sample.slot], "tile_crs": sample.about["epsg"], "file": file,
            }
            for sample in map(job.reader.sample, slots) for step in range(plan.rules.steps)
        ]  # fmt: skip
        tables.append(pa.Table.from_pylist(rows, schema=_METADATA))
    return parquet_bytes(pa.concat_tables(tables))


# -- v1.0: a tree of GeoTIFFs -----------------------------------------------------------------------------------------


def _export_tree(job: Job, plan: Plan) -> list[str]:
    units = [Unit(name=f"{slot:07d}", slots=(int(slot),)) for slot in job.reader.slots]
    write_units(
        job, units, lambda unit, samples, files: _write_location(job, plan, samples[0], files), version="ssl4eo 1"
    )
    lost = ["splits, alternates, the status of chips that are not there, and modalities other than the three"]
    if job.options.faithful:
        lost.append("what bands of 20 and 60 m have between their own pixels: they are averaged to 132 and 44 px")
    return lost


def _write_location(job: Job, plan: Plan, sample: Sample, files: Files) -> None:
    for folder, array in plan.arrays.items():
        modality = job.corpus.modalities[array.modality]
        used: set[str] = set()
        for step in range(plan.rules.steps):
            chip = job.reader.chip(sample, array.modality, step)
            if chip is None:
                continue
            row = sample.rows[array.modality, step]
            scene = _folder_of(row, step, used)
            root = f"{folder}/{sample.slot:07d}/{scene}"
            for name, band in array.bands.items():
                index = modality.band_names.index(band)
                files.put(f"{root}/{name}.tif", _tif(chip[index], modality, index, row, bool(job.options.faithful)))
            files.put(f"{root}/metadata.json", json.dumps(_properties(job, array, row, scene), indent=1).encode())


def _folder_of(row: Mapping[str, Any], step: int, used: set[str]) -> str:
    """The scene's index; its date, or only its step, where that is not known."""
    date = f"{row['datetime']:%Y%m%dT%H%M%S}" if row["datetime"] else f"step{step}"
    name = _scene(row) or date
    name = f"{name}_{step}" if name in used else name
    used.add(name)
    return name


def _tif(values: np.ndarray, modality: Modality, index: int, row: Mapping[str, Any], faithful: bool) -> bytes:
    """One band; faithful: at its own pixel size, where a pixel is the mean of those it covers."""
    gsd, own = float(row["gsd"]), modality.bands[index].gsd
    factor = round(own / gsd) if faithful and own and own > gsd else 1
    if factor > 1:
        values = _averaged(values, factor, modality)
    height, width = values.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": values.dtype.name,
        "nodata": modality.fill.item(),
    }  # fmt: skip
    if row["x0"] is not None and row["epsg"] is not None:
        size = gsd * factor
        place = Affine(size, 0.0, row["x0"], 0.0, -size, row["y0"])
        profile |= {"crs": rasterio.CRS.from_epsg(row["epsg"]), "transform": place}
    with MemoryFile() as memory:
        with memory.open(**profile) as image:
            image.write(values, 1)
        return bytes(memory.read())


def _averaged(values: np.ndarray, factor: int, modality: Modality) -> np.ndarray:
    """Means of blocks, nodata where any pixel of one is missing; a rest at the right and bottom is cut off."""
    height, width = (n // factor for n in values.shape)
    blocks = values[: height * factor, : width * factor].reshape(height, factor, width, factor)
    whole = (blocks != modality.fill).all(axis=(1, 3))
    mean = blocks.astype(np.float64).mean(axis=(1, 3))
    mean = mean if modality.np_dtype.kind == "f" else np.round(mean)
    return np.where(whole, mean, modality.fill).astype(modality.np_dtype)


def _properties(job: Job, array: Array, row: Mapping[str, Any], scene: str) -> dict[str, Any]:
    """A flat dict as the published files have, with what is known here."""
    when = row["datetime"]
    found = {
        "system:index": scene, "system:id": row["scene_ids"][0] if row["scene_ids"] else None,
        "system:time_start": None if when is None else _millis(when), "bands": list(array.bands),
        "lon": row["lon"], "lat": row["lat"], "mmbuild:step": row["time"],
        "mmbuild:sample": row["sample_id"], "mmbuild:synthetic": SYNTHETIC[job.corpus.synthetic],
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}
