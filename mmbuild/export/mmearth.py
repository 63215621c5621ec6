"""The layout of MMEarth: ``<name>.h5`` with a chunk a sample, and its band_stats, splits and tile_info JSON files.

Which band stands where is in ``foreign/mmearth.yaml``. Threads compress, one writer puts the chunks; an interrupted
export begins again. ``--faithful`` adds what is peculiar to the published files: masked pixels that are 0, statistics
of 100,000 random rows, and one split that holds everything.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.export import SYNTHETIC, Job, Options, records_digest
from mmbuild.foreign.chips import Sample, SampleReader
from mmbuild.foreign.files import Files, ordered
from mmbuild.foreign.moments import Moments, stored_moments
from mmbuild.foreign.recode import Chips, Layout, Recoder, load_layout, recoders

OPTIONS = frozenset({"name", "split", "size", "faithful", "allow_missing"})
# What h5py's compression="gzip" means; no shuffle filter, as in the published files.
GZIP_LEVEL = 4
METADATA = np.dtype([("tile_id", "S100"), ("S2_type", "S10")])
# How many rows the published statistics were taken from, drawn with replacement by numpy's seed 0.
ROWS_OF_STATISTICS = 100_000
UNIT = "mmearth"
NOT_CARRIED = (
    "the grid of the pixels, scene ids, and all dates but that of the product",
    "a measured 0 of the product, which is its no-data value there, and fractions of a degree of slope",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where: row i is the sample of slot ``slots[i]``; side in pixels."""

    layout: Layout
    recoders: Mapping[str, Recoder]
    slots: np.ndarray
    side: int
    stem: str
    faithful: bool


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One encoded sample. unknown: the one-hot arrays whose labels do not have its code."""

    row: int
    sample: Sample
    product: str
    chunks: Mapping[str, bytes]
    entry: Mapping[str, Any]
    moments: Mapping[str, Moments]
    unknown: tuple[str, ...]


def export(job: Job, plan: Plan) -> list[str]:
    """Write the four files; what the layout could not carry is answered in sentences."""
    files = Files(job.folder.root)
    source = _source(job)
    unknown: Counter[str] = Counter()
    if job.folder.has(UNIT, source):
        job.folder.reused += 1
    else:
        unknown = _write(job, plan, files)
        job.folder.add(UNIT, source, files)
    left_out = len(job.reader) - len(plan.slots)
    return [
        *NOT_CARRIED,
        *([f"{left_out} samples without {' and '.join(plan.layout.one_of)}"] if left_out else []),
        *(f"{name} of {count} samples, whose class the layout does not have" for name, count in unknown.items()),
    ]


# -- before anything is written --------------------------------------------------------------------------------------


def prepare(reader: SampleReader, options: Options) -> Plan:
    """Which samples and bands go where; UserError for what the corpus lacks."""
    layout, corpus = load_layout("mmearth"), reader.corpus
    _check_modalities(corpus, layout, options)
    slots = _slots(reader, layout)
    if not len(slots):
        raise UserError(
            f"no sample has {' or '.join(layout.one_of)}, which every row needs", corpus.store.url, "build more samples"
        )
    return Plan(
        layout=layout, recoders=recoders(layout.datasets, corpus.modalities), slots=slots,
        side=_side(corpus, layout, options), stem=options.name or corpus.recipe.name, faithful=bool(options.faithful),
    )  # fmt: skip


def _check_modalities(corpus: Corpus, layout: Layout, options: Options) -> None:
    """Everything the layout is made of must be there, unless the person said that it may be missing."""
    have, where = corpus.modalities, corpus.store.url
    if not any(name in have for name in layout.one_of):
        raise UserError(f"the layout needs {' or '.join(layout.one_of)}", where, "export to webdataset instead")
    missing = [] if options.allow_missing else list(_missing(corpus, layout))
    if missing:
        fix = "add them to the recipe, or write them as no data with --allow-missing"
        raise UserError(f"the layout needs what this corpus lacks: {', '.join(missing)}", where, fix)
    for name in have:
        steps = corpus.shape(name)[0]
        if steps > 1:
            fix = "export to ssl4eo or webdataset"
            raise UserError(f"{name} has {steps} time steps, the layout has room for one", where, fix)


def _missing(corpus: Corpus, layout: Layout) -> Iterator[str]:
    have = corpus.modalities
    for name, rule in layout.datasets.items():
        for modality in () if rule.optional else rule.modalities:
            if modality not in have:
                if not rule.one_of:
                    yield f"{modality} (for {name})"
                continue
            lacks = [band for _, band in rule.bands(modality) if band not in have[modality].band_names]
            # A band that no definition of the product has is the layout's own to fill.
            yield from (f"{modality}.{band} (for {name})" for band in lacks if rule.lacking is None)


def _side(corpus: Corpus, layout: Layout, options: Options) -> int:
    """Pixels along a side: the same in everything that has pixels, after the crop that was asked for."""
    where, sides = corpus.store.url, []
    for rule in layout.datasets.values():
        for name in (n for n in rule.modalities if n in corpus.modalities and not rule.vector):
            if corpus.gsd(name) != layout.gsd:
                reason = f"{name} has pixels of {corpus.gsd(name):g} m, the layout has {layout.gsd:g} m"
                raise UserError(reason, where, f"set modalities.{name}.gsd to {layout.gsd:g} in the recipe")
            sides.append(corpus.shape(name)[-1])
    asked = options.size or min(sides)
    if asked > min(sides):
        raise UserError(f"{asked} px are asked, chips have {min(sides)}", "--size", f"ask for at most {min(sides)}")
    return asked


def _slots(reader: SampleReader, layout: Layout) -> np.ndarray:
    """The exported samples that have a product."""
    products, found = pa.array(list(layout.one_of)), [np.empty(0, np.int64)]
    for part in reader.corpus.record_parts(["slot", "modality", "status"]):
        is_one = pc.and_(pc.is_in(part["modality"], products), pc.equal(part["status"], "stored"))
        found.append(part.filter(is_one)["slot"].to_numpy())
    return np.intersect1d(reader.slots, np.concatenate(found))


def _source(job: Job) -> str:
    """A digest of everything that the files are made from."""
    statistics = job.corpus.store.get("stats.json") if job.corpus.store.exists("stats.json") else b""
    return hashlib.sha256(f"mmearth 1 {records_digest(job.corpus)}".encode() + statistics).hexdigest()


# -- one sample ------------------------------------------------------------------------------------------------------


def _encode(job: Job, plan: Plan, row: int) -> Tile:
    sample = job.reader.sample(int(plan.slots[row]))
    chips = {name: _cropped(job.reader.chip(sample, name), plan.side) for name in job.corpus.modalities}
    product = next(name for name in plan.layout.one_of if chips.get(name) is not None)
    arrays = {
        name: recoder.encode(chips, () if recoder.rule.vector else (plan.side, plan.side), faithful=plan.faithful)
        for name, recoder in plan.recoders.items()
    }
    labelled = {name: recoder for name, recoder in plan.recoders.items() if recoder.rule.codes}
    return Tile(
        row=row, sample=sample, product=product,
        chunks={name: zlib.compress(array.tobytes(), GZIP_LEVEL) for name, array in arrays.items()},
        entry=_entry(job, plan, sample, chips, product),
        moments={
            name: Moments.of(array, plan.layout.datasets[name].nodata)
            for name, array in arrays.items() if plan.faithful and plan.layout.datasets[name].statistics
        },
        unknown=tuple(name for name, recoder in labelled.items() if recoder.is_unknown(chips)),
    )  # fmt: skip


def _cropped(chip: np.ndarray | None, side: int) -> np.ndarray | None:
    """The middle of a chip with pixels; an odd margin loses its extra pixel on the bottom and right."""
    if chip is None or chip.ndim < 3 or chip.shape[-1] == side:
        return chip
    first = (chip.shape[-1] - side) // 2
    return chip[:, first : first + side, first : first + side]


def _entry(job: Job, plan: Plan, sample: Sample, chips: Chips, product: str) -> dict[str, Any]:
    """The tile_info entry; NO_DATA says that some pixel of the product is missing."""
    about, info = sample.about, plan.layout.tile_info
    own = chips[product]
    is_whole = own is not None and bool((own != job.corpus.modalities[product].fill).all())
    groups = {}
    for name, parts in info.groups.items():
        values = [None if np.isnan(v) else float(v) for v in plan.recoders[name].encode(chips, ())]
        size = len(values) // len(parts)
        groups[name] = {part: values[i * size : (i + 1) * size] for i, part in enumerate(parts)}
    return {
        "S2_DATE": None if about["anchor_time"] is None else f"{about['anchor_time']:%Y-%m-%d}",
        "S2_type": plan.layout.one_of[product],
        "CRS": None if about["epsg"] is None else f"EPSG:{about['epsg']}",
        "lat": about["lat"], "lon": about["lon"],
        **{name: plan.recoders[name].label(chips) for name in info.labels},
        "NO_DATA": not is_whole,
        "BANDS": {
            group: [name for name, band in bands.items() if _has(job, chips, band, product)] or None
            for group, bands in info.bands.items()
        },
        **groups,
    }  # fmt: skip


def _has(job: Job, chips: Chips, place: str, product: str) -> bool:
    """Whether a sample has any value of a band."""
    name, _, band = place.replace("product.", f"{product}.").partition(".")
    chip, modality = chips.get(name), job.corpus.modalities.get(name)
    if chip is None or modality is None or band not in modality.band_names:
        return False
    return bool((chip[modality.band_names.index(band)] != modality.fill).any())


# -- the files -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Totals:
    """What is gathered while the rows go by."""

    splits: dict[str, list[int]] = field(default_factory=lambda: {"train": [], "val": [], "test": []})
    moments: dict[str, Moments] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)


def _write(job: Job, plan: Plan, files: Files) -> Counter[str]:
    """All four files, each taking its name when it is whole; the labels that the layout does not have, counted."""
    totals, weights = Totals(), _weights(len(plan.slots))
    with files.path(f"{plan.stem}.h5") as path, files.open(f"{plan.stem}_tile_info.json") as info:
        with h5py.File(path, "w") as file:
            _create(file, plan, job)
            tiles = ordered(lambda row: _encode(job, plan, row), range(len(plan.slots)), job.threads)
            size = 0
            for tile in tiles:
                size += _put(file, tile)
                _put_entry(info, tile)
                _add(totals, plan, tile, int(weights[tile.row]))
                job.progress(tile.row + 1, len(plan.slots), size)
        info.write(b"}\n")
    statistics = _faithful_statistics(plan, totals) if plan.faithful else _corpus_statistics(job, plan)
    # NaN where nothing was seen, as in the published file: readers make tensors of these lists.
    files.put(f"{plan.stem}_band_stats.json", json.dumps(statistics).encode())
    files.put(f"{plan.stem}_splits.json", json.dumps(totals.splits).encode())
    return totals.unknown


def _weights(rows: int) -> np.ndarray:
    """How often each row is drawn for the published statistics."""
    drawn = np.random.RandomState(0).randint(0, rows, ROWS_OF_STATISTICS)
    return np.bincount(drawn, minlength=rows)


def _create(file: h5py.File, plan: Plan, job: Job) -> None:
    rows = len(plan.slots)
    for name, rule in plan.layout.datasets.items():
        shape = (rule.width,) if rule.vector else (rule.width, plan.side, plan.side)
        file.create_dataset(
            name, (rows, *shape), rule.np_dtype, chunks=(1, *shape), compression="gzip", compression_opts=GZIP_LEVEL
        )
    file.create_dataset("metadata", (rows,), METADATA, chunks=(1,), compression="gzip", compression_opts=GZIP_LEVEL)
    synthetic = SYNTHETIC[job.corpus.synthetic]
    file.attrs.update({"mmbuild:synthetic": synthetic, "mmbuild:corpus": job.corpus.recipe.name})


def _put(file: h5py.File, tile: Tile) -> int:
    """Put the chunks of a row; the number of bytes."""
    label = np.array((tile.sample.sample_id, tile.entry["S2_type"]), METADATA).tobytes()
    chunks = {**tile.chunks, "metadata": zlib.compress(label, GZIP_LEVEL)}
    for name, data in chunks.items():
        dataset = file[name]
        dataset.id.write_direct_chunk((tile.row, *(0,) * (dataset.ndim - 1)), data)
    return sum(map(len, chunks.values()))


def _put_entry(info: IO[bytes], tile: Tile) -> None:
    head = "{" if tile.row == 0 else ","
    info.write(f"{head}\n{json.dumps(tile.sample.sample_id)}: {json.dumps(tile.entry)}".encode())


def _add(totals: Totals, plan: Plan, tile: Tile, weight: int) -> None:
    split = "train" if plan.faithful else tile.sample.split
    if split:
        totals.splits[split].append(tile.row)
    totals.unknown.update(tile.unknown)
    for name, moments in tile.moments.items():
        rule = plan.layout.datasets[name]
        key = _key(plan, name, tile.product) if rule.by_product else name
        times = 1 if rule.vector else weight
        if key not in totals.moments:
            totals.moments[key] = Moments.of(np.full((rule.width, 1), rule.nodata), rule.nodata)
        if times:
            totals.moments[key].add(moments, times)


def _key(plan: Plan, name: str, product: str) -> str:
    return f"{name}_{plan.layout.one_of[product]}"


def _faithful_statistics(plan: Plan, totals: Totals) -> dict[str, Any]:
    """Of the rows that were drawn; a product that was never drawn is all NaN."""
    found = {}
    for name, rule in plan.layout.datasets.items():
        keys = [_key(plan, name, p) for p in plan.layout.one_of] if rule.by_product else [name]
        for key in keys if rule.statistics else ():
            nothing = Moments.of(np.full((rule.width, 1), rule.nodata), rule.nodata)
            found[key] = totals.moments.get(key, nothing).summary()
    return found


def _corpus_statistics(job: Job, plan: Plan) -> dict[str, Any]:
    """The corpus's own, exact over its train split, in the values of the layout."""
    where = job.corpus.store.url
    try:
        statistics = json.loads(job.corpus.store.get("stats.json"))
    except FileNotFoundError:
        raise UserError("there are no statistics yet", where, f"make them: mmbuild stats {where}") from None
    found = {}
    for name, rule in plan.layout.datasets.items():
        if not rule.statistics:
            continue
        if not rule.by_product:
            found[name] = stored_moments(rule, rule.modalities, statistics)
            continue
        for product in plan.layout.one_of:
            own = [product] if rule.one_of else rule.modalities
            found[_key(plan, name, product)] = stored_moments(rule, own, statistics)
    return found
