"""A recipe may take single modalities from another source: each is asked only for what it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import mmbuild.sources
from mmbuild.build import build_corpus
from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.grid import box_from_corner
from mmbuild.recipe import Recipe, load_recipe
from tests.corpora import TINY, snapshot
from tests.more_sources import plane

PLANE = {
    "name": "plane", "title": "A tilted plane", "description": "whole numbers that rise with x and y",
    "level": "pixel", "values": "continuous", "gsd": 10, "dtype": "int16", "nodata": -1, "resampling": "nearest",
    "time": "static", "bands": [{"name": "height", "description": "height", "gsd": 10, "unit": "m",
                                 "valid_range": [0, 1000]}],
    "licence": "CC0-1.0", "attribution": "nobody", "providers": [
        {"name": "tests", "url": "https://example.org", "roles": ["producer"]}], "sources": {"plane": {}},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _plane_is_a_source() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmbuild.sources, "__path__", [*mmbuild.sources.__path__, str(Path(plane.__file__).parent)])
        yield


def mixed(folder: Path, *overrides: str) -> Recipe:
    (folder / "modalities").mkdir(exist_ok=True)
    (folder / "modalities" / "plane.yaml").write_text(yaml.safe_dump(PLANE))
    recipe = {
        "extends": str(TINY), "name": "mixed", "samples": 4,
        "modalities": {"plane": {"source": "plane"}}, "grid": {"size": 16},
    }  # fmt: skip
    (folder / "mixed.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "mixed.yaml", overrides)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("mixed")
    return build_corpus(mixed(folder), folder / "out")


def test_every_modality_comes_from_its_own_source(corpus: Corpus) -> None:
    rows = [row for row in corpus.records().to_pylist() if row["status"] == "stored"]
    planes = [row for row in rows if row["modality"] == "plane"]
    assert len(planes) == 4
    for row in planes:
        grid = box_from_corner(row["epsg"], row["x0"], row["y0"], gsd=row["gsd"], size=row["width"])
        np.testing.assert_array_equal(corpus.read_chip("plane", row["slot"]), plane.expected(grid))
        assert row["scene_ids"] == [f"plane/{plane.TILT}"]
    assert all("COPERNICUS/S2" in row["scene_ids"][0] for row in rows if row["modality"].startswith("sentinel2"))


def test_what_comes_from_the_own_source_does_not_change(corpus: Corpus, tmp_path: Path) -> None:
    alone = build_corpus(load_recipe(TINY, ["samples=4", "grid.size=16"]), tmp_path / "alone")
    others = {k: v for k, v in snapshot(corpus.store).items() if k.startswith("cube.zarr/") and "/data/c/" in k}
    assert {k: v for k, v in others.items() if not k.startswith("cube.zarr/plane/")} == {
        k: v for k, v in snapshot(alone.store).items() if k.startswith("cube.zarr/") and "/data/c/" in k
    }


def test_the_lock_names_every_source_and_one_synthetic_makes_it_synthetic(corpus: Corpus) -> None:
    assert corpus.lock["source"]["others"] == {"plane": {"name": "plane", "tilt": plane.TILT, "synthetic": False}}
    assert corpus.synthetic


def test_requests_of_all_sources_are_counted(corpus: Corpus) -> None:
    (ledger,) = [json.loads(corpus.store.get(key)) for key in corpus.store.list("runs/") if key.endswith(".json")]
    # One answer for each of the four samples from either source.
    assert ledger["requests"]["pixel_requests"] == 8


def test_a_corpus_is_not_continued_from_another_source(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane, "TILT", 4)
    monkeypatch.setattr("mmbuild.sources.plane.TILT", 4)
    with pytest.raises(UserError, match="came from another source"):
        build_corpus(mixed(Path(corpus.store.url).parent), corpus.store.url)
