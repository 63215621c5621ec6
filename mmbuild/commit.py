"""Chips into the arrays of one shard, and what an earlier record of it still holds: its half of every commit.

The order that loses nothing (withdraw the record, write the arrays, write the record) is the caller's; which chips a
sample has is decided elsewhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from mmbuild.choose import Choice, Sample, key_of
from mmbuild.cube import ArrayLayout, chip_digest, pack_shard
from mmbuild.errors import IntegrityError
from mmbuild.records import read_parquet, record_key
from mmbuild.store import Store

OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A chip as it will be stored, and what the record says of its pixels: about half the memory of the pixels."""

    chunk: bytes
    sha256: str
    valid_fraction: float


def packed(chip: np.ndarray, layout: ArrayLayout) -> Packed:
    return Packed(
        chunk=layout.encode(chip), sha256=chip_digest(chip),
        valid_fraction=valid_fraction(valid_mask(chip, layout.modality.fill)),
    )  # fmt: skip


@dataclass(kw_only=True)
class Outcome:
    """What became of one candidate place; choices and chips by ``choose.key_of``.

    Chips wait for the slowest sample of their shard, so they wait encoded.
    """

    sample: Sample
    status: str
    reason: str = ""
    anchor_time: datetime | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    chips: Mapping[str, Packed] = field(default_factory=dict)


def withdrawn_key(shard: int) -> str:
    return f"runs/withdrawn/{shard:06d}.parquet"


def withdraw(store: Store, shard: int) -> None:
    """Take back the record of a shard that is about to be rewritten: its offsets would point into other objects.

    A copy stays in ``runs``, so that a build killed from here on still finds the good chips.
    """
    if store.exists(record_key(shard)):
        store.put(withdrawn_key(shard), store.get(record_key(shard)))
        store.delete(record_key(shard))


def keep(
    store: Store, shard: int, arrays: Mapping[str, ArrayLayout]
) -> tuple[dict[int, list[dict[str, Any]]], dict[tuple[str, int, int], bytes]]:
    """Rows and encoded chunks of the samples that an earlier record holds and that did not fail.

    A sample of which any chip is not, to the bit, what the record says is left out, and so asked for again.
    """
    key = next((key for key in (record_key(shard), withdrawn_key(shard)) if store.exists(key)), None)
    samples: dict[int, list[dict[str, Any]]] = {}
    for row in [] if key is None else read_parquet(store, key).to_pylist():
        samples.setdefault(row["slot"], []).append(row)
    rows: dict[int, list[dict[str, Any]]] = {}
    chunks: dict[tuple[str, int, int], bytes] = {}
    for slot, own in samples.items():
        if all(row["status"] != "failed" for row in own):
            found = {(row["modality"], slot, row["time"]): _intact(store, shard, row, arrays) for row in own}
            if all(found[row["modality"], slot, row["time"]] is not None for row in own if row["offset"] >= 0):
                rows[slot] = own
                chunks |= {place: chunk for place, chunk in found.items() if chunk is not None}
    return rows, chunks


def _intact(store: Store, shard: int, row: Mapping[str, Any], arrays: Mapping[str, ArrayLayout]) -> bytes | None:
    """The encoded chunk of a stored chip, or None when it is not the chip that the row recorded."""
    if row["offset"] < 0:
        return None
    layout = arrays[row["modality"]]
    try:
        chunk = store.get_range(layout.key(shard), row["offset"], row["length"])
        whole = len(chunk) == row["length"]
        return chunk if whole and chip_digest(layout.decode(chunk)) == row["sha256"] else None
    except (IntegrityError, FileNotFoundError):
        return None


def write(
    store: Store, shard: int, arrays: Mapping[str, ArrayLayout],
    kept_rows: Mapping[int, list[dict[str, Any]]], kept_chunks: Mapping[tuple[str, int, int], bytes],
    outcomes: Mapping[int, Outcome], step: OnStep,
) -> tuple[list[dict[str, Any]], dict[str, int]]:  # fmt: skip
    """Put one shard object per modality and return the record's rows, ordered by slot, modality and time."""
    rows: dict[int, list[dict[str, Any]]] = {slot: [dict(row) for row in own] for slot, own in kept_rows.items()}
    for slot, outcome in outcomes.items():
        rows[slot] = [_row(outcome, layout, time) for layout in arrays.values() for time in range(layout.times)]
    by_place = {(row["modality"], row["slot"], row["time"]): row for own in rows.values() for row in own}
    for name, layout in arrays.items():
        chunks: list[bytes | None] = []
        slots = range(shard * layout.samples_per_shard, (shard + 1) * layout.samples_per_shard)
        for place in ((name, slot, time) for slot in slots for time in range(layout.times)):
            key = key_of(name, place[2], layout.times)
            chip = outcomes[place[1]].chips.get(key) if place[1] in outcomes else None
            chunks.append(chip.chunk if chip is not None else kept_chunks.get(place))
        data, places = pack_shard(chunks)
        for place, (offset, length) in zip(
            ((name, s, t) for s in slots for t in range(layout.times)), places, strict=True
        ):
            if place in by_place:
                by_place[place] |= {"offset": offset, "length": length}
        if any(chunk is not None for chunk in chunks):
            store.put(layout.key(shard), data)
        step(f"shard {shard}: {name} written")
    ordered = [row for slot in sorted(rows) for row in rows[slot]]
    return ordered, dict(Counter(own[0]["sample_status"] for own in rows.values()))


def _row(outcome: Outcome, layout: ArrayLayout, time: int) -> dict[str, Any]:
    """The record of one chip, without its place in the shard object."""
    sample, key = outcome.sample, key_of(layout.name, time, layout.times)
    choice = outcome.choices.get(key, Choice(modality=layout.name))
    chip = outcome.chips.get(key)
    status, reason = (choice.status, choice.reason) if outcome.status == "stored" else (outcome.status, outcome.reason)
    times = [scene.time for scene in choice.scenes if scene.time is not None]
    composite = choice.window is not None
    return {
        "slot": sample.slot, "sample_id": sample.sample_id, "alternate": sample.alternate,
        "sample_status": outcome.status, "lon": sample.lon, "lat": sample.lat, "epsg": sample.epsg,
        "x0": sample.x0, "y0": sample.y0, "gsd": layout.gsd,
        "height": layout.chip[1] if layout.gsd else None, "width": layout.chip[2] if layout.gsd else None,
        "tags": json.dumps(dict(sample.tags), sort_keys=True, default=str), "anchor_time": outcome.anchor_time,
        "modality": layout.name, "time": time, "status": status, "reason": reason,
        "scene_ids": [scene.scene_id for scene in choice.scenes] if chip is not None else [],
        "datetime": choice.when if chip is not None else None,
        "window_start": choice.window[0] if composite and choice.window else None,
        "window_end": choice.window[1] if composite and choice.window else None,
        "first": min(times) if composite and times else None, "last": max(times) if composite and times else None,
        "scene_count": len(choice.scenes), "delta_days": choice.delta_days, "clear_fraction": choice.clear_fraction,
        "valid_fraction": None if chip is None else chip.valid_fraction,
        "sha256": None if chip is None else chip.sha256, "offset": -1, "length": -1,
    }  # fmt: skip


def valid_fraction(valid: np.ndarray) -> float:
    """Share of valid values in the bands that have any: a polarisation the radar did not record is not a gap."""
    return float(valid[valid.reshape(len(valid), -1).any(axis=1)].mean())


def valid_mask(chip: np.ndarray, nodata: np.generic) -> np.ndarray:
    """True where a stored value is data."""
    valid: np.ndarray = ~np.isnan(chip) if nodata != nodata else np.not_equal(chip, nodata)
    return valid
