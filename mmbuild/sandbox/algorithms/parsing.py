"""Image.parseExpression: the language of `image.expression`, from text to a function of images.

Operators and names follow the API reference of ee.Image.expression; every operator runs the Image algorithm of its
name, so band matching, types and masks are theirs. What the reference does not name is refused with its position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmbuild.sandbox.algorithms.words import Word, Words
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, constant_image, default_projection
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Local
from mmbuild.sandbox.values import EarthEngineError, Function

NAME = "Image.parseExpression"
# Binary operators from the loosest to the tightest, with the algorithm each one runs; ^ is the exclusive or of truths.
LEVELS: tuple[Mapping[str, str], ...] = (
    {"||": "Image.or"},
    {"^": "xor"},
    {"&&": "Image.and"},
    {"==": "Image.eq", "!=": "Image.neq"},
    {"<=": "Image.lte", ">=": "Image.gte", "<": "Image.lt", ">": "Image.gt"},
    {"+": "Image.add", "-": "Image.subtract"},
    {"*": "Image.multiply", "/": "Image.divide", "%": "Image.mod"},
)
# JavaScript's Math by name: functions of one value, then of several.
UNARY = frozenset((
    "abs", "acos", "asin", "atan", "cbrt", "ceil", "cos", "cosh", "exp", "floor", "log", "log10", "round", "signum",
    "sin", "sinh", "sqrt", "tan", "tanh",
))  # fmt: skip
SEVERAL = frozenset(("pow", "min", "max", "hypot"))


@dataclass(frozen=True)
class Node:
    """One step: an operator ("number", "image", "bands", "choose", or an algorithm's name), its value, its inputs."""

    operator: str
    value: Any = None
    inputs: tuple[Node, ...] = ()


class Parser:
    """Recursive descent over one expression; every method returns the node of what it has read."""

    def __init__(self, text: str, default: str, variables: Sequence[str], free_are_bands: bool) -> None:
        self.default, self.variables, self.free_are_bands = default, variables, free_are_bands
        self.words = Words(text, NAME)

    def parse(self) -> tuple[Node, str | None]:
        """The expression and the name it is assigned to, if any."""
        name = None
        if self.words.next.kind == "name" and self.words.all[1].text == "=":
            name, self.words.place = self.words.next.text, 2
        node = self._choice()
        if self.words.next.kind != "end":
            raise self.words.unexpected()
        return node, name

    def _choice(self) -> Node:
        condition = self._binary(0)
        if self.words.take("?") is None:
            return condition
        chosen = self._choice()
        self.words.need(":")
        return Node("choose", None, (condition, chosen, self._choice()))

    def _binary(self, level: int) -> Node:
        if level == len(LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while (sign := self.words.take(*LEVELS[level])) is not None:
            node = Node(LEVELS[level][sign], None, (node, self._binary(level + 1)))
        return node

    def _unary(self) -> Node:
        sign = self.words.take("-", "+", "!")
        if sign is None:
            return self._power()
        inner = self._unary()
        if sign == "!":
            return Node("Image.not", None, (inner,))
        if inner.operator == "number":
            return replace(inner, value=-inner.value if sign == "-" else inner.value)
        return Node("Image.multiply", None, (inner, Node("number", -1))) if sign == "-" else inner

    def _power(self) -> Node:
        base = self._postfix()
        return base if self.words.take("**") is None else Node("Image.pow", None, (base, self._unary()))

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            if self.words.take("."):
                if self.words.next.kind != "name":
                    raise self.words.unexpected()
                node = Node("bands", [self.words.next.text], (node,))
                self.words.step()
            elif self.words.take("["):
                node = Node("bands", self._selectors("]"), (node,))
            else:
                return node

    def _primary(self) -> Node:
        token = self.words.next
        if self.words.take("("):
            node = self._choice()
            self.words.need(")")
            return node
        if token.kind == "number":
            self.words.step()
            return Node("number", token.number)
        if token.kind != "name":
            raise self.words.unexpected()
        self.words.step()
        return self._call(token) if self.words.take("(") else self._variable(token)

    def _call(self, token: Word) -> Node:
        if token.text == "b":
            selectors = self._selectors(")")
            image = Node("image", self.default)
            return Node("bands", selectors, (image,)) if selectors else image
        inputs = [self._choice()]
        while self.words.take(","):
            inputs.append(self._choice())
        self.words.need(")")
        known = len(inputs) == 1 if token.text in UNARY else token.text in SEVERAL and len(inputs) >= 2
        if not known or (token.text in ("pow", "hypot") and len(inputs) != 2):
            problem = f"No function '{token.text}' of {len(inputs)} arguments"
            raise self.words.refused(token.position, problem)
        node = inputs[0] if token.text in SEVERAL else Node(f"Image.{token.text}", None, (inputs[0],))
        for other in inputs[1:]:
            node = Node(f"Image.{token.text}", None, (node, other))
        return node

    def _variable(self, token: Word) -> Node:
        if token.text in self.variables:
            return Node("image", token.text)
        if self.free_are_bands:
            return Node("bands", [token.text], (Node("image", self.default),))
        raise self.words.refused(token.position, f"Unknown variable '{token.text}'")

    def _selectors(self, closing: str) -> list[Any]:
        """Band names and numbers up to the closing sign."""
        found: list[Any] = []
        while self.words.take(closing) is None:
            if found:
                self.words.need(",")
            token = self.words.next
            if token.kind == "text":
                found.append(token.text[1:-1])
            elif token.kind == "number" and token.text.isdigit():
                found.append(token.number)
            else:
                raise self.words.unexpected()
            self.words.step()
        return found


@algorithm("Image.parseExpression")
def parse_expression(
    context: Context, expression: str, argName: str, vars: Sequence[str], mapFreeVarsToDefaultImageBands: bool
) -> Function:
    """A function of the images named in `vars`; a number stands for a constant image."""
    node, name = Parser(expression, argName, vars, mapFreeVarsToDefaultImageBands).parse()

    def call(*images: Any) -> Image:
        given = {key: _as_image(value, key) for key, value in zip(vars, images, strict=True)}
        result = _computed(context, node, given)
        if name is None:
            return result
        if len(result.bands) != 1:
            raise EarthEngineError(f"{NAME}: '{name} =' names one band, the expression has {len(result.bands)}.")
        return result.with_bands([replace(result.bands[0], name=name)])

    return Function(tuple(vars), call)


def _as_image(value: Any, name: str) -> Image:
    if isinstance(value, bool | int | float | list):
        return constant_image(value)
    if not isinstance(value, Image):
        raise EarthEngineError(f"{NAME}: Parameter '{name}' must be an Image, found {type(value).__name__}.")
    return value


def _computed(context: Context, node: Node, given: Mapping[str, Image]) -> Image:
    if node.operator == "number":
        return constant_image(node.value)
    if node.operator == "image":
        return given[node.value]
    inputs = [_computed(context, item, given) for item in node.inputs]
    if node.operator == "choose":
        return _chosen(*inputs)
    if node.operator == "bands":
        result = context.call("Image.select", input=inputs[0], bandSelectors=node.value)
    elif node.operator == "xor":
        truths = (context.call("Image.neq", image1=image, image2=constant_image(0)) for image in inputs)
        result = context.call("Image.neq", **dict(zip(("image1", "image2"), truths, strict=True)))
    elif len(inputs) == 1:
        result = context.call(node.operator, value=inputs[0])
    else:
        result = context.call(node.operator, image1=inputs[0], image2=inputs[1])
    assert isinstance(result, Image)
    return result


def _chosen(condition: Image, then: Image, other: Image) -> Image:
    """Per pixel `then` where the condition is not 0, else `other`; masked where the condition or the chosen one is.

    One band serves all; the bands are called like those of `then` or, when it has fewer, of `other` (assumed).
    """
    parts = (condition, then, other)
    count = max(len(part.bands) for part in parts)
    if any(len(part.bands) not in (1, count) for part in parts):
        raise EarthEngineError(f"{NAME}: The parts of '?:' have {', '.join(str(len(p.bands)) for p in parts)} bands.")

    def compute(c: Pair, a: Pair, b: Pair) -> Pair:
        mask = np.minimum(c[1], np.where(c[0] != 0, a[1], b[1]))
        return np.where(mask > 0, np.where(c[0] != 0, a[0], b[0]), 0.0), mask

    columns = [list(part.bands) * count if len(part.bands) == 1 else list(part.bands) for part in parts]
    names = [band.name for band in columns[1 if len(then.bands) == count else 2 if len(other.bands) == count else 0]]
    bands = [
        Band(name, a.type.union(b.type), Local((c.node, a.node, b.node), compute), default_projection(c, a, b))
        for name, c, a, b in zip(names, *columns, strict=True)
    ]
    return Image(tuple(bands), footprint=condition.footprint or then.footprint or other.footprint)
