"""Many MMEarth-like samples for measuring loaders: a few from the offline Earth, each turned and shifted into more.

A turned and shifted chip has the values, the texture and the compressibility of its original and other bytes. Nothing
here stands for real pixels: the corpus says that it is synthetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmbuild.build import build_corpus
from mmbuild.cube import LOCK, Corpus, chip_digest, open_corpus, pack_shard
from mmbuild.finish import finish
from mmbuild.recipe import load_recipe
from mmbuild.records import committed_shards, write_record
from mmbuild.store import open_store
from mmbuild.tree import write_tree

RECIPE = Path(__file__).parent / "recipes" / "loading.yaml"


def varied(chip: np.ndarray, version: int) -> np.ndarray:
    """The same texture in another place: one of eight turns, then rolled along both axes; image-level values stay."""
    if chip.ndim != 3 or version == 0:
        return chip
    turned = np.rot90(chip[..., ::-1] if version % 8 >= 4 else chip, version % 4, axes=(-2, -1))
    return np.ascontiguousarray(np.roll(turned, (37 * version % 128, 53 * version % 128), axis=(-2, -1)))


def make(folder: Path, samples: int, *, overrides: tuple[str, ...] = ()) -> Corpus:
    """A corpus of ``samples`` samples in ``folder``; what is there already is used."""
    out = folder / f"corpus-{samples}"
    if not (out / "items.parquet").exists():
        unique = build_corpus(load_recipe(RECIPE, list(overrides)), folder / "unique")
        _replicate(unique, out, samples)
    return open_corpus(out)


def _replicate(unique: Corpus, out: Path, samples: int) -> None:
    store = open_store(out)
    lock = dict(unique.lock) | {"samples": samples}
    store.put(LOCK, json.dumps(lock).encode())
    corpus = open_corpus(out)
    write_tree(store, corpus.layouts, samples, None, {"name": corpus.recipe.name})
    rows_of: dict[int, list[dict[str, object]]] = {}
    for row in unique.records().to_pylist():
        rows_of.setdefault(row["slot"], []).append(row)
    per_shard = corpus.samples_per_shard
    for shard in range(-(-samples // per_shard)):
        slots = range(shard * per_shard, min((shard + 1) * per_shard, samples))
        _shard(unique, corpus, shard, slots, rows_of)
    finish(open_corpus(out))


def _shard(
    unique: Corpus, corpus: Corpus, shard: int, slots: range, rows_of: dict[int, list[dict[str, object]]]
) -> None:
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for slot in slots:
        for row in rows_of[slot % unique.n_slots]:
            copy = row | {"slot": slot, "sample_id": f"{slot:06d}", "offset": -1, "length": -1}
            rows[str(row["modality"]), slot] = copy
    for name, layout in corpus.layouts.items():
        chunks: list[bytes | None] = [None] * corpus.samples_per_shard
        for slot in slots:
            if rows[name, slot]["status"] == "stored":
                chip = varied(unique.read_chip(name, slot % unique.n_slots), slot // unique.n_slots)
                chunks[slot - slots[0]] = layout.encode(chip)
                rows[name, slot]["sha256"] = chip_digest(chip)
        data, places = pack_shard(chunks)
        for slot, (offset, length) in zip(slots, places, strict=False):
            rows[name, slot] |= {"offset": offset, "length": length}
        corpus.store.put(layout.key(shard), data)
    write_record(corpus.store, shard, [rows[name, slot] for slot in slots for name in corpus.layouts])


def chips(corpus: Corpus) -> Iterator[dict[str, np.ndarray]]:
    """Every sample by slot: all modalities as stored, nodata where there is none."""
    assert committed_shards(corpus.store)
    for slot in range(corpus.n_slots):
        yield {name: corpus.read_chip(name, slot) for name in corpus.modalities}
