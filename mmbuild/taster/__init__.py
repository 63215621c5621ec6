"""A small corpus cut out of a large one: nested, stratified, self-contained, with its distance to the parent.

Everything a corpus has is written for the samples that are taken, their chips copied as they are encoded. The lock
comes last: until it is there nobody takes the folder for a corpus, and the same command makes the same bytes again.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mmbuild.commit import keep, write
from mmbuild.cube import LOCK, Corpus, layouts, open_corpus, packing_reasons, put_if_changed
from mmbuild.errors import UserError
from mmbuild.finish import finish
from mmbuild.records import committed_shards, read_record, record_key, write_record
from mmbuild.samplers import uniform
from mmbuild.store import Store, open_store
from mmbuild.taster.cut import Cutter, Shape, moved_locations, recipe_of, shape_of
from mmbuild.taster.labels import Samples, land_cover_of, read_labels
from mmbuild.taster.strata import MEASURE, distances, stratified_order

REQUEST = "runs/taster.json"
# Samples that are copied side by side: each waits for its own ranges of the parent.
_THREADS = 8
Progress = Callable[[int], None]


@dataclass(kw_only=True)
class _Taster:
    """A taster that is being made: where, of what, and how far it is. ``taken`` are the parent's slots, in order."""

    parent: Corpus
    store: Store
    shape: Shape
    samples: Samples
    taken: list[int] = field(default_factory=list)

    @property
    def per_shard(self) -> int:
        return self.parent.samples_per_shard


def cut_taster(
    parent: Corpus | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples: int | None = None,
    max_mb: float | None = None,
    size: int | None = None,
    modalities: Sequence[str] | None = None,
    land_cover: str | None = None,
    progress: Progress = lambda done: None,
) -> Corpus:
    """Write a taster of a finished corpus to ``out`` (a folder or an object-store URL) and return it opened.

    samples, max_mb: how many samples, or as many as fit into so many MB (10^6 bytes, all files together); one of them.
    size: pixels of the sample grid, cut from the middle of every chip. modalities: those that are kept, all by default.
    land_cover: the modality whose classes are strata; by default the first that its definition marks.
    Raises UserError for a corpus without catalogue, for what the corpus cannot give, and where something else lies.
    """
    if (samples is None) == (max_mb is None):
        raise UserError("needs one of a number of samples and a size", "taster", "give --samples N or --max-mb M")
    corpus = parent if isinstance(parent, Corpus) else open_corpus(parent)
    shape, cover = shape_of(corpus, size, modalities), land_cover_of(corpus, land_cover)
    asked = {
        "parent": corpus.digest, "records": _finished(corpus), "samples": samples, "max_mb": max_mb,
        "size": shape.size, "modalities": list(shape.modalities), "land_cover": cover,
    }  # fmt: skip
    store = open_store(out)
    if _is_done(store, asked):
        return open_corpus(out)
    labels = read_labels(corpus, cover)
    if samples is not None and samples > len(labels.slots):
        raise UserError(
            f"{samples} samples are asked, {len(labels.slots)} are stored", corpus.store.url, "ask for fewer"
        )
    with store.lease("runs/lease"):
        _clear(store)
        put_if_changed(store, REQUEST, _json(asked))
        taster = _Taster(parent=corpus, store=store, shape=shape, samples=labels)
        _take(taster, samples, max_mb, progress)
        _close(taster, asked, max_mb)
    return open_corpus(out)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _finished(corpus: Corpus) -> str:
    """The digest of the records that the parent's catalogue was made from."""
    if not corpus.store.exists("collection.json"):
        raise UserError("the corpus is not finished", corpus.store.url, "run its build again, or mmbuild catalog on it")
    return str(json.loads(corpus.store.get("collection.json"))["mmbuild:records"])


def _is_done(store: Store, asked: dict[str, Any]) -> bool:
    """True when this very taster is there; UserError when something else is."""
    if store.exists(LOCK):
        if json.loads(store.get(LOCK)).get("taster", {}).get("asked") == asked:
            return True
        raise UserError("there is a corpus here already", store.url, "cut the taster into another folder")
    if not store.exists(REQUEST) and any(not key.startswith("runs/") for key in store.list()):
        raise UserError("there are files of something else here", store.url, "cut the taster into an empty folder")
    return False


def _clear(store: Store) -> None:
    """Remove what a taster left here that was begun and not finished: it may have been another one."""
    store.sweep()
    for key in store.list() if store.exists(REQUEST) else ():
        if not key.startswith("runs/"):
            store.delete(key)


# -- chips and records ---------------------------------------------------------------------------------------------


def _order(taster: _Taster) -> Iterator[int]:
    """The parent's slots in the order in which tasters of any size take them."""
    slots = taster.samples.slots
    ties = uniform(taster.parent.recipe.seed, "taster", slots)
    return (int(slots[index]) for index in stratified_order(taster.samples.labels, ties))


def _take(taster: _Taster, samples: int | None, max_mb: float | None, progress: Progress) -> None:
    """Write shard after shard until there are enough samples, or enough bytes of chips."""
    arrays = layouts(recipe_of(taster.parent, taster.shape, samples or 1))
    cutter = Cutter(corpus=taster.parent, shape=taster.shape, arrays=arrays)
    order = _order(taster)
    room = None if max_mb is None else max_mb * 1e6
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for shard in itertools.count():
            left = taster.per_shard if samples is None else min(taster.per_shard, samples - len(taster.taken))
            if left <= 0 or (room is not None and room <= 0):
                return
            rows, chunks, taken = _cut_shard(cutter, order, shard * taster.per_shard, left, pool)
            if samples is not None and len(taken) < left:
                raise UserError(
                    f"{samples} samples are asked, only {len(taster.taken) + len(taken)} have something left",
                    taster.parent.store.url, "ask for fewer, a larger --size or more --modalities",
                )  # fmt: skip
            if taken:
                records, _ = write(taster.store, shard, arrays, rows, chunks, {}, lambda name: None)
                write_record(taster.store, shard, records)
                taster.taken += taken
                progress(len(taster.taken))
            room = None if room is None else room - sum(map(len, chunks.values()))
            if len(taken) < left:
                return


def _cut_shard(
    cutter: Cutter, order: Iterator[int], first: int, count: int, pool: ThreadPoolExecutor
) -> tuple[dict[int, list[dict[str, Any]]], dict[tuple[str, int, int], bytes], list[int]]:
    """Rows and chunks of the next ``count`` slots of the order that are still samples in the taster's shape."""
    rows: dict[int, list[dict[str, Any]]] = {}
    chunks: dict[tuple[str, int, int], bytes] = {}
    taken: list[int] = []
    while len(taken) < count and (slots := list(itertools.islice(order, count - len(taken)))):
        # Numbers are given once it is known which of them are samples.
        for slot, found in zip(slots, pool.map(lambda slot: cutter.cut(slot, -1), slots), strict=True):
            if found is not None:
                to = first + len(taken)
                rows[to] = [row | {"slot": to} for row in found[0]]
                chunks |= {(name, to, time): chunk for (name, _, time), chunk in found[1].items()}
                taken.append(slot)
    return rows, chunks, taken


def _shrink(taster: _Taster, samples: int) -> None:
    """Keep the first ``samples``; of a shard that is cut, chips are copied undecoded and the record comes last."""
    arrays = layouts(recipe_of(taster.parent, taster.shape, 1))
    for shard in reversed(committed_shards(taster.store)):
        first = shard * taster.per_shard
        if first + len(set(read_record(taster.store, shard, ["slot"])["slot"].to_pylist())) <= samples:
            break
        rows, chunks = keep(taster.store, shard, arrays)
        rows = {slot: own for slot, own in rows.items() if slot < samples}
        chunks = {place: chunk for place, chunk in chunks.items() if place[1] < samples}
        taster.store.delete(record_key(shard))
        for layout in arrays.values():
            taster.store.delete(layout.key(shard))
        if rows:
            records, _ = write(taster.store, shard, arrays, rows, chunks, {}, lambda name: None)
            write_record(taster.store, shard, records)
    del taster.taken[samples:]


# -- everything else -----------------------------------------------------------------------------------------------


def _close(taster: _Taster, asked: dict[str, Any], max_mb: float | None) -> None:
    """Write what a corpus has beside its chips, with fewer samples where all together is too much, then the lock."""
    if not taster.taken:
        raise UserError(
            "no sample has anything left", taster.parent.store.url, "use a larger --size or other --modalities"
        )
    while True:
        lock = _lock(taster, asked)
        _write_rest(taster, lock)
        used, count = _bytes(taster.store) + len(_json(lock)), len(taster.taken)
        if max_mb is None or used <= max_mb * 1e6:
            break
        if count == 1:
            raise UserError(
                f"one sample takes {used / 1e6:.2f} MB with all files of a corpus, {max_mb:g} are allowed", "--max-mb",
                "allow more, or use --size or --modalities",
            )  # fmt: skip
        too_many = -(-(used - int(max_mb * 1e6)) * count // used)
        _shrink(taster, max(1, count - max(1, too_many)))
    taster.store.put(LOCK, _json(lock))


def _bytes(store: Store) -> int:
    return sum(store.size(key) for key in store.list() if not key.startswith("runs/"))


def _lock(taster: _Taster, asked: dict[str, Any]) -> dict[str, Any]:
    """The parent's lock for these samples, and what the taster is of: its catalogue repeats that part."""
    parent, recipe = taster.parent, recipe_of(taster.parent, taster.shape, len(taster.taken))
    place = {slot: index for index, slot in enumerate(taster.samples.slots.tolist())}
    about = {
        "parent": {"name": parent.recipe.name, "digest": parent.digest, "samples": len(taster.samples.slots)},
        "samples": len(taster.taken),
        "crop": {"from": parent.recipe.grid.size, "to": taster.shape.size} if taster.shape.is_cropped else None,
        "strata": list(taster.samples.labels), "land_cover": asked["land_cover"],
        "distance": {
            "measure": MEASURE,
            "variables": distances(taster.samples.labels, [place[slot] for slot in taster.taken]),
        },
        "asked": asked,
    }  # fmt: skip
    taken = hashlib.sha256(json.dumps([asked["parent"], asked["records"], taster.taken]).encode()).hexdigest()
    own = {"taken": taken, "size": taster.shape.size, "modalities": list(taster.shape.modalities)}
    return {
        "digest": hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest(),
        "samples": len(taster.taken), "source": parent.lock["source"], "recipe": recipe.resolved(),
        "modalities": {name: m.model_dump(mode="json") for name, m in recipe.definitions.items()},
        "packing": packing_reasons(recipe), "versions": parent.lock.get("versions", {}), "taster": about,
    }  # fmt: skip


def _write_rest(taster: _Taster, lock: dict[str, Any]) -> None:
    sink = io.BytesIO()
    moved_locations(taster.parent, taster.shape, taster.taken).to_parquet(sink, index=False, compression="zstd")
    put_if_changed(taster.store, "locations.parquet", sink.getvalue())
    put_if_changed(taster.store, "recipe.yaml", taster.parent.store.get("recipe.yaml"))
    finish(Corpus(taster.store, lock), again=True)
