"""The file that determines a corpus, read from YAML with ``extends:`` and ``--set``; each fault is one readable line.

Reading a recipe asks no source and draws no random number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmbuild.errors import UserError
from mmbuild.explain import Problem, as_user_error, suggest, validate
from mmbuild.modality import Modality
from mmbuild.recipe import quirks
from mmbuild.recipe.checks import check_files, check_modalities, check_together
from mmbuild.recipe.dates import Months, Seasons
from mmbuild.recipe.models import (
    Anchor,
    ModalityUse,
    Recipe,
    Source,
    Splits,
    Store,
    UtmGrid,
    WebmercatorGrid,
    bare_uses,
    named_source,
)
from mmbuild.recipe.places import AreaSampler, BiomeSampler, CitiesSampler, PointsSampler, XyzSampler
from mmbuild.registry import load_modalities
from mmbuild.yamlfile import Document, Key, merge, parse_value, read_yaml

__all__ = [
    "Anchor",
    "AreaSampler",
    "BiomeSampler",
    "CitiesSampler",
    "ModalityUse",
    "Months",
    "PointsSampler",
    "Recipe",
    "Seasons",
    "Source",
    "Splits",
    "Store",
    "UtmGrid",
    "WebmercatorGrid",
    "XyzSampler",
    "known_recipes",
    "load_recipe",
    "recipe_from_resolved",
]

_PACKAGE = Path(__file__).parents[1]
# The wheel carries the recipes inside the package; a checkout has them beside it.
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def known_recipes() -> dict[str, Path]:
    """The recipes that can be called by name."""
    found = [path for folder in reversed(RECIPE_FOLDERS) if folder.is_dir() for path in sorted(folder.glob("*.yaml"))]
    return dict(sorted((path.stem, path) for path in found))


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or name; ``overrides`` are ``key.key=value`` with a YAML value.

    Raises UserError with one line ``file:line: key: value -> reason; fix`` for every fault.
    """
    document, folders = _with_bases(_find(path_or_name, None), ())
    document = _normal(_faithful(document, overrides))
    recipe = validate(Recipe, document)
    recipe._known.update(load_modalities(*(f / "modalities" for f in folders if (f / "modalities").is_dir())))
    paths, sums, problems = check_files(document, recipe.files)
    problems += check_modalities(recipe)
    problems = problems or check_together(recipe)
    if problems:
        raise as_user_error(document, problems)
    recipe._paths.update(paths)
    recipe.files.clear()
    recipe.files.update(sums)
    return recipe


def recipe_from_resolved(resolved: Mapping[str, Any], definitions: Mapping[str, Modality]) -> Recipe:
    """The recipe a corpus was built from, of its own record; the files it names need not exist any more."""
    recipe = Recipe.model_validate(dict(resolved))
    recipe._known.update(definitions)
    return recipe


def _find(path_or_name: str | Path, beside: Path | None) -> Path:
    """The file of a recipe: a path (from the working folder or ``beside`` a recipe), or the name of a known recipe."""
    path = Path(path_or_name)
    if beside is not None and (beside / path).is_file():
        return beside / path
    known = known_recipes()
    if beside is None and path.exists():
        return path
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    raise UserError("there is no such recipe", str(path_or_name), suggest(path.stem, list(known)))


def _with_bases(path: Path, chain: tuple[Path, ...]) -> tuple[Document, list[Path]]:
    """A recipe merged over those it extends, and the folders of all of them, the farthest first."""
    document = _normal(read_yaml(path))
    base = document.data.get("extends")
    here = [path.parent.resolve()]
    if not isinstance(base, str):
        return document, here
    try:
        found = _find(base, path.parent)
    except UserError as error:
        problem = Problem(key=("extends",), value=base, reason=error.message, fix=error.fix)
        raise as_user_error(document, [problem]) from None
    chain = (*chain, path.resolve())
    if found.resolve() in chain:
        problem = Problem(key=("extends",), value=base, reason="extends itself in a circle", fix="remove one extends")
        raise as_user_error(document, [problem])
    below, folders = _with_bases(found, chain)
    return merge(_without_other_choice(below, document), document), folders + here


def _without_other_choice(below: Document, top: Document) -> Document:
    """``below`` without its anchor choice when ``top`` makes one: modality and one_of exclude each other."""
    anchor, new = below.data.get("anchor"), top.data.get("anchor")
    if not (isinstance(anchor, dict) and isinstance(new, dict) and {"modality", "one_of"} & new.keys()):
        return below
    kept = {key: value for key, value in anchor.items() if key not in ("modality", "one_of")}
    return replace(below, data={**below.data, "anchor": kept})


def _normal(document: Document) -> Document:
    """Shorthands written out, so that they merge: ``source: name`` and a modality without a value."""
    data = dict(document.data)
    if "source" in data:
        data["source"] = named_source(data["source"])
    if "modalities" in data:
        data["modalities"] = bare_uses(data["modalities"])
    return replace(document, data=data)


def _faithful(document: Document, overrides: Sequence[str]) -> Document:
    """The document with the overrides on top and, in faithful mode, its quirks below them.

    A recipe that mmbuild has written out (only those have ``files``) has its quirks in its keys already.
    """
    asked = _overridden(document, overrides)
    names = asked.data.get("quirks")
    if asked.data.get("mode") != "faithful" or "files" in document.data or not isinstance(names, list):
        return asked
    for quirk, key, value in quirks.settings([str(name) for name in names]):
        document = _with(document, tuple(key.split(".")), value, f"mode faithful, quirk {quirk}")
    return _overridden(document, overrides)


def _overridden(document: Document, overrides: Sequence[str]) -> Document:
    """The document with ``key.key=value`` settings on top; their place in messages is ``--set``."""
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            raise UserError(f"{text!r} -> is not key=value", "--set", "write it as --set grid.size=128")
        document = _with(document, keys, parse_value(value, "--set"), "--set")
    return document


def _with(document: Document, keys: tuple[str, ...], value: Any, place: str) -> Document:
    """The document with one value on top of it; ``place`` is where messages say it is written."""
    data: Any = value
    for key in reversed(keys):
        data = {key: data}
    top = _normal(Document(path=place, data=data, places=dict.fromkeys(_keys(data), place)))
    merged = merge(_without_other_choice(document, top), top)
    ancestors: list[Key] = [keys[:depth] for depth in range(len(keys))]
    kept = {key: document.places[key] for key in ancestors if key in document.places}
    return replace(merged, path=document.path, places={**merged.places, **kept})


def _keys(data: Any, key: Key = ()) -> Iterator[Key]:
    """Every key path inside nested mappings."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield (*key, name)
            yield from _keys(value, (*key, name))
