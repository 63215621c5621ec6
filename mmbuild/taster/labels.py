"""What a corpus says of its samples that a taster keeps the shares of: biome, latitude, month, land cover and split.

Labels come from what is stored: tags, places, anchor dates, the catalogue's splits and the pixels of one modality that
is marked as land cover. Nothing is asked of a source, and what a sample does not know is a label of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmbuild.catalog import read_items
from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.explain import suggest
from mmbuild.modality import Modality
from mmbuild.taster.strata import latitude_bands

# The tag that says in which biome a place lies.
BIOME_TAG = "biome"
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The stored samples of a corpus by slot, with one label per variable each."""

    slots: npt.NDArray[np.int64]
    labels: Mapping[str, Sequence[str]]


def read_labels(corpus: Corpus, land_cover: str | None) -> Samples:
    """The stored samples and their labels; a variable that no sample knows is left out.

    land_cover: the modality whose most frequent class on a chip is its land cover, None for no such variable.
    """
    table = corpus.samples(["sample_id", "sample_status", "lat", "anchor_time", "tags"])
    table = table.filter(pc.equal(table["sample_status"], "stored"))
    slots = table["slot"].to_numpy()
    months = pc.month(table["anchor_time"]).to_pylist()
    tags = [json.loads(text).get(BIOME_TAG) for text in table["tags"].to_pylist()]
    split = _splits(corpus)
    labels: dict[str, list[str]] = {
        "biome": _texts(tags),
        "latitude": latitude_bands(table["lat"].to_numpy()),
        "month": _texts(months),
        **({} if land_cover is None else {"land_cover": _land_cover(corpus, land_cover, slots)}),
        "split": [split[name] or "none" for name in table["sample_id"].to_pylist()],
    }
    return Samples(slots=slots, labels={name: own for name, own in labels.items() if set(own) - {UNKNOWN}})


def _texts(values: Sequence[object]) -> list[str]:
    return [UNKNOWN if value is None else str(value) for value in values]


def _splits(corpus: Corpus) -> dict[str, str]:
    items = read_items(corpus)
    return dict(zip(items["id"].to_pylist(), items["split"].to_pylist(), strict=True))


def land_cover_of(corpus: Corpus, asked: str | None) -> str | None:
    """The modality whose classes are the land cover: the one that is asked for, else the first that is marked so.

    Raises UserError for a name that is no categorical raster of the corpus.
    """
    fits = [m.name for m in corpus.modalities.values() if m.level == "pixel" and m.values == "categorical"]
    if asked is not None and asked not in fits:
        raise UserError(f"{asked} is no raster of classes in this corpus", "--land-cover", suggest(asked, fits))
    return asked or next((name for name in fits if corpus.modalities[name].land_cover), None)


def _land_cover(corpus: Corpus, name: str, slots: npt.NDArray[np.int64]) -> list[str]:
    """The most frequent class of each sample's first stored chip; the lowest code of several."""
    modality, first = corpus.modalities[name], _first_stored(corpus, name)
    names = {definition.code: definition.name for definition in modality.classes}

    def of(slot: int) -> str:
        if slot not in first:
            return UNKNOWN
        code = dominant(corpus.read_chip(name, slot, first[slot]), modality)
        return UNKNOWN if code is None else names.get(code, str(code))

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(of, slots.tolist(), chunksize=64))


def _first_stored(corpus: Corpus, name: str) -> dict[int, int]:
    """Slot -> the first time step at which the modality is stored."""
    found: dict[int, int] = {}
    for part in corpus.record_parts(["slot", "modality", "time", "status"]):
        own: pa.Table = part.filter(pc.and_(pc.equal(part["modality"], name), pc.equal(part["status"], "stored")))
        for slot, time in zip(own["slot"].to_pylist(), own["time"].to_pylist(), strict=True):
            found[slot] = min(time, found.get(slot, time))
    return found


def dominant(chip: npt.NDArray[np.generic], modality: Modality) -> int | None:
    """The most frequent valid code of a chip, the lowest of several; None when every pixel is missing."""
    codes, counts = np.unique(chip[np.not_equal(chip, modality.fill)], return_counts=True)
    return int(codes[np.argmax(counts)]) if len(codes) else None
