"""Filter.expression: filters written as text, `CLOUDY < 20 && platform == 'A'`.

Operators are those of the references of ee.Filter.expression and ee.FeatureCollection.filter; property names stand on
the left, numbers, quoted strings or (after `in`) lists of them on the right.
"""

from __future__ import annotations

from typing import Any

from mmbuild.sandbox.algorithms.words import Words
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.values import Filter

NAME = "Filter.expression"
COMPARISONS = {
    "==": "Filter.equals", "!=": "Filter.notEquals", "<": "Filter.lessThan", "<=": "Filter.lessThanOrEquals",
    ">": "Filter.greaterThan", ">=": "Filter.greaterThanOrEquals",
}  # fmt: skip


@algorithm("Filter.expression")
def filter_expression(context: Context, expression: str) -> Filter:
    """`or` is looser than `and`, both looser than comparisons; parentheses group, `!` and `not` negate what follows."""
    words = Words(expression, NAME, colons=True)
    result = _any(context, words)
    if words.next.kind != "end":
        raise words.unexpected()
    return result


def _called(context: Context, name: str, **arguments: Any) -> Filter:
    made = context.call(name, **arguments)
    assert isinstance(made, Filter)
    return made


def _any(context: Context, words: Words) -> Filter:
    parts = [_all(context, words)]
    while words.take("||", "or"):
        parts.append(_all(context, words))
    return parts[0] if len(parts) == 1 else _called(context, "Filter.or", filters=parts)


def _all(context: Context, words: Words) -> Filter:
    parts = [_one(context, words)]
    while words.take("&&", "and"):
        parts.append(_one(context, words))
    return parts[0] if len(parts) == 1 else _called(context, "Filter.and", filters=parts)


def _one(context: Context, words: Words) -> Filter:
    if words.take("!", "not"):
        return _called(context, "Filter.not", filter=_one(context, words))
    if words.take("("):
        inner = _any(context, words)
        words.need(")")
        return inner
    if words.next.kind != "name":
        raise words.unexpected()
    field = words.step().text
    if words.take("in"):
        return _called(context, "Filter.inList", leftField=field, rightValue=_list(words))
    sign = words.take(*COMPARISONS)
    if sign is None:
        raise words.unexpected()
    return _called(context, COMPARISONS[sign], leftField=field, rightValue=_value(words))


def _value(words: Words) -> Any:
    negative = words.take("-") is not None
    if words.next.kind == "number":
        return -words.step().number if negative else words.step().number
    if words.next.kind == "text" and not negative:
        return words.step().text[1:-1]
    raise words.unexpected()


def _list(words: Words) -> list[Any]:
    words.need("[")
    found = [_value(words)]
    while words.take(","):
        found.append(_value(words))
    words.need("]")
    return found
