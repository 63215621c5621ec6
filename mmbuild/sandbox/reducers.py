"""Reducers: what turns many values into few, once over plain numbers (columns, regions) and once over stacks of pixels.

Weights are masks (and, in a region, how much of the pixel lies inside). Mean, sum and histograms use them; minimum,
maximum, count, first, mode, median and lists take a value whenever its weight is above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmbuild.sandbox.modes import mode, mode_of_layers
from mmbuild.sandbox.picking import Array, Pair
from mmbuild.sandbox.values import EarthEngineError

Row = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Reducer:
    """names: the outputs. inputs: values taken per row.

    rows(rows, weights) -> one value per output; a row is a tuple of `inputs` values without nulls it did not allow.
    stack(values, mask) -> one (values, mask) pair per output; both (n, ...); None when it makes no sense per pixel.
    layers(pairs) -> the same as `stack` from layers that are not stacked; None where nothing is saved by it.
    tuples(values, mask) -> the same of several inputs: values (n, inputs, ...), mask (n, ...).
    weighted: whether partly covered pixels of a region take part.
    """

    names: tuple[str, ...]
    rows: Callable[[Sequence[Row], Sequence[float]], list[Any]]
    stack: Callable[[Array, Array], list[tuple[Array, Array]]] | None = None
    layers: Callable[[Sequence[Pair]], list[Pair]] | None = None
    inputs: int = 1
    optional: int = 0
    weighted: bool = False
    tuples: Callable[[Array, Array], list[tuple[Array, Array]]] | None = None

    def reduce_rows(self, rows: Sequence[Row], weights: Sequence[float] | None = None) -> dict[str, Any]:
        """Outputs by name; rows with a null among the required inputs are left out."""
        given = [1.0] * len(rows) if weights is None else weights
        needed = self.inputs - self.optional
        kept = [(row, w) for row, w in zip(rows, given, strict=True) if w > 0 and None not in row[:needed]]
        results = self.rows([row for row, _ in kept], [w for _, w in kept])
        return dict(zip(self.names, results, strict=True))

    def reduce_stack(self, values: Array, mask: Array) -> list[tuple[Array, Array]]:
        if self.stack is None:
            raise EarthEngineError(f"Reducer '{', '.join(self.names)}' cannot be applied to pixels here.")
        return self.stack(values, mask)

    def reduce_layers(self, pairs: Sequence[Pair]) -> list[Pair]:
        """What `reduce_stack` answers for the stacked layers."""
        if self.layers is not None:
            return self.layers(pairs)
        return self.reduce_stack(np.stack([v for v, _ in pairs]), np.stack([m for _, m in pairs]))


def _numbers(rows: Sequence[Row]) -> Array:
    return np.array([float(row[0]) for row in rows], dtype=np.float64)


def _scalar(
    name: str,
    of_numbers: Callable[[Array, Array], Any],
    stack: Callable[[Array, Array], Array],
    *,
    weighted: bool = False,
    keeps_int: bool = False,
) -> Reducer:
    """A reducer of numbers to one number; null when there is nothing to reduce."""

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        if not rows:
            return [None]
        if keeps_int and not isinstance(rows[0][0], int | float | bool):
            return [of_objects(name, [row[0] for row in rows])]
        value = float(of_numbers(_numbers(rows), np.asarray(weights, dtype=np.float64)))
        whole = keeps_int and all(isinstance(row[0], int) for row in rows)
        return [int(value) if whole and value.is_integer() else value]

    def pixels(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        top = mask.max(axis=0)
        return [(np.where(top > 0, stack(values, mask), 0.0), top)]

    return Reducer((name,), rows, pixels, weighted=weighted)


def of_objects(name: str, objects: Sequence[Any]) -> Any:
    """Minimum, maximum and first work on strings and dates as well."""
    if name in ("min", "max"):
        key = (lambda o: o.ms) if hasattr(objects[0], "ms") else None
        return min(objects, key=key) if name == "min" else max(objects, key=key)
    raise EarthEngineError(f"Reducer.{name}: Cannot reduce {type(objects[0]).__name__}.")


def _weighted_mean(values: Array, mask: Array) -> Array:
    weight = mask.sum(axis=0)
    total = (values * mask).sum(axis=0)
    return np.asarray(np.divide(total, weight, out=np.zeros_like(total), where=weight > 0))


def _masked(values: Array, mask: Array, fill: float) -> Array:
    return np.where(mask > 0, values, fill)


def _median(values: Array, mask: Array) -> Array:
    """Middle value, the mean of the middle two for an even number; 0 where nothing is valid."""
    ordered = np.sort(_masked(values, mask, np.inf), axis=0)
    count = (mask > 0).sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    low, high = np.minimum(low, len(values) - 1), np.minimum(high, len(values) - 1)
    picked = [np.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, high)]
    return np.where(count > 0, picked[0] / 2 + picked[1] / 2, 0.0)


def _spread(values: Array, mask: Array) -> Array:
    valid = mask > 0
    count = np.maximum(valid.sum(axis=0), 1)
    mean = np.where(valid, values, 0.0).sum(axis=0) / count
    return np.asarray(np.where(valid, (values - mean) ** 2, 0.0).sum(axis=0) / count)


def _first(values: Array, mask: Array) -> Array:
    index = np.argmax(mask > 0, axis=0)
    return np.asarray(np.take_along_axis(values, index[None], axis=0)[0])


def _last(values: Array, mask: Array) -> Array:
    return _first(values[::-1], mask[::-1])


def mean() -> Reducer:
    return _scalar("mean", lambda v, w: (v * w).sum() / w.sum(), _weighted_mean, weighted=True)


def total() -> Reducer:
    return _scalar("sum", lambda v, w: (v * w).sum(), lambda v, m: (v * m).sum(axis=0), weighted=True)


def minimum() -> Reducer:
    return _scalar("min", lambda v, w: v.min(), lambda v, m: _masked(v, m, np.inf).min(axis=0), keeps_int=True)


def maximum() -> Reducer:
    return _scalar("max", lambda v, w: v.max(), lambda v, m: _masked(v, m, -np.inf).max(axis=0), keeps_int=True)


def median() -> Reducer:
    return _scalar("median", lambda v, w: np.median(v), _median)


def most_common() -> Reducer:
    def of_numbers(values: Array, weights: Array) -> Any:
        return mode(values[:, None], np.ones((len(values), 1)))[0]

    return replace(_scalar("mode", of_numbers, mode), layers=lambda pairs: [mode_of_layers(pairs)])


def standard_deviation() -> Reducer:
    return _scalar("stdDev", lambda v, w: v.std(), lambda v, m: np.sqrt(_spread(v, m)))


def variance() -> Reducer:
    return _scalar("variance", lambda v, w: v.var(), _spread)


def sample_standard_deviation() -> Reducer:
    """Null for fewer than two values."""
    return _of_two("stdDev", lambda v: v.std(ddof=1), lambda v, m: np.sqrt(_sample_spread(v, m)))


def sample_variance() -> Reducer:
    """Null for fewer than two values."""
    return _of_two("variance", lambda v: v.var(ddof=1), _sample_spread)


def _of_two(name: str, of_numbers: Callable[[Array], Any], stack: Callable[[Array, Array], Array]) -> Reducer:
    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        return [float(of_numbers(_numbers(rows))) if len(rows) > 1 else None]

    def pixels(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        top = np.where((mask > 0).sum(axis=0) > 1, mask.max(axis=0), 0.0)
        return [(np.where(top > 0, stack(values, mask), 0.0), top)]

    return Reducer((name,), rows, pixels)


def _sample_spread(values: Array, mask: Array) -> Array:
    count = (mask > 0).sum(axis=0)
    return np.asarray(_spread(values, mask) * count / np.maximum(count - 1, 1))


def all_non_zero() -> Reducer:
    return _scalar("all", lambda v, w: bool(v.all()), lambda v, m: np.asarray(_masked(v, m, 1.0).all(axis=0) * 1.0))


def any_non_zero() -> Reducer:
    return _scalar("any", lambda v, w: bool(v.any()), lambda v, m: np.asarray(_masked(v, m, 0.0).any(axis=0) * 1.0))


def product() -> Reducer:
    return _scalar("product", lambda v, w: v.prod(), lambda v, m: _masked(v, m, 1.0).prod(axis=0))


def count() -> Reducer:
    """Number of non-null inputs; pixels without any are masked (documented for reduce.count)."""

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        return [len(rows)]

    def stack(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        number = (mask > 0).sum(axis=0).astype(np.float64)
        return [(number, (number > 0).astype(np.float64))]

    return Reducer(("count",), rows, stack)


def _picked(name: str, position: int, pick: Callable[[Array, Array], Array]) -> Reducer:
    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        return [rows[position][0] if rows else None]

    def stack(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        return [(pick(values, mask), mask.max(axis=0))]

    return Reducer((name,), rows, stack)


def first() -> Reducer:
    return _picked("first", 0, _first)


def last() -> Reducer:
    return _picked("last", -1, _last)


def to_list(size: int | None, optional: int) -> Reducer:
    """Values as a list, or rows as a list of tuples when a size is given; a row with a required null is dropped."""

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        return [[row[0] for row in rows] if size is None else [list(row) for row in rows]]

    return Reducer(("list",), rows, None, inputs=size or 1, optional=optional)


def frequency_histogram() -> Reducer:
    """Weight per distinct value; keys as Earth Engine prints numbers."""

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        found: dict[str, float] = {}
        for (value,), weight in sorted(zip(rows, weights, strict=True), key=lambda pair: pair[0][0]):
            key = str(int(value)) if isinstance(value, int | float) and float(value).is_integer() else str(value)
            found[key] = found.get(key, 0.0) + weight
        return [found]

    return Reducer(("histogram",), rows, None, weighted=True)


def count_distinct() -> Reducer:
    return Reducer(("count",), lambda rows, weights: [len({repr(row[0]) for row in rows})])


def percentile(percentiles: Sequence[float], names: Sequence[str] | None) -> Reducer:
    """Linear interpolation between ranked values, as numpy; outputs p25, p50, ..."""
    outputs = tuple(names or (f"p{value:g}" for value in percentiles))

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        return [float(np.percentile(_numbers(rows), value)) if rows else None for value in percentiles]

    def stack(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        ordered, top = np.sort(_masked(values, mask, np.inf), axis=0), mask.max(axis=0)
        place = [np.maximum((mask > 0).sum(axis=0) - 1, 0) * value / 100.0 for value in percentiles]
        return [(np.where(top > 0, _between(ordered, p), 0.0), top) for p in place]

    return Reducer(outputs, rows, stack)


def _between(ordered: Array, place: Array) -> Array:
    """Linear interpolation at a fractional position along axis 0."""
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(ordered) - 1)
    first, second = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, high))
    share = place - low
    return np.asarray(np.where(share > 0, first + share * (np.where(share > 0, second, first) - first), first))


def with_companions(reducer: Reducer, inputs: int) -> Reducer:
    """Minimum or maximum of the first input, and the other inputs of that row; outputs min, min1, min2, ..."""
    (name,) = reducer.names

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        if not rows:
            return [None] * inputs
        first = [row[0] for row in rows]
        return list(rows[first.index(min(first) if name == "min" else max(first))])

    def tuples(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        first = np.where(mask > 0, values[:, 0], np.inf if name == "min" else -np.inf)
        best = (np.argmin(first, axis=0) if name == "min" else np.argmax(first, axis=0))[None]
        top = np.take_along_axis(mask, best, axis=0)[0]
        picked = (np.take_along_axis(values[:, i], best, axis=0)[0] for i in range(inputs))
        return [(np.where(top > 0, value, 0.0), top) for value in picked]

    return Reducer((name, *(f"{name}{i}" for i in range(1, inputs))), rows, None, inputs=inputs, tuples=tuples)


def minimum_maximum() -> Reducer:
    return combine(minimum(), maximum(), "", shared=True)


def repeat(reducer: Reducer, copies: int) -> Reducer:
    """Copies of a reducer side by side: each output is the list of the copies' outputs."""
    n = reducer.inputs

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        parts = [reducer.reduce_rows([row[i * n : (i + 1) * n] for row in rows], weights) for i in range(copies)]
        return [[part[name] for part in parts] for name in reducer.names]

    return Reducer(reducer.names, rows, None, inputs=n * copies, optional=n * copies, weighted=reducer.weighted)


def combine(left: Reducer, right: Reducer, prefix: str, *, shared: bool) -> Reducer:
    """Two reducers over the same inputs (shared) or over consecutive ones; outputs of both."""
    names = left.names + tuple(prefix + name for name in right.names)
    names = tuple(f"{name}_1" if name in names[:i] else name for i, name in enumerate(names))
    skip = 0 if shared else left.inputs

    def rows(rows: Sequence[Row], weights: Sequence[float]) -> list[Any]:
        first = left.reduce_rows([row[: left.inputs] for row in rows], weights)
        second = right.reduce_rows([row[skip : skip + right.inputs] for row in rows], weights)
        return [*first.values(), *second.values()]

    def stack(values: Array, mask: Array) -> list[tuple[Array, Array]]:
        return [*left.reduce_stack(values, mask), *right.reduce_stack(values, mask)]

    inputs = max(left.inputs, right.inputs) if shared else left.inputs + right.inputs
    weighted = left.weighted or right.weighted
    return Reducer(names, rows, stack if shared else None, inputs=inputs, optional=inputs, weighted=weighted)
