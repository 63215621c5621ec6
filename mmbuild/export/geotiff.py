"""A GeoTIFF for every chip, and a table of the samples: for QGIS and whatever else reads rasters.

``<modality>/<id>.tif`` (``<id>_t0.tif``, ... where there are several time steps) has the chip as stored with its place,
nodata, band names, units, scales, class colours, and scenes and dates as tags; ``<modality>/legend.qml`` names the
classes for QGIS; ``samples.gpkg`` has one row a sample with its outline, dates, split and image-level values.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import numpy as np
import pyarrow.compute as pc
import rasterio
from affine import Affine
from rasterio.io import MemoryFile

from mmbuild.errors import UserError
from mmbuild.export import SYNTHETIC, Job, Options, Unit, write_units
from mmbuild.foreign.chips import Sample, SampleReader
from mmbuild.foreign.files import Files, ordered
from mmbuild.modality import Modality
from mmbuild.records import read_parquet

OPTIONS = frozenset({"split", "modalities"})
# Deflate is read everywhere; differences of neighbours compress better, but codes of classes are no numbers.
_HORIZONTAL, _FLOATING = 2, 3
# A GeoTIFF's own colour table exists for these types.
_COLOURED = ("uint8", "uint16")


def prepare(reader: SampleReader, options: Options) -> None:
    """Refuse a corpus whose pixels have no known place: such a GeoTIFF would be nowhere."""
    samples = reader.corpus.samples(["sample_id", "epsg", "x0", "y0", "sample_status"])
    for name in ("epsg", "x0", "y0"):
        lost = samples.filter(pc.and_(samples[name].is_null(), pc.equal(samples["sample_status"], "stored")))
        if len(lost):
            reason = f"the grid of {len(lost)} samples is not known (sample {lost['sample_id'][0]} has no {name})"
            raise UserError(reason, reader.corpus.store.url, "export to webdataset, which needs no places")


def export(job: Job, prepared: None) -> list[str]:
    """Write the chips, the legends and the table of samples."""
    units = [Unit(name=str(slot), slots=(int(slot),)) for slot in job.reader.slots]
    write_units(job, units, lambda unit, samples, files: _write_sample(job, samples[0], files), version="geotiff 1")
    extra = Files(job.folder.root)
    for name in job.modalities:
        modality = job.corpus.modalities[name]
        if modality.level == "pixel" and modality.classes:
            extra.put(f"{name}/legend.qml", _legend(modality).encode())
    _write_table(job, extra)
    job.folder.count(extra)
    return []


def _write_sample(job: Job, sample: Sample, files: Files) -> None:
    for name in job.modalities:
        modality = job.corpus.modalities[name]
        times = job.corpus.shape(name)[0]
        for time in range(times) if modality.level == "pixel" else ():
            chip = job.reader.chip(sample, name, time)
            if chip is not None:
                ending = "" if times == 1 else f"_t{time}"
                row = sample.rows[name, time]
                files.put(f"{name}/{sample.sample_id}{ending}.tif", geotiff(chip, modality, row, _tags(job, row)))


def geotiff(chip: np.ndarray, modality: Modality, row: Mapping[str, Any], tags: Mapping[str, str]) -> bytes:
    """A chip (band, y, x) as a GeoTIFF on the grid of its record."""
    count, height, width = chip.shape
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": chip.dtype.name,
        "nodata": modality.fill.item(), "compress": "deflate", "predictor": _predictor(modality),
        "interleave": "band", **_place(row),
    }  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as image:
            image.write(chip)
            image.descriptions = modality.band_names
            image.units = [band.unit or "" for band in modality.bands]
            image.scales = [band.scale for band in modality.bands]
            image.offsets = [band.offset for band in modality.bands]
            image.update_tags(**tags)
            colours = {item.code: _rgba(item.color) for item in modality.classes if item.color}
            if colours and count == 1 and modality.dtype in _COLOURED:
                image.write_colormap(1, colours)
        return bytes(memory.read())


def _predictor(modality: Modality) -> int:
    if modality.values == "categorical":
        return 1
    return _FLOATING if modality.np_dtype.kind == "f" else _HORIZONTAL


def _place(row: Mapping[str, Any]) -> dict[str, Any]:
    transform = Affine(row["gsd"], 0.0, row["x0"], 0.0, -row["gsd"], row["y0"])
    return {"crs": rasterio.CRS.from_epsg(row["epsg"]), "transform": transform}


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255


def _tags(job: Job, row: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the chip, as texts."""
    modality = job.corpus.modalities[row["modality"]]
    found = {
        "sample": row["sample_id"], "modality": row["modality"], "title": modality.title,
        "datetime": _iso(row["datetime"]), "anchor": _iso(row["anchor_time"]),
        "window": "/".join(filter(None, (_iso(row["window_start"]), _iso(row["window_end"])))),
        # A composite has hundreds; the catalogue names them.
        "scenes": ",".join(row["scene_ids"] or ()) if modality.time == "scene" else "",
        "licence": modality.licence, "attribution": modality.attribution,
        "synthetic": SYNTHETIC[job.corpus.synthetic],
        **{f"class_{item.code}": item.name for item in modality.classes},
    }  # fmt: skip
    return {key: value for key, value in found.items() if value}


def _iso(time: datetime | None) -> str:
    return "" if time is None else time.isoformat().replace("+00:00", "Z")


def _legend(modality: Modality) -> str:
    """A QGIS style that paints and names the classes."""
    entries = "".join(
        f'<paletteEntry value="{item.code}" color="{item.color or "#808080"}" alpha="255" label="{escape(item.name)}"/>'
        for item in modality.classes
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis><pipe><rasterrenderer type="paletted" band="1" opacity="1"><colorPalette>{entries}</colorPalette>'
        "</rasterrenderer></pipe></qgis>\n"
    )


# -- the table of samples ---------------------------------------------------------------------------------------------


def _write_table(job: Job, files: Files) -> None:
    """samples.gpkg: outlines in degrees with what a click on them should tell."""
    import geopandas as gpd
    import shapely

    items = _outlines(job)
    rows = list(ordered(lambda slot: _describe(job, job.reader.sample(int(slot))), job.reader.slots, job.threads))
    table = gpd.GeoDataFrame(rows, geometry=shapely.from_wkb(items), crs="EPSG:4326")
    with files.open("samples.gpkg") as file:
        # The driver wants a name that ends so, in a place of its own.
        path = job.folder.root / ".mmbuild" / "samples.gpkg"
        path.unlink(missing_ok=True)
        table.to_file(path, driver="GPKG", layer="samples", engine="pyogrio")
        file.write(path.read_bytes())
        path.unlink()


def _outlines(job: Job) -> list[bytes]:
    """The catalogue's outline of every exported sample, by slot."""
    columns = ["geometry", "mmbuild:index"]
    items = read_parquet(job.corpus.store, "items.parquet", columns).sort_by("mmbuild:index")
    place = np.searchsorted(items["mmbuild:index"].to_numpy(), job.reader.slots)
    found: list[bytes] = items["geometry"].combine_chunks().take(place).to_pylist()
    return found


def _describe(job: Job, sample: Sample) -> dict[str, Any]:
    about = sample.about
    row = {
        "id": sample.sample_id, "split": sample.split, "lon": about["lon"], "lat": about["lat"],
        "anchor": _iso(about["anchor_time"]), **json.loads(about["tags"]),
    }  # fmt: skip
    return row | dict(itertools.chain.from_iterable(_values(job, sample, name) for name in job.modalities))


def _values(job: Job, sample: Sample, name: str) -> Iterator[tuple[str, Any]]:
    """The date of a raster, or the values of an image-level modality, in columns named after it."""
    modality: Modality = job.corpus.modalities[name]
    times = job.corpus.shape(name)[0]
    for time in range(times):
        ending = "" if times == 1 else f"_t{time}"
        if modality.level == "pixel":
            row = sample.rows.get((name, time))
            yield f"{name}{ending}_date", "" if row is None else _iso(row["datetime"])
            continue
        chip = job.reader.chip(sample, name, time)
        names: Sequence[str] = modality.band_names
        for index, band in enumerate(names):
            value = None if chip is None or chip[index] == modality.fill else chip[index].item()
            yield name + ending if band == name else f"{name}{ending}_{band}", value
            if modality.classes and band == name:
                known = {item.code: item.name for item in modality.classes}
                yield f"{name}{ending}_name", None if value is None else known.get(value, "")
