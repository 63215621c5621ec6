"""Decodes an Expression and computes its value: references, function definitions with their closures, algorithm calls.

A value that does not depend on a function argument is computed once per request. Algorithms are plain functions
registered under Earth Engine's names (algorithms/); one that is not registered is refused by name, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from mmbuild.sandbox.assets import Dataset, ImageInfo, World
from mmbuild.sandbox.coerce import coerce, converts
from mmbuild.sandbox.images import Image, stored_image
from mmbuild.sandbox.raster import Reader
from mmbuild.sandbox.signatures import REQUIRED, Argument, Signature, signatures
from mmbuild.sandbox.values import EarthEngineError, Function

Implementation = Callable[..., Any]
REGISTRY: dict[str, Implementation] = {}
# Arguments whose names are Python keywords, and the parameters that stand for them.
KEYWORDS = {"from": "from_", "lambda": "lambda_"}
# Arguments that are only computed when they are asked for: the branches of a conditional.
LAZY = {"If": ("trueCase", "falseCase")}
# Algorithms that keep properties and footprint of the image in this argument: filters commute with mapping them.
TRANSPARENT = {"Image.select": "input", "Image.rename": "input"}


def algorithm(*names: str) -> Callable[[Implementation], Implementation]:
    """Register a function under Earth Engine's names; its parameters are the algorithm's, after `context`.

    A trailing underscore stands for an argument whose name is a Python keyword (`from_`).
    """

    def register(function: Implementation) -> Implementation:
        for name in names:
            REGISTRY[name] = function
        return function

    return register


@dataclass(eq=False)
class Context:
    """What algorithms may ask of the request they run in: the world, pixels, and calling a function value."""

    world: World
    reader: Reader = field(default_factory=Reader)
    _images: dict[str, Image] = field(default_factory=dict)

    def image(self, dataset: Dataset, info: ImageInfo) -> Image:
        """The image, the same object every time, so that its pixels are read once per request."""
        if info.id not in self._images:
            self._images[info.id] = stored_image(dataset, info)
        return self._images[info.id]

    def call(self, name: str, **arguments: Any) -> Any:
        """Run an algorithm by name with arguments that are already values."""
        return invoke(self, name, arguments)


@dataclass(eq=False)
class Frame:
    """The arguments of one function call, and what its body has worked out with them."""

    variables: Mapping[str, Any]
    parent: Frame | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    def holder(self, names: frozenset[str]) -> Frame:
        """The innermost frame that defines one of the names; the outermost when there are none."""
        frame = self
        while frame.parent is not None and not names & frame.variables.keys():
            frame = frame.parent
        return frame

    def lookup(self, name: str) -> Any:
        frame: Frame | None = self
        while frame is not None:
            if name in frame.variables:
                return frame.variables[name]
            frame = frame.parent
        raise EarthEngineError(f"Unbound function argument '{name}'.")


def evaluate(context: Context, expression: Mapping[str, Any]) -> Any:
    """The value of an Expression {"result": key, "values": {key: ValueNode}}."""
    if not isinstance(expression, Mapping) or "values" not in expression or "result" not in expression:
        raise EarthEngineError("Expression must have 'result' and 'values'.")
    program = Program(context, expression["values"])
    try:
        return program.reference(expression["result"], Frame({}))
    except RecursionError as error:
        raise EarthEngineError("Expression is nested too deeply.") from error


class Program:
    """The values of one Expression and how to compute each."""

    def __init__(self, context: Context, values: Mapping[str, Any]) -> None:
        self.context, self.values = context, values
        self._free: dict[str, frozenset[str]] = {}

    def reference(self, key: str, frame: Frame) -> Any:
        if key not in self.values:
            raise EarthEngineError(f"Expression has no value '{key}'.")
        memo = frame.holder(self._free_in(key)).memo
        if key not in memo:
            memo[key] = self.node(self.values[key], frame)
        return memo[key]

    def node(self, node: Mapping[str, Any], frame: Frame) -> Any:
        if len(node) != 1:
            raise EarthEngineError(f"A ValueNode must have exactly one field, found: {sorted(node)}.")
        ((kind, body),) = node.items()
        handler = _NODES.get(kind)
        if handler is None:
            raise EarthEngineError(f"Unknown ValueNode field '{kind}'.")
        return handler(self, body, frame)

    def _constant(self, body: Any, frame: Frame) -> Any:
        return body

    def _integer(self, body: Any, frame: Frame) -> int:
        return int(body)

    def _array(self, body: Any, frame: Frame) -> list[Any]:
        return [self.node(item, frame) for item in body.get("values", ())]

    def _dictionary(self, body: Any, frame: Frame) -> dict[str, Any]:
        return {key: self.node(item, frame) for key, item in body.get("values", {}).items()}

    def _argument(self, body: Any, frame: Frame) -> Any:
        return frame.lookup(body)

    def _definition(self, body: Any, frame: Frame) -> Function:
        names = tuple(body.get("argumentNames", ()))

        def call(*arguments: Any) -> Any:
            if len(arguments) != len(names):
                raise EarthEngineError(f"A function of {len(names)} arguments was called with {len(arguments)}.")
            return self.reference(body["body"], Frame(dict(zip(names, arguments, strict=True)), frame))

        transparent = len(names) == 1 and self._is_transparent({"valueReference": body["body"]}, names[0])
        return Function(names, call, transparent)

    def _is_transparent(self, node: Any, name: str) -> bool:
        """Whether the node is a chain of metadata-keeping algorithms down to the function argument `name`."""
        while True:
            if "valueReference" in node:
                node = self.values.get(node["valueReference"], {})
                continue
            call = node.get("functionInvocationValue", {})
            argument = TRANSPARENT.get(call.get("functionName", ""))
            if argument is None:
                return bool(node.get("argumentReference") == name)
            node = call.get("arguments", {}).get(argument, {})

    def _invocation(self, body: Any, frame: Frame) -> Any:
        arguments = body.get("arguments", {})
        if "functionReference" in body:
            function = self.reference(body["functionReference"], frame)
            if not isinstance(function, Function):
                raise EarthEngineError("functionReference does not refer to a function.")
            named = {name: self.node(item, frame) for name, item in arguments.items()}
            return function.call(*(named.get(name) for name in function.names))
        name = body.get("functionName", "")
        if name not in LAZY:
            return invoke(self.context, name, {key: self.node(item, frame) for key, item in arguments.items()})
        given = {
            key: partial(self.node, item, frame) if key in LAZY[name] else self.node(item, frame)
            for key, item in arguments.items()
        }
        return invoke(self.context, name, given)

    def _free_in(self, key: str) -> frozenset[str]:
        """Names of function arguments that the value depends on and does not bind itself."""
        if key not in self._free:
            self._free[key] = frozenset()
            self._free[key] = self._free_in_node(self.values.get(key, {}))
        return self._free[key]

    def _free_in_node(self, node: Any) -> frozenset[str]:
        if not isinstance(node, Mapping):
            return frozenset()
        names: frozenset[str] = frozenset()
        for kind, body in node.items():
            if kind == "argumentReference":
                names |= {body}
            elif kind == "valueReference":
                names |= self._free_in(body)
            elif kind == "arrayValue":
                names |= _union(self._free_in_node(item) for item in body.get("values", ()))
            elif kind == "dictionaryValue":
                names |= _union(self._free_in_node(item) for item in body.get("values", {}).values())
            elif kind == "functionDefinitionValue":
                names |= self._free_in(body["body"]) - set(body.get("argumentNames", ()))
            elif kind == "functionInvocationValue":
                names |= _union(self._free_in_node(item) for item in body.get("arguments", {}).values())
                names |= self._free_in(body["functionReference"]) if "functionReference" in body else frozenset()
        return names


def _union(parts: Any) -> frozenset[str]:
    return frozenset().union(*parts)


_NODES: dict[str, Callable[[Program, Any, Frame], Any]] = {
    "constantValue": Program._constant,
    "integerValue": Program._integer,
    "arrayValue": Program._array,
    "dictionaryValue": Program._dictionary,
    "argumentReference": Program._argument,
    "valueReference": Program.reference,
    "functionDefinitionValue": Program._definition,
    "functionInvocationValue": Program._invocation,
}


def invoke(context: Context, name: str, given: Mapping[str, Any]) -> Any:
    """Run an algorithm: check the argument names, fill defaults, convert types, call the implementation."""
    signature = signatures().get(name)
    if signature is None:
        raise EarthEngineError(f"Algorithm '{name}' not found.")
    implementation = REGISTRY.get(name)
    if implementation is None:
        raise EarthEngineError(f"The offline Earth Engine does not implement the algorithm '{name}'.")
    return implementation(context, **_arguments(signature, given))


def _arguments(signature: Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    if not given.keys() <= signature.names:
        raise EarthEngineError(f"{signature.name}: Unrecognized arguments {sorted(given.keys() - signature.names)}.")
    arguments: dict[str, Any] = {}
    for name, keyword, argument, is_lazy, is_converted in _parameters(signature.name):
        value = given.get(name)
        if value is None:
            value = argument.default
            if value is REQUIRED:
                raise EarthEngineError(f"{signature.name}: Parameter '{name}' is required and may not be null.")
        if is_converted and value is not None and not (is_lazy and callable(value)):
            value = coerce(value, argument, signature.name)
        arguments[keyword] = value
    return arguments


@cache
def _parameters(name: str) -> tuple[tuple[str, str, Argument, bool, bool], ...]:
    """Of an algorithm: (argument, Python parameter, what is known of it, may stay uncomputed, is converted) each."""
    return tuple(
        (own.name, parameter(own.name), own, own.name in LAZY.get(name, ()), converts(own))
        for own in signatures()[name].arguments
    )


def parameter(name: str) -> str:
    """The Python parameter that stands for an argument."""
    return KEYWORDS.get(name, name)
