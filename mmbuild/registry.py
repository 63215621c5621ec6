"""Every modality file there is: the folder listing is the list of what is known.

Files are read once while they stay as they are, and what one says of another is checked when all are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from mmbuild.errors import UserError
from mmbuild.explain import Problem, as_user_error, suggest, validate
from mmbuild.modality import Clear, Modality
from mmbuild.yamlfile import Document, Key, read_yaml

BUILT_IN = Path(__file__).parent / "modalities"


def load_modality(path: Path | str) -> Modality:
    """Read one modality file; its name must be the file's name.

    Raises UserError with file, line, key and fix.
    """
    return _load(Path(path))[0]


def load_modalities(*folders: Path | None) -> dict[str, Modality]:
    """All modalities by name: the built-in ones, and those of the folders, which add to them or replace them.

    Raises UserError for a file that is refused, and for one that refers to a modality nobody defines.
    """
    files = _files(BUILT_IN)
    for folder in folders:
        if folder is not None:
            files |= _files(Path(folder))
    loaded = {name: _load(path) for name, path in sorted(files.items())}
    known = {name: modality for name, (modality, _) in loaded.items()}
    for modality, document in loaded.values():
        problems = _reference_problems(modality, known)
        if problems:
            raise as_user_error(document, problems)
    return known


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError("there is no such folder of modality files", str(folder), "check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".yaml", ".yml"):
            continue
        if path.stem in found:
            raise UserError(
                f"{path.stem} is defined twice, by {found[path.stem].name} too",
                str(path),
                "keep one of the two files",
            )
        found[path.stem] = path
    return found


def _load(path: Path) -> tuple[Modality, Document]:
    try:
        stat = path.stat()
    except OSError:
        return _parse(path)
    return _parse_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _parse_once(path: Path, mtime_ns: int, size: int) -> tuple[Modality, Document]:
    return _parse(path)


def _parse(path: Path) -> tuple[Modality, Document]:
    document = read_yaml(path)
    modality = validate(Modality, document)
    if modality.name != path.stem:
        problem = Problem(
            key=("name",),
            value=modality.name,
            reason=f"is not the file's name {path.stem!r}",
            fix=f"write name: {path.stem} or rename the file",
        )
        raise as_user_error(document, [problem])
    return modality, document


def _reference_problems(m: Modality, known: Mapping[str, Modality]) -> list[Problem]:
    found: list[Problem] = []
    for key in ("same_scene_as", "count_of"):
        name = getattr(m, key)
        aliases = {other.alias for other in known.values()} if key == "same_scene_as" else set()
        if name is not None and name not in known and name not in aliases:
            found.append(Problem(key=(key,), value=name, reason="is no known modality", fix=suggest(name, list(known))))
    rules: list[tuple[Key, Clear]] = [(("clear_others", index), rule) for index, rule in enumerate(m.clear_others)]
    for place, rule in [(("clear",), m.clear), *rules] if m.clear is not None else rules:
        assert rule is not None
        found += _clear_problems(place, rule, known)
    return found


def _clear_problems(place: Key, rule: Clear, known: Mapping[str, Modality]) -> list[Problem]:
    name, screen = rule.modality, known.get(rule.modality)
    if screen is None:
        fix = suggest(name, list(known))
        return [Problem(key=(*place, "modality"), value=name, reason="is no known modality", fix=fix)]
    if bool(rule.codes) != (screen.values == "categorical"):
        reason, fix = (
            ("has no class codes", "name a modality with values: categorical, or give at_least or at_most")
            if rule.codes
            else ("has class codes", "list the codes that count as clear")
        )
        return [Problem(key=(*place, "modality"), value=name, reason=reason, fix=fix)]
    if rule.band is not None and rule.band not in screen.band_names:
        fix = suggest(rule.band, screen.band_names)
        return [Problem(key=(*place, "band"), value=rule.band, reason=f"is no band of {name}", fix=fix)]
    return [
        Problem(
            key=(*place, "codes", index), value=code, reason=f"is no class of {name}",
            fix=f"choose from {', '.join(map(str, screen.class_codes))}",
        )
        for index, code in enumerate(rule.codes)
        if code not in screen.class_codes
    ]  # fmt: skip
