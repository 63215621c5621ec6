"""The Scale-ALiBi triple: ``sar_tiles.pmtile``, ``visual_tiles.pmtile`` and ``hires_visual_tiles.pmtile``.

PMTiles v3 archives of uncompressed PNG tiles in the order of their Hilbert ids, from a corpus of web-map tiles; the
photographs also at the next zoom, four tiles for one. ``--name small`` makes ``sar_tiles_small.pmtile``. Display
pyramids of lower zooms are not made. What becomes of values is in ``foreign/pmtiles.yaml``.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmbuild.errors import UserError
from mmbuild.export import SYNTHETIC, Job, Options, records_digest
from mmbuild.foreign.chips import SampleReader
from mmbuild.foreign.files import Files, ordered
from mmbuild.foreign.pictures import Level, Picture, Triple, encode_png, load_triple
from mmbuild.grid import MERCATOR_EDGE_M, tile_bounds

OPTIONS = frozenset({"name", "split", "faithful", "allow_missing"})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tiles of the corpus's zoom in Hilbert order: slots[i] is the tile (x[i], y[i])."""

    triple: Triple
    shown: Mapping[str, list[tuple[Level, Picture]]]
    zoom: int
    slots: np.ndarray
    x: np.ndarray
    y: np.ndarray


def prepare(reader: SampleReader, options: Options) -> Plan:
    """Which sample is which tile; UserError for a corpus of other grids or without the modalities."""
    zxy_to_tileid = _package().zxy_to_tileid
    corpus, triple = reader.corpus, load_triple()
    where, grid = corpus.store.url, corpus.recipe.grid
    if grid.kind != "webmercator" or grid.size != triple.tile:
        reason = (
            f"the layout has web-map tiles of {triple.tile} px, this corpus has {grid.kind} chips of {grid.size} px"
        )
        raise UserError(reason, where, f"use a recipe with grid: {{kind: webmercator, size: {triple.tile}}}")
    shown = _shown(reader, triple, options)
    slots, x, y = _tiles(reader, grid.zoom)
    ids = np.array([zxy_to_tileid(grid.zoom, *place) for place in zip(x.tolist(), y.tolist(), strict=True)], np.int64)
    # Of two samples of one tile the first is kept.
    _, first = np.unique(ids, return_index=True)
    return Plan(triple=triple, shown=shown, zoom=grid.zoom, slots=slots[first], x=x[first], y=y[first])


def _package() -> Any:
    try:
        from pmtiles import tile
    except ImportError:
        raise UserError(
            "the package pmtiles is not installed", "--format pmtiles", "pip install mmbuild[exports]"
        ) from None
    return tile


def _shown(reader: SampleReader, triple: Triple, options: Options) -> dict[str, list[tuple[Level, Picture]]]:
    """What each archive shows at each of its zooms; an archive of which nothing is there is left out."""
    corpus, missing = reader.corpus, []
    found: dict[str, list[tuple[Level, Picture]]] = {}
    for name, levels in triple.archives.items():
        for level in levels:
            there = [p for p in level.one_of if p.modality in corpus.modalities]
            if not there:
                missing.append(f"{' or '.join(p.modality for p in level.one_of)} (for {name})")
                continue
            _check(reader, there[0], triple.tile * 2**level.zoom)
            found.setdefault(name, []).append((level, there[0]))
    if missing and not (options.allow_missing and found):
        fix = "add them to the recipe, or leave them out with --allow-missing"
        raise UserError(f"the layout needs what this corpus lacks: {', '.join(missing)}", corpus.store.url, fix)
    return found


def _check(reader: SampleReader, picture: Picture, side: int) -> None:
    corpus, name = reader.corpus, picture.modality
    lacks = [band for band in picture.bands if band not in ("-", *corpus.modalities[name].band_names)]
    if lacks:
        raise UserError(f"the layout needs the bands {', '.join(lacks)} of {name}", corpus.store.url, "store them")
    steps, *_, width = corpus.shape(name)
    if steps != 1 or width != side:
        reason = f"{name} has {steps} time steps of {width} px, the layout one of {side} px"
        raise UserError(reason, corpus.store.url, "export to webdataset, or change the recipe")


def _tiles(reader: SampleReader, zoom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slot, column and row of every exported sample."""
    samples = reader.corpus.samples(["x0", "y0"])
    rows = np.searchsorted(samples["slot"].to_numpy(), reader.slots)
    side = 2 * MERCATOR_EDGE_M / 2**zoom
    x0, y0 = (samples[name].to_numpy()[rows] for name in ("x0", "y0"))
    x, y = np.round((x0 + MERCATOR_EDGE_M) / side), np.round((MERCATOR_EDGE_M - y0) / side)
    return reader.slots, x.astype(np.int64), y.astype(np.int64)


def export(job: Job, plan: Plan) -> list[str]:
    """Write the archives one after the other; what the layout could not carry is answered in sentences."""
    ending = f"_{job.options.name}" if job.options.name else ""
    source = hashlib.sha256(f"pmtiles 1 {records_digest(job.corpus)}".encode()).hexdigest()
    total, done = sum(len(levels) for levels in plan.shown.values()) * len(plan.slots), 0
    for name, levels in plan.shown.items():
        key = f"{name}_tiles{ending}.pmtile"
        if job.folder.has(key, source):
            job.folder.reused += 1
        else:
            files = Files(job.folder.root)
            with files.open(key) as file:
                _write(job, plan, name, file, (done, total))
            job.folder.add(key, source, files)
        done += len(levels) * len(plan.slots)
        job.progress(done, total, job.folder.bytes)
    lost = ["dates, scenes, splits and all bands that are no colour", "display pyramids of lower zooms are not made"]
    if any(picture.render == "db" for levels in plan.shown.values() for _, picture in levels):
        lost.append("radar beyond 8 bits")
    doubles = len(job.reader) - len(plan.slots)
    return lost + ([f"{doubles} samples on a tile that another sample has"] if doubles else [])


def _write(job: Job, plan: Plan, name: str, file: Any, counted: tuple[int, int]) -> None:
    """One archive: threads paint and compress, one writer puts the tiles in the order of their ids."""
    from pmtiles.tile import Compression, TileType
    from pmtiles.writer import Writer

    writer, done, size = Writer(file), counted[0], 0
    # The package keeps the tiles in a temporary file until the directory is known: beside the archive, not in /tmp.
    writer.tile_f.close()
    with tempfile.TemporaryFile(dir=job.folder.root / ".mmbuild") as tiles:
        writer.tile_f = tiles
        for level, picture in plan.shown[name]:
            for pictures in ordered(partial(_paint, job, plan, level, picture), range(len(plan.slots)), job.threads):
                for tile_id, data in pictures:
                    writer.write_tile(tile_id, data)
                    size += len(data)
                done += 1
                job.progress(done, counted[1], job.folder.bytes + size)
        if not writer.tile_entries:
            raise UserError(f"no sample has a picture for {name}", job.corpus.store.url, "use --allow-missing")
        header = {"tile_type": TileType.PNG, "tile_compression": Compression.NONE, **_extent(plan)}
        writer.finalize(header, _about(job, plan, name))


def _paint(job: Job, plan: Plan, level: Level, picture: Picture, index: int) -> list[tuple[int, bytes]]:
    """(tile id, PNG) of the tiles of a sample at a level, in the order of their ids; none when there is no chip."""
    from pmtiles.tile import zxy_to_tileid

    name = picture.modality
    sample = job.reader.sample(int(plan.slots[index]))
    chip = job.reader.chip(sample, name)
    if chip is None:
        return []
    painted = picture.paint(chip, job.corpus.modalities[name], faithful=bool(job.options.faithful))
    n, size = 2**level.zoom, plan.triple.tile
    x, y = int(plan.x[index]) * n, int(plan.y[index]) * n
    parts = (
        (zxy_to_tileid(plan.zoom + level.zoom, x + i, y + j), (i, j)) for j in range(n) for i in range(n)
    )  # fmt: skip
    return [
        (tile_id, encode_png(painted[j * size : (j + 1) * size, i * size : (i + 1) * size]))
        for tile_id, (i, j) in sorted(parts)
    ]


def _extent(plan: Plan) -> dict[str, int]:
    """Bounds and centre in the header's units, 1e-7 degrees."""
    corners = np.array([tile_bounds(int(x), int(y), plan.zoom) for x, y in zip(plan.x, plan.y, strict=True)])
    (west, south), (east, north) = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    places = {
        "min_lon": west, "min_lat": south, "max_lon": east, "max_lat": north,
        "center_lon": (west + east) / 2, "center_lat": (south + north) / 2,
    }  # fmt: skip
    return {f"{key}_e7": round(float(value) * 1e7) for key, value in places.items()} | {"center_zoom": plan.zoom}


def _about(job: Job, plan: Plan, name: str) -> dict[str, Any]:
    """The archive's metadata: what the pictures show and how they were made."""
    inside = [job.corpus.modalities[picture.modality] for _, picture in plan.shown[name]]
    return {
        "name": f"{job.corpus.recipe.name} {name}", "format": "png",
        "attribution": "; ".join(dict.fromkeys(modality.attribution for modality in inside)),
        "mmbuild:synthetic": SYNTHETIC[job.corpus.synthetic],
        "mmbuild:faithful": job.options.faithful,
        "mmbuild:pictures": [picture.model_dump(mode="json") for _, picture in plan.shown[name]],
    }  # fmt: skip
