"""Small corpora for tests, and what two builds must share to be the same corpus (ARCHITECTURE, rule 3)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmbuild.build import build_corpus
from mmbuild.cube import Corpus
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.store import Store, open_store

REPO = Path(__file__).parent.parent
TINY = REPO / "recipes" / "tiny.yaml"
# Small chips keep a build in tests at a second or two; every kind of modality is still there.
SMALL = ("grid.size=16", "samples=16", "store.samples_per_shard=8")
SAME_PREFIXES = (
    "cube.zarr/",
    "shards/",
    "locations.parquet",
    "items.parquet",
    "collection.json",
    "stats.json",
    "index.npz",
)


def small_recipe(*overrides: str) -> Recipe:
    return load_recipe(TINY, [*SMALL, *overrides])


def build_small(out: Path | str, *overrides: str, **options: object) -> Corpus:
    return build_corpus(small_recipe(*overrides), out, **options)  # type: ignore[arg-type]


def snapshot(where: Store | Path | str) -> dict[str, str]:
    """sha256 of every object that rule 3 says is the same for the same recipe."""
    store = open_store(where) if isinstance(where, (str, Path)) else where
    return {key: hashlib.sha256(store.get(key)).hexdigest() for key in store.list() if key.startswith(SAME_PREFIXES)}
