"""Dictionary.*, String.*, conditionals and the like: values without pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmbuild.sandbox.coerce import type_name
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image, constant_image
from mmbuild.sandbox.values import (
    Collection,
    EarthEngineError,
    ErrorMargin,
    Feature,
    Function,
    PixelType,
)


@algorithm("If")
def choose(context: Context, condition: Any, trueCase: Any, falseCase: Any) -> Any:
    """Only the chosen branch is computed. Null, false, 0, NaN and empty strings, lists and dictionaries are false."""
    plain = condition is None or isinstance(condition, bool | int | float | str | list | dict)
    # Only NaN differs from itself.
    chosen = falseCase if plain and (not condition or condition != condition) else trueCase
    return chosen() if callable(chosen) else chosen


@algorithm("IsEqual")
def is_equal(context: Context, left: Any, right: Any) -> bool:
    return bool(left == right)


@algorithm("ObjectType")
def object_type(context: Context, value: Any) -> str:
    return type_name(value)


@algorithm("ErrorMargin")
def error_margin(context: Context, value: float | None, unit: str) -> ErrorMargin:
    return ErrorMargin(value or 0.0, unit)


@algorithm("PixelType")
def make_pixel_type(context: Context, precision: Any, minValue: Any, maxValue: Any, dimensions: int) -> PixelType:
    if precision not in ("int", "float", "double") or dimensions:
        raise EarthEngineError(f"PixelType: Unsupported precision '{precision}' or dimensions {dimensions}.")
    low, high = (None if value is None else float(value) for value in (minValue, maxValue))
    return PixelType(precision, low, high)


# -- dictionaries -----------------------------------------------------------------------------------------------------


@algorithm("Dictionary")
def make_dictionary(context: Context, input: Any) -> dict[str, Any]:
    if input is None:
        return {}
    if isinstance(input, Sequence) and not isinstance(input, str):
        return dict(zip(input[::2], input[1::2], strict=True))
    if not isinstance(input, Mapping):
        raise EarthEngineError("Dictionary: The input must be a dictionary or a list of keys and values.")
    return dict(input)


@algorithm("Dictionary.fromLists")
def from_lists(context: Context, keys: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    if len(keys) != len(values):
        raise EarthEngineError(f"Dictionary.fromLists: {len(keys)} keys for {len(values)} values.")
    return dict(zip(keys, values, strict=True))


@algorithm("Dictionary.get")
def dictionary_get(context: Context, dictionary: Mapping[str, Any], key: str, defaultValue: Any) -> Any:
    if key not in dictionary and defaultValue is None:
        raise EarthEngineError(f"Dictionary.get: Dictionary does not contain key: '{key}'.")
    return dictionary.get(key, defaultValue)


@algorithm("Dictionary.getNumber", "Dictionary.getString", "Dictionary.getGeometry")
def dictionary_get_typed(context: Context, dictionary: Mapping[str, Any], key: str) -> Any:
    return dictionary_get(context, dictionary, key, None)


@algorithm("Dictionary.set")
def dictionary_set(context: Context, dictionary: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**dictionary, key: value}


@algorithm("Dictionary.contains")
def dictionary_contains(context: Context, dictionary: Mapping[str, Any], key: str) -> bool:
    return key in dictionary


@algorithm("Dictionary.keys")
def dictionary_keys(context: Context, dictionary: Mapping[str, Any]) -> list[str]:
    return sorted(dictionary)


@algorithm("Dictionary.values")
def dictionary_values(context: Context, dictionary: Mapping[str, Any], keys: Sequence[str] | None) -> list[Any]:
    return [dictionary_get(context, dictionary, key, None) for key in (sorted(dictionary) if keys is None else keys)]


@algorithm("Dictionary.size")
def dictionary_size(context: Context, dictionary: Mapping[str, Any]) -> int:
    return len(dictionary)


@algorithm("Dictionary.combine")
def dictionary_combine(
    context: Context, first: Mapping[str, Any], second: Mapping[str, Any], overwrite: bool
) -> dict[str, Any]:
    merged = {**first, **second} if overwrite else {**second, **first}
    return {key: value for key, value in merged.items() if value is not None}


@algorithm("Dictionary.map")
def dictionary_map(context: Context, dictionary: Mapping[str, Any], baseAlgorithm: Function) -> dict[str, Any]:
    return {key: baseAlgorithm.call(key, value) for key, value in dictionary.items()}


@algorithm("Dictionary.select")
def dictionary_select(
    context: Context, dictionary: Mapping[str, Any], selectors: Sequence[str], ignoreMissing: bool
) -> dict[str, Any]:
    return {key: dictionary[key] for name in selectors for key in _keys(dictionary, name, ignoreMissing)}


def _keys(dictionary: Mapping[str, Any], selector: str, ignore_missing: bool) -> list[str]:
    """The key of that name, or all whose whole name matches it as a regular expression."""
    found = [selector] if selector in dictionary else [key for key in dictionary if _matches(selector, key)]
    if not found and not ignore_missing:
        raise EarthEngineError(f"Dictionary: Dictionary does not contain key: '{selector}'.")
    return found


@algorithm("Dictionary.remove")
def dictionary_remove(
    context: Context, dictionary: Mapping[str, Any], selectors: Sequence[str], ignoreMissing: bool
) -> dict[str, Any]:
    gone = {key for name in selectors for key in _keys(dictionary, name, ignoreMissing)}
    return {key: value for key, value in dictionary.items() if key not in gone}


@algorithm("Dictionary.rename")
def dictionary_rename(
    context: Context, dictionary: Mapping[str, Any], from_: Sequence[str], to: Sequence[str], overwrite: bool
) -> dict[str, Any]:
    names = dict(zip(from_, to, strict=True))
    return {names.get(key, key): value for key, value in dictionary.items()}


@algorithm("Dictionary.toImage")
def dictionary_to_image(context: Context, dictionary: Mapping[str, Any], names: Sequence[str] | None) -> Image:
    return constant_image({key: dictionary[key] for key in (dictionary if names is None else names)})


# -- strings ----------------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A value as Earth Engine prints it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Geometry):
        return json.dumps(value.to_json())
    if isinstance(value, Collection | Image | Feature):
        raise EarthEngineError(f"String: Cannot convert {type_name(value)} to a string.")
    return json.dumps(value) if isinstance(value, list | dict | bool) or value is None else str(value)


@algorithm("String")
def make_string(context: Context, input: Any) -> str:
    return text(input)


@algorithm("String.cat")
def string_cat(context: Context, string1: str, string2: str) -> str:
    return string1 + string2


@algorithm("String.length")
def string_length(context: Context, string: str) -> int:
    return len(string)


@algorithm("String.slice")
def string_slice(context: Context, string: str, start: int, end: int | None) -> str:
    return string[start:end]


@algorithm("String.split")
def string_split(context: Context, string: str, regex: str, flags: str) -> list[str]:
    """What lies between the matches; empty strings at the end are left out."""
    if not regex:
        return list(string)
    pieces, start = [], 0
    for match in _pattern(regex, flags).finditer(string):
        if match.end() > match.start():
            pieces.append(string[start : match.start()])
            start = match.end()
    pieces.append(string[start:])
    while len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
    return pieces


@algorithm("String.replace")
def string_replace(context: Context, input: str, regex: str, replacement: str, flags: str) -> str:
    count = 0 if "g" in flags else 1
    return _pattern(regex, flags).sub(re.sub(r"\$(\d)", r"\\\1", replacement), input, count=count)


@algorithm("String.match")
def string_match(context: Context, input: str, regex: str, flags: str) -> list[str]:
    """All matches with the flag g, else the first match and its groups."""
    if "g" in flags:
        return [match.group(0) for match in _pattern(regex, flags).finditer(input)]
    found = _pattern(regex, flags).search(input)
    return [] if found is None else [found.group(0), *found.groups()]


# POSIX names of characters that patterns may use between brackets, as Python's patterns write them.
_POSIX = {
    "[:space:]": r"\s", "[:digit:]": "0-9", "[:alpha:]": "A-Za-z", "[:alnum:]": "0-9A-Za-z", "[:upper:]": "A-Z",
    "[:lower:]": "a-z", "[:word:]": r"\w", "[:punct:]": r"!-/:-@\[-`{-~",
}  # fmt: skip


def _pattern(regex: str, flags: str) -> re.Pattern[str]:
    for name, characters in _POSIX.items():
        regex = regex.replace(name, characters)
    try:
        return re.compile(regex, re.IGNORECASE if "i" in flags else 0)
    except re.error as error:
        raise EarthEngineError(f"Invalid regular expression '{regex}': {error}.") from error


def _matches(selector: str, key: str) -> bool:
    return _pattern(selector, "").fullmatch(key) is not None


@algorithm("String.index")
def string_index(context: Context, target: str, pattern: str) -> int:
    return target.find(pattern)


@algorithm("String.rindex")
def string_rindex(context: Context, target: str, pattern: str) -> int:
    return target.rfind(pattern)


@algorithm("String.equals")
def string_equals(context: Context, reference: str, target: Any) -> bool:
    return bool(reference == target)


@algorithm("String.compareTo")
def string_compare(context: Context, string1: str, string2: str) -> int:
    return (string1 > string2) - (string1 < string2)


@algorithm("String.decodeJSON")
def decode_json(context: Context, string: str) -> Any:
    try:
        return json.loads(string)
    except ValueError as error:
        raise EarthEngineError(f"String.decodeJSON: {error}.") from error


_CHANGES: dict[str, Callable[[str], str]] = {"toLowerCase": str.lower, "toUpperCase": str.upper, "trim": str.strip}
for _name, _change in _CHANGES.items():
    algorithm(f"String.{_name}")(lambda context, string, change=_change: change(string))
