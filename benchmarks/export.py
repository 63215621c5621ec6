"""How fast corpora are packed and exported, beside what the disk takes: python -m benchmarks.export [--folder DIR]

Three corpora are packed from made-up smooth fields with noise (MMEarth-like chips of 128 px, four dates of 264 px,
web-map tiles of 256 and 512 px) and exported to every layout. The disk's own rate is measured in the same run: one
thread writes random bytes in sequence and fsyncs. "raw" counts decoded values, "written" the bytes of the files;
the share of the disk's rate is that of the bytes written.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.cube import Corpus
from mmbuild.export import Options, export_corpus
from mmbuild.grid import MERCATOR_EDGE_M, tile_bounds, tile_grid, utm_grid
from mmbuild.importers import Foreign, Sample, Seen, pack, places_of
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities

DISK_BYTES = 512 * 2**20
SEASONS = {"kind": "seasons", "dates": ["2020-12-21", "2021-03-20", "2021-06-21", "2021-09-22"], "max_days": 15.0}
MMEARTH = (
    "sentinel2_l1c", "sentinel2_l2a", "sentinel2_scl", "sentinel1_asc", "sentinel1_desc", "aster_gdem",
    "canopy_height", "dynamic_world", "esa_worldcover", "era5", "biome", "ecoregion", "geolocation", "month",
)  # fmt: skip
ZOOM = 15
# Samples made once and repeated under new ids: making fields is not what is measured.
KINDS = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """A corpus to pack and the layouts it is exported to."""

    name: str
    modalities: tuple[str, ...]
    size: int
    samples: int
    formats: tuple[tuple[str, Options], ...]
    times: int = 1
    zoom: int | None = None
    one_of: tuple[str, ...] = ()


CASES = (
    Case(
        name="mmearth-like", modalities=MMEARTH, size=128, samples=256, one_of=MMEARTH[:2],
        formats=(
            ("mmearth", Options()), ("webdataset", Options()), ("geotiff", Options()),
        ),
    ),
    Case(
        name="ssl4eo-like", modalities=("sentinel1", "sentinel2_l1c", "sentinel2_l2a"), size=264, samples=16, times=4,
        formats=(("ssl4eo", Options()), ("ssl4eo", Options(version="v1.0"))),
    ),
    Case(
        name="scale-alibi-like", modalities=("sentinel1", "sentinel2_tci", "naip", "naip_2x"), size=256, samples=96,
        zoom=ZOOM, formats=(("pmtiles", Options()),),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of the table; rates in MB (10^6 bytes) a second."""

    what: str
    samples_per_s: float
    raw_mb_per_s: float
    written_mb_per_s: float
    share_of_disk: float
    seconds: float


def disk_rate(folder: Path) -> float:
    """MB/s of one thread that writes in sequence and waits until the disk has it."""
    block = np.random.default_rng(0).integers(0, 256, 8 * 2**20, np.uint8).tobytes()
    path = folder / "disk.bin"
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return DISK_BYTES / 1e6 / seconds


def field(rng: np.random.Generator, modality: Modality, side: int) -> np.ndarray:
    """A chip (band, y, x) of smooth fields with noise within each band's valid range; classes in large patches."""
    chip = np.empty((len(modality.bands), side, side), modality.np_dtype)
    coarse = rng.random((len(modality.bands), 9, 9))
    place = np.linspace(0, 7.999, side)
    whole, rest = place.astype(int), place % 1
    for index, band in enumerate(modality.bands):
        grid = coarse[index]
        rows = grid[whole] * (1 - rest)[:, None] + grid[whole + 1] * rest[:, None]
        smooth = rows[:, whole] * (1 - rest) + rows[:, whole + 1] * rest
        if modality.classes:
            codes = np.array(modality.class_codes)
            chip[index] = codes[(smooth * len(codes)).astype(int)]
            continue
        low, high = max(band.valid_range[0], -25), min(band.valid_range[1], 4000)
        noisy = low + (high - low) * (0.1 + 0.6 * smooth) + rng.normal(0, (high - low) * 0.01, smooth.shape)
        chip[index] = np.clip(noisy, low, high)
    return chip


def vector(rng: np.random.Generator, modality: Modality) -> np.ndarray:
    if modality.classes:
        return rng.choice(modality.class_codes, len(modality.bands)).astype(modality.np_dtype)
    return np.array([rng.uniform(*band.valid_range) for band in modality.bands], modality.np_dtype)


def foreign(case: Case) -> Foreign:
    """The case as if it had been opened from files."""
    modalities = {name: m for name, m in load_modalities().items() if name in case.modalities}
    modalities = {name: modalities[name] for name in case.modalities}
    side = 2 * MERCATOR_EDGE_M / 2 ** (case.zoom or 0)
    gsds = {name: side / 512 for name in case.modalities if name.endswith("_2x")}
    rng = np.random.default_rng(1)
    kinds = [_chips(rng, case, modalities, gsds) for _ in range(KINDS)]
    samples = [_sample(case, slot, kinds[slot % KINDS], modalities) for slot in range(case.samples)]
    grid = {"kind": "utm", "gsd": 10.0, "size": case.size} if case.zoom is None else {
        "kind": "webmercator", "zoom": case.zoom, "size": case.size
    }  # fmt: skip
    recipe = {
        "name": case.name, "title": "Made-up fields", "licence": "CC0-1.0",
        "sampler": {"kind": "points", "file": "locations.parquet", "date_column": "date"}, "grid": grid,
        "anchor": {"one_of": list(case.one_of)} if case.one_of else {"modality": case.modalities[-1]},
        "modalities": {name: {"gsd": gsds[name]} if name in gsds else {} for name in case.modalities},
        **({"times": SEASONS} if case.times > 1 else {}),
    }  # fmt: skip
    rows = [
        {"sample_id": s.sample_id, "lon": s.lon, "lat": s.lat, "epsg": s.epsg, "x0": s.x0, "y0": s.y0,
         "date": s.anchor_time, "tags": "{}"} for s in samples
    ]  # fmt: skip
    return Foreign(
        format="benchmark", recipe=recipe, modalities=modalities, files={}, synthetic=True, unknown={},
        places=places_of(rows), read=lambda rows: [samples[row] for row in rows],
    )  # fmt: skip


def _chips(
    rng: np.random.Generator, case: Case, modalities: Mapping[str, Modality], gsds: Mapping[str, float]
) -> dict[tuple[str, int], np.ndarray | None]:
    found: dict[tuple[str, int], np.ndarray | None] = {}
    for name, modality in modalities.items():
        for step in range(case.times if modality.time == "scene" else 1):
            size = case.size * (2 if name in gsds else 1)
            found[name, step] = vector(rng, modality) if modality.level == "image" else field(rng, modality, size)
    return found


def _sample(
    case: Case, slot: int, chips: Mapping[tuple[str, int], np.ndarray | None], modalities: Mapping[str, Modality]
) -> Sample:
    lon, lat = -60.0 + slot * 0.1, 10.0 + slot % 30
    box = utm_grid(lon, lat, gsd=10.0, size=case.size)
    if case.zoom is not None:
        x, y = 8000 + slot, 12000
        box = tile_grid(x, y, case.zoom, size=case.size)
        west, south, east, north = tile_bounds(x, y, case.zoom)
        lon, lat = (west + east) / 2, (south + north) / 2
    # Moved a little each time: archives store equal pictures once.
    own = {
        key: chip if chip is None or chip.ndim == 1 else np.roll(chip, slot // KINDS, axis=-1)
        for key, chip in chips.items() if key[0] not in case.one_of or key[0] == case.one_of[slot % 2]
    }  # fmt: skip
    date = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=slot)
    return Sample(
        sample_id=f"{slot:06d}", lon=lon, lat=lat, epsg=box.crs.to_epsg(), x0=box.affine.c, y0=box.affine.f,
        anchor_time=date, tags={}, chips=own,
        seen={(n, t): Seen(datetime=date + timedelta(days=90 * t), scene_ids=[f"{n}_{slot}_{t}"]) for n, t in own},
    )  # fmt: skip


def raw_bytes(corpus: Corpus) -> int:
    """Bytes of all stored values, decoded."""
    rows = corpus.records(["modality", "status"]).to_pylist()
    size = {n: int(np.prod(corpus.layouts[n].chip)) * m.np_dtype.itemsize for n, m in corpus.modalities.items()}
    return sum(size[row["modality"]] for row in rows if row["status"] == "stored")


def written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, cases: Sequence[Case], disk: float) -> Iterator[Measured]:
    """Pack each case, then export it to each of its layouts; everything is synced before the clock stops."""

    def row(what: str, samples: int, raw: int, written: int, seconds: float) -> Measured:
        return Measured(
            what=what, samples_per_s=samples / seconds, raw_mb_per_s=raw / 1e6 / seconds,
            written_mb_per_s=written / 1e6 / seconds, share_of_disk=written / 1e6 / seconds / disk, seconds=seconds,
        )  # fmt: skip

    for case in cases:
        made = foreign(case)
        began = time.perf_counter()
        corpus = pack(made, folder / case.name)
        os.sync()
        seconds = time.perf_counter() - began
        raw = raw_bytes(corpus)
        packed = written_bytes(folder / case.name)
        yield row(f"pack {case.name}, with splits, statistics and catalogue", case.samples, raw, packed, seconds)
        for format, options in case.formats:
            dest = folder / f"{case.name}-{format}-{options.version or ''}"
            began = time.perf_counter()
            export_corpus(corpus, dest, format=format, options=options)
            os.sync()
            seconds = time.perf_counter() - began
            label = f"export {case.name} to {format} {options.version or ''}".strip()
            yield row(label, case.samples, raw, written_bytes(dest), seconds)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table; what is on it, as data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; on the disk that counts")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        disk = disk_rate(folder)
        if not asked.json:
            print(f"disk, sequential write with fsync: {disk:.0f} MB/s; {os.cpu_count()} cores")
            print(f"{'':<62}{'samples/s':>10}{'raw MB/s':>10}{'MB/s':>8}{'of disk':>9}")
        rows = []
        for found in measure(folder, CASES, disk):
            rows.append(asdict(found))
            if not asked.json:
                print(
                    f"{found.what:<62}{found.samples_per_s:>10.1f}{found.raw_mb_per_s:>10.1f}"
                    f"{found.written_mb_per_s:>8.1f}{found.share_of_disk:>9.1%}"
                )
    if asked.json:
        print(json.dumps({"disk_mb_per_s": disk, "rows": rows}, indent=1))
    return {"disk_mb_per_s": disk, "rows": rows}


if __name__ == "__main__":
    main()
