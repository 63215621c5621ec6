"""Checks a YAML document against a pydantic model; each fault becomes one line: place: key: value -> reason; fix.

The fix is made from the field's own description and limits, so that no help text is written twice.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from mmbuild.errors import UserError
from mmbuild.yamlfile import Document, Key, dotted, shorten

M = TypeVar("M", bound=BaseModel)

ABSENT: Any = object()
CROSS = "cross_check"
# More names than this make no readable line.
MOST_NAMES = 14

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
}
_LIMITS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must have at least {min_length} values",
    "too_long": "must have at most {max_length} values",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault of a document: where, what value (ABSENT: none is written), why, and how to fix it."""

    key: Key
    reason: str
    fix: str
    value: Any = ABSENT


def cross_error(problems: Iterable[Problem]) -> PydanticCustomError:
    """What a model validator raises for faults between several keys; keys are relative to the model."""
    found = tuple(problems)
    text = " | ".join(f"{dotted(p.key)}: {p.reason}; {p.fix}" for p in found)
    return PydanticCustomError(CROSS, "{text}", {"text": text, "problems": found})


def validate(model: type[M], document: Document) -> M:
    """The model a document describes; raises UserError with one line for every fault."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = [p for detail in error.errors() for p in _problems(model, document.data, detail)]
        raise as_user_error(document, found) from None


def as_user_error(document: Document, problems: Sequence[Problem]) -> UserError:
    """One UserError for all faults; each line is complete in itself, in the order of the document's keys."""
    lines = [_parts(document, problem) for problem in _unique(problems)]
    if len(lines) == 1:
        where, message, fix = lines[0]
        return UserError(message, where, fix)
    return UserError("\n".join(str(UserError(message, where, fix)) for where, message, fix in lines))


def _unique(problems: Sequence[Problem]) -> list[Problem]:
    seen: dict[tuple[Key, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.key, problem.reason), problem)
    return list(seen.values())


def _parts(document: Document, problem: Problem) -> tuple[str, str, str]:
    value = "" if problem.value is ABSENT else f"{shorten(repr(problem.value))} -> "
    key = f"{dotted(problem.key)}: " if problem.key else ""
    return document.place(problem.key), f"{key}{value}{problem.reason}", problem.fix


def _problems(model: type[BaseModel], data: Any, detail: ErrorDetails) -> list[Problem]:
    key = _strip_tags(model, data, detail["loc"])
    if detail["type"] == CROSS:
        inner: tuple[Problem, ...] = detail["ctx"]["problems"]
        return [Problem(key=key + p.key, reason=p.reason, fix=p.fix, value=_value(data, key + p.key)) for p in inner]
    owner, field = _find(model, data, key)
    names = list(owner.model_fields) if owner else []
    match detail["type"]:
        case "extra_forbidden":
            return [Problem(key=key, reason="there is no such key here", fix=suggest(str(key[-1]), names))]
        case "missing":
            return [Problem(key=key, reason="is missing", fix=f"add it: {_advice(field)}")]
        case "union_tag_not_found":
            return [Problem(key=(*key, "kind"), reason="is missing", fix=f"add one of {_tags(field)}")]
        case "union_tag_invalid":
            value = _value(data, (*key, "kind"))
            return [Problem(key=(*key, "kind"), value=value, reason=f"must be one of {_tags(field)}", fix="choose one")]
    return [Problem(key=key, value=_value(data, key), reason=_reason(detail), fix=f"write {_advice(field)}")]


def _reason(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _LIMITS:
        return _LIMITS[kind].format(**{name: _number(value) for name, value in context.items()})
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "int_from_float":
        return "must be a whole number"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    noun = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing"))
    return f"must be {noun}" if noun else detail["msg"]


def suggest(name: str, known: Sequence[str]) -> str:
    """Advice for a name that is not known: the closest known names, or the first of all."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"choose from {', '.join(known[:MOST_NAMES])}{more}" if known else "remove it"


# -- what a field wants, read from the model


def _advice(field: FieldInfo | None) -> str:
    """``8 to 256: samples in one shard`` from a field's limits and description."""
    if field is None:
        return "a value of the right kind"
    wanted, text = _wanted(field), field.description or ""
    return f"{wanted}: {text}" if text else wanted


def _wanted(field: FieldInfo) -> str:
    limits = {type(item).__name__: item for item in field.metadata}
    words = {"Ge": "from", "Gt": "above", "Le": "to", "Lt": "below"}
    bounds = [f"{word} {_number(getattr(limits[n], n.lower()))}" for n, word in words.items() if n in limits]
    return " ".join([_noun(field.annotation), *bounds])


def _noun(annotation: Any) -> str:
    options = [o for o in _options(annotation) if o is not type(None)]
    origin = get_origin(options[0]) or options[0]
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(options[0])))
    names: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    names |= {list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(origin, "a mapping")


def _number(value: Any) -> Any:
    return f"{value:,.10g}".replace(",", "") if isinstance(value, float) else value


def _options(annotation: Any) -> list[Any]:
    """The members of a union, Annotated unwrapped; anything else as a list of one."""
    if get_origin(annotation) is typing.Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for option in get_args(annotation) for member in _options(option)]
    return [annotation]


def _tags(field: FieldInfo | None) -> str:
    models = [m for m in _options(field.annotation) if _is_model(m)] if field else []
    return ", ".join(get_args(m.model_fields["kind"].annotation)[0] for m in models)


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _model_for(annotation: Any, data: Any) -> type[BaseModel] | None:
    """The model an annotation means for this data: of several kinds, the one the data names."""
    models: list[type[BaseModel]] = [m for m in _options(annotation) if _is_model(m)]
    if len(models) > 1:
        kind = data.get("kind") if isinstance(data, dict) else None
        models = [m for m in models if kind in get_args(m.model_fields["kind"].annotation)]
    return models[0] if models else None


def _step(annotation: Any, data: Any, name: str | int) -> tuple[type[BaseModel] | None, FieldInfo | None, Any]:
    """One name down: the model that owns it, its field there, and what the field holds."""
    owner = _model_for(annotation, data)
    if owner is not None:
        field = owner.model_fields.get(str(name))
        return owner, field, field.annotation if field else None
    inside = [a for option in _options(annotation) for a in get_args(option) if a is not Ellipsis]
    return None, None, inside[-1] if inside else None


def _find(model: type[BaseModel], data: Any, key: Key) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model that owns the last name of a key, and the field that holds it (or holds its list or mapping)."""
    owner: type[BaseModel] | None = model
    field: FieldInfo | None = None
    annotation: Any = model
    for name in key:
        owner, found, annotation = _step(annotation, data, name)
        field = found if owner is not None else field
        data = _value(data, (name,))
    return owner, field


def _value(data: Any, key: Key) -> Any:
    for name in key:
        if isinstance(data, Mapping):
            data = data.get(name, ABSENT)
        elif isinstance(data, list) and isinstance(name, int) and name < len(data):
            data = data[name]
        else:
            return ABSENT
    return data


def _strip_tags(model: type[BaseModel], data: Any, loc: Sequence[str | int]) -> Key:
    """The key as written: pydantic puts the chosen ``kind`` of a union between field and key."""
    key: Key = ()
    annotation: Any = model
    for name in loc:
        here = _value(data, key)
        owner = _model_for(annotation, here)
        several = sum(map(_is_model, _options(annotation))) > 1
        if several and owner is not None and name in get_args(owner.model_fields["kind"].annotation):
            annotation = owner
            continue
        key = (*key, name)
        annotation = _step(annotation, here, name)[2]
    return key
