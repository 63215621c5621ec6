"""Scores where a sample may have several classes: logistic regression for each class, as micro mAP and as micro F1.

Both are given, because papers and their code do not agree on one: MMEarth's paper says mAP, its code computes F1.
Average precision ranks all (sample, class) pairs and knows no threshold; F1 counts those above one half.

Shapes: n samples, d features, K classes, labels and truth (n, K) bool, chances (n, K) in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmbuild.errors import UserError
from train import metrics
from train.scoring import SPLITS, Difference, LabelReport, Score, size_notes

METHOD = "logistic"
# Every draw ranks all pairs again: fewer than for means, as torchgeo-bench does.
DRAWS = 200


def micro_map(truth: np.ndarray, chances: np.ndarray) -> float:
    """Average precision of all pairs of samples and classes; NaN where no class is there."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth.ravel(), chances.ravel())) if truth.any() else float("nan")


def micro_f1(truth: np.ndarray, chances: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) over all pairs, a class being said at one half or more; NaN where there is none."""
    said = chances >= 0.5
    both = truth.sum() + said.sum()
    return float(2 * (truth & said).sum() / both) if both else float("nan")


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    f"{METHOD}, micro mAP": micro_map,
    f"{METHOD}, micro F1": micro_f1,
}


def score_multilabel(
    name: str, labels: np.ndarray, features: Mapping[str, np.ndarray], part: np.ndarray, methods: Sequence[str]
) -> LabelReport:
    """Both measures of every kind of features; the last kind is compared with the others, paired by sample.

    Raises UserError when logistic regression is not among ``methods``: no other knows several classes.
    """
    if METHOD not in methods:
        raise UserError("--methods: samples with several classes need logistic", fix=f"write --methods {METHOD}")
    rows = {split: np.flatnonzero(part == split) for split in SPLITS}
    truth = {split: labels[index] for split, index in rows.items()}
    chances: dict[str, np.ndarray] = {}
    if len(rows["train"]) and len(rows["test"]):
        for kind, x in features.items():
            train, val, test = metrics.standardise(*(x[rows[split]] for split in SPLITS))
            chances[kind] = logistic_chances(train, truth["train"], (val, truth["val"]), test)
    counts = {split: len(index) for split, index in rows.items()}
    return LabelReport(
        label=name, about="several classes a sample", classes=labels.shape[1], counts=counts, majority=None,
        scores=[_score(kind, measure, truth["test"], own) for kind, own in chances.items() for measure in MEASURES],
        differences=_differences(truth["test"], chances), notes=size_notes(counts), measure="micro mAP and micro F1",
    )  # fmt: skip


def logistic_chances(
    train: np.ndarray, labels: np.ndarray, val: tuple[np.ndarray, np.ndarray], test: np.ndarray
) -> np.ndarray:
    """(n, K) chances of each class, with the one C that has the best micro mAP on val; 1.0 where val is empty."""
    best_c = 1.0
    if len(val[1]):
        scores = [micro_map(val[1], _fit_each(train, labels, val[0], c)) for c in metrics.C_GRID]
        best_c = metrics.C_GRID[int(np.nanargmax(scores))] if not np.isnan(scores).all() else best_c
    return _fit_each(train, labels, test, best_c)


def _fit_each(train: np.ndarray, labels: np.ndarray, x: np.ndarray, c: float) -> np.ndarray:
    """A class that all or no train samples have keeps that as its chance."""
    chances = np.empty((len(x), labels.shape[1]))
    for k, own in enumerate(labels.T):
        if own.all() or not own.any():
            chances[:, k] = own[0]
        else:
            chances[:, k] = metrics.fit_logistic(train, own, c).predict_proba(x)[:, 1]
    return chances


def _resampled(samples: int) -> np.ndarray:
    """(DRAWS, samples) rows of each bootstrap draw, the same for every kind of features: that pairs them."""
    return metrics.resampled(samples, seed=0, draws=DRAWS)


def _score(kind: str, measure: str, truth: np.ndarray, chances: np.ndarray) -> Score:
    f = MEASURES[measure]
    low, high = metrics.percentile_interval([f(truth[rows], chances[rows]) for rows in _resampled(len(truth))])
    return Score(features=kind, method=measure, accuracy=f(truth, chances), low=low, high=high)


def _differences(truth: np.ndarray, chances: Mapping[str, np.ndarray]) -> list[Difference]:
    found = []
    *others, last = chances or [""]
    for kind in others:
        for measure, f in MEASURES.items():
            ours, theirs = chances[last], chances[kind]
            gains = [f(truth[r], ours[r]) - f(truth[r], theirs[r]) for r in _resampled(len(truth))]
            low, high = metrics.percentile_interval(gains)
            gain = f(truth, ours) - f(truth, theirs)
            found.append(Difference(over=kind, method=measure, gain=gain, low=low, high=high))
    return found
