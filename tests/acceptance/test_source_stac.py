"""Issue 4: on real files the stac source gives the same pixels as the archive behind the offline Earth Engine does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.conftest import REPO
from tests.stac_items import as_json, real_items, static_catalogue, table
from tests.truth import record_rows, stored_chip
from tests.web import Web, serving

Mmbuild = Callable[..., Any]
# Sentinel-1 in decibels is kept by no public catalogue, so no item of one can stand for these files.
LEFT_OUT = ("sentinel1_asc", "sentinel1_desc")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/real_mini.yaml without the modalities that no catalogue keeps."""
    folder = tmp_path_factory.mktemp("recipe")
    lines = (REPO / "recipes" / "real_mini.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(LEFT_OUT)]
    assert len(lines) - len(kept) == len(LEFT_OUT)
    (folder / "real.yaml").write_text("\n".join(kept))
    for name in ("modalities", "archives", "real_mini_points.csv"):
        (folder / name).symlink_to(REPO / "recipes" / name)
    return folder / "real.yaml"


@pytest.fixture(scope="module")
def from_earth_engine(recipe: Path, shared: Path, mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ee") / "corpus"
    mmbuild("build", recipe, out, "--archive-root", shared / "realdata")
    return out


@pytest.fixture(scope="module")
def items(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return list(real_items(shared, tmp_path_factory.mktemp("bands")))


@pytest.mark.parametrize("kind", ["static", "table", "api"])
def test_the_same_recipe_gives_the_same_chips_from_both_sources(
    kind: str, recipe: Path, items: list[Any], from_earth_engine: Path, mmbuild: Mmbuild, tmp_path: Path
) -> None:
    if kind == "api":
        with serving(Web(folder=tmp_path, items=as_json(items), page=3)) as web:
            mmbuild("build", recipe, tmp_path / "out", "--source", "stac", "--set", f"source.catalog={web.url}")
    else:
        made = static_catalogue(items, tmp_path / "cat") if kind == "static" else table(items, tmp_path / "i.parquet")
        mmbuild("build", recipe, tmp_path / "out", "--source", "stac", "--set", f"source.catalog={made}")
    told = (
        "sample_id",
        "modality",
        "status",
        "reason",
        "sha256",
        "datetime",
        "delta_days",
        "valid_fraction",
        "x0",
        "y0",
    )
    before, after = record_rows(from_earth_engine), record_rows(tmp_path / "out")
    assert [{key: row[key] for key in told} for row in after] == [{key: row[key] for key in told} for row in before]
    stored = [(mine, yours) for mine, yours in zip(after, before, strict=True) if mine["status"] == "stored"]
    assert {mine["modality"] for mine, _ in stored} == {
        "sentinel2_l2a",
        "sentinel2_l1c",
        "copernicus_dem_glo30",
        "esa_worldcover",
        "terramesh_s1rtc",
        "terramesh_dem",
        "terramesh_lulc",
    }
    for mine, yours in stored:
        np.testing.assert_array_equal(stored_chip(tmp_path / "out", mine), stored_chip(from_earth_engine, yours))
