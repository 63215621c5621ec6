"""Every recipe that mmbuild carries is valid, known by name, and can be planned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmbuild.recipe import known_recipes, load_recipe
from mmbuild.registry import load_modalities

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


REFERENCES = [
    "mmearth",
    "mmearth100k",
    "mmearth64",
    "ssl4eo_s12",
    "scale_alibi_small",
    "scale_alibi",
    "scale_alibi_micro",
]


@pytest.mark.parametrize("name", [*REFERENCES, "multitemporal"])
def test_a_reference_recipe_has_at_most_forty_lines_and_asks_earth_engine(name: str) -> None:
    recipe = load_recipe(name)
    assert len(known_recipes()[name].read_text().splitlines()) <= 40
    assert recipe.source.name == "earthengine"
    assert recipe.mode == "fixed"


def test_mmearth_has_the_papers_twelve_modalities_and_46_bands_on_one_lattice() -> None:
    """Table 1 of the paper, which counts Sentinel-2 once and climate as temperature and precipitation."""
    recipe = load_recipe("mmearth")
    bands = {name: modality.band_names for name, modality in recipe.modality_defs.items()}
    table = {
        "Sentinel-2": len(bands["sentinel2_l2a"]),
        "Sentinel-1": len(bands["sentinel1_asc"]) + len(bands["sentinel1_desc"]),
        "Aster DEM": len(bands["aster_gdem"]), "ETH-GCHM": len(bands["canopy_height"]),
        "Dynamic World": len(bands["dynamic_world"]), "ESA World Cover": len(bands["esa_worldcover"]),
        "Biome": len(bands["biome"]), "Ecoregion": len(bands["ecoregion"]),
        "ERA5 temperature": sum("temperature" in band for band in bands["era5"]),
        "ERA5 precipitation": sum("precipitation" in band for band in bands["era5"]),
        "Geolocation": len(bands["geolocation"]), "Date": len(bands["month"]),
    }  # fmt: skip
    assert list(table.values()) == [12, 8, 2, 2, 1, 1, 1, 1, 9, 3, 4, 2]
    assert (len(table), sum(table.values())) == (12, 46)
    assert set(bands["sentinel2_l2a"]) == set(bands["sentinel2_l1c"]) - {"B10"}
    pixels = {name: recipe.shape(name)[2:] for name in recipe.modalities if recipe.gsd(name) is not None}
    assert set(pixels.values()) == {(128, 128)}


def test_mmearth_64_and_100k_are_mmearth_but_for_size_and_number() -> None:
    whole, small, few = (load_recipe(name) for name in ("mmearth", "mmearth64", "mmearth100k"))
    assert (small.grid.size, few.grid.size) == (64, 128)
    assert (small.samples, few.samples) == (whole.samples, 100_000)
    for other in (small, few):
        assert (other.seed, other.sampler, other.anchor, other.modalities) == (
            whole.seed, whole.sampler, whole.anchor, whole.modalities,
        )  # fmt: skip


def test_ssl4eo_has_four_dates_of_three_images_at_264_px() -> None:
    recipe = load_recipe("ssl4eo_s12")
    assert {name: recipe.shape(name) for name in recipe.modalities} == {
        "sentinel1": (4, 2, 264, 264), "sentinel2_l1c": (4, 13, 264, 264), "sentinel2_l2a": (4, 12, 264, 264),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "zoom"), [("scale_alibi_small", 15), ("scale_alibi", 15), ("scale_alibi_micro", 17)])
def test_scale_alibi_has_tiles_of_three_sensors_and_photographs_at_twice_the_resolution(name: str, zoom: int) -> None:
    recipe = load_recipe(name)
    width = 2 * 20037508.342789244 / 2**zoom
    assert {n: recipe.shape(n) for n in recipe.modalities} == {
        "sentinel1": (1, 2, 256, 256), "sentinel2_l2a": (1, 12, 256, 256), "sentinel2_tci": (1, 3, 256, 256),
        "naip": (1, 3, 256, 256), "naip_2x": (1, 3, 512, 512),
    }  # fmt: skip
    assert recipe.gsd("naip") == pytest.approx(width / 256)
    assert recipe.gsd("naip_2x") == pytest.approx(width / 512)


def test_multitemporal_has_twelve_composites_with_counts() -> None:
    recipe = load_recipe("multitemporal")
    assert {name: recipe.shape(name)[:2] for name in recipe.modalities if recipe.steps_of(name) > 1} == {
        "sentinel2_l2a": (12, 12), "sentinel2_l2a_count": (12, 1), "sentinel1": (12, 2), "sentinel1_count": (12, 1),
    }  # fmt: skip


def test_the_mmearth_modalities_are_known() -> None:
    named = "sentinel2_l1c sentinel2_l2a sentinel1_asc sentinel1_desc aster_gdem copernicus_dem canopy_height"
    named += " dynamic_world esa_worldcover era5 biome ecoregion geolocation month naip"
    assert set(named.split()) <= load_modalities().keys()
