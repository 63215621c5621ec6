"""The shape of the house: imports point down, heavy libraries enter by their doors, modalities are data.

The table below is the design's, low to high; a module that stands in no line of it fails.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmbuild"

# A name is a module or folder of mmbuild; files of one folder may use each other where no circle comes of it.
# `choose` reads the rules of a recipe, and `build` calls split, stats and catalogue when the shards are done.
LAYERS = (
    {"errors", "heap"},
    {"yamlfile", "store", "times", "published"},
    {"explain", "grid", "records"},
    {"modality"},
    {"registry"},
    {"recipe", "throttle"},
    {"choose", "governor"},
    {"align", "anchors", "cube", "samplers", "sandbox"},
    {"sources", "commit", "tree", "foreign"},
    {"plan"},
    {"stats", "splits"},
    {"catalog", "audit", "verify", "export", "report", "stream", "shard", "status"},
    {"finish"},
    {"taster", "importers", "threads"},
    {"cluster", "direct"},
    {"build", "probe"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Library -> the only places (module or folder prefix) that may import it.
DOORS = {
    "ee": ("mmbuild.sources.earthengine",),
    "zarr": ("mmbuild.cube", "mmbuild.tree", "mmbuild.stream", "mmbuild.export", "mmbuild.foreign"),
    "h5py": ("mmbuild.export", "mmbuild.importers", "train.arrays"),
    "dask": ("mmbuild.cluster",),
    "distributed": ("mmbuild.cluster",),
    "pystac": ("mmbuild.catalog", "mmbuild.sources.stac"),
    "pystac_client": ("mmbuild.sources.stac",),
    "stac_geoparquet": ("mmbuild.catalog", "mmbuild.sources.stac"),
    "rasterio": ("mmbuild.align", "mmbuild.sources.stac", "mmbuild.sandbox", "mmbuild.export", "mmbuild.foreign"),
    "rioxarray": ("mmbuild.align", "mmbuild.sources.stac", "mmbuild.sandbox", "mmbuild.export"),
    "mercantile": ("mmbuild.samplers.xyz", "mmbuild.grid"),
    "torch": ("mmbuild.stream", "mmbuild.direct", "train"),
    "lightning": ("train",),
    "lightning_fabric": ("train",),
    "sklearn": ("train",),
    "obstore": ("mmbuild.store",),
    "matplotlib": ("mmbuild.report", "train"),
    "typer": ("mmbuild.cli",),
    "rich": ("mmbuild.cli", "mmbuild.build", "train"),
}

# Plain words of the design that tags, samplers and derived sources share with a modality of the same name.
SHARED_WORDS = {"biome", "ecoregion", "geolocation", "month"}


def modules(folder: str) -> dict[str, Path]:
    """Dotted name -> file, for every Python file of a package."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = modules("mmbuild") | modules("train")


class WithoutTypes(ast.NodeTransformer):
    """Drops what stands under ``if TYPE_CHECKING``: it is never run."""

    def visit_If(self, node: ast.If) -> ast.AST:
        names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
        return ast.Pass() if "TYPE_CHECKING" in names else self.generic_visit(node)


def run_imports(name: str) -> frozenset[str]:
    """The imports of a module that are carried out, sooner or later."""
    return frozenset(_imported(name, WithoutTypes().visit(ast.parse(MODULES[name].read_text("utf-8")))))


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Every dotted name imported anywhere in a module; ``from a import b`` is a.b where that is a module."""
    return frozenset(_imported(name, ast.parse(MODULES[name].read_text("utf-8"))))


def _imported(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node)
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    """``from ..x import y`` as an absolute name."""
    if not node.level:
        return node.module or ""
    is_package = MODULES[name].name == "__init__.py"
    parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
    return ".".join([*parents, node.module] if node.module else parents)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("name", [m for m in MODULES if within(m, "mmbuild") and m != "mmbuild"])
def test_every_module_has_a_layer_and_imports_only_lower_ones(name: str) -> None:
    assert room(name) in LEVEL, f"{MODULES[name]}: add it to LAYERS and to the README's file map, or find it a room"
    for other in sorted(imports(name)):
        if not within(other, "mmbuild") or room(other) == room(name):
            continue
        assert room(other), f"{name} imports mmbuild itself: import the module that has what it needs"
        assert LEVEL[room(other)] < LEVEL[room(name)], f"{name} imports {other}, which is not below it"


def test_no_imports_go_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for other in sorted(run_imports(name) & MODULES.keys() - {name}):
            # A package's own __init__ is imported with each of its files; it only names them.
            if not within(name, other):
                visit(other, (*path, name))
        done.add(name)

    for name in MODULES.keys() - {"mmbuild"}:
        visit(name, ())


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_heavy_library_enters_by_its_doors_only(library: str) -> None:
    strangers = [
        name
        for name in MODULES
        if any(within(other, library) for other in imports(name)) and not any(within(name, d) for d in DOORS[library])
    ]
    assert not strangers, f"{library} may be imported by {', '.join(DOORS[library])} only"


def test_the_sandbox_imports_nothing_of_mmbuild() -> None:
    for name in MODULES:
        if within(name, "mmbuild.sandbox"):
            foreign = [o for o in imports(name) if within(o, "mmbuild") and not within(o, "mmbuild.sandbox")]
            assert not foreign, f"{name} imports {foreign}"


def test_mmbuild_never_imports_the_trainer() -> None:
    assert not [n for n in MODULES if within(n, "mmbuild") and any(within(o, "train") for o in imports(n))]


def test_the_wheel_carries_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in MODULES.values()}
    assert set(listed) == folders | {"mmbuild.recipes"}


def test_import_mmbuild_loads_no_heavy_library() -> None:
    code = f"import sys, mmbuild; print(*sorted(set({sorted(DOORS)!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.split() == []


@functools.cache
def modality_names() -> set[str]:
    """Names and aliases of the built-in modalities, from their files alone."""
    texts = [yaml.safe_load(p.read_text("utf-8")) for p in sorted((PACKAGE / "modalities").glob("*.yaml"))]
    return {t[key] for t in texts for key in ("name", "alias") if t.get(key)} - SHARED_WORDS


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string (docstrings aside) and every identifier."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


@pytest.mark.parametrize("name", [m for m in MODULES if within(m, "mmbuild") and not within(m, "mmbuild.sandbox")])
def test_code_never_names_a_modality(name: str) -> None:
    names = modality_names()
    assert names, "no modality files: this test would prove nothing"
    alternatives = "|".join(map(re.escape, sorted(names)))
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])")
    found = [
        f"line {line}: {text!r}" for line, text in words(ast.parse(MODULES[name].read_text())) if pattern.search(text)
    ]
    assert not found, f"{MODULES[name]}: {'; '.join(found)}: this knowledge belongs in modalities/*.yaml"
