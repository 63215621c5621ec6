"""Every recipe that mmbuild carries is valid, known by name, and can be planned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmbuild.modality import load_modalities
from mmbuild.recipe import known_recipes, load_recipe

REPO = Path(__file__).parents[1]
RECIPES = sorted((REPO / "recipes").glob("*.yaml"))


def mmbuild(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from mmbuild.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=REPO, check=False
    )


def test_there_are_recipes() -> None:
    assert {"tiny", "real_mini"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.digest == load_recipe(path.stem).digest
    assert known_recipes()[path.stem].samefile(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_passes_validate_on_the_command_line(path: Path) -> None:
    done = mmbuild("validate", path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_can_be_planned(path: Path) -> None:
    done = mmbuild("plan", path, "--samples", 4)
    assert done.returncode == 0, done.stderr
    assert "request" in done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_samples_do_not_change_the_digest_and_the_seed_does(path: Path) -> None:
    digest = load_recipe(path).digest
    assert load_recipe(path, ["samples=7"]).digest == digest
    assert load_recipe(path, ["seed=987654"]).digest != digest


def test_the_tiny_recipe_asks_for_seven_or_more_modalities() -> None:
    assert len(load_recipe("tiny").modalities) >= 7


def test_the_mmearth_modalities_are_known() -> None:
    named = "sentinel2_l1c sentinel2_l2a sentinel1_asc sentinel1_desc aster_gdem copernicus_dem canopy_height"
    named += " dynamic_world esa_worldcover era5 biome ecoregion geolocation month naip"
    assert set(named.split()) <= load_modalities().keys()
