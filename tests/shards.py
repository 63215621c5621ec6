"""A tiny hand-made corpus, written by zarr-python and pyarrow instead of mmbuild: an independent truth for readers."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from mmbuild.cube import Corpus, open_corpus
from mmbuild.modality import Modality
from mmbuild.recipe import Recipe
from mmbuild.records import RECORD_SCHEMA

SIZE = 24  # pixels of the finest modality
SLOTS = 21
PER_SHARD = 8
GONE = 6  # a slot whose sample was rejected: it has records and no chip
START = datetime(2020, 3, 1, 10, 30, tzinfo=UTC)


def modality(name: str, *, level: str, values: str, dtype: str, nodata: float, bands: str, **more: Any) -> Modality:
    """A modality of our own; ``bands`` are separated by blanks, ``codes`` become classes."""
    codes = more.pop("codes", ())
    low, high = more.pop("valid", (0, 250))
    return Modality.model_validate(
        {
            "name": name, "title": name, "level": level, "values": values, "dtype": dtype, "nodata": nodata,
            "bands": [{"name": band, "valid_range": [low, high]} for band in bands.split()],
            "classes": [{"code": code, "name": f"class {code}"} for code in codes],
            "time": "scene", "licence": "CC0-1.0", "attribution": "made for tests",
            "providers": [{"name": "tests", "roles": ["producer"]}], "sources": {"earthengine": {}},
            **more,
        }
    )  # fmt: skip


MODALITIES = {
    m.name: m
    for m in (
        modality(
            "optic_a", level="pixel", values="continuous", dtype="uint16", nodata=65535, bands="B1 B2 B3 B4",
            gsd=10, alias="optic", valid=(0, 20_000),
        ),
        modality(
            "optic_b", level="pixel", values="continuous", dtype="uint16", nodata=65535, bands="B4 B2 B1",
            gsd=10, alias="optic", valid=(0, 20_000),
        ),
        modality(
            "radar", level="pixel", values="continuous", dtype="float32", nodata=-9999.0, bands="VV VH",
            gsd=20, valid=(-100, 100),
        ),
        modality(
            "cover", level="pixel", values="categorical", dtype="uint8", nodata=255, bands="class", gsd=40,
            codes=(10, 20, 90, 95),
        ),
        modality(
            "climate", level="image", values="continuous", dtype="float32", nodata=-9999.0, bands="t p c",
            valid=(-100, 1e6),
        ),
        modality(
            "zone", level="image", values="categorical", dtype="uint16", nodata=65535, bands="zone",
            codes=(7, 1, 300), valid=(0, 1000),
        ),
    )
}  # fmt: skip


# For models of several sensors: with these, radar has an optical companion on its own grid and one of finer pixels.
COMPANIONS = {
    m.name: m
    for m in (
        modality(
            "colour", level="pixel", values="continuous", dtype="uint8", nodata=255, bands="R G B", gsd=20,
            valid=(0, 254),
        ),
        modality(
            "aerial", level="pixel", values="continuous", dtype="uint16", nodata=65535, bands="R G B", gsd=10,
            valid=(0, 20_000),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TinyCorpus:
    """What was written. truth: by modality (slot, 1, band[, y, x]), nodata where nothing is stored; stored: (slot,)."""

    path: Path
    truth: dict[str, np.ndarray]
    stored: dict[str, np.ndarray]
    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    stats: dict[str, Any]

    def open(self) -> Corpus:
        return open_corpus(self.path)

    @property
    def slots(self) -> list[int]:
        """The catalogued slots."""
        return [int(item["mmbuild:index"]) for item in self.items]

    def array(self, name: str) -> zarr.Array[Any]:
        """The modality as zarr-python opens it."""
        array = zarr.open_group(self.path / "cube.zarr", mode="r")[f"{name}/data"]
        assert isinstance(array, zarr.Array)
        return array


def write_corpus(
    path: Path, *, slots: int = SLOTS, seed: int = 0, synthetic: bool = True, companions: bool = False
) -> TinyCorpus:
    """Write a corpus of ``slots`` slots: about a tenth of the chips missing, a fifth of the pixels nodata."""
    rng = np.random.default_rng(seed)
    modalities = MODALITIES | (COMPANIONS if companions else {})
    recipe = _recipe(slots, modalities)
    stored = _which_are_stored(rng, slots, modalities)
    truth = {name: _chips(rng, m, slots, stored[name]) for name, m in modalities.items()}
    for name, chips in truth.items():  # a chip of nodata alone is not stored, as Zarr has it
        stored[name] &= (chips != modalities[name].fill).reshape(slots, -1).any(axis=1)
    group = zarr.create_group(path / "cube.zarr", zarr_format=3)
    for name, array in truth.items():
        _write_array(group, modalities[name], array)
    rows = list(_rows(path, truth, stored, modalities))
    for shard in range(-(-slots // PER_SHARD)):
        own = [row for row in rows if row["slot"] // PER_SHARD == shard]
        _write_table(path / f"shards/{shard:06d}.parquet", pa.Table.from_pylist(own, schema=RECORD_SCHEMA))
    items = [_item(slot) for slot in range(slots) if slot != GONE]
    _write_table(path / "items.parquet", pa.Table.from_pylist(items))
    train = [int(item["mmbuild:index"]) for item in items if item["split"] == "train"]
    stats = {"modalities": {name: _statistics(modalities[name], truth[name][train]) for name in truth}}
    (path / "stats.json").write_text(json.dumps(stats))
    lock = {
        "digest": recipe.digest, "samples": slots, "source": {"name": "earthengine", "synthetic": synthetic},
        "recipe": recipe.resolved(), "modalities": {n: m.model_dump(mode="json") for n, m in modalities.items()},
    }  # fmt: skip
    (path / "recipe.lock.json").write_text(json.dumps(lock))
    return TinyCorpus(path=path, truth=truth, stored=stored, rows=rows, items=items, stats=stats)


def _recipe(slots: int, modalities: Mapping[str, Modality]) -> Recipe:
    from mmbuild.recipe import recipe_from_resolved

    written = {
        "name": "handmade", "title": "hand-made", "licence": "CC0-1.0", "samples": slots,
        "sampler": {"kind": "points", "file": "places.csv"}, "grid": {"kind": "utm", "gsd": 10.0, "size": SIZE},
        "anchor": {"one_of": ["optic_a", "optic_b"], "years": [2020]},
        "modalities": {name: {} for name in modalities}, "store": {"samples_per_shard": PER_SHARD},
    }  # fmt: skip
    return recipe_from_resolved(written, modalities)


def _which_are_stored(
    rng: np.random.Generator, slots: int, modalities: Mapping[str, Modality]
) -> dict[str, np.ndarray]:
    """(slot,) bool by modality: one of the two optics each, other modalities now and then missing, GONE has none."""
    first = rng.random(slots) < 0.6
    stored = {name: rng.random(slots) < 0.85 for name in modalities}
    stored |= {"optic_a": first, "optic_b": ~first, "zone": np.ones(slots, dtype=bool)}
    stored["optic_a"][3] = stored["optic_b"][3] = False  # a sample that has neither
    for flags in stored.values():
        flags[GONE % slots] = False
    return stored


def _chips(rng: np.random.Generator, m: Modality, slots: int, stored: np.ndarray) -> np.ndarray:
    side = 0 if m.gsd is None else round(SIZE * 10 / m.gsd)
    shape = (slots, 1, len(m.bands)) + ((side, side) if side else ())
    if m.values == "categorical":
        values = rng.choice([*m.class_codes, 40], size=shape)  # 40 is a code that no class has
    elif m.np_dtype.kind == "f":
        values = rng.normal(-12, 5, size=shape)
    else:
        values = rng.integers(0, 12_000, size=shape)
    chips: np.ndarray = values.astype(m.np_dtype)
    chips[rng.random(shape) < 0.2] = m.fill
    if m.name == "climate":
        chips[:, :, 2] = m.fill  # a band that was never observed
        chips[:, :, 1] = 3.0  # a band that never varies
    chips[~stored] = m.fill
    return chips


def _write_array(group: zarr.Group, m: Modality, chips: np.ndarray) -> None:
    array = group.create_array(
        f"{m.name}/data", shape=chips.shape, dtype=chips.dtype, fill_value=m.fill.item(),
        chunks=(1, 1, *chips.shape[2:]), shards=(PER_SHARD, 1, *chips.shape[2:]),
        serializer=BytesCodec(endian="little"),
        compressors=[BloscCodec(cname="zstd", clevel=3, typesize=chips.dtype.itemsize), Crc32cCodec()],
        dimension_names=("sample", "time", "band", "y", "x")[: chips.ndim],
    )  # fmt: skip
    array[...] = chips


def _rows(
    path: Path,
    truth: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    modalities: Mapping[str, Modality],
) -> Iterator[dict[str, Any]]:
    """Commit record rows; byte ranges are read from the shard indexes that zarr-python wrote."""
    for slot in range(len(truth["zone"])):
        for name, m in modalities.items():
            is_stored = bool(stored[name][slot])
            chip = truth[name][slot, 0]
            start, length = _range_of(path, name, slot, chip.ndim) if is_stored else (-1, -1)
            raw = chip.astype(chip.dtype.newbyteorder("<")).tobytes()
            yield {
                "slot": slot, "sample_id": f"{slot:06d}", "alternate": 0,
                "sample_status": "rejected" if slot == GONE else "stored", "lon": 8.0 + slot / 100, "lat": 47.0,
                "epsg": 32632, "x0": 480_000.0, "y0": 5_200_000.0, "gsd": m.gsd, "tags": "{}",
                "height": chip.shape[-2] if m.gsd else None, "width": chip.shape[-1] if m.gsd else None,
                "anchor_time": START + timedelta(days=slot), "modality": name, "time": 0,
                "status": "stored" if is_stored else "no_data", "reason": "" if is_stored else "left out",
                "scene_ids": [f"{name}/{slot}"] if is_stored else [],
                "datetime": START + timedelta(days=slot, hours=1) if is_stored and m.gsd else None,
                "sha256": hashlib.sha256(raw).hexdigest() if is_stored else None, "offset": start, "length": length,
            }  # fmt: skip


def _range_of(path: Path, name: str, slot: int, dims: int) -> tuple[int, int]:
    data = (path / "cube.zarr" / name / "data/c" / str(slot // PER_SHARD) / "/".join("0" * (dims + 1))).read_bytes()
    index = data[-(16 * PER_SHARD + 4) : -4]
    start, length = struct.unpack_from("<QQ", index, 16 * (slot % PER_SHARD))
    return start, length


def _item(slot: int) -> dict[str, Any]:
    split = ("val", "test", "")[slot % 9 // 3] if slot % 9 in (0, 3, 6) else "train"
    return {"id": f"{slot:06d}", "split": split, "mmbuild:index": slot, "datetime": START + timedelta(days=slot)}


def _statistics(m: Modality, chips: np.ndarray) -> dict[str, Any]:
    """Mean and population deviation of the valid stored values by band, in float64; None without any."""
    bands = {}
    for i, name in enumerate(m.band_names):
        values = chips[:, :, i][chips[:, :, i] != m.fill].astype(np.float64)
        some = len(values) > 0
        bands[name] = {"mean": float(values.mean()) if some else None, "std": float(values.std()) if some else None}
    return {"bands": bands}


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
