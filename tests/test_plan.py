"""Where samples lie, as the planner has it: what grows, what is refused, and what a sampler tells of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmbuild.errors import UserError
from mmbuild.plan import locate, survey
from mmbuild.recipe import Recipe, load_recipe
from tests.places import FOUR


def recipe(folder: Path, *overrides: str) -> Recipe:
    FOUR.to_file(folder / "eco.gpkg")
    written = {
        "name": "places",
        "title": "Places alone",
        "licence": "CC-BY-4.0",
        "samples": 35,
        "alternates": 1,
        "sampler": {"kind": "biome", "ecoregions": "eco.gpkg"},
        "grid": {"kind": "utm", "size": 16},
        "anchor": {"modality": "sentinel2_l2a", "years": [2019, 2020]},
        "modalities": {"sentinel2_l2a": None},
    }
    (folder / "places.yaml").write_text(yaml.safe_dump(written))
    return load_recipe(folder / "places.yaml", overrides)


def test_more_places_go_on_where_the_first_ended(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    first, rest, whole = locate(asked, stop=20), locate(asked, start=20, stop=35), locate(asked, stop=35)
    assert [*first.geometry, *rest.geometry] == [*whole.geometry]


def test_places_of_the_floor_allocation_are_fewer_and_the_same_when_asked_again(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "sampler.allocation=floor")
    assert locate(asked, stop=35)["slot"].nunique() == 33
    assert locate(asked, start=33, stop=35).empty


def test_a_corpus_of_the_floor_allocation_does_not_grow(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        locate(recipe(tmp_path, "sampler.allocation=floor"), start=33, stop=70)
    assert str(error.value) == (
        "sampler: the places of 70 samples are 68 others than the 33 that are here; "
        "published allocation and seeds follow from the number of samples: build into another folder"
    )


def test_the_survey_says_how_many_places_each_stratum_gets(tmp_path: Path) -> None:
    told = survey(recipe(tmp_path), samples=35)
    assert (told.places, told.strata) == (35, [("biome 1", 18), ("biome 4", 17)])
