"""A recipe goes in; a co-registered, catalogued Earth-observation corpus comes out and streams into pretraining.

Names are loaded when they are first used, so that importing mmbuild stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbuild.build import build_corpus
    from mmbuild.cube import Corpus, open_corpus
    from mmbuild.export import export_corpus
    from mmbuild.importers import import_corpus
    from mmbuild.modality import Modality
    from mmbuild.recipe import Recipe, load_recipe
    from mmbuild.registry import load_modalities
    from mmbuild.stream.dataset import Mixture, Samples
    from mmbuild.stream.loader import Loader
    from mmbuild.taster import cut_taster

_HOMES = {
    "build_corpus": "mmbuild.build",
    "cut_taster": "mmbuild.taster",
    "export_corpus": "mmbuild.export",
    "import_corpus": "mmbuild.importers",
    "open_corpus": "mmbuild.cube",
    "Corpus": "mmbuild.cube",
    "Loader": "mmbuild.stream.loader",
    "Mixture": "mmbuild.stream.dataset",
    "Samples": "mmbuild.stream.dataset",
    "Modality": "mmbuild.modality",
    "load_modalities": "mmbuild.registry",
    "Recipe": "mmbuild.recipe",
    "load_recipe": "mmbuild.recipe",
}

__all__ = [
    "Corpus", "Loader", "Mixture", "Modality", "Recipe", "Samples", "build_corpus", "cut_taster",
    "export_corpus", "import_corpus", "load_modalities", "load_recipe", "open_corpus",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmbuild' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
