"""A stream of training batches from a corpus: shuffled by seed, shared among ranks, exactly resumable.

Threads read and decode ahead of the consumer; there are no worker processes. Every batch is made of fresh tensors:
once yielded it never changes, so that ``list(loader)`` holds an epoch.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import IntegrityError, UserError
from mmbuild.stream import order, transforms
from mmbuild.stream.reader import NO_TIME, Chips, Reader, epoch_seconds
from mmbuild.stream.transforms import Field, Geometry, Values

Batch = dict[str, Any]
STATE_VERSION = 1
_STATE_REASONS = {
    "version": "saved by another version of mmbuild",
    "seed": "another seed is another order",
    "shuffle": "a shuffled and an unshuffled epoch have different orders",
    "samples": "the corpus grew, or the split is another one",
    "digest": "another corpus, split or set of samples",
}
_FIX_STATE = "give what state_dict() returned"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split in catalogue order, one entry each; time: anchor in UTC seconds or NO_TIME."""

    ids: list[str]
    slots: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Loader(IterableDataset[Batch]):
    """Iterating gives one epoch of batches; iterating again gives the next epoch.

    corpus: opened, or where it lies. split: "train", "val", "test", or None for every stored sample.
    modalities: names or aliases; all by default, the alternatives of a ``one_of`` anchor under their alias.
    batch_size: samples that one rank gets at a time; a global batch is batch_size * world_size. Without
    drop_last an epoch is spread evenly over its steps: every rank has equally many batches, whose sizes differ
    by at most one (and are 0 on some ranks when fewer samples remain than there are ranks).
    normalize: (stored - mean) / std of the train split; False gives stored values, NaN where masked.
    crop: side of a square window in pixels of the finest modality, the same ground in all; centred.
    augment: random window, flips and quarter turns instead, keyed by (seed, epoch, sample id).
    threads: how many decode at once. prefetch: batches read ahead.
    device: where tensors arrive. dtype: that of continuous values.

    A batch is a dict. For every name in ``fields``:
      <name>        (B, band, y, x) or (B, band), a time axis after B only when there are several steps:
                    float32, or for classes int64 in 0..K-1 with -1 = ignore
      <name>_mask   bool, the same shape, True = valid
      <name>_time   int64 UTC seconds (B,) or (B, time), -2**63 = unknown
      <name>_level  aliases only: int64 (B,), which of the field's members it is, -1 = none is stored
    and ``id`` (list of str), ``index`` (int64 slot), ``lon``, ``lat`` (float64), ``time`` (anchor, int64 UTC
    seconds), ``gsd`` (metres by name), ``epoch`` (int).

    Raises UserError for an unknown split or modality, a split without samples, and a corpus without catalogue
    or statistics; while iterating, IntegrityError that names sample and modality.
    """

    def __init__(
        self,
        corpus: Corpus | str | Path,
        *,
        split: str | None = None,
        modalities: Sequence[str] | None = None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        normalize: bool = True,
        crop: int | None = None,
        augment: bool = False,
        threads: int = 2,
        prefetch: int = 2,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _check_counts(batch_size=batch_size, world_size=world_size, threads=threads)
        _check_counts(least=0, prefetch=prefetch)
        if not 0 <= rank < world_size:
            raise UserError(f"rank: {rank} must be 0 to {world_size - 1}", fix="world_size counts all ranks")
        self.corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
        self.split, self.batch_size, self.seed, self.shuffle = split, batch_size, seed, shuffle
        self.drop_last, self.rank, self.world_size, self.augment = drop_last, rank, world_size, augment
        self.prefetch, self.device, self.dtype = prefetch, device, dtype
        self.fields = _fields(self.corpus, modalities, normalize)
        self._units = _window_units(self.fields, crop, augment)
        self.fields = tuple(_cropped(field, self._units) for field in self.fields)
        self._threads = threads
        members = dict.fromkeys(modality.name for field in self.fields for modality in field.members)
        self._reader = Reader(self.corpus, list(members), threads=threads)
        self._samples = read_samples(self.corpus, self._reader.records, split)
        self._digest = order.order_digest(self.corpus.digest, f"split={split}", self._samples.ids)
        self._epoch = self._offset = 0
        self._resumed = False

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
            "shuffle": int(self.shuffle),
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

    def _run(self, epoch: int, start: int) -> Iterator[Batch]:
        """Read ahead and yield; the state moves with what is yielded. Threads have ended when this has."""
        n = len(self._samples)
        steps = order.batches(n, self._global_batch, drop_last=self.drop_last, start=start)
        positions = self._order(epoch)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mmbuild-batch")
        ahead: deque[Future[dict[str, Any]]] = deque()
        try:
            for i, (_, stop) in enumerate(steps):
                for begin, end in steps[i + len(ahead) : i + 1 + self.prefetch]:
                    mine = slice(*order.share(begin, end, rank=self.rank, world_size=self.world_size))
                    ahead.append(pool.submit(self._assemble, positions[mine], epoch))
                batch = self._to_tensors(ahead.popleft().result(), epoch)
                self._epoch, self._offset = (epoch, stop) if i + 1 < len(steps) else (epoch + 1, 0)
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if not steps:
            self._epoch, self._offset = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        n = len(self._samples)
        if not self.shuffle:
            return np.arange(n, dtype=np.int64)
        return order.epoch_order(n, seed=self.seed, epoch=epoch, digest=self._digest)

    def _assemble(self, positions: np.ndarray, epoch: int) -> dict[str, Any]:
        """One batch as numpy arrays."""
        samples = self._samples
        slots, ids = samples.slots[positions], [samples.ids[i] for i in positions.tolist()]
        geometry = transforms.choose_geometry(ids, self._units, augment=self.augment, seed=self.seed, epoch=epoch)
        chips = self._reader.read(slots, crop=geometry.crop)
        batch: dict[str, Any] = {"id": ids, "index": slots}
        for name in ("lon", "lat", "time"):
            batch[name] = getattr(samples, name)[positions]
        for field in self.fields:
            values = transforms.transform(field, _turned(field, chips, geometry))
            batch |= _entries(field, values, self._times(field, values, slots))
        return batch

    def _times(self, field: Field, values: Values, slots: np.ndarray) -> np.ndarray:
        """(n, time) UTC seconds of the member that each sample's values come from."""
        times = np.full((len(slots), field.shape[0]), NO_TIME, dtype=np.int64)
        for place, modality in enumerate(field.members):
            rows = values.level == place
            times[rows] = self._reader.tables[modality.name].epoch_s[slots[rows]]
        return times

    def _to_tensors(self, batch: dict[str, Any], epoch: int) -> Batch:
        tensors: Batch = {}
        for key, value in batch.items():
            if isinstance(value, np.ndarray):
                # from_numpy shares memory with an array that only this batch owns.
                tensor = torch.from_numpy(value)
                dtype = self.dtype if tensor.dtype == torch.float32 else tensor.dtype
                tensors[key] = tensor.to(device=self.device, dtype=dtype)
            else:
                tensors[key] = value
        return tensors | {"gsd": {field.name: field.gsd for field in self.fields}, "epoch": epoch}


def read_samples(corpus: Corpus, records: pa.Table, split: str | None) -> Samples:
    """The catalogued samples of a split by slot.

    Raises UserError without a catalogue, and for a split that is unknown or empty, listing those that are not.
    """
    where = corpus.store.url
    try:
        data = corpus.store.get("items.parquet")
    except FileNotFoundError:
        raise UserError("there is no catalogue yet", where, f"make it: mmbuild catalog {where}") from None
    items = pq.read_table(io.BytesIO(data), columns=["id", "split", "mmbuild:index"])
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(items["split"]).to_pylist()}
    if split is not None:
        items = items.filter(pc.equal(items["split"], split))
    if len(items) == 0:
        known = ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items())) or "no samples"
        raise UserError(f"no sample in split {split!r}", where, f"the catalogue has: {known}")
    items = items.sort_by("mmbuild:index")
    slots = items["mmbuild:index"].to_numpy().astype(np.int64)
    rows = _a_record_of(records, slots)
    if (rows < 0).any():
        lost = items["id"][int(np.flatnonzero(rows < 0)[0])].as_py()
        raise IntegrityError(
            f"{where}: sample {lost} is catalogued but has no commit record; run mmbuild catalog {where}"
        )
    lon, lat = (records[name].to_numpy()[rows] for name in ("lon", "lat"))
    time = epoch_seconds(records["anchor_time"])[rows]
    return Samples(ids=items["id"].to_pylist(), slots=slots, lon=lon, lat=lat, time=time)


def _a_record_of(records: pa.Table, slots: np.ndarray) -> np.ndarray:
    """The row of a record of each slot, -1 for none; all records of a slot carry the same place and anchor."""
    of_record = records["slot"].to_numpy()
    row_of = np.full(int(max(of_record.max(initial=-1), slots.max())) + 1, -1, dtype=np.int64)
    row_of[of_record] = np.arange(len(of_record))
    rows: np.ndarray = row_of[slots]
    return rows


def _fields(corpus: Corpus, names: Sequence[str] | None, normalize: bool) -> tuple[Field, ...]:
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


def _window_units(fields: Sequence[Field], crop: int | None, augment: bool) -> tuple[int, int] | None:
    """(units, size) of the crop window, None without one; UserError when chips cannot be cut or turned so."""
    sides = {field.name: field.shape[-1] for field in fields if field.is_pixel}
    for field in fields:
        if (augment or crop) and field.is_pixel and field.shape[-1] != field.shape[-2]:
            raise UserError(
                f"{field.name}: chips of {field.shape[-2:]} pixels are not square",
                fix="set crop=None, augment=False",
            )
    if crop is None:
        return None
    if not sides:
        raise UserError(f"crop: {crop}, but no pixel-level modality was asked for", fix="leave crop out")
    return transforms.crop_units(sides, crop)


def _cropped(field: Field, units: tuple[int, int] | None) -> Field:
    """The field with the shape that its chips have after the crop."""
    if units is None or not field.is_pixel:
        return field
    side = field.shape[-1] // units[0] * units[1]
    return replace(field, shape=(*field.shape[:-2], side, side))


def _turned(field: Field, chips: Mapping[str, Chips], geometry: Geometry) -> dict[str, Chips]:
    """The chips of a field's members, flipped and turned if they are pixels."""
    own = {modality.name: chips[modality.name] for modality in field.members}
    if not field.is_pixel:
        return own
    return {name: Chips(data=transforms.turn(one.data, geometry), stored=one.stored) for name, one in own.items()}


def _entries(field: Field, values: Values, times: np.ndarray) -> dict[str, np.ndarray]:
    """What a field adds to a batch; the time axis goes when it has one step."""
    entries = {field.name: values.data, f"{field.name}_mask": values.mask, f"{field.name}_time": times}
    if field.shape[0] == 1:
        entries = {name: array[:, 0] for name, array in entries.items()}
    if field.is_alias:
        entries[f"{field.name}_level"] = values.level
    return entries


def _check_counts(*, least: int = 1, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{name}: {count} must be at least {least}", fix="see help(mmbuild.Loader)")
