"""List.*: ordered values. Parameters carry Earth Engine's argument names, `list` among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmbuild.sandbox.algorithms.filters import plain
from mmbuild.sandbox.algorithms.plain import text
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.reducers import Reducer
from mmbuild.sandbox.values import EarthEngineError, Feature, Filter, Function

Items = Sequence[Any]


@algorithm("List.get", "List.getNumber", "List.getString", "List.getGeometry")
def list_get(context: Context, list: Sequence[Any], index: int) -> Any:
    if not -len(list) <= index < len(list):
        raise EarthEngineError(f"List.get: List index must be between 0 and {len(list) - 1}, found {index}.")
    return list[index]


@algorithm("List.map")
def list_map(context: Context, list: Sequence[Any], baseAlgorithm: Function, dropNulls: bool) -> Any:
    results = [baseAlgorithm.call(item) for item in list]
    return [item for item in results if item is not None] if dropNulls else results


@algorithm("List.iterate")
def list_iterate(context: Context, list: Sequence[Any], function: Function, first: Any) -> Any:
    result = first
    for item in list:
        result = function.call(item, result)
    return result


@algorithm("List.size", "List.length")
def list_size(context: Context, list: Sequence[Any]) -> int:
    return len(list)


@algorithm("List.slice")
def list_slice(context: Context, list: Sequence[Any], start: int, end: int | None, step: int | None) -> Any:
    return list[start:end:step]


@algorithm("List.zip")
def list_zip(context: Context, list: Sequence[Any], other: Sequence[Any]) -> Any:
    return [[a, b] for a, b in zip(list, other, strict=False)]


@algorithm("List.unzip")
def list_unzip(context: Context, list: Sequence[Any]) -> Any:
    return [[*column] for column in zip(*list, strict=False)]


@algorithm("List.flatten")
def list_flatten(context: Context, list: Sequence[Any]) -> Any:
    return [item for part in list for item in (list_flatten(context, part) if _is_list(part) else [part])]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


@algorithm("List.sequence")
def list_sequence(context: Context, start: Any, end: Any, step: Any, count: int | None) -> Any:
    """Both ends included; with a count, that many values from start."""
    if count is not None:
        size = step if end is None else (end - start) / (count - 1) if count > 1 else 0
        return [_whole(start + i * size) for i in range(count)]
    if end is None:
        raise EarthEngineError("List.sequence: Either 'end' or 'count' must be given.")
    if step == 0:
        raise EarthEngineError("List.sequence: 'step' may not be 0.")
    return [_whole(start + i * step) for i in range(max(0, math.floor((end - start) / step + 1e-9) + 1))]


def _whole(value: Any) -> Any:
    return int(value) if float(value).is_integer() else value


@algorithm("List.repeat")
def list_repeat(context: Context, value: Any, count: int) -> Any:
    return [value] * count


@algorithm("List.add")
def list_add(context: Context, list: Sequence[Any], element: Any) -> Any:
    return [*list, element]


@algorithm("List.cat")
def list_cat(context: Context, list: Sequence[Any], other: Sequence[Any]) -> Any:
    return [*list, *other]


@algorithm("List.contains")
def list_contains(context: Context, list: Sequence[Any], element: Any) -> bool:
    return element in list


@algorithm("List.containsAll")
def list_contains_all(context: Context, list: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(element in list for element in other)


@algorithm("List.distinct")
def list_distinct(context: Context, list: Sequence[Any]) -> Any:
    found = []
    for item in list:
        if item not in found:
            found.append(item)
    return found


@algorithm("List.indexOf")
def list_index(context: Context, list: Sequence[Any], element: Any) -> int:
    return list.index(element) if element in list else -1


@algorithm("List.remove")
def list_remove(context: Context, list: Sequence[Any], element: Any) -> Any:
    place = list_index(context, list, element)
    return [item for i, item in enumerate(list) if i != place]


@algorithm("List.removeAll")
def list_remove_all(context: Context, list: Sequence[Any], other: Sequence[Any]) -> Any:
    return [item for item in list if item not in other]


@algorithm("List.reverse")
def list_reverse(context: Context, list: Sequence[Any]) -> Any:
    return [*reversed(list)]


@algorithm("List.set")
def list_set(context: Context, list: Sequence[Any], index: int, element: Any) -> Any:
    list_get(context, list, index)
    return [element if i == index % len(list) else item for i, item in enumerate(list)]


@algorithm("List.sort")
def list_sort(context: Context, list: Sequence[Any], keys: Sequence[Any] | None) -> Any:
    order = list if keys is None else keys
    return [
        item for _, _, item in sorted(zip(map(plain, order), range(len(list)), list, strict=True), key=lambda t: t[:2])
    ]


@algorithm("List.join")
def list_join(context: Context, list: Sequence[Any], separator: str) -> str:
    return separator.join(text(item) for item in list)


@algorithm("List.frequency")
def list_frequency(context: Context, list: Sequence[Any], element: Any) -> int:
    return sum(item == element for item in list)


@algorithm("List.filter")
def list_filter(context: Context, list: Sequence[Any], filter: Filter) -> Any:
    """Plain items are tested as the property `item`."""
    return [
        item for item in list if filter(item if isinstance(item, Image | Feature) else Feature(None, {"item": item}))
    ]


@algorithm("List.reduce")
def list_reduce(context: Context, list: Sequence[Any], reducer: Reducer) -> Any:
    rows = [tuple(item) if isinstance(item, Sequence) and reducer.inputs > 1 else (item,) for item in list]
    found = reducer.reduce_rows(rows)
    return next(iter(found.values())) if len(found) == 1 else found
