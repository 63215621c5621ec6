"""The most frequent value of a stack of pixels, the smallest one on a tie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mode(values: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    """Most frequent valid value along axis 0, 0 where nothing is valid.

    values, mask: (n, ...) float64; a value counts once wherever its mask is above 0. Ties go to the smallest value
    (Earth Engine's documented `ImageCollection.mode` example).
    """
    counted = _counted(values, mask > 0)
    return _ranked(values, mask) if counted is None else counted


def _counted(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """The mode of class codes, by counting; None for other numbers than integers 0..255."""
    with np.errstate(invalid="ignore"):
        codes = values.astype(np.uint8)
    if values.size == 0 or not (codes == values).all():
        return None
    result, most = np.zeros(values.shape[1:]), np.zeros(values.shape[1:], dtype=np.int32)
    for code in np.flatnonzero(np.bincount(codes.ravel(), minlength=256)):
        count = np.add.reduce((codes == code) & valid, axis=0, dtype=np.int32)
        # Codes come in order: on a tie the smaller one stays.
        more = count > most
        result[more], most[more] = float(code), count[more]
    return result


def _ranked(values: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mode of any numbers, by their order; what counting must agree with."""
    ordered = np.sort(np.where(mask > 0, values, np.inf), axis=0)
    best, best_run = np.array(ordered[0]), np.zeros(ordered.shape[1:], dtype=np.int64)
    run = np.zeros(ordered.shape[1:], dtype=np.int64)
    for layer in range(len(ordered)):
        same = ordered[layer] == ordered[layer - 1] if layer else np.zeros(run.shape, dtype=bool)
        run = np.where(same, run + 1, 1)
        better = (run > best_run) & np.isfinite(ordered[layer])
        best, best_run = np.where(better, ordered[layer], best), np.where(better, run, best_run)
    return np.where(np.isfinite(best), best, 0.0)
