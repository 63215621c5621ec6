"""The most frequent value of a stack of pixels, the smallest one on a tie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.picking import Array, Pair

# Layers that are counted at once: their number fits a byte, whose sums are many times faster than wider ones.
AT_ONCE = 255


def mode(values: Array, mask: Array) -> Array:
    """Most frequent valid value along axis 0, 0 where nothing is valid.

    values, mask: (n, ...) float64; a value counts once wherever its mask is above 0. Ties go to the smallest value
    (Earth Engine's documented `ImageCollection.mode` example).
    """
    counted = _counted(list(zip(values, mask, strict=True)))
    return _ranked(values, mask) if counted is None else counted


def mode_of_layers(layers: Sequence[Pair]) -> Pair:
    """The mode of layers that are not stacked yet, and the largest of their masks."""
    top = layers[0][1]
    for _, mask in layers[1:]:
        top = np.maximum(top, mask)
    counted = _counted(layers)
    if counted is None:
        counted = _ranked(np.stack([v for v, _ in layers]), np.stack([m for _, m in layers]))
    return np.where(top > 0, counted, 0.0), top


def _counted(layers: Sequence[Pair]) -> Array | None:
    """The mode of class codes, by counting; None for other numbers than integers 0..255."""
    if not layers or layers[0][0].size == 0:
        return None
    codes, valid = np.empty((2, len(layers), *layers[0][0].shape), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        for place, (values, mask) in enumerate(layers):
            np.copyto(codes[place], values, casting="unsafe")
            if not (codes[place] == values).all():
                return None
            np.greater(mask, 0, out=valid[place], casting="unsafe")
    found = np.zeros(256, dtype=bool)
    found[codes] = True
    result, most = np.zeros(codes.shape[1:]), np.zeros(codes.shape[1:], dtype=np.int64)
    for code in np.flatnonzero(found):
        count = _count(codes, valid, code)
        # Codes come in order: on a tie the smaller one stays.
        more = count > most
        result[more], most[more] = float(code), count[more]
    return result


def _count(codes: NDArray[np.uint8], valid: NDArray[np.uint8], code: np.intp) -> NDArray[np.int64]:
    """How many valid layers have the code."""
    total = np.zeros(codes.shape[1:], dtype=np.int64)
    for first in range(0, len(codes), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        total += np.add.reduce((codes[some] == np.uint8(code)) & valid[some], axis=0, dtype=np.uint8)
    return total


def _ranked(values: Array, mask: Array) -> Array:
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
