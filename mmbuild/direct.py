"""Published files streamed as they are: an MMEarth HDF5 gives the batches that a corpus of it would give.

Chips are read by the importer of the layout (whole chunks, decompressed outside of HDF5's lock), so a row costs what
gzip costs; ``mmbuild import`` makes a corpus that is many times faster. Order, state and values are those of Loader.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from mmbuild.errors import UserError
from mmbuild.importers import Foreign, Sample, formats
from mmbuild.recipe import Recipe, recipe_from_resolved
from mmbuild.stream import order, transforms
from mmbuild.stream.index import NO_TIME
from mmbuild.stream.reader import Chips
from mmbuild.stream.transforms import Field, Time
from mmbuild.stream.uploads import Uploads

Batch = dict[str, Any]


class PublishedLoader(IterableDataset[Batch]):
    """Iterating gives one epoch of batches of a published file; iterating again gives the next one.

    path: the file or its folder. format: its layout, as ``mmbuild import`` names it. rows: which of its rows, all by
    default. statistics: what stats.json of a corpus holds; None gives stored values. All else is as in Loader.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "mmearth",
        rows: Sequence[int] | None = None,
        modalities: Sequence[str] | None = None,
        statistics: Mapping[str, Any] | None = None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        crop: int | None = None,
        augment: bool = False,
        time: Time = "all",
        threads: int = 2,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if format not in formats():
            raise UserError(f"there is no format {format!r}", "format", f"choose from {', '.join(formats())}")
        module: Any = importlib.import_module(f"mmbuild.importers.{format}")
        self._foreign: Foreign = module.open(Path(path), None)
        written = {**self._foreign.recipe, "samples": len(self._foreign.places), "source": {"name": "imported"}}
        self._recipe: Recipe = recipe_from_resolved(written, self._foreign.modalities)
        if isinstance(time, str) and time not in ("all", "random"):
            raise UserError(f"time: {time!r} must be 'all', 'random' or a number", fix="count the steps from 0")
        self._time, self.fields = time, transforms.at_time(self._fields(modalities, statistics), time)
        self._units = transforms.window_units(self.fields, crop, augment=augment)
        n = len(self._foreign.places)
        self._rows = np.arange(n) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self._rows) and not (self._rows.min() >= 0 and self._rows.max() < n):
            raise UserError(f"rows: {int(self._rows.max())} must be 0 to {n - 1}", os.fspath(path), "name rows of it")
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size, self.augment, self._threads = rank, world_size, augment, threads
        self._uploads = Uploads(device, dtype)
        names = "\n".join(map(str, self._foreign.places["sample_id"].to_numpy()[self._rows]))
        self._digest = hashlib.sha256(f"{sorted(self._foreign.files.items())}\n{names}".encode()).hexdigest()
        self._epoch = self._offset = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return order.count_batches(len(self._rows), self.batch_size * self.world_size, drop_last=self.drop_last)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream is after the batches that were yielded."""
        return {
            "epoch": self._epoch, "offset": self._offset, "seed": self.seed, "shuffle": int(self.shuffle),
            "digest": self._digest,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Continue from a state, on any number of ranks; UserError when the order was another one."""
        for key in ("seed", "shuffle", "digest"):
            if state[key] != self.state_dict()[key]:
                reason = f"loader state: {key} was {state[key]} and is {self.state_dict()[key]} now"
                raise UserError(reason, fix="use the file, rows and seed of the run that saved it")
        self._epoch, self._offset, self._resumed = int(state["epoch"]), int(state["offset"]), True

    def __iter__(self) -> Iterator[Batch]:
        if self._offset and not self._resumed:
            self._epoch, self._offset = self._epoch + 1, 0
        self._resumed = False
        epoch, n = self._epoch, len(self._rows)
        steps = order.batches(n, self.batch_size * self.world_size, drop_last=self.drop_last, start=self._offset)
        found = np.arange(n)
        if self.shuffle:
            found = order.epoch_order(n, seed=self.seed, epoch=epoch, digest=self._digest)
        parts = [found[slice(*order.share(*step, rank=self.rank, world_size=self.world_size))] for step in steps]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="mmbuild-published") as pool:
            ahead: deque[list[Future[Sample]]] = deque()
            for i, (_, stop) in enumerate(steps):
                for part in parts[i + len(ahead) : i + 2]:
                    ahead.append([pool.submit(self._read, row) for row in self._rows[part].tolist()])
                samples = [future.result() for future in ahead.popleft()]
                self._epoch, self._offset = (epoch, stop) if i + 1 < len(steps) else (epoch + 1, 0)
                yield self._batch(samples, self._rows[parts[i]], epoch)

    def _read(self, row: int) -> Sample:
        return self._foreign.read(range(row, row + 1))[0]

    def _fields(self, names: Sequence[str] | None, stats: Mapping[str, Any] | None) -> tuple[Field, ...]:
        modalities = self._recipe.modality_defs
        shapes = {name: self._recipe.shape(name) for name in modalities}
        gsds = {name: self._recipe.gsd(name) for name in modalities}
        statistics = None
        if stats is not None:
            continuous = (m for m in modalities.values() if m.values == "continuous")
            statistics = {m.name: transforms.read_statistics(stats, m) for m in continuous}
        one_of = self._recipe.anchor.one_of or ()
        return transforms.make_fields(modalities, shapes, gsds, statistics, names=names, one_of=one_of)

    def _batch(self, samples: Sequence[Sample], rows: np.ndarray, epoch: int) -> Batch:
        ids = [sample.sample_id for sample in samples]
        geometry = transforms.choose_geometry(ids, self._units, augment=self.augment, seed=self.seed, epoch=epoch)
        batch: Batch = {"id": ids, "index": rows}
        batch["lon"], batch["lat"] = (np.array([getattr(s, k) for s in samples], float) for k in ("lon", "lat"))
        batch["time"] = _seconds([sample.anchor_time for sample in samples])
        moments = self._moments(ids, epoch)
        if moments is not None:
            batch["step"] = moments % max(self._recipe.shape(name)[0] for name in self._recipe.modality_defs)
        for one in self.fields:
            steps = {member.name: self._steps(member.name, moments, len(ids)) for member in one.members}
            whole = {name: self._chips(name, samples, own) for name, own in steps.items()}
            chips = {name: transforms.cut(own, geometry, pixels=one.is_pixel) for name, own in whole.items()}
            values = transforms.transform(one, chips)
            when = np.full(values.level.shape + one.shape[:1], NO_TIME, np.int64)
            for place, member in enumerate(one.members):
                seen = [_seconds([getattr(s.seen.get((member.name, int(t))), "datetime", None) for t in own])
                        for s, own in zip(samples, steps[member.name], strict=True)]  # fmt: skip
                rows = values.level == place
                when[rows] = np.array(seen, np.int64).reshape(when.shape)[rows]
            entries = {one.name: values.data, f"{one.name}_mask": values.mask, f"{one.name}_time": when}
            batch |= {key: value[:, 0] if one.shape[0] == 1 else value for key, value in entries.items()}
            if one.is_alias:
                batch[f"{one.name}_level"] = values.level
        return self._uploads.send(batch) | {"gsd": {one.name: one.gsd for one in self.fields}, "epoch": epoch}

    def _moments(self, ids: Sequence[str], epoch: int) -> np.ndarray | None:
        if self._time == "all":
            return None
        if self._time == "random":
            return transforms.choose_moments(ids, seed=self.seed, epoch=epoch)
        return np.full(len(ids), self._time, np.int64)

    def _steps(self, name: str, moments: np.ndarray | None, n: int) -> np.ndarray:
        """(n, t) the time steps of a modality that each sample is asked for."""
        times = self._recipe.shape(name)[0]
        return np.tile(np.arange(times), (n, 1)) if moments is None else (moments % times)[:, None]

    def _chips(self, name: str, samples: Sequence[Sample], steps: np.ndarray) -> Chips:
        modality, shape = self._recipe.modality_defs[name], self._recipe.shape(name)
        data = np.full((*steps.shape, *shape[1:]), modality.fill)
        stored = np.zeros(steps.shape, bool)
        for i, sample in enumerate(samples):
            for place, step in enumerate(steps[i].tolist()):
                chip = sample.chips.get((name, step))
                if chip is not None:
                    data[i, place], stored[i, place] = chip, True
        return Chips(data=data, stored=stored)


def _seconds(times: Sequence[Any]) -> np.ndarray:
    return np.array([NO_TIME if t is None else int(t.timestamp()) for t in times], dtype=np.int64)
