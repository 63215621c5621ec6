"""One sample as one picture: every modality with its date, scene and legend, and a grey panel where there is none.

Colours follow the ``display`` hints and class colours of the modalities; nothing is smoothed, filled or brightened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.report import words
from mmbuild.report.words import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches. One cell is a heading, a square picture and a foot with the legend or the colour bar.
_WIDTH, _SQUARE, _HEAD, _FOOT, _GAP, _TITLE = 3.0, 2.8, 0.62, 0.78, 0.25, 0.85
_HEIGHT = _HEAD + _SQUARE + _FOOT
_LINE = 0.165
_LINE_CHARACTERS = 46
_LEGEND_ROWS = 5
_DPI = 110
_INK, _PALE, _GREY = "#1c2430", "#6b7480", "#d9dce0"

_Rgb = tuple[float, float, float]


def sample_picture(corpus: Corpus, sample_id: str, path: Path | str) -> Path:
    """Write the picture of a sample as PNG (or what the suffix of ``path`` says) and return its path.

    Raises UserError when the corpus has no such sample.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software name in the file: the same corpus gives the same picture.
    metadata = {"Software": None} if path.suffix == ".png" else None
    sample_figure(corpus, sample_id).savefig(path, dpi=_DPI, metadata=metadata)
    return path


def sample_figure(corpus: Corpus, sample_id: str) -> Figure:
    """The picture as a matplotlib figure, for notebooks."""
    rows = _rows(corpus, sample_id)
    rasters = [row for row in rows if corpus.modalities[row["modality"]].level == "pixel"]
    columns = _text_columns(corpus, [row for row in rows if row not in rasters])
    across = _cells_across(len(rasters) + len(columns))
    figure = _empty_figure(across, math.ceil((len(rasters) + len(columns)) / across))
    _title(figure, corpus, (rasters or rows)[0])
    for index, row in enumerate(rasters):
        _panel(figure, divmod(index, across), corpus, row)
    for index, lines in enumerate(columns, start=len(rasters)):
        _text_panel(figure, divmod(index, across), lines)
    return figure


def _rows(corpus: Corpus, sample_id: str) -> list[Row]:
    """The commit rows of one sample in the order of the recipe."""
    rows = corpus.records().to_pylist()
    found = [row for row in rows if row["sample_id"] == sample_id]
    if not found:
        known = sorted({row["sample_id"] for row in rows})
        fix = f"choose one of {known[0]} to {known[-1]}" if known else "build it first: mmbuild build RECIPE OUT"
        raise UserError(f"there is no sample {sample_id!r}", corpus.store.url, fix)
    order = list(corpus.modalities)
    return sorted(found, key=lambda row: (order.index(row["modality"]), row["time"]))


def _cells_across(cells: int) -> int:
    """Four or five in a row, whichever leaves fewer empty cells."""
    return cells if cells < 5 else min((4, 5), key=lambda n: (-cells % n, n))


# -- the page


def _empty_figure(across: int, down: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (_GAP + across * (_WIDTH + _GAP), _TITLE + down * (_HEIGHT + _GAP))
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _cell_axes(figure: Figure, cell: tuple[int, int], bottom: float, height: float, inset: float = 0.0) -> Axes:
    """Axes in a cell (row, column); bottom and height in inches from the cell's lower edge."""
    width, full = figure.get_size_inches()
    left = _GAP + cell[1] * (_WIDTH + _GAP) + (_WIDTH - _SQUARE) / 2 + inset
    base = full - _TITLE - (cell[0] + 1) * _HEIGHT - cell[0] * _GAP + bottom
    return figure.add_axes((left / width, base / full, (_SQUARE - 2 * inset) / width, height / full))


def _title(figure: Figure, corpus: Corpus, row: Row) -> None:
    """Who and where: id, place, biome, split; a badge when the pixels are computed and not observed."""
    width, full = figure.get_size_inches()
    tags = json.loads(row["tags"] or "{}")
    split = _split(corpus, row["sample_id"])
    facts = [
        words.place(row),
        words.ground(row),
        tags.get("biome_name"),
        f"split: {split}" if split is not None else None,
    ]
    left = (_GAP + (_WIDTH - _SQUARE) / 2) / width
    figure.text(
        left,
        1 - 0.3 / full,
        f"{corpus.recipe.name} {row['sample_id']}",
        size=15,
        weight="bold",
        color=_INK,
        va="center",
    )
    figure.text(left, 1 - 0.6 / full, "   ·   ".join(f for f in facts if f), size=9, color=_PALE, va="center")
    if corpus.synthetic:
        badge = {"boxstyle": "round,pad=0.4", "facecolor": "#b8480f", "edgecolor": "none"}
        text = "SYNTHETIC  offline Earth, no observation"
        figure.text(
            1 - left, 1 - 0.3 / full, text, size=9, weight="bold", color="white", ha="right", va="center", bbox=badge
        )


def _split(corpus: Corpus, sample_id: str) -> str | None:
    """The split of a sample; None before the catalogue exists, "none" for a sample held out of all."""
    if not corpus.store.exists("items.parquet"):
        return None
    data = pa.BufferReader(corpus.store.get("items.parquet"))
    found = pq.read_table(data, columns=["split"], filters=[("id", "=", sample_id)])["split"].to_pylist()
    return (found[0] or "none") if found else None


# -- one modality


def _panel(figure: Figure, cell: tuple[int, int], corpus: Corpus, row: Row) -> None:
    modality = corpus.modalities[row["modality"]]
    axes = _cell_axes(figure, cell, _FOOT, _SQUARE)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=_GREY, linewidth=0.8)
    head = _cell_axes(figure, cell, _FOOT + _SQUARE, _HEAD)
    foot = _cell_axes(figure, cell, 0.0, _FOOT)
    head.axis("off")
    foot.axis("off")
    stored = row["status"] == "stored"
    chip = corpus.read_chip(modality.name, row["slot"], row["time"]) if stored else None
    name = words.chip_name(row, corpus.shape(modality.name)[0])
    for height, text, style in _heading(modality, name, row, chip):
        head.text(0, height, text, **style)
    if chip is None:
        _missing(axes, row)
        return
    _paint_nodata(axes)
    if modality.values == "categorical":
        _paint_classes(axes, foot, modality, chip)
    elif len(modality.display.bands or ()) == 3:
        _paint_rgb(axes, foot, modality, chip)
    else:
        _paint_band(axes, _cell_axes(figure, cell, _FOOT - 0.2, 0.1), modality, chip)


def _heading(
    modality: Modality, name: str, row: Row, chip: np.ndarray | None
) -> list[tuple[float, str, dict[str, Any]]]:
    lines = [(0.72, name, {"size": 10.5, "weight": "bold", "color": _INK})]
    if chip is None:
        return lines
    scenes = row["scene_ids"] or []
    scene = words.shorten(scenes[0].split("/")[-1], 46) if scenes else ""
    more = f"  and {len(scenes) - 1} more" if len(scenes) > 1 else ""
    dated = "   ".join(part for part in (words.when(row), words.coverage(modality, chip)) if part)
    return [
        *lines,
        (0.42, dated, {"size": 8, "color": _INK}),
        (0.16, scene + more, {"size": 5.8, "color": _PALE, "family": "monospace"}),
    ]


def _missing(axes: Axes, row: Row) -> None:
    axes.set_facecolor("#eef0f2")
    axes.text(
        0.5,
        0.56,
        row["status"].replace("_", " "),
        size=11,
        color=_PALE,
        weight="bold",
        ha="center",
        transform=axes.transAxes,
    )
    axes.text(
        0.5,
        0.46,
        fill(row["reason"] or "", 40),
        size=7.5,
        color=_PALE,
        ha="center",
        va="top",
        transform=axes.transAxes,
    )


def _paint_nodata(axes: Axes) -> None:
    """Hatch the whole panel: what no pixel covers stays hatched."""
    from matplotlib.patches import Rectangle

    axes.set_facecolor(_GREY)
    axes.add_patch(
        Rectangle(
            (0, 0), 1, 1, transform=axes.transAxes, hatch="////", facecolor=_GREY, edgecolor="#bfc4ca", lw=0, zorder=0
        )
    )


def _valid(chip: np.ndarray, modality: Modality) -> np.ndarray:
    """(y, x) bool of pixels where every given band is measured."""
    valid: np.ndarray = (chip != modality.fill).all(axis=0)
    return valid


def _paint_rgb(axes: Axes, foot: Axes, modality: Modality, chip: np.ndarray) -> None:
    names = modality.display.bands or ()
    bands = chip[[modality.band_names.index(name) for name in names]]
    valid = _valid(bands, modality)
    low, high = _range(modality, bands[:, valid])
    colours = np.clip((bands.astype(np.float64) - low) / (high - low), 0, 1)
    axes.imshow(np.dstack([*colours, valid.astype(np.float64)]), interpolation="nearest")
    label = f"red {names[0]}   green {names[1]}   blue {names[2]}   stored {low:.0f} to {high:.0f}"
    foot.text(0, 0.86, label, size=7, color=_PALE, va="center")


def _paint_band(axes: Axes, bar: Axes, modality: Modality, chip: np.ndarray) -> None:
    index = _band_shown(modality, chip)
    band = modality.bands[index]
    valid = _valid(chip[[index]], modality)
    low, high = (v * band.scale + band.offset for v in _range(modality, chip[index][valid]))
    physical = np.ma.masked_where(~valid, chip[index].astype(np.float64) * band.scale + band.offset)
    image = axes.imshow(physical, cmap=modality.display.cmap or "viridis", vmin=low, vmax=high, interpolation="nearest")
    axes.figure.colorbar(image, cax=bar, orientation="horizontal").outline.set_visible(False)
    bar.tick_params(labelsize=7, length=2, color=_PALE, labelcolor=_INK)
    unit = words.unit(modality, index).strip()
    bar.set_xlabel(f"{band.name} ({unit})" if unit else band.name, size=7.5, color=_INK, labelpad=1)


def _band_shown(modality: Modality, chip: np.ndarray) -> int:
    """The band of the display hint; the first measured one where a scene lacks it, as radar does over ice."""
    hinted = modality.band_names.index(modality.display.bands[0]) if modality.display.bands else 0
    measured = [i for i in (hinted, *range(len(modality.bands))) if (chip[i] != modality.fill).any()]
    return measured[0] if measured else hinted


def _range(modality: Modality, values: np.ndarray) -> tuple[float, float]:
    """Stored values that are painted darkest and brightest: the modality's hint, else the middle 96 %.

    The hint is no use where most values lie outside it (snow in an optical scene is plain white): the caption or
    the colour bar says which range was taken.
    """
    hint = modality.display.range
    if not values.size:
        return hint or (0.0, 1.0)
    if hint is not None and np.mean((values >= hint[0]) & (values <= hint[1])) >= 0.5:
        return hint
    low, high = (float(v) for v in np.percentile(values, (2, 98)))
    return (low, high) if high > low else (low, low + 1.0)


def _paint_classes(axes: Axes, foot: Axes, modality: Modality, chip: np.ndarray) -> None:
    from matplotlib.colors import to_rgb

    codes, counts = np.unique(chip[0][_valid(chip, modality)], return_counts=True)
    picture = np.zeros((*chip[0].shape, 4))
    colours = {int(code): to_rgb(_colour(modality, int(code))) for code in codes}
    for code, rgb in colours.items():
        picture[chip[0] == code] = (*rgb, 1.0)
    axes.imshow(picture, interpolation="nearest")
    share = sorted(zip(counts / max(1, chip[0].size), codes.tolist(), strict=True), reverse=True)
    _legend(foot, [(colours[code], f"{words.share(part)}  {words.class_name(modality, code)}") for part, code in share])


def _colour(modality: Modality, code: int) -> str:
    """The class's own colour; one of twenty others when it has none."""
    given = {item.code: item.color for item in modality.classes}.get(code)
    return given or f"#{(code * 2654435761) % 0xFFFFFF:06x}"


def _legend(foot: Axes, entries: Sequence[tuple[_Rgb, str]]) -> None:
    """The largest share first, in two columns when one is too short; what does not fit is counted."""
    from matplotlib.patches import Rectangle

    foot.set(xlim=(0, 1), ylim=(0, 1))
    room = 2 * _LEGEND_ROWS
    shown = entries if len(entries) <= room else entries[: room - 1]
    length = 58 if len(entries) <= _LEGEND_ROWS else 27
    for index, (colour, text) in enumerate(shown):
        column, line = divmod(index, _LEGEND_ROWS)
        x, y = column * 0.51, 0.88 - line * 0.17
        foot.add_patch(Rectangle((x, y - 0.055), 0.03, 0.11, facecolor=colour, edgecolor=_GREY, lw=0.4))
        foot.text(x + 0.045, y, words.cut(text, length), size=6.8, color=_INK, va="center")
    if len(shown) < len(entries):
        y = 0.88 - (_LEGEND_ROWS - 1) * 0.17
        foot.text(0.51, y, f"and {len(entries) - len(shown)} more", size=6.8, color=_PALE, va="center")


# -- values of the whole chip, as text


def _text_columns(corpus: Corpus, rows: Sequence[Row]) -> list[list[tuple[str, str]]]:
    """(left, right) lines of every image-level modality, broken into columns; a heading has no right side."""
    room = int(_HEIGHT / _LINE)
    columns: list[list[tuple[str, str]]] = []
    for row in rows:
        block = _text_block(corpus, row)
        if not columns or len(columns[-1]) + len(block) > room:
            columns.append([])
        columns[-1] += [*block, ("", "")]
    return columns


def _text_block(corpus: Corpus, row: Row) -> list[tuple[str, str]]:
    modality = corpus.modalities[row["modality"]]
    name = words.chip_name(row, corpus.shape(modality.name)[0])
    if row["status"] != "stored":
        return [(name, ""), (row["status"].replace("_", " "), words.cut(row["reason"] or "", 40))]
    values = corpus.read_chip(modality.name, row["slot"], row["time"])
    said = [(band.name, words.value(modality, i, values[i])) for i, band in enumerate(modality.bands)]
    # A label's own name goes before the name its code has elsewhere: a synthetic table borrows the codes of a real one.
    own = json.loads(row["tags"] or "{}").get(f"{modality.name}_name")
    if own is not None and modality.is_derived:
        said = [(band, own) for band, _ in said]
    return [(name, ""), *((band, words.cut(text, _LINE_CHARACTERS - len(band))) for band, text in said)]


def _text_panel(figure: Figure, cell: tuple[int, int], lines: Sequence[tuple[str, str]]) -> None:
    axes = _cell_axes(figure, cell, 0.0, _HEIGHT)
    axes.axis("off")
    for index, (left, right) in enumerate(lines):
        y = 1 - (index + 0.95) * _LINE / _HEIGHT
        heading = left and not right
        axes.text(
            0,
            y,
            left,
            size=10.5 if heading else 7.5,
            weight="bold" if heading else "normal",
            color=_INK if heading else _PALE,
        )
        axes.text(1, y, right, size=7.5, color=_INK, ha="right")
