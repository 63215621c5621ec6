"""Compares two JSON answers of Earth Engine: exactly for text and whole numbers, within a tolerance for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def difference(expected: Any, found: Any, tolerance: float = 0.0, place: str = "") -> str | None:
    """Where and how `found` differs from `expected` first; None when it does not.

    Earth Engine writes 3.0 as 3, so an int and a float of the same value are equal; true and 1 are not.
    """
    at = f" at {place}" if place else ""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return _in_mappings(expected, found, tolerance, place)
    if _is_list(expected) and _is_list(found):
        if len(expected) != len(found):
            return f"{len(found)} elements instead of {len(expected)}{at}: {_short(found)}"
        pairs = zip(range(len(expected)), expected, found, strict=True)
        return _first(difference(a, b, tolerance, f"{place}[{i}]") for i, a, b in pairs)
    if _is_number(expected) and _is_number(found):
        # A whole expectation is exact; 0.1 + 0.2 is what the tolerance is for.
        margin = 0.0 if float(expected).is_integer() and float(found).is_integer() else tolerance
        same = abs(expected - found) <= margin or expected == found
        return None if same else f"{found!r} instead of {expected!r}{at}"
    same = type(expected) is type(found) and expected == found
    return None if same else f"{_short(found)} instead of {_short(expected)}{at}"


def _in_mappings(expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: float, place: str) -> str | None:
    if expected.keys() != found.keys():
        missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        at = f" at {place}" if place else ""
        return f"keys{at}: missing {missing}, unexpected {extra}"
    return _first(difference(expected[key], found[key], tolerance, f"{place}.{key}") for key in expected)


def _first(found: Any) -> str | None:
    return next((text for text in found if text is not None), None)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
