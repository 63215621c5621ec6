"""What a commit record and a chip say, in a few words: dates, places, coverage, values. Pure functions, no drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmbuild.modality import Modality

Row = Mapping[str, Any]

# Below this a value is the rounding of zero (cosine of a right angle), and no band measures so little.
_ZERO = 1e-12


def place(row: Row) -> str:
    """Latitude and longitude with their hemispheres, as atlases write them."""
    north, east = ("N" if row["lat"] >= 0 else "S"), ("E" if row["lon"] >= 0 else "W")
    return f"{abs(row['lat']):.4f}° {north}, {abs(row['lon']):.4f}° {east}"


def chip_name(row: Row, times: int) -> str:
    """The modality of a chip, and its time step where the modality has several."""
    return str(row["modality"]) if times == 1 else f"{row['modality']}, step {row['time']}"


def ground(row: Row) -> str:
    """How much ground the rasters cover; an image-level row has no pixels to say so."""
    crs = "CRS not known" if row["epsg"] is None else f"EPSG:{row['epsg']}"
    if row["width"] is None or row["gsd"] is None:
        return crs
    return f"{row['width'] * row['gsd'] / 1000:g} × {row['height'] * row['gsd'] / 1000:g} km, {crs}"


def when(row: Row) -> str:
    """The date of a chip, how far it is from the anchor, and how much of its ground is clear."""
    parts = [date(row)]
    if row["delta_days"] is not None:
        parts.append(f"Δt {row['delta_days']:+.1f} d" if row["delta_days"] else "Δt 0")
    if row["clear_fraction"] is not None:
        parts.append(f"{share(row['clear_fraction'])} clear")
    return "   ".join(parts)


def date(row: Row) -> str:
    """The moment of one scene, the window [start, end) of a composite, or no date."""
    if row["window_start"] is None:
        return "no date" if row["datetime"] is None else f"{row['datetime']:%Y-%m-%d %H:%M}"
    start, end = row["window_start"], row["window_end"]
    whole_year = (start.month, start.day, end.month, end.day, end.year) == (1, 1, 1, 1, start.year + 1)
    window = f"{start.year}" if whole_year else f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    return f"{window}, {row['scene_count']} scenes" if (row["scene_count"] or 0) > 1 else window


def coverage(modality: Modality, chip: np.ndarray) -> str:
    """Which bands the scene lacks, and how much of the others is measured; nothing when all is there."""
    measured = (chip != modality.fill).reshape(len(chip), -1)
    there = measured.any(axis=1)
    absent = [name for name, some in zip(modality.band_names, there, strict=True) if not some]
    parts = [f"no {', '.join(absent)}"] if absent else []
    if there.any() and not measured[there].all():
        parts.append(f"{share(float(measured[there].mean()))} valid")
    return "   ".join(parts)


def share(fraction: float) -> str:
    """A fraction as whole percent; 0 % and 100 % mean none and all."""
    percent = round(100 * fraction)
    if percent == 0 and fraction > 0:
        return "<1 %"
    if percent == 100 and fraction < 1:
        return ">99 %"
    return f"{percent} %"


def value(modality: Modality, index: int, stored: Any) -> str:
    """A stored value of band ``index`` in its physical unit, or its class."""
    if stored == modality.fill:
        return "no data"
    if modality.values == "categorical":
        return class_name(modality, int(stored))
    band = modality.bands[index]
    physical = float(stored) * band.scale + band.offset
    number = "0" if abs(physical) < _ZERO else f"{physical:.5g}"
    return number + unit(modality, index)


def unit(modality: Modality, index: int) -> str:
    """The unit of a band with a blank before it; nothing for a ratio."""
    name = modality.bands[index].unit
    return "" if name in (None, "1") else f" {name}"


def class_name(modality: Modality, code: int) -> str:
    return {item.code: item.name for item in modality.classes}.get(code, f"code {code}, no known class")


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a scene id: both ends say something."""
    keep = length - 1
    return text if len(text) <= length else f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
