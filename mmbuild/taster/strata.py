"""Which samples a taster takes first, and how far it then is from its parent: pure functions of labels.

Every sample has one label per variable (its biome, its month, ...). The order is one for all sizes, so a smaller
taster is the beginning of a larger one, and it is chosen so that every beginning has nearly the parent's shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Degrees of latitude in one stratum.
BAND_DEG = 15
MEASURE = (
    "total variation: half the sum over all labels of |share in the parent - share here|; 0 is the same shares, 1 is "
    "none in common. random_draw: what a random draw of as many samples has on average"
)


def latitude_bands(lat: Floats) -> list[str]:
    """The band of each latitude, such as "30 to 45"."""
    low = np.floor(lat / BAND_DEG).astype(int) * BAND_DEG
    return [f"{south} to {south + BAND_DEG}" for south in low.tolist()]


def stratified_order(labels: Mapping[str, Sequence[str]], ties: Floats) -> Iterator[int]:
    """All samples, each time the one whose labels lag the farthest behind the parent's shares.

    labels: variable -> one label per sample; ties: (sample,) decides among equals, smallest first.

    With k samples taken, label l of a variable should have k times its share of them. The next sample is that for which
    the sum of what its labels lack is largest: the steepest descent of the summed squares of all lags. Samples with
    all labels in common lag equally, so they are looked at together.
    """
    coded = [np.unique(np.asarray(values), return_inverse=True) for values in labels.values()]
    codes = np.stack([code for _, code in coded] or [np.zeros(len(ties), np.int64)], axis=1)
    cells, cell_of = np.unique(codes, axis=0, return_inverse=True)
    order = np.lexsort((ties, cell_of))
    ends = np.cumsum(np.bincount(cell_of, minlength=len(cells)))
    at = np.concatenate([[0], ends[:-1]])
    shares = [np.bincount(column) / len(column) for column in codes.T]
    taken = [np.zeros(len(share)) for share in shares]
    for k in range(1, len(ties) + 1):
        lag = sum(((k * share - count)[column] for share, count, column in zip(shares, taken, cells.T, strict=True)))
        lag = np.where(at < ends, lag, -np.inf)
        equal = np.flatnonzero(lag >= lag.max() - 1e-9)
        cell = equal[np.argmin(ties[order[at[equal]]])]
        yield int(order[at[cell]])
        at[cell] += 1
        for count, label in zip(taken, cells[cell], strict=True):
            count[label] += 1


def distances(labels: Mapping[str, Sequence[str]], chosen: Sequence[int]) -> dict[str, dict[str, Any]]:
    """By variable: its labels in the parent and in the taster, and the total variation between the two."""
    found = {}
    for name, values in labels.items():
        known, code = np.unique(np.asarray(values), return_inverse=True)
        share = np.bincount(code, minlength=len(known)) / len(code)
        own = np.bincount(code[np.asarray(chosen, np.int64)], minlength=len(known)) / max(len(chosen), 1)
        found[name] = {
            "labels": len(known),
            "labels_here": int(np.count_nonzero(own)),
            "total_variation": round(float(np.abs(share - own).sum() / 2), 6),
            "random_draw": round(sum(_mean_deviation(len(chosen), p) for p in share.tolist()) / 2, 6),
        }
    return found


def _mean_deviation(n: int, p: float) -> float:
    """Mean of |X / n - p| for a binomial X of n draws: De Moivre's formula, 2 m C(n, m) p^m (1 - p)^(n - m + 1) / n."""
    if not 0 < p < 1 or not n:
        return 0.0
    m = math.floor(n * p) + 1
    chosen = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
    return 2 * m * math.exp(chosen + m * math.log(p) + (n - m + 1) * math.log1p(-p)) / n
