"""A stream of training batches from a corpus: shuffled by seed, shared among ranks, exactly resumable.

Threads read and decode ahead of the consumer; there are no worker processes. A batch once yielded never changes, so
that ``list(loader)`` holds an epoch; the memory of a batch that nobody holds any more is used again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import UserError
from mmbuild.stream import order, transforms
from mmbuild.stream.assembly import Assembly
from mmbuild.stream.cache import Cache
from mmbuild.stream.catalogue import find_samples, read_catalogue
from mmbuild.stream.pipeline import Pipeline, Step
from mmbuild.stream.reader import CONNECTIONS, Meter, Reader
from mmbuild.stream.transforms import Field, Time
from mmbuild.stream.uploads import Uploads, memory_for

Batch = dict[str, Any]
STATE_VERSION = 2
# How a state writes each way to shuffle: its place here.
_SHUFFLES: tuple[bool | str, ...] = (False, True, "blocks")
_STATE_REASONS = {
    "version": "saved by another version of mmbuild",
    "seed": "another seed is another order",
    "shuffle": "a shuffled and an unshuffled epoch have different orders",
    "block": "blocks of another size are another order",
    "window": "another window is another order",
    "samples": "the corpus grew, or the split or filter is another one",
    "digest": "another corpus, split, filter or set of samples",
}
_FIX_STATE = "give what state_dict() returned"


class Loader(IterableDataset[Batch]):
    """Iterating gives one epoch of batches; iterating again gives the next epoch.

    corpus: opened, or where it lies. split: "train", "val", "test", or None for every stored sample. where: a filter on
    the catalogue, such as ``biome == 4 and radar.present and abs(radar.delta_days) < 3 and lat > 0``.
    modalities: names or aliases; all by default, the alternatives of a ``one_of`` anchor under their alias.
    batch_size: samples that one rank gets at a time; a global batch is batch_size * world_size. Without
    drop_last an epoch is spread evenly over its steps: every rank has equally many batches, whose sizes differ
    by at most one (and are 0 on some ranks when fewer samples remain than there are ranks).
    shuffle: True, False, or "blocks" for object stores: ``block`` neighbours of a shard are fetched together, and
    samples are shuffled over ``window`` such blocks; a twentieth of the requests, and nearly as well mixed.
    normalize: (stored - mean) / std of the train split; False gives stored values, NaN where masked.
    raw: stored values in their own dtypes, nodata as on disk, no masks.
    crop: side of a square window in pixels of the finest modality, the same ground in all; centred.
    augment: random window, flips and quarter turns instead, keyed by (seed, epoch, sample id).
    time: of modalities with several time steps "all", a step counted from 0, or "random": one a sample and epoch, the
    same in all of them, keyed as windows are. The others are neither read nor decoded, and the time axis is gone.
    threads: how many decode at once. prefetch: batches made ahead of the one that the consumer has; by default up to
    three that with it take 400 MiB, and one at least. More are worth their memory where some steps take much longer.
    device: where tensors arrive; on a GPU through pinned memory and a side stream. dtype: that of continuous values.
    on_damage: "raise", or "skip": a chip whose bytes are damaged counts as missing and is noted in ``damaged``.
    cache, cache_gb: a folder for what is read from an object store, and its limit; processes may share it.
    connections: requests under way at once on an object store.

    A batch is a dict. For every name in ``fields``:
      <name>        (B, band, y, x) or (B, band), a time axis after B only when there are several steps:
                    float32, or for classes int64 in 0..K-1 with -1 = ignore
      <name>_mask   bool, the same shape, True = valid
      <name>_time   int64 UTC seconds (B,) or (B, time), -2**63 = unknown
      <name>_level  aliases only: int64 (B,), which of the field's members it is, -1 = none is stored
    and ``id`` (list of str), ``index`` (int64 slot), ``lon``, ``lat`` (float64), ``time`` (anchor, int64 UTC
    seconds), ``gsd`` (metres by name), ``epoch`` (int), and with ``time`` other than all ``step`` (int64, which it is).

    Raises UserError for an unknown split or modality, a split without samples, and a corpus without catalogue
    or statistics; while iterating, IntegrityError that names sample and modality.
    """

    def __init__(
        self,
        corpus: Corpus | str | Path,
        *,
        split: str | None = None,
        where: str | None = None,
        modalities: Sequence[str] | None = None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool | Literal["blocks"] = True,
        block: int = 32,
        window: int = 8,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        normalize: bool = True,
        raw: bool = False,
        crop: int | None = None,
        augment: bool = False,
        time: Time = "all",
        threads: int = 2,
        prefetch: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        on_damage: Literal["raise", "skip"] = "raise",
        cache: str | Path | None = None,
        cache_gb: float = 50.0,
        connections: int = CONNECTIONS,
    ) -> None:
        _check_counts(
            batch_size=batch_size, world_size=world_size, threads=threads, block=block, window=window,
            connections=connections,
        )  # fmt: skip
        if prefetch is not None:
            _check_counts(least=0, prefetch=prefetch)
        _check_words(shuffle=(shuffle, (True, False, "blocks")), on_damage=(on_damage, ("raise", "skip")))
        if isinstance(time, str):
            _check_words(time=(time, ("all", "random")))
        if not 0 <= rank < world_size:
            raise UserError(f"rank: {rank} must be 0 to {world_size - 1}", fix="world_size counts all ranks")
        self.corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
        self.split, self.where, self.batch_size, self.seed = split, where, batch_size, seed
        self.shuffle, self.block, self.window = shuffle, block, window
        self.drop_last, self.rank, self.world_size, self.augment = drop_last, rank, world_size, augment
        self.device, self.dtype, self.raw = device, dtype, raw
        with ThreadPoolExecutor(1) as pool:
            catalogue = pool.submit(read_catalogue, self.corpus)
            fields = transforms.at_time(make_fields(self.corpus, modalities, normalize=normalize and not raw), time)
            units = transforms.window_units(fields, crop, augment=augment)
            self.fields = tuple(transforms.cropped(field, units) for field in fields)
            self._threads = threads
            members = dict.fromkeys(modality.name for field in fields for modality in field.members)
            kept = None if cache is None else Cache(cache, round(cache_gb * 2**30))
            self._reader = Reader(
                self.corpus, list(members), threads=threads, on_damage=on_damage, cache=kept, connections=connections
            )
            data = catalogue.result()
        self._samples = find_samples(data, self._reader.index, split, where, place=self.corpus.store.url)
        filtered = f"split={split}" if where is None else f"split={split} where={where}"
        self._digest = order.order_digest(self.corpus.digest, filtered, self._samples.ids.to_pylist())
        self._assembly = Assembly(
            self._reader, self._samples, self.fields, rows=batch_size, units=units, augment=augment, seed=seed, raw=raw,
            time=time, prefetch=prefetch, allocate=memory_for(device),
        )  # fmt: skip
        self.prefetch = self._assembly.prefetch
        self._uploads = Uploads(device, dtype)
        self._epoch = self._offset = 0
        self._resumed = False
        self.waited_s = 0.0

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return order.count_batches(len(self._samples), self._global_batch, drop_last=self.drop_last)

    def __repr__(self) -> str:
        kind = "SYNTHETIC " if self.corpus.synthetic else ""
        names = ", ".join(field.name for field in self.fields)
        part = self.split or "all"
        return (
            f"<{kind}Loader {self.corpus.recipe.name} {part}: {len(self._samples)} samples, "
            f"{self.batch_size} a batch, rank {self.rank} of {self.world_size}; {names}>"
        )

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, counted from 0."""
        return self._epoch

    @property
    def n_samples(self) -> int:
        """Samples of a whole epoch, all ranks together."""
        return len(self._samples)

    @property
    def damaged(self) -> list[tuple[str, str]]:
        """(sample id, modality) of every chip that was skipped because its bytes are damaged."""
        return list(self._reader.damaged)

    @property
    def meter(self) -> Meter:
        """Where the threads' time went since the loader was made."""
        return self._reader.meter

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.world_size

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream is after the batches that were yielded, not those read ahead: ints and a digest.

        The same on every rank after the same number of batches; any world and batch size may continue from it.
        """
        return {
            "version": STATE_VERSION,
            "epoch": self._epoch,
            "offset": self._offset,
            "seed": self.seed,
            "shuffle": _SHUFFLES.index(self.shuffle),
            "block": self.block if self.shuffle == "blocks" else 0,
            "window": self.window if self.shuffle == "blocks" else 0,
            "samples": len(self._samples),
            "digest": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Continue from a state: the next iteration yields exactly what remained of its epoch.

        Raises UserError when the order was another one: other corpus, filter, samples, seed or shuffle.
        """
        for key, mine in self.state_dict().items():
            if key not in state:
                raise UserError(f"loader state: {key} is missing", fix=_FIX_STATE)
            if key not in ("epoch", "offset") and state[key] != mine:
                reason = f"loader state: {key} was {state[key]} and is {mine} now ({_STATE_REASONS[key]})"
                fix = "use the corpus, split and seed of the run that saved it, or start without the state"
                raise UserError(reason, self.corpus.store.url, fix)
        if not (int(state["epoch"]) >= 0 and 0 <= int(state["offset"]) <= len(self._samples)):
            raise UserError(f"loader state: no place {state['offset']} in epoch {state['epoch']}", fix=_FIX_STATE)
        self._epoch, self._offset, self._resumed = int(state["epoch"]), int(state["offset"]), True

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this rank: what remains after ``load_state_dict``, else the next whole epoch."""
        if get_worker_info() is not None:
            raise UserError(
                "mmbuild.Loader reads with threads; every DataLoader worker process would repeat the epoch",
                fix="use DataLoader(loader, batch_size=None, num_workers=0), or iterate over the loader itself",
            )
        if self._offset and not self._resumed:
            self._epoch, self._offset = self._epoch + 1, 0
        self._resumed = False
        return self._run(self._epoch, self._offset)

    @property
    def place(self) -> tuple[int, int]:
        """Epoch, and samples of it that all ranks together have taken; (epoch, 0) at its beginning."""
        return self._epoch, self._offset

    def resume(self) -> Iterator[Batch]:
        """What remains of the epoch at hand, or all of it at its beginning: never the next one."""
        self._resumed = True
        return iter(self)

    def given_since(self, place: tuple[int, int]) -> int:
        """Samples that all ranks together were given since a place not more than one batch ago."""
        epoch, offset = place
        return self._offset - offset if epoch == self._epoch else len(self._samples) - offset

    def one(self, position: int) -> Batch:
        """A sample by its place in the catalogue, read in the calling thread: a batch without its first axis."""
        where = np.array([position], dtype=np.int64)
        with np.errstate(all="ignore"):
            outline = self._assembly.outline(where, self._epoch)
            parts = self._assembly.begin(outline)
            for load in self._assembly.loads(outline.slots):
                load()
            self._reader.fill_now(outline.chunks, parts.targets)
            batch = self._uploads.send(self._assembly.finish(parts))
        return {key: value[0] for key, value in batch.items()} | {"gsd": self._gsd(), "epoch": self._epoch}

    def _run(self, epoch: int, start: int) -> Iterator[Batch]:
        """Read ahead and yield; the state moves with what is yielded. Threads have ended when this has."""
        steps = self._steps(epoch, start)
        pipeline = Pipeline(self._assembly, steps, epoch=epoch, threads=self._threads, prefetch=self.prefetch)
        jobs = iter(pipeline)
        try:
            for i, step in enumerate(steps):
                job = next(jobs)
                self._epoch, self._offset = (epoch, step.stop) if i + 1 < len(steps) else (epoch + 1, 0)
                self.waited_s = pipeline.wait_s
                batch = self._uploads.send(job.result) | {"gsd": self._gsd(), "epoch": epoch}
                # What is left of the batch here would keep its memory from being used again.
                del job
                yield batch
                del batch
        finally:
            jobs.close()  # type: ignore[attr-defined]
        if not steps:
            self._epoch, self._offset = epoch + 1, 0

    def _gsd(self) -> dict[str, float | None]:
        return {field.name: field.gsd for field in self.fields}

    def _steps(self, epoch: int, start: int) -> list[Step]:
        """This rank's part of every global batch from ``start`` on."""
        n = len(self._samples)
        positions, groups = self._order(epoch)
        cuts = order.batches(n, self._global_batch, drop_last=self.drop_last, start=start)
        steps = []
        for begin, end in cuts:
            whole = positions[begin:end]
            if groups is not None and self.world_size > 1:
                # Ranks share a batch by groups, so that each reads few of them; which samples it has is the same.
                whole = whole[np.argsort(groups[whole], kind="stable")]
            low, high = order.share(0, end - begin, rank=self.rank, world_size=self.world_size)
            own = whole[low:high]
            of_own = None if groups is None else groups[own]
            steps.append(Step(positions=own, slots=self._samples.slots[own], groups=of_own, stop=end))
        return steps

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The epoch's permutation, and each sample's group where samples of a group stay together."""
        n = len(self._samples)
        if self.shuffle is False:
            return np.arange(n, dtype=np.int64), None
        if self.shuffle is True:
            return order.epoch_order(n, seed=self.seed, epoch=epoch, digest=self._digest), None
        groups = order.block_groups(self._samples.slots, self.corpus.samples_per_shard, self.block)
        found = order.block_order(groups, window=self.window, seed=self.seed, epoch=epoch, digest=self._digest)
        return found, groups


def make_fields(corpus: Corpus, names: Sequence[str] | None, *, normalize: bool) -> tuple[Field, ...]:
    """The entries of a batch, with the statistics of the train split when values are to be normalised."""
    statistics = None
    if normalize:
        try:
            stats = json.loads(corpus.store.get("stats.json"))
        except FileNotFoundError:
            where = corpus.store.url
            raise UserError("there are no statistics yet", where, f"make them: mmbuild stats {where}") from None
        continuous = (m for m in corpus.modalities.values() if m.values == "continuous")
        statistics = {m.name: transforms.read_statistics(stats, m) for m in continuous}
    shapes = {name: corpus.shape(name) for name in corpus.modalities}
    gsds = {name: corpus.gsd(name) for name in corpus.modalities}
    one_of = corpus.recipe.anchor.one_of or ()
    return transforms.make_fields(corpus.modalities, shapes, gsds, statistics, names=names, one_of=one_of)


def _check_counts(*, least: int = 1, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{name}: {count} must be at least {least}", fix="see help(mmbuild.Loader)")


def _check_words(**words: tuple[object, tuple[object, ...]]) -> None:
    for name, (given, allowed) in words.items():
        if not any(given is one or (isinstance(given, str) and given == one) for one in allowed):
            choices = ", ".join(repr(one) for one in allowed)
            raise UserError(f"{name}: {given!r} must be one of {choices}", fix="see help(mmbuild.Loader)")
