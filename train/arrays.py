"""Labelled images and features that a user brings: arrays in .npz, and the folders of GEO-Bench.

Nothing in a file is run: arrays are read without pickles, and GEO-Bench's pickled metadata goes through an unpickler
that knows numbers, texts, lists and dicts, and puts an empty shell where a file names any class or function.

Shapes: n samples, images (n, band, y, x), features (n, d), labels (n,) int, or (n, class) bool where a sample may have
several classes.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mmbuild.errors import UserError

SPLITS = ("train", "val", "test")
# GEO-Bench's own names for splits.
_GEOBENCH_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_PARTITION = "default_partition.json"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a user brought. x: images (n, band, y, x) or features (n, d), float32, NaN where missing; split: (n,) text.

    bands: their names, or their numbers. normalisation: what was done to the values, for the record.
    """

    name: str
    x: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    bands: tuple[str, ...]
    normalisation: str

    @property
    def is_images(self) -> bool:
        return self.x.ndim == 4


def is_labelled(path: Path) -> bool:
    """It is one of these, and not a corpus."""
    return path.suffix == ".npz" or (path / _PARTITION).exists()


def read_labelled(path: Path, *, normalise: bool = True) -> Labelled:
    """A .npz with x, y and split, or a folder of GEO-Bench; images are z-scored by band with the train split.

    Raises UserError that says what is missing.
    """
    if not path.exists():
        raise UserError("there is nothing here", str(path), "give a .npz file or a folder of GEO-Bench's HDF5 files")
    found = _read_geobench(path) if path.is_dir() else _read_npz(path)
    return _normalised(found) if normalise and found.is_images else found


def _normalised(found: Labelled) -> Labelled:
    train = found.x[found.split == "train"].astype(np.float64)
    mean, std = (f(train, axis=(0, 2, 3), keepdims=True) for f in (np.nanmean, np.nanstd))
    x = ((found.x - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    told = "(value - mean) / std by band, of the train split"
    return Labelled(name=found.name, x=x, labels=found.labels, split=found.split, bands=found.bands, normalisation=told)


# -- one file of arrays


def _read_npz(path: Path) -> Labelled:
    """x (n, d) or (n, band, y, x), y (n,) integers or (n, class) of 0 and 1, split (n,); bands (band,) if known."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError) as error:
        fix = "write it with numpy.savez(path, x=..., y=..., split=...), no arrays of objects"
        raise UserError(f"not a .npz of plain arrays ({error})", str(path), fix) from None
    for name in ("x", "y", "split"):
        if name not in arrays:
            raise UserError(f"array {name} is missing", str(path), "it needs x, y and split")
    x, y, split = arrays["x"], arrays["y"], arrays["split"].astype(str)
    fits = y.ndim in (1, 2) and len(y) == len(x) and y.dtype.kind in ("iu" if y.ndim == 1 else "iub")
    if x.ndim not in (2, 4) or not fits or split.shape != (len(x),):
        reason = f"x {x.shape}, y {y.dtype} {y.shape} and split {split.shape} do not fit together"
        raise UserError(
            reason, str(path), "x is (n, d) or (n, band, y, x), y (n,) integers from 0 or (n, class), split (n,)"
        )
    _check(y, split, path)
    names = tuple(arrays["bands"].astype(str).tolist()) if "bands" in arrays else tuple(map(str, range(x.shape[1])))
    return Labelled(
        name=path.stem, x=x.astype(np.float32), labels=_whole(y), split=split, bands=names,
        normalisation="as they came",
    )  # fmt: skip


def _check(labels: np.ndarray, split: np.ndarray, path: Path) -> None:
    strange = sorted(set(split.tolist()) - set(SPLITS))
    if strange:
        raise UserError(f"split {strange[0]!r} is unknown", str(path), f"use {', '.join(SPLITS)}")
    if labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        raise UserError("several classes a sample are not written as 0 and 1", str(path), "write a column a class")
    if (labels < 0).any():
        raise UserError(f"label {labels.min()} is negative", str(path), "number classes from 0")


def _whole(labels: np.ndarray) -> np.ndarray:
    """One class a sample as int64, several as bool."""
    return labels.astype(np.int64 if labels.ndim == 1 else bool)


# -- GEO-Bench


def _read_geobench(folder: Path) -> Labelled:
    """A folder of <sample>.hdf5 with default_partition.json; bands by their order in the files.

    Band names of some published sets are in a wrong order (GEO-Bench issues 28 and 29), so none is trusted here.
    """
    partition = folder / _PARTITION
    if not partition.exists():
        fix = "give the folder of one data set of GEO-Bench, such as m-eurosat"
        raise UserError(f"{_PARTITION} is missing", str(folder), fix)
    names = json.loads(partition.read_text())
    pairs = [(sample, ours) for theirs, ours in _GEOBENCH_SPLITS.items() for sample in names.get(theirs, ())]
    samples = [_read_sample(folder / f"{sample}.hdf5") for sample, _ in pairs]
    if len({np.shape(label) for _, _, label in samples}) != 1:
        raise UserError("samples with different numbers of classes", str(folder), "download the data set again")
    labels = np.array([label for _, _, label in samples], dtype=np.int64)
    split = np.array([ours for _, ours in pairs])
    _check(labels, split, folder)
    shapes = {image.shape for image, _, _ in samples}
    if len(shapes) != 1:
        raise UserError(f"images of different shapes: {sorted(shapes)}", str(folder), "resize them to one, as .npz")
    return Labelled(
        name=folder.name, x=np.stack([image for image, _, _ in samples]), labels=_whole(labels), split=split,
        bands=samples[0][1], normalisation="as they came",
    )  # fmt: skip


def _read_sample(path: Path) -> tuple[np.ndarray, tuple[str, ...], int | list[int]]:
    """((band, y, x) float32, names of bands, class or a 0 or 1 for each class)."""
    if not path.exists():
        raise UserError("a sample of the partition is missing", str(path), "download the data set again")
    with h5py.File(path, "r") as file:
        about = _metadata(file.attrs.get("pickle"), path)
        names = [str(one) for one in about.get("bands_order", list(file)) if str(one) in file]
        bands = [file[one][...] for one in names if not one.startswith("label")]
    label = about.get("label")
    label = label.values() if isinstance(label, _Array) else label
    if not isinstance(label, int) and not (isinstance(label, list) and all(isinstance(one, int) for one in label)):
        reason = f"the label is {type(label).__name__}, neither a class nor 0 and 1 for each class"
        raise UserError(reason, str(path), "only classification sets can be probed")
    image = np.stack([band if band.ndim == 2 else band[..., 0] for band in bands]).astype(np.float32)
    return image, tuple(one for one in names if not one.startswith("label")), label


def _metadata(text: Any, path: Path) -> Mapping[str, Any]:
    """The dict that GEO-Bench pickles into an attribute, as the text of a bytes literal."""
    try:
        raw = ast.literal_eval(text if isinstance(text, str) else bytes(text).decode())
        found = Plain(io.BytesIO(raw)).load()
    except (ValueError, SyntaxError, TypeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise UserError(f"its metadata cannot be read ({error})", str(path), "download the data set again") from None
    if not isinstance(found, dict):
        raise UserError("its metadata are no mapping", str(path), "download the data set again")
    return found


class Shell:
    """Stands for anything that a pickle wants to make: takes whatever it is given and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignored."""

    def extend(self, _: Any) -> None:
        """Ignored."""


class _Dtype(Shell):
    """A NumPy dtype of whole numbers, by its code."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code = code


def _scalar(dtype: Any, raw: Any) -> int | Shell:
    """A NumPy whole number from its little-endian bytes."""
    if isinstance(dtype, _Dtype) and dtype.code[:1] in ("i", "u") and isinstance(raw, bytes):
        return int.from_bytes(raw, "little", signed=dtype.code[0] == "i")
    return Shell()


class _Array(Shell):
    """A NumPy array of whole numbers or truths: its dtype and bytes."""

    def __setstate__(self, state: Any) -> None:
        self.dtype, self.raw = (state[2], state[4]) if isinstance(state, tuple) and len(state) == 5 else (None, None)

    def values(self) -> list[int] | None:
        """Its elements one after another, None where they are anything else."""
        code = self.dtype.code if isinstance(self.dtype, _Dtype) else ""
        if code[:1] not in ("i", "u", "b") or not code[1:].isdigit() or not isinstance(self.raw, bytes):
            return None
        found: list[int] = np.frombuffer(self.raw, dtype=f"<{code}").astype(np.int64).tolist()
        return found


class Plain(pickle.Unpickler):
    """Reads plain values; every class and function that is named becomes a shell, so that no code of a file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}:
            return _scalar
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return _Array
        return _Dtype if (module, name) == ("numpy", "dtype") else Shell
