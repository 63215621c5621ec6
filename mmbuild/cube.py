"""The Zarr cube of a corpus: its layout, the bytes of one shard, and an opened corpus for people and tools.

Shards are encoded here, byte for byte, so that the same chips always give the same object and every chip's place in
it is known to the commit record. A shard is written by one task; nothing here decides what goes into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numcodecs import blosc

from mmbuild.errors import IntegrityError, UserError
from mmbuild.modality import Modality
from mmbuild.recipe import Recipe, recipe_from_resolved
from mmbuild.records import RECORD_SCHEMA, committed_shards, read_record, record_key
from mmbuild.store import Store, open_store

if TYPE_CHECKING:
    import geopandas as gpd
    import xarray as xr

CUBE, LOCK = "cube.zarr", "recipe.lock.json"
# Samples whose records are in memory together: with 13 modalities some 12 MB, and as much again for each step of work.
SAMPLES_PER_PART = 1024
# Zarr's sharding codec marks an absent inner chunk with the largest unsigned integer, twice (sharding spec, v1.0).
_ABSENT = 2**64 - 1
_CRC_BYTES = 4
# The compressor of a recipe that names none. Of zstd, lz4 and lz4hc at several levels, with and without shuffling, it
# is the fastest to decode of those that leave optical and radar chips smaller than HDF5's gzip does, synthetic and real
# ones alike: 4 to 9 GB/s a core where zstd has 1 to 2.5 (benchmarks/codecs.py prints the table).
AUTO_CODEC = "lz4hc"
_WHY_AUTO = (
    "measured: the fastest to decode of the Blosc codecs that leave optical and radar chips smaller than HDF5's gzip "
    "(python -m benchmarks.codecs OUT measures this corpus)"
)
LEVELS = {"zstd": 5, "lz4": 5, "lz4hc": 9}


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """How one modality lies on disk: ``chip`` is (band, y, x) or (band,), in pixels of ``gsd`` metres."""

    modality: Modality
    gsd: float | None
    times: int
    chip: tuple[int, ...]
    samples_per_shard: int
    codec: str
    level: int

    @property
    def name(self) -> str:
        return self.modality.name

    @property
    def dims(self) -> tuple[str, ...]:
        return ("sample", "time", "band", "y", "x")[: 2 + len(self.chip)]

    @property
    def is_shuffled(self) -> bool:
        """Whether bytes of equal weight lie together: a byte has none to part."""
        return self.modality.np_dtype.itemsize > 1

    def key(self, shard: int) -> str:
        """The object of a shard, as Zarr's default chunk keys name it."""
        return f"{CUBE}/{self.name}/data/c/{shard}" + "/0" * (1 + len(self.chip))

    def encode(self, chip: np.ndarray) -> bytes:
        """The inner chunk of a chip: little-endian C order, Blosc with byte shuffle, crc32c."""
        raw = canonical_bytes(chip, self.modality.np_dtype, self.chip, self.name)
        # One Blosc thread: more give different bytes for the same input (measured), and corpora must be reproducible.
        blosc.set_nthreads(1)
        shuffle = blosc.SHUFFLE if self.is_shuffled else blosc.NOSHUFFLE
        array = np.frombuffer(raw, dtype=self.modality.np_dtype.newbyteorder("<"))
        packed = bytes(blosc.compress(array, self.codec.encode(), self.level, shuffle, 0))
        return packed + struct.pack("<I", google_crc32c.value(packed))

    def check(self, chunk: bytes) -> bytes:
        """The inner chunk without its checksum; IntegrityError when that is wrong."""
        packed, crc = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:]
        if len(crc) < _CRC_BYTES or google_crc32c.value(packed) != struct.unpack("<I", crc)[0]:
            raise IntegrityError(f"{self.name}: the checksum of a stored chip is wrong")
        return packed

    def decode(self, chunk: bytes) -> np.ndarray:
        """The chip of an inner chunk; IntegrityError when its checksum is wrong."""
        packed = self.check(chunk)
        dtype = self.modality.np_dtype.newbyteorder("<")
        return np.frombuffer(blosc.decompress(packed), dtype=dtype).reshape(self.chip)


def canonical_bytes(chip: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> bytes:
    """Little-endian C-order bytes of a chip, of which sha256 is taken; IntegrityError on another shape or dtype."""
    if chip.shape != shape or chip.dtype != dtype:
        raise IntegrityError(f"{name}: a chip is {chip.dtype}{chip.shape}, the cube holds {dtype}{shape}")
    return np.ascontiguousarray(chip, dtype=dtype.newbyteorder("<")).tobytes()


def chip_digest(chip: np.ndarray) -> str:
    """sha256 (hex) of a chip's little-endian C-order bytes."""
    return hashlib.sha256(np.ascontiguousarray(chip, dtype=chip.dtype.newbyteorder("<")).tobytes()).hexdigest()


def packing(recipe: Recipe, name: str) -> tuple[str, int]:
    """The Blosc compressor of a modality and its level: what the recipe says of it, or of all, or the measured one.

    A function of the recipe alone, so that every shard and every later build packs alike.
    """
    asked = recipe.modalities[name].codec or recipe.store.codec
    codec = AUTO_CODEC if asked == "auto" else asked
    level = recipe.store.level if asked == recipe.store.codec else None
    return codec, LEVELS[codec] if level is None else level


def packing_reasons(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """How each modality is packed and why, for recipe.lock.json."""
    found = {}
    for name, layout in layouts(recipe).items():
        asked = recipe.modalities[name].codec or recipe.store.codec
        found[name] = {
            "codec": layout.codec, "level": layout.level, "shuffle": layout.is_shuffled,
            "why": _WHY_AUTO if asked == "auto" else "the recipe says so",
        }  # fmt: skip
    return found


def layouts(recipe: Recipe) -> dict[str, ArrayLayout]:
    """The array layout of every modality of a recipe, in recipe order."""
    found = {}
    for name, modality in recipe.modality_defs.items():
        times, *chip = recipe.shape(name)
        codec, level = packing(recipe, name)
        found[name] = ArrayLayout(
            modality=modality, gsd=recipe.gsd(name), times=times, chip=tuple(chip),
            samples_per_shard=recipe.store.samples_per_shard, codec=codec, level=level,
        )  # fmt: skip
    return found


def pack_shard(chunks: Sequence[bytes | None]) -> tuple[bytes, list[tuple[int, int]]]:
    """One shard object of the sharding codec (index at the end) and the (offset, length) of each inner chunk.

    Absent chunks get (-1, -1). chunks: one per (sample, time) in C order, always the full shard.
    """
    places: list[tuple[int, int]] = []
    index: list[int] = []
    offset = 0
    for chunk in chunks:
        if chunk is None:
            places.append((-1, -1))
            index += [_ABSENT, _ABSENT]
        else:
            places.append((offset, len(chunk)))
            index += [offset, len(chunk)]
            offset += len(chunk)
    packed = struct.pack(f"<{len(index)}Q", *index)
    tail = packed + struct.pack("<I", google_crc32c.value(packed))
    return b"".join(chunk for chunk in chunks if chunk is not None) + tail, places


def put_if_changed(store: Store, key: str, data: bytes) -> bool:
    """Put bytes unless they are there already; True when something was written."""
    if store.exists(key) and store.get(key) == data:
        return False
    store.put(key, data)
    return True


def _schema(columns: Sequence[str] | None) -> pa.Schema:
    return RECORD_SCHEMA if columns is None else pa.schema([RECORD_SCHEMA.field(name) for name in columns])


def _read_lock(store: Store) -> dict[str, Any]:
    """What was built; on an object store without asking first whether it is there, which would take as long again."""
    try:
        if not store.is_local or store.exists(LOCK):
            lock: dict[str, Any] = json.loads(store.get(LOCK))
            return lock
    except FileNotFoundError:
        pass
    raise UserError("there is no corpus here", store.url, "build one: mmbuild build RECIPE OUT")


def open_corpus(location: str | os.PathLike[str]) -> Corpus:
    """Open a built corpus; UserError when there is none."""
    return Corpus(open_store(location))


class Corpus:
    """What has been built: readers trust only its commit records.

    lock: of a corpus that is being made and has none on disk yet.
    """

    def __init__(self, store: Store, lock: dict[str, Any] | None = None) -> None:
        self.store = store
        self.lock: dict[str, Any] = lock or _read_lock(store)
        definitions = {name: Modality.model_validate(data) for name, data in self.lock["modalities"].items()}
        self.recipe = recipe_from_resolved(self.lock["recipe"], definitions)
        self.modalities = self.recipe.modality_defs
        self.layouts = layouts(self.recipe)

    def __repr__(self) -> str:
        kind = "SYNTHETIC " if self.synthetic else ""
        size = f"{self.n_slots} slots, {len(self.modalities)} modalities"
        return f"<{kind}Corpus {self.recipe.name} at {self.store.url}: {size}>"

    @property
    def digest(self) -> str:
        return str(self.lock["digest"])

    @property
    def synthetic(self) -> bool | None:
        """Whether the pixels are made up; None where the files that it was imported from do not say."""
        told: bool | None = self.lock["source"]["synthetic"]
        return told

    @property
    def n_slots(self) -> int:
        return int(self.lock["samples"])

    @property
    def samples_per_shard(self) -> int:
        return self.recipe.store.samples_per_shard

    def gsd(self, modality: str) -> float | None:
        return self.layouts[modality].gsd

    def shape(self, modality: str) -> tuple[int, ...]:
        """(time, band, y, x) or (time, band)."""
        return (self.layouts[modality].times, *self.layouts[modality].chip)

    def records(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every commit record, in shard order, whole or some of its columns; see RECORD_SCHEMA."""
        tables = [read_record(self.store, shard, columns) for shard in committed_shards(self.store)]
        return pa.concat_tables(tables) if tables else _schema(columns).empty_table()

    def record_parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The same a few whole shards at a time, in order: what goes through all records need not hold them all.

        There is always a part, of no rows where there are no records.
        """
        shards = committed_shards(self.store)
        step = max(1, SAMPLES_PER_PART // self.samples_per_shard)
        for first in range(0, max(1, len(shards)), step):
            tables = [read_record(self.store, shard, columns) for shard in shards[first : first + step]]
            yield pa.concat_tables([_schema(columns).empty_table(), *tables]).combine_chunks()

    def samples(self, columns: Sequence[str]) -> pa.Table:
        """One row a slot that has a record, by slot: what its records say of the sample itself."""
        parts = []
        for part in self.record_parts(["slot", *columns]):
            _, first = np.unique(part["slot"].to_numpy(), return_index=True)
            parts.append(part.take(pa.array(first)))
        return pa.concat_tables(parts).combine_chunks()

    def locations(self) -> gpd.GeoDataFrame:
        import geopandas as gpd

        return gpd.read_parquet(pa.BufferReader(self.store.get("locations.parquet")))

    def open_xarray(self) -> xr.DataTree:
        """The cube as a lazy tree, one node per modality; missing pixels are NaN."""
        import xarray as xr

        return xr.open_datatree(self.zarr_store(), engine="zarr", chunks={})

    def zarr_store(self) -> Any:
        """The cube as a read-only zarr-python store."""
        from zarr.storage import LocalStore, ObjectStore

        handle = self.store.handle(CUBE)
        return LocalStore(handle, read_only=True) if self.store.is_local else ObjectStore(handle, read_only=True)

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        """Offset and length of every chip of a modality, (slot, time, 2); -1 where none is stored."""
        found = {name: np.full((self.n_slots, self.shape(name)[0], 2), -1, np.int64) for name in self.modalities}
        for part in self.record_parts(["modality", "slot", "time", "offset", "length"]):
            for name, places in found.items():
                own = part.filter(pc.equal(part["modality"], name))
                at = own["slot"].to_numpy(), own["time"].to_numpy()
                places[at] = np.stack([own["offset"].to_numpy(), own["length"].to_numpy()], axis=1)
        return found

    def read_chip(self, modality: str, slot: int, time: int = 0) -> np.ndarray:
        """One chip, (band, y, x) or (band,); all nodata when it is not stored."""
        layout = self.layouts[modality]
        offset, length = map(int, self._places[modality][slot, time]) if slot < self.n_slots else (-1, -1)
        if offset < 0:
            return np.full(layout.chip, layout.modality.fill)
        shard = slot // self.samples_per_shard
        try:
            return layout.decode(self.store.get_range(layout.key(shard), offset, length))
        except IntegrityError as error:
            remedy = f"delete {record_key(shard)} and run the build again to replace the shard"
            raise IntegrityError(f"{self.store.url}: slot {slot}: {error}; {remedy}") from error
