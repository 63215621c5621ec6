"""One sample of a corpus as it stands in a taster: fewer modalities, the middle of every chip, its record kept true.

Chips that are not cropped are copied as they are encoded; a cropped one is another chip, with its own transform,
checksum, valid fraction and clear fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmbuild.commit import valid_fraction, valid_mask
from mmbuild.cube import ArrayLayout, Corpus, chip_digest
from mmbuild.errors import IntegrityError, UserError
from mmbuild.explain import suggest
from mmbuild.recipe import Recipe, recipe_from_resolved
from mmbuild.records import read_record

Row = dict[str, Any]
Chunks = dict[tuple[str, int, int], bytes]
# Commit records of the parent that are kept in memory: a taster's samples come from all over it.
_RECORDS_KEPT = 256
# What a record says of a chip that is not there.
_NO_CHIP: Row = {
    "status": "no_data", "reason": "every value is masked", "scene_ids": [], "datetime": None, "clear_fraction": None,
    "valid_fraction": None, "sha256": None, "offset": -1, "length": -1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of each sample is kept: the modalities in the parent's order, and a square of ``size`` grid pixels.

    margin: grid pixels cut off at the left and the top; 0 with the parent's size keeps chips whole.
    """

    modalities: tuple[str, ...]
    size: int
    margin: int
    is_cropped: bool


def shape_of(corpus: Corpus, size: int | None, modalities: Sequence[str] | None) -> Shape:
    """The shape of a taster's samples; UserError for a name or a size that the corpus cannot give."""
    known = list(corpus.modalities)
    for name in modalities or ():
        if name not in known:
            raise UserError(f"no modality {name!r} in {corpus.store.url}", "--modalities", suggest(name, known))
    kept = tuple(name for name in known if modalities is None or name in modalities)
    full = corpus.recipe.grid.size
    if size is None or size == full:
        return Shape(modalities=kept, size=full, margin=0, is_cropped=False)
    _check_size(corpus, size, kept)
    return Shape(modalities=kept, size=size, margin=_margin(corpus, size, kept), is_cropped=True)


def _steps(corpus: Corpus, kept: Sequence[str]) -> list[float]:
    """Grid pixels in one pixel of each raster."""
    base = corpus.recipe.gsd_of_grid
    return [gsd / base for name in kept if (gsd := corpus.gsd(name)) is not None]


def _check_size(corpus: Corpus, size: int, kept: Sequence[str]) -> None:
    full, steps = corpus.recipe.grid.size, _steps(corpus, kept)
    if corpus.recipe.grid.kind != "utm":
        raise UserError(
            "the middle of a web-mercator tile is no tile", "--size", "leave it out, or cut a corpus with a UTM grid"
        )
    fits = [n for n in range(1, full + 1) if all(_is_whole(n / step) for step in steps)]
    if size not in fits:
        near = sorted(sorted(fits, key=lambda n: abs(n - size))[:4])
        raise UserError(
            f"{size} pixels of {corpus.recipe.gsd_of_grid:g} m are not in a chip of {full}, or no whole number of "
            f"pixels in every modality", "--size", f"choose from {', '.join(map(str, near))}",
        )  # fmt: skip


def _is_whole(value: float) -> bool:
    return value >= 1 and _is_integral(value)


def _is_integral(value: float) -> bool:
    return abs(value - round(value)) < 1e-9


def _margin(corpus: Corpus, size: int, kept: Sequence[str]) -> int:
    """Grid pixels left of the middle: half of what is cut off, rounded down to whole pixels of every raster."""
    half = (corpus.recipe.grid.size - size) // 2
    steps = _steps(corpus, kept)
    return next(n for n in range(half, -1, -1) if all(_is_integral(n / s) for s in steps))


def recipe_of(corpus: Corpus, shape: Shape, samples: int) -> Recipe:
    """The parent's recipe with a taster's name, size and modalities: what its chips are laid out by."""
    parent = corpus.recipe
    kept = "" if len(shape.modalities) == len(corpus.modalities) else f", {len(shape.modalities)} of its modalities"
    data = parent.resolved() | {
        "name": f"{parent.name}_taster_{samples}", "title": f"{samples} samples of: {parent.title}",
        "description": f"A taster of {samples} samples{kept}. {parent.description or parent.title}", "samples": samples,
    }  # fmt: skip
    data["grid"] = data["grid"] | {"size": shape.size}
    data["modalities"] = {name: data["modalities"][name] for name in shape.modalities}
    return recipe_from_resolved(data, parent.known_modalities)


@dataclass(kw_only=True)
class Cutter:
    """Takes samples out of a corpus in one shape; safe to use from several threads."""

    corpus: Corpus
    shape: Shape
    arrays: Mapping[str, ArrayLayout]
    _record: Any = field(init=False)

    def __post_init__(self) -> None:
        self._record = lru_cache(maxsize=_RECORDS_KEPT)(lambda shard: read_record(self.corpus.store, shard))

    def cut(self, slot: int, to: int) -> tuple[list[Row], Chunks] | None:
        """Rows and encoded chunks of the parent's ``slot`` as slot ``to``; None when what is left is no sample."""
        rows = self._rows(slot)
        kept, chunks = [], {}
        for row in rows:
            if row["modality"] in self.shape.modalities:
                own, chunk = self._chip(row, rows)
                kept.append(own | {"slot": to})
                if chunk is not None:
                    chunks[own["modality"], to, own["time"]] = chunk
        return (kept, chunks) if self._is_sample(rows, kept) else None

    def _rows(self, slot: int) -> list[Row]:
        table: pa.Table = self._record(slot // self.corpus.samples_per_shard)
        found: list[Row] = table.filter(pc.equal(table["slot"], slot)).to_pylist()
        return found

    def _is_sample(self, before: Sequence[Row], after: Sequence[Row]) -> bool:
        """True when something measured is left, and of what a sample cannot do without nothing was lost."""
        recipe = self.corpus.recipe
        needed = {name for name, use in recipe.modalities.items() if use.required}
        needed |= set(recipe.anchor.products) if recipe.anchor.required else set()
        stored = {row["modality"] for row in after if row["offset"] >= 0}
        had = {row["modality"] for row in before if row["offset"] >= 0} & set(self.shape.modalities)
        return not (needed & had) - stored and any(not self.corpus.modalities[name].is_derived for name in stored)

    def _chip(self, row: Row, rows: Sequence[Row]) -> tuple[Row, bytes | None]:
        """A chip's record and chunk in the taster; the place in the shard is filled in when that is written."""
        own = self._moved(row)
        if row["offset"] < 0:
            return own, None
        name = row["modality"]
        if not self.shape.is_cropped or self.corpus.gsd(name) is None:
            return own, self._chunk(row)
        chip = self._cropped(row)
        valid = valid_mask(chip, self.corpus.modalities[name].fill)
        if not valid.any():
            return own | _NO_CHIP, None
        changed = {
            "sha256": chip_digest(chip), "valid_fraction": valid_fraction(valid),
            "clear_fraction": self._clear_fraction(row, rows),
        }  # fmt: skip
        return own | changed, self.arrays[name].encode(chip)

    def _moved(self, row: Row) -> Row:
        """The record with the transform and shape of the middle; one metre of margin is one metre for every chip."""
        if not self.shape.is_cropped:
            return dict(row)
        cut_m = self.shape.margin * self.corpus.recipe.gsd_of_grid
        # An imported sample may have no known grid.
        known = row["x0"] is not None and row["y0"] is not None
        moved = dict(row) | ({"x0": row["x0"] + cut_m, "y0": row["y0"] - cut_m} if known else {})
        chip = self.arrays[row["modality"]].chip
        return moved | ({"height": chip[1], "width": chip[2]} if row["gsd"] else {})

    def _chunk(self, row: Row) -> bytes:
        """The encoded chunk of a stored chip, its checksum compared; IntegrityError when it is not what was stored."""
        layout = self.corpus.layouts[row["modality"]]
        try:
            key = layout.key(row["slot"] // self.corpus.samples_per_shard)
            chunk = self.corpus.store.get_range(key, row["offset"], row["length"])
            layout.check(chunk)
        except (FileNotFoundError, IntegrityError) as error:
            raise IntegrityError(f"{self.corpus.store.url}: sample {row['sample_id']}: {error}") from error
        return chunk

    def _cropped(self, row: Row) -> npt.NDArray[Any]:
        layout = self.corpus.layouts[row["modality"]]
        first, side = (round(n / self._step(layout.name)) for n in (self.shape.margin, self.shape.size))
        chip = layout.decode(self._chunk(row))[:, first : first + side, first : first + side]
        return np.ascontiguousarray(chip, dtype=layout.modality.np_dtype)

    def _step(self, name: str) -> float:
        """Grid pixels in one pixel of a raster."""
        return (self.corpus.gsd(name) or 1.0) / self.corpus.recipe.gsd_of_grid

    def _clear_fraction(self, row: Row, rows: Sequence[Row]) -> float | None:
        """The clear share of what is left, from the stored chip that tells clear ground; None where there is none."""
        rule = self.corpus.modalities[row["modality"]].clear
        if row["clear_fraction"] is None or rule is None or rule.modality not in self.corpus.modalities:
            return None
        if not all(_is_integral(n / self._step(rule.modality)) for n in (self.shape.margin, self.shape.size)):
            return None
        judges = (r for r in rows if r["modality"] == rule.modality and r["offset"] >= 0)
        judge = next((r for r in judges if _index(r) == _index(row) and r["time"] == row["time"]), None)
        return (
            None
            if judge is None
            else float(rule.is_clear(self._cropped(judge), self.corpus.modalities[rule.modality]).mean())
        )


def _index(row: Row) -> list[str]:
    """The last parts of the scenes' ids, which products of one acquisition share."""
    return [scene.rsplit("/", 1)[-1] for scene in row["scene_ids"]]


def moved_locations(corpus: Corpus, shape: Shape, slots: Sequence[int]) -> Any:
    """The parent's candidate places of ``slots``, numbered anew in this order, on the grid of the middle."""
    table = corpus.locations()
    to = {slot: index for index, slot in enumerate(slots)}
    table = table[table["slot"].isin(to)].copy()
    table["slot"] = table["slot"].map(to).astype("int64")
    cut_m = shape.margin * corpus.recipe.gsd_of_grid
    if shape.is_cropped:
        table["x0"], table["y0"] = table["x0"] + cut_m, table["y0"] - cut_m
        table["size"] = np.int32(shape.size)
        table = table.astype({"size": "int32"})
    return table.sort_values(["slot", "alternate"], ignore_index=True, kind="stable")
