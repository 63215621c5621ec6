"""What a batch is made of: which chips its samples need, the memory they go to, and the entries that come out.

Reading and decoding are the reader's, order and threads the loader's; here is what belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmbuild.stream import plan, transforms
from mmbuild.stream.buffers import Allocate, Blocks, Entry, plain_memory
from mmbuild.stream.catalogue import Samples
from mmbuild.stream.convert import converter
from mmbuild.stream.images import image_tables
from mmbuild.stream.index import NO_TIME, ChipTable
from mmbuild.stream.reader import Chips, Reader
from mmbuild.stream.targets import WHOLE, Convert, Geometry, Target
from mmbuild.stream.transforms import Field, Time, Values

# Memory of all batches, the consumer's included, within which more than one is made ahead, and how many at most.
BATCHES_BYTES = 400 * 2**20
MOST_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Member:
    """One modality behind a field of a batch; place: among the field's members."""

    field: Field
    place: int
    table: ChipTable
    convert: Convert | None
    bands: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a batch before it has memory.

    levels: by field, which member each sample's values come from, -1 for none. moments: (n,) which time step each
    sample is asked for, modulo the number that a modality has; None for all of them.
    """

    ids: list[str]
    positions: np.ndarray
    slots: np.ndarray
    moments: np.ndarray | None
    geometry: Geometry
    levels: dict[str, np.ndarray]
    chunks: plan.Chunks


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A batch under way: its memory, and where in it the chips of each member go."""

    outline: Outline
    arrays: dict[str, np.ndarray]
    targets: list[Target]


class Assembly:
    """Makes batches of some fields from a reader.

    raw: stored values and no masks. time: which of several time steps a sample has, drawn for ``random``; with one of
    them, fields have one step too. prefetch: batches made ahead, None for as many as memory that nobody misses holds.
    """

    def __init__(
        self,
        reader: Reader,
        samples: Samples,
        fields: Sequence[Field],
        *,
        rows: int,
        units: tuple[int, int] | None = None,
        augment: bool = False,
        seed: int = 0,
        raw: bool = False,
        time: Time = "all",
        prefetch: int | None = None,
        allocate: Allocate = plain_memory,
    ) -> None:
        self._made_of = (reader, samples, tuple(fields))
        self._options = {
            "rows": rows,
            "units": units,
            "augment": augment,
            "seed": seed,
            "raw": raw,
            "time": time,
            "prefetch": prefetch,
        }
        self.reader, self.samples, self.fields, self.raw = reader, samples, tuple(fields), raw
        self._units, self._augment, self._seed, self._time = units, augment, seed, time
        self._images = image_tables(reader)
        self._members = [m for one in fields for m in _members(one, reader, raw=raw)]
        # Members whose chips are decoded one by one; image-level ones come from tables.
        self._decoded = [m for m in self._members if m.table.name not in self._images]
        self.tables = [m.table for m in self._decoded]
        self._in_block = [one for one in fields if one.members[0].name not in self._images]
        entries = _entries(self._in_block, raw=raw)
        self.prefetch = _ahead(reader, entries, rows) if prefetch is None else prefetch
        # The consumer has one batch while the next is made, also when that begins as it is asked for.
        self.blocks = Blocks(entries, rows, allocate, usual=max(self.prefetch, 1) + 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it makes its own memory there, and plain."""
        return (_again, (self._made_of, self._options))

    def outline(self, positions: np.ndarray, epoch: int) -> Outline:
        """All that can be said of a batch ahead of its turn."""
        ids, slots = self.samples.ids_at(positions), self.samples.slots[positions]
        moments = self._moments(positions, epoch)
        geometry = transforms.choose_geometry(ids, self._units, augment=self._augment, seed=self._seed, epoch=epoch)
        levels = {one.name: self._levels(one, slots, moments) for one in self.fields}
        return Outline(
            ids=ids, positions=positions, slots=slots, moments=moments, geometry=geometry, levels=levels,
            chunks=self._chunks(slots, moments, levels),
        )  # fmt: skip

    def chunks(self, positions: np.ndarray, epoch: int) -> plan.Chunks:
        """The chunks that samples need: of alternatives only those of the member that is taken, at their time steps."""
        slots, moments = self.samples.slots[positions], self._moments(positions, epoch)
        return self._chunks(slots, moments, {one.name: self._levels(one, slots, moments) for one in self._in_block})

    def _chunks(self, slots: np.ndarray, moments: np.ndarray | None, levels: dict[str, np.ndarray]) -> plan.Chunks:
        wanted = [levels[m.field.name] == m.place for m in self._decoded]
        return plan.find_chunks(self.tables, slots, wanted, [_steps(table, moments) for table in self.tables])

    def loads(self, slots: np.ndarray) -> list[Callable[[], None]]:
        """What has to be read before the image-level values of these slots are there."""
        return [partial(table.load, some) for table in self._images.values() for some in table.unknown(slots)]

    def asks(self, slots: np.ndarray) -> list[Future[None]]:
        """The same on an object store, asked for at once: what is tiny waits for latency only."""
        return [future for table in self._images.values() for future in table.ask(slots)]

    def begin(self, outline: Outline) -> Parts:
        """Memory for a batch, with every place that no chip will fill marked as missing."""
        slots, levels = outline.slots, outline.levels
        arrays = self.blocks.take(len(slots))
        targets = [self._target(m, arrays, outline.geometry) for m in self._decoded]
        for member, target in zip(self._decoded, targets, strict=True):
            taken = levels[member.field.name] == member.place
            absent = taken[:, None] & (_at(member.table.length, slots, _steps(member.table, outline.moments)) == 0)
            if member.place == 0:
                absent |= (levels[member.field.name] < 0)[:, None]
            if absent.any():
                target.clear(*np.nonzero(absent))
        return Parts(outline=outline, arrays=arrays, targets=targets)

    def _moments(self, positions: np.ndarray, epoch: int) -> np.ndarray | None:
        if self._time == "all":
            return None
        if self._time != "random":
            return np.full(len(positions), self._time, np.int64)
        ids = self.samples.ids_at(positions)
        return transforms.choose_moments(ids, seed=self._seed, epoch=epoch)

    def finish(self, parts: Parts) -> dict[str, Any]:
        """The entries of a batch whose chips are all in place, as numpy arrays."""
        samples, outline = self.samples, parts.outline
        batch: dict[str, Any] = {"id": outline.ids, "index": outline.slots}
        for name in ("lon", "lat", "time"):
            batch[name] = getattr(samples, name)[outline.positions]
        if outline.moments is not None:
            batch["step"] = outline.moments % max(table.layout.times for table in self.reader.tables.values())
        taken = {
            name: _at_steps(image.take(outline.slots), _steps(image.table, outline.moments))
            for name, image in self._images.items()
        }
        for one in self.fields:
            if one.members[0].name in self._images:
                batch |= self._image_entries(one, taken, outline.levels)
            else:
                batch[one.name] = parts.arrays[one.name]
                if not self.raw:
                    batch[f"{one.name}_mask"] = parts.arrays[f"{one.name}_mask"]
            level = outline.levels[one.name]
            batch[f"{one.name}_time"] = self._times(one, level, outline)
            if one.shape[0] == 1:
                for key in (one.name, f"{one.name}_mask", f"{one.name}_time"):
                    if key in batch:
                        batch[key] = batch[key][:, 0]
            if one.is_alias:
                batch[f"{one.name}_level"] = level
        return batch

    def _image_entries(
        self, one: Field, taken: dict[str, Chips], levels: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if self.raw:
            return {one.name: _chosen(one, taken, levels[one.name])}
        values: Values = transforms.transform(one, taken)
        levels[one.name] = values.level
        return {one.name: values.data, f"{one.name}_mask": values.mask}

    def _levels(self, one: Field, slots: np.ndarray, moments: np.ndarray | None) -> np.ndarray:
        """Which member of a field each slot has: the first that is stored at a time asked for, -1 for none."""
        level = np.full(len(slots), -1, dtype=np.int64)
        for place in range(len(one.members) - 1, -1, -1):
            table = self.reader.tables[one.members[place].name]
            level[_at(table.length, slots, _steps(table, moments)).any(axis=1)] = place
        return level

    def _times(self, one: Field, level: np.ndarray, outline: Outline) -> np.ndarray:
        """(n, time) UTC seconds of the member that each sample's values come from."""
        times = np.full((len(level), one.shape[0]), NO_TIME, dtype=np.int64)
        for place, modality in enumerate(one.members):
            table, rows = self.reader.tables[modality.name], level == place
            times[rows] = _at(table.epoch_s, outline.slots, _steps(table, outline.moments))[rows]
        return times

    def _target(self, member: Member, arrays: dict[str, np.ndarray], geometry: Geometry) -> Target:
        one = member.field
        missing = member.table.layout.modality.fill if self.raw else transforms.masked_value(one)
        data, mask = arrays[one.name], arrays.get(f"{one.name}_mask")
        if one.shape[0] < member.table.layout.times:
            # Whichever step is asked for, it goes to the only place there is.
            data = _repeated(data, member.table.layout.times)
            mask = None if mask is None else _repeated(mask, member.table.layout.times)
        return Target(
            table=member.table, data=data, mask=mask, missing=missing,
            convert=member.convert, bands=member.bands, geometry=geometry if one.is_pixel else WHOLE,
        )  # fmt: skip


def _steps(table: ChipTable, moments: np.ndarray | None) -> np.ndarray | None:
    """(n,) the time step of a modality that each sample is asked for, None for all."""
    return None if moments is None else moments % table.layout.times


def _at(values: np.ndarray, slots: np.ndarray, steps: np.ndarray | None) -> np.ndarray:
    """Of a table (slot, time): (n, time), or (n, 1) with one step each."""
    found: np.ndarray = values[slots] if steps is None else values[slots, steps][:, None]
    return found


def _at_steps(chips: Chips, steps: np.ndarray | None) -> Chips:
    if steps is None:
        return chips
    rows = np.arange(len(steps))
    return Chips(data=chips.data[rows, steps][:, None], stored=chips.stored[rows, steps][:, None])


def _repeated(array: np.ndarray, times: int) -> np.ndarray:
    """A view of (n, 1, ...) as (n, time, ...), every step in the same memory, writable."""
    shape, strides = (len(array), times, *array.shape[2:]), (array.strides[0], 0, *array.strides[2:])
    return np.lib.stride_tricks.as_strided(array, shape, strides)


def _again(made_of: tuple[Any, ...], options: dict[str, Any]) -> Assembly:
    return Assembly(*made_of, **options)


def _members(one: Field, reader: Reader, *, raw: bool) -> list[Member]:
    return [
        Member(
            field=one, place=place, table=reader.tables[modality.name],
            convert=None if raw else converter(one, place), bands=_bands(one, place),
        )
        for place, modality in enumerate(one.members)
    ]  # fmt: skip


def _bands(one: Field, place: int) -> np.ndarray | None:
    own = one.members[place].band_names
    return None if own == one.bands else np.array([own.index(name) for name in one.bands])


def _ahead(reader: Reader, entries: dict[str, Entry], rows: int) -> int:
    """How many batches to make ahead. With one, threads have nothing to do between two batches; others take memory."""
    if reader.requests is not None:
        return 1  # what takes long is under way anyhow
    batch = sum(entry.nbytes(rows) for entry in entries.values())
    return max(1, min(MOST_AHEAD, BATCHES_BYTES // max(batch, 1) - 1))


def _entries(fields: Sequence[Field], *, raw: bool) -> dict[str, Entry]:
    entries = {}
    for one in fields:
        value = one.members[0].np_dtype if raw else np.dtype(np.int64 if one.is_categorical else np.float32)
        entries[one.name] = Entry(shape=one.shape, dtype=value)
        if not raw:
            entries[f"{one.name}_mask"] = Entry(shape=one.shape, dtype=np.dtype(bool))
    return entries


def _chosen(one: Field, taken: dict[str, Chips], level: np.ndarray) -> np.ndarray:
    """Stored image-level values of whichever member a sample has."""
    data = taken[one.members[0].name].data
    if one.is_alias:
        data = np.full((len(level), *one.shape), one.members[0].fill, one.members[0].np_dtype)
        for place, modality in enumerate(one.members):
            bands = _bands(one, place)
            own = taken[modality.name].data[level == place]
            data[level == place] = own if bands is None else own[:, :, bands]
    return data
