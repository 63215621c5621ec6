"""Image.* and Number.* functions of one or two values: one table gives the formula and the type of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mmbuild.sandbox.algorithms.bands import CASTS, cast_values
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, default_projection, pixelwise, within_edges
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Local
from mmbuild.sandbox.values import EarthEngineError, PixelType

Typing = Callable[..., PixelType]
BOOLEAN = PixelType("int", 0.0, 1.0)
# Beyond this an integer range is not tracked any further: doubles hold no larger integers exactly.
LARGEST_INT = float(2**53)


@dataclass(frozen=True)
class Operation:
    """A numpy formula and the pixel type of its result from the types of its inputs."""

    compute: Callable[..., Any]
    type: Typing


def _boolean(*types: PixelType) -> PixelType:
    return BOOLEAN


def _union(*types: PixelType) -> PixelType:
    result = types[0]
    for other in types[1:]:
        result = result.union(other)
    return result


def _interval(compute: Callable[..., Any]) -> Typing:
    """The union of the types, with the range that a function monotone in each argument reaches on their corners."""

    def type_of(left: PixelType, right: PixelType) -> PixelType:
        kind = left.union(right).precision
        if left.low is None or left.high is None or right.low is None or right.high is None:
            return PixelType(kind)
        corners = [float(compute(a, b)) for a in (left.low, left.high) for b in (right.low, right.high)]
        low, high = min(corners), max(corners)
        return PixelType(kind, max(low, -LARGEST_INT), min(high, LARGEST_INT)) if kind == "int" else PixelType(kind)

    return type_of


def _real(*types: PixelType) -> PixelType:
    """double when an input is, else float."""
    return PixelType("double" if any(t.precision == "double" for t in types) else "float")


def _double(*types: PixelType) -> PixelType:
    return PixelType("double")


def _whole(kind: PixelType) -> PixelType:
    """Rounded values: an integer type."""
    low, high = kind.low, kind.high
    if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
        return PixelType("int", -(2.0**63), 2.0**63 - 1)
    return PixelType("int", float(np.floor(low)), float(np.ceil(high)))


def _absolute(kind: PixelType) -> PixelType:
    if kind.low is None or kind.high is None:
        return kind
    return PixelType(kind.precision, 0.0 if kind.low <= 0 <= kind.high else min(abs(kind.low), abs(kind.high)),
                     max(abs(kind.low), abs(kind.high)))  # fmt: skip


def _divide(a: Any, b: Any) -> Any:
    """0 where the divisor is 0 (documented)."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.not_equal(b, 0))


def _modulo(a: Any, b: Any) -> Any:
    return np.where(np.equal(b, 0), 0.0, np.fmod(a, np.where(np.equal(b, 0), 1.0, b)))


def _bits(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of integers applied to float64 values that hold integers."""

    def compute(*values: Any) -> Any:
        return np.asarray(function(*(np.asarray(v).astype(np.int64) for v in values))).astype(np.float64)

    return compute


def _integers(*types: PixelType) -> PixelType:
    return PixelType("int", -(2.0**31), 2.0**31 - 1) if any((t.low or 0.0) < 0 for t in types) else _unsigned(*types)


def _unsigned(*types: PixelType) -> PixelType:
    top = max((t.high if t.high is not None else 2.0**32 - 1) for t in types)
    return PixelType("int", 0.0, float(2 ** int(np.ceil(np.log2(top + 1))) - 1))


BINARY: dict[str, Operation] = {
    "add": Operation(np.add, _interval(np.add)),
    "subtract": Operation(np.subtract, _interval(np.subtract)),
    "multiply": Operation(np.multiply, _interval(np.multiply)),
    "divide": Operation(_divide, _real),
    "mod": Operation(_modulo, _union),
    "pow": Operation(np.float_power, _real),
    "max": Operation(np.maximum, _union),
    "min": Operation(np.minimum, _union),
    "eq": Operation(np.equal, _boolean),
    "neq": Operation(np.not_equal, _boolean),
    "lt": Operation(np.less, _boolean),
    "lte": Operation(np.less_equal, _boolean),
    "gt": Operation(np.greater, _boolean),
    "gte": Operation(np.greater_equal, _boolean),
    "and": Operation(np.logical_and, _boolean),
    "or": Operation(np.logical_or, _boolean),
    "atan2": Operation(lambda a, b: np.arctan2(b, a), _double),
    "hypot": Operation(np.hypot, _double),
    "bitwiseAnd": Operation(_bits(np.bitwise_and), _integers),
    "bitwiseOr": Operation(_bits(np.bitwise_or), _integers),
    "bitwiseXor": Operation(_bits(np.bitwise_xor), _integers),
    "leftShift": Operation(_bits(np.left_shift), lambda *t: PixelType("int", -(2.0**31), 2.0**31 - 1)),
    "rightShift": Operation(_bits(np.right_shift), _integers),
}
UNARY: dict[str, Operation] = {
    "not": Operation(np.logical_not, _boolean),
    "abs": Operation(np.abs, _absolute),
    "round": Operation(lambda v: np.floor(v + 0.5), _whole),
    "floor": Operation(np.floor, _whole),
    "ceil": Operation(np.ceil, _whole),
    "signum": Operation(np.sign, lambda t: PixelType("int", -1.0, 1.0)),
    "sqrt": Operation(np.sqrt, _double),
    "cbrt": Operation(np.cbrt, _double),
    "exp": Operation(np.exp, _double),
    "log": Operation(np.log, _double),
    "log10": Operation(np.log10, _double),
    "sin": Operation(np.sin, _double),
    "cos": Operation(np.cos, _double),
    "tan": Operation(np.tan, _double),
    "asin": Operation(np.arcsin, _double),
    "acos": Operation(np.arccos, _double),
    "atan": Operation(np.arctan, _double),
    "sinh": Operation(np.sinh, _double),
    "cosh": Operation(np.cosh, _double),
    "tanh": Operation(np.tanh, _double),
}


def matched(left: Image, right: Image) -> list[tuple[str, Band, Band]]:
    """Pairs of bands and the name of the result: one band serves all; same names match by name, else by position."""
    if len(left.bands) == 1 and len(right.bands) != 1:
        return [(band.name, left.bands[0], band) for band in right.bands]
    if len(right.bands) == 1:
        return [(band.name, band, right.bands[0]) for band in left.bands]
    by_name = [(band.name, band, other) for band in left.bands if (other := right.band(band.name)) is not None]
    if len(left.bands) == len(right.bands) and len(by_name) != len(left.bands):
        return [(a.name, a, b) for a, b in zip(left.bands, right.bands, strict=True)]
    if not by_name:
        raise EarthEngineError(
            f"Images with {len(left.bands)} and {len(right.bands)} bands have no band names in common: "
            f"[{', '.join(left.names)}] and [{', '.join(right.names)}]."
        )
    return by_name


def _index_only(image: Image) -> dict[str, Any]:
    """What of an image's properties survives arithmetic."""
    index = image.get("system:index")
    return {} if index is None else {"system:index": index}


def _binary(context: Context, image1: Image, image2: Image, *, operation: Operation) -> Image:
    def compute(a: Pair, b: Pair) -> Pair:
        with np.errstate(all="ignore"):
            return pixelwise(operation.compute, a, b)

    bands = [
        within_edges(
            Band(name, operation.type(a.type, b.type), Local((a.node, b.node), compute), default_projection(a, b)), a, b
        )
        for name, a, b in matched(image1, image2)
    ]
    return Image(tuple(bands), _index_only(image1), footprint=image1.footprint or image2.footprint)


def _unary(context: Context, value: Image, *, operation: Operation) -> Image:
    def compute(pair: Pair) -> Pair:
        with np.errstate(all="ignore"):
            return pixelwise(operation.compute, pair)

    bands = [replace(b, type=operation.type(b.type), node=Local((b.node,), compute)) for b in value.bands]
    return replace(value.with_bands(bands), properties=_index_only(value), id=None)


def plain_number(value: Any, inputs: Iterable[Any]) -> int | float:
    """A Python int when all inputs were ints and the result is whole, else a float."""
    number = float(value)
    return int(number) if number.is_integer() and all(isinstance(i, int) for i in inputs) else number


def _number_binary(context: Context, left: Any, right: Any, *, operation: Operation) -> int | float | None:
    if left is None or right is None:
        return None
    with np.errstate(all="ignore"):
        return plain_number(operation.compute(left, right), (left, right))


def _number_unary(context: Context, input: Any, *, operation: Operation) -> int | float:
    with np.errstate(all="ignore"):
        value = operation.compute(np.float64(input))
    return int(value) if operation.type in (_whole, _boolean) else plain_number(value, (input,))


def _number_cast(context: Context, input: Any, *, dtype: str) -> int | float:
    value = cast_values(np.asarray(input, dtype=np.float64), np.dtype(dtype))
    return float(value) if dtype.startswith("f") else int(value)


_ALIASES = {
    "bitwiseAnd": "bitwise_and", "bitwiseOr": "bitwise_or", "bitwiseXor": "bitwise_xor",
    "leftShift": "left_shift", "rightShift": "right_shift",
}  # fmt: skip

for _name, _operation in BINARY.items():
    for _alias in filter(None, (_name, _ALIASES.get(_name))):
        algorithm(f"Image.{_alias}")(partial(_binary, operation=_operation))
        algorithm(f"Number.{_alias}")(partial(_number_binary, operation=_operation))
for _name, _operation in UNARY.items():
    algorithm(f"Image.{_name}")(partial(_unary, operation=_operation))
    algorithm(f"Number.{_name}")(partial(_number_unary, operation=_operation))
for _name, _dtype in CASTS.items():
    algorithm(f"Number.{_name}")(partial(_number_cast, dtype=_dtype))


@algorithm("Number.clamp")
def clamp(context: Context, number: Any, min: float, max: float) -> float:
    return float(np.clip(number, min, max))


@algorithm("Number.format")
def format_number(context: Context, number: Any, pattern: str) -> str:
    try:
        return pattern % (int(number) if pattern.rstrip().endswith("d") else number)
    except (TypeError, ValueError) as error:
        raise EarthEngineError(f"Number.format: Bad pattern '{pattern}': {error}.") from error


@algorithm("Number.parse")
def parse_number(context: Context, input: str, radix: int) -> int | float:
    try:
        return int(input, radix) if radix != 10 else plain_number(input, (1,)) if "." not in input else float(input)
    except ValueError as error:
        raise EarthEngineError(f"Number.parse: Cannot parse '{input}' as a number.") from error
