"""Reading SSL4EO-S12 v1.1: zarr groups in zips of some locations, the same names in the folder of every array."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.errors import UserError

# Zips kept open: each shard reads the same few.
_OPEN = 12
ENDING = ".zarr.zip"


@dataclass(frozen=True, kw_only=True)
class Location:
    """One location: its file (relative to the folder of an array), its place in it, and what the file says of it."""

    file: str
    split: str
    index: int
    sample_id: str
    lon: float
    lat: float
    epsg: int | None
    x0: float | None
    y0: float | None
    synthetic: str | None


class Zips:
    """The zips below a folder, opened when needed; threads may share it."""

    def __init__(self, root: Path, arrays: Sequence[str]) -> None:
        self.root = root
        found = {path.parent.name for path in root.glob(f"*/*/*{ENDING}")}
        self.arrays = [name for name in arrays if name in found]
        self._groups: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def files(self) -> list[tuple[str, str]]:
        """(split, file) of every zip of the first array there is."""
        first = self.arrays[0]
        return [(path.parent.parent.name, path.name) for path in sorted(self.root.glob(f"*/{first}/*{ENDING}"))]

    def locations(self, gsd: float) -> Iterator[Location]:
        """Every location, file by file."""
        for split, file in self.files():
            group = self.group(split, self.arrays[0], file)
            columns = {name: np.asarray(group[name][:]) for name in ("sample", "center_lon", "center_lat", "crs")}
            x, y = (np.asarray(group[name][:]) if name in group else None for name in ("x_", "y_"))
            for index in range(len(columns["sample"])):
                epsg = int(columns["crs"][index])
                yield Location(
                    file=file, split=split, index=index, sample_id=str(columns["sample"][index]),
                    lon=float(columns["center_lon"][index]), lat=float(columns["center_lat"][index]),
                    epsg=epsg or None,
                    x0=None if x is None else _corner(x[index], gsd), y0=None if y is None else _corner(y[index], -gsd),
                    synthetic=group.attrs.get("mmbuild:synthetic"),
                )  # fmt: skip

    def group(self, split: str, array: str, file: str) -> Any:
        """The zarr group of a zip; UserError when it cannot be read."""
        import zarr

        key = (split, array, file)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            path = self.root / split / array / file
            try:
                store = zarr.storage.ZipStore(path, mode="r", read_only=True)
                group = zarr.open_group(store, mode="r")
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"cannot be read: {error}", str(path), "download it again") from error
            self._groups[key] = group
            while len(self._groups) > _OPEN:
                self._groups.popitem(last=False)
            return group

    def has(self, split: str, array: str, file: str) -> bool:
        return (self.root / split / array / file).is_file()


def _corner(centres: np.ndarray, gsd: float) -> float | None:
    """The outer edge of a row of pixel centres; None where they are not evenly spaced by ``gsd``."""
    steps = np.diff(centres)
    if not len(steps) or not np.allclose(steps, gsd, atol=1e-6):
        return None
    return float(centres[0] - gsd / 2)


def times_of(group: Any) -> np.ndarray:
    """(sample, time) datetime64[ms] of a group, NaT where it does not say."""
    if "time_" not in group:
        return np.full(group["bands"].shape[:2], np.datetime64("NaT"), "datetime64[ms]")
    array = group["time_"]
    values = np.asarray(array[:])
    if np.issubdtype(values.dtype, np.datetime64):
        return values.astype("datetime64[ms]")
    return decoded_times(values, dict(array.attrs))


def decoded_times(values: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """CF times (``<unit> since <date>``) as datetime64[ms]."""
    words = str(attributes.get("units", "nanoseconds since 1970-01-01")).split()
    unit = {"days": "D", "hours": "h", "minutes": "m", "seconds": "s", "milliseconds": "ms", "microseconds": "us"}
    step = np.timedelta64(1, unit.get(words[0], "ns"))  # type: ignore[call-overload]
    missing = values == attributes.get("_FillValue", np.iinfo(np.int64).min)
    start = np.datetime64(words[2], "ns")
    found = start + np.where(missing, 0, values).astype(np.int64) * step.astype("timedelta64[ns]")
    return np.where(missing, np.datetime64("NaT"), found).astype("datetime64[ms]")


def as_datetime(time: np.datetime64) -> datetime | None:
    return None if np.isnat(time) else time.astype("datetime64[ms]").item().replace(tzinfo=UTC)
