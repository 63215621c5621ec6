"""Scores of frozen features: neighbours, logistic regression, clusters, and how sure one can be of an accuracy.

Features are (n, d) float arrays, labels (n,) int. Everything random comes from a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmbuild.errors import UserError

# Inverse regularisation strengths, one a decade: from "the majority class" to "as if there were none".
C_GRID = tuple(float(f"1e{power}") for power in range(-5, 5))
# Temperature of the weighted vote (Wu et al. 2018; Scale-MAE, DINO).
KNN_TEMPERATURE = 0.07
MAX_ITER = 500
# Below this many numbers BLAS threads cost more than they give; on busy cores a hundred times more.
ONE_THREAD_BELOW = 2**20


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Every set with mean 0 and standard deviation 1 over ``train``; a feature that is constant there becomes 0."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    usable = std > 1e-12
    scale = np.where(usable, std, 1)
    return [np.where(usable, (x - mean) / scale, 0.0) for x in (train, *others)]


def knn_predict(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, k: int, weighted: bool, classes: int
) -> np.ndarray:
    """The class most of the k nearest training samples have; ties go to the smaller class.

    weighted: cosine similarity, votes of exp(similarity / 0.07). Otherwise Euclidean distance, one vote each.
    """
    k = min(k, len(train))
    closeness = _unit(test) @ _unit(train).T if weighted else _nearness(test, train)
    nearest = np.argsort(-closeness, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(test), classes))
    rows = np.arange(len(test))[:, None]
    weight = np.exp((np.take_along_axis(closeness, nearest, axis=1) - 1) / KNN_TEMPERATURE) if weighted else 1.0
    np.add.at(votes, (rows, labels[nearest]), weight)
    return votes.argmax(axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _nearness(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Negative squared distances by the binomial formula, which needs no (test, train, d) cube."""
    return 2 * test @ train.T - (train**2).sum(axis=1) - (test**2).sum(axis=1)[:, None]


def logistic_predict(
    train: np.ndarray, labels: np.ndarray, val: tuple[np.ndarray, np.ndarray], test: np.ndarray
) -> tuple[np.ndarray, float]:
    """Predictions of an L-BFGS logistic regression and the C that scored best on ``val`` (1.0 when val is empty).

    A train split of a single class predicts that class. The smaller C wins ties: the plainer model.
    """
    if len(np.unique(labels)) < 2:
        return np.full(len(test), labels[0]), float("nan")
    axes = _axes(train)
    train, test, features, truth = train @ axes, test @ axes, val[0] @ axes, val[1]
    best_c = 1.0
    if len(truth):
        scores = [(fit_logistic(train, labels, c).predict(features) == truth).mean() for c in C_GRID]
        best_c = C_GRID[int(np.argmax(scores))]
    return fit_logistic(train, labels, best_c).predict(test), best_c


def _axes(train: np.ndarray) -> np.ndarray:
    """Orthonormal axes that span the train samples, (d, d') with d' <= n.

    A ridge penalty leaves weights at 0 across the span and does not see rotations, so the regression on these axes is
    the same one, and many times faster when there are more features than samples.
    """
    if len(train) >= train.shape[1]:
        return np.eye(train.shape[1])
    return np.linalg.svd(train, full_matrices=False)[2].T


def fit_logistic(x: np.ndarray, y: np.ndarray, c: float) -> Any:
    """scikit-learn's regression by L-BFGS, converged or not."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1 if x.size < ONE_THREAD_BELOW else None):
        # Nearly unregularised fits of separable data need not converge to be compared.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=MAX_ITER).fit(x, y)


def resampled(samples: int, *, seed: int, draws: int = 2000) -> np.ndarray:
    """(draws, samples) rows of each bootstrap draw, the same for the same seed: that pairs what is scored with them."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, samples, (draws, samples))


def percentile_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what bootstrap draws gave, without those that are NaN."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(hits: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of ``hits`` (n,), bool or differences, under resampling of samples."""
    return percentile_interval(hits[resampled(len(hits), seed=seed)].mean(axis=1))


def most_frequent(labels: Sequence[int] | np.ndarray) -> int:
    """The class seen most often; ties go to the smaller."""
    return int(np.bincount(np.asarray(labels)).argmax())


def kmeans_predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, classes: int) -> np.ndarray:
    """The class of each test sample's cluster: as many clusters of train samples as classes, matched one to one.

    k-means++ with ten restarts; the Hungarian method matches clusters to classes so that most train samples agree.
    Source: CROMA's protocol, but matched on train samples, so that the test samples' own labels choose nothing.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    clusters = min(classes, len(train))
    with warnings.catch_warnings(), threadpool_limits(1 if train.size < ONE_THREAD_BELOW else None):
        # Fewer distinct samples than clusters leave some clusters empty, which is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_clusters=clusters, n_init=10, random_state=0).fit(train)
    agreement = np.zeros((clusters, classes))
    np.add.at(agreement, (found.labels_, labels), 1)
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    matched = np.empty(clusters, dtype=np.int64)
    matched[rows] = columns
    return matched[found.predict(test)]


def umap_axes(train: np.ndarray, test: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in the two dimensions that UMAP finds on ``train``; UserError without the package."""
    try:
        from umap import UMAP
    except ImportError:
        fix = "pip install 'mmbuild[umap]', or leave umap out of --methods"
        raise UserError("--methods: umap is not installed", fix=fix) from None
    with warnings.catch_warnings():
        # It says that a seed means one thread.
        warnings.simplefilter("ignore", UserWarning)
        found = UMAP(n_components=2, random_state=seed).fit(train)
        return np.asarray(found.embedding_, dtype=np.float64), np.asarray(found.transform(test), dtype=np.float64)
