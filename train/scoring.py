"""Every classifier on every kind of frozen features of one label, with how sure one can be; nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train import heads, metrics
from train.labels import Label

SPLITS = ("train", "val", "test")
NEIGHBOURS = (5, 20)
# Below this many test samples an accuracy is a rough guess: the 95 % interval is wider than 20 points.
FEW = 100
# Names on the command line; the hidden layer needs minutes where the others need seconds.
METHODS = ("knn", "logistic", "linear", "mlp", "kmeans", "umap")
DEFAULT_METHODS = ("knn", "logistic", "linear", "kmeans")

Split = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One classifier on one kind of features: accuracy on test with its 95 % bootstrap interval."""

    features: str
    method: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What the last kind of features gains over another with one classifier: paired by sample, 95 % bootstrap."""

    over: str
    method: str
    gain: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """All scores for one label. majority: accuracy of always saying train's most frequent class."""

    label: str
    about: str
    classes: int
    counts: dict[str, int]
    majority: float | None
    scores: list[Score]
    differences: list[Difference]
    notes: list[str]
    measure: str = "accuracy"


def score_label(
    label: Label, features: Mapping[str, np.ndarray], part: np.ndarray, methods: Sequence[str] = DEFAULT_METHODS
) -> LabelReport:
    """Every classifier on every kind of features; a split that is too small is said, not raised."""
    rows = {split: np.flatnonzero((part == split) & (label.codes >= 0)) for split in SPLITS}
    counts = {split: len(index) for split, index in rows.items()}
    truth = {split: label.codes[index] for split, index in rows.items()}
    hits: dict[tuple[str, str], np.ndarray] = {}
    majority = None
    if counts["train"] and counts["test"]:
        majority = float((truth["test"] == metrics.most_frequent(truth["train"])).mean())
        for name, x in features.items():
            hits |= _hits(name, {split: x[index] for split, index in rows.items()}, truth, methods)
    return LabelReport(
        label=label.name, about=label.about, classes=len(np.unique(label.codes[label.codes >= 0])), counts=counts,
        majority=majority, scores=[_score(*key, own) for key, own in hits.items()], differences=_differences(hits),
        notes=_notes(counts, truth),
    )  # fmt: skip


def _hits(name: str, x: Split, truth: Split, methods: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """Which test samples each method gets right, by (features, method)."""
    train, val, test = metrics.standardise(x["train"], x["val"], x["test"])
    said = _predictions(train, (val, truth["val"]), test, truth["train"], methods)
    return {(name, method): classes == truth["test"] for method, classes in said}


def _differences(hits: Mapping[tuple[str, str], np.ndarray]) -> list[Difference]:
    found = []
    last = next(reversed(hits), ("", ""))[0]
    for (features, method), own in hits.items():
        if features != last:
            gains = hits[last, method].astype(np.float64) - own
            low, high = metrics.bootstrap_interval(gains, seed=0)
            found.append(Difference(over=features, method=method, gain=float(gains.mean()), low=low, high=high))
    return found


def _predictions(
    train: np.ndarray, val: tuple[np.ndarray, np.ndarray], test: np.ndarray, labels: np.ndarray, methods: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """What each method says of the test samples."""
    classes = int(labels.max()) + 1
    if "knn" in methods:
        for k in NEIGHBOURS:
            for weighted in (True, False):
                said = metrics.knn_predict(train, labels, test, k=k, weighted=weighted, classes=classes)
                yield f"kNN {k} {'cosine' if weighted else 'plain'}", said
    if "logistic" in methods:
        yield "logistic", metrics.logistic_predict(train, labels, val, test)[0]
    if "linear" in methods:
        yield "linear head", heads.head_predict(train, labels, val, test, classes=classes)[0]
    if "mlp" in methods:
        yield "MLP-2048", heads.head_predict(train, labels, val, test, classes=classes, hidden=heads.HIDDEN)[0]
    if "kmeans" in methods:
        yield "k-means", metrics.kmeans_predict(train, labels, test, classes=classes)
    if "umap" in methods:
        flat, flat_test = metrics.umap_axes(train, test)
        yield "UMAP + k-means", metrics.kmeans_predict(flat, labels, flat_test, classes=classes)


def _score(features: str, method: str, hits: np.ndarray) -> Score:
    low, high = metrics.bootstrap_interval(hits, seed=0)
    return Score(features=features, method=method, accuracy=float(hits.mean()), low=low, high=high)


def size_notes(counts: Mapping[str, int]) -> list[str]:
    """What a reader must know about splits that are too small to trust."""
    empty = [split for split in ("train", "test") if not counts[split]]
    if empty:
        return [f"not scored: split {' and '.join(empty)} has no labelled sample"]
    notes = []
    if counts["test"] < FEW:
        notes.append(f"only {counts['test']} test samples: the intervals are wide, small differences mean nothing")
    if not counts["val"]:
        notes.append("no val samples: logistic regression uses C = 1 instead of choosing it")
    return notes


def _notes(counts: Mapping[str, int], truth: Split) -> list[str]:
    """The same, and what does not fit one class a sample."""
    notes = size_notes(counts)
    if not (counts["train"] and counts["test"]):
        return notes
    if counts["train"] < max(NEIGHBOURS):
        notes.append(f"only {counts['train']} train samples: kNN {max(NEIGHBOURS)} takes them all")
    unseen = np.setdiff1d(truth["test"], truth["train"])
    if len(unseen):
        missed = int(np.isin(truth["test"], unseen).sum())
        notes.append(f"{missed} test samples have a class that train does not have; they count as errors")
    return notes
