"""Labels of a corpus's own samples: a class of a modality, a tag, or how finely a map of classes is cut up.

``NAME`` is the dominant class of a modality, or a tag. ``NAME:grain`` needs to see where pixels lie, not only what they
are: the share of neighbouring pixels of different classes, divided by the share among any two pixels of the sample. It
is near 0 where every class lies in one piece and about 1 where pixels are strewn, whatever the classes and their
shares; the samples are cut into three classes at the terciles of the train split.

Shapes: B samples, n samples of a corpus, K classes, codes (B, ..., y, x) int with -1 = missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.stream.transforms import Field

GRAIN = "grain"
GRAINS = ("coarse", "medium", "fine")
# A sample whose pixels are nearly all of one class has no grain: two pixels differ less often than this.
LEAST_DIVERSITY = 0.05


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label: ``codes`` (n,) int, -1 where a sample has none; ``names`` by code."""

    name: str
    about: str
    codes: np.ndarray
    names: tuple[str, ...]


def default_labels(modalities: Mapping[str, Modality]) -> list[str]:
    """The first categorical modality of either level; one that only judges another's quality is passed over."""
    judges = {m.clear.modality for m in modalities.values() if m.clear}
    judges |= {m.name for m in modalities.values() if m.same_scene_as}
    classes = [m for m in modalities.values() if m.values == "categorical" and m.name not in judges]
    first = (next((m.name for m in classes if m.level == level), None) for level in ("pixel", "image"))
    return [name for name in first if name]


def modality_of(name: str) -> str:
    """The modality, or tag, that a label is about."""
    return name.removesuffix(f":{GRAIN}")


def can_measure(name: str, field: Field | None) -> bool:
    """The label comes from this field of a batch: classes, and for a grain classes of pixels."""
    return field is not None and field.is_categorical and (name == field.name or field.is_pixel)


def measure(name: str, codes: Tensor, classes: int) -> np.ndarray:
    """(B,) what a label is made from: a class index, -1 = none, or a grain, NaN = none."""
    return dominant_class(codes, classes) if name == modality_of(name) else grain(codes, classes)


def dominant_class(codes: Tensor, classes: int) -> np.ndarray:
    """The most frequent class index of each sample, the smaller on ties, -1 without any; (B, ...) -> (B,)."""
    counts = _class_counts(codes, classes)
    return torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), -1).numpy()


def grain(codes: Tensor, classes: int) -> np.ndarray:
    """(B,) share of neighbours that differ over the share of any two pixels that do, NaN where hardly any two do.

    Source: the join count of different neighbours (Cliff and Ord 1981) against Simpson's diversity.
    """
    codes = codes.flatten(1, -3)
    differ, pairs = torch.zeros(2, len(codes), dtype=torch.float64)
    for a, b in ((codes[..., 1:], codes[..., :-1]), (codes[..., 1:, :], codes[..., :-1, :])):
        both = (a >= 0) & (b >= 0)
        differ += ((a != b) & both).flatten(1).sum(dim=1)
        pairs += both.flatten(1).sum(dim=1)
    counts = _class_counts(codes, classes).double()
    pixels = counts.sum(dim=1).clamp(min=2)
    diversity = 1 - (counts * (counts - 1)).sum(dim=1) / (pixels * (pixels - 1))
    known = (pairs > 0) & (counts.sum(dim=1) > 1) & (diversity >= LEAST_DIVERSITY)
    return torch.where(known, differ / pairs.clamp(min=1) / diversity.clamp(min=LEAST_DIVERSITY), torch.nan).numpy()


def _class_counts(codes: Tensor, classes: int) -> Tensor:
    """(B, K) pixels of each class."""
    flat = codes.flatten(1)
    return torch.stack([(flat == code).sum(dim=1) for code in range(classes)], dim=1)


def make_label(
    corpus: Corpus, name: str, measured: Mapping[str, np.ndarray], tags: Sequence[Mapping[str, Any]], part: np.ndarray
) -> Label:
    """The label ``name`` of every sample. measured: (n,) by label; tags, part: of every sample.

    Raises UserError for a label that the corpus does not have.
    """
    if name not in measured:
        return _tag(corpus, name, tags)
    if name != modality_of(name):
        return _thirds(name, measured[name], measured[name][part == "train"])
    modality = corpus.modalities[name]
    by_code = {item.code: item.name for item in modality.classes}
    about = "dominant class" if modality.level == "pixel" else "class of the sample"
    return Label(name=name, about=about, codes=measured[name], names=tuple(by_code[c] for c in modality.class_codes))


def _thirds(name: str, values: np.ndarray, train: np.ndarray) -> Label:
    known = train[~np.isnan(train)]
    bounds = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else np.zeros(2)
    codes = np.where(np.isnan(values), -1, np.searchsorted(bounds, values))
    return Label(name=name, about="how finely the classes are cut up", codes=codes, names=GRAINS)


def _tag(corpus: Corpus, name: str, tags: Sequence[Mapping[str, Any]]) -> Label:
    values = [tag.get(name) for tag in tags]
    if not any(value is not None for value in values):
        maps = [m for m in corpus.modalities.values() if m.values == "categorical"]
        known = [m.name for m in maps] + [f"{m.name}:{GRAIN}" for m in maps if m.level == "pixel"]
        known += sorted({key for tag in tags for key in tag} - set(known))
        raise UserError(f"--label: no class label {name!r}", corpus.store.url, f"choose from {', '.join(known)}")
    names = sorted({str(value) for value in values if value is not None})
    places = [-1 if value is None else names.index(str(value)) for value in values]
    return Label(name=name, about="tag", codes=np.array(places), names=tuple(names))
