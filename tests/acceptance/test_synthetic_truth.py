"""Issue 2: on the synthetic Earth every stored chip equals its closed-form field, wherever UTM grids are awkward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmbuild.sandbox.earth import Earth
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine.session import connect
from tests.earth_checks import (
    ONE_IMAGE,
    PLACES,
    TruthCorpus,
    check_climate,
    check_close,
    check_exact,
    check_in_place,
    check_mode,
    write_recipe,
)
from tests.earth_truth import projection
from tests.truth import centres, moved

SIZE = 48
# Where a year's composite is made again from every scene, which takes some seconds each.
COMPOSED = ("south", "seam", "across_the_antimeridian")


@pytest.fixture(scope="module")
def corpus(mmbuild: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> TruthCorpus:
    """All places, built by the command line."""
    folder, earth = tmp_path_factory.mktemp("truth"), Earth()
    recipe = write_recipe(folder, earth, list(PLACES), size=SIZE)
    mmbuild("build", recipe, folder / "out")
    connect(SourceSpec(name="sandbox"))
    return TruthCorpus(out=folder / "out", earth=earth)


def is_stored(corpus: TruthCorpus, place: str, name: str) -> bool:
    """Whether the place has the modality; where it has not, the record says why."""
    row = corpus.rows[place, name]
    assert row["status"] == "stored" or row["reason"]
    return bool(row["status"] == "stored")


@pytest.mark.parametrize("name", ONE_IMAGE)
@pytest.mark.parametrize("place", PLACES)
def test_a_stored_chip_is_its_native_pixels_resampled_exactly(corpus: TruthCorpus, place: str, name: str) -> None:
    if is_stored(corpus, place, name):
        check_exact(corpus, (place, name))


@pytest.mark.parametrize("name", [n for n in ONE_IMAGE if n != "esa_worldcover"])
@pytest.mark.parametrize("place", PLACES)
def test_a_bilinear_chip_is_as_near_to_its_field_as_curvature_allows(
    corpus: TruthCorpus, place: str, name: str
) -> None:
    if is_stored(corpus, place, name):
        check_close(corpus, (place, name))


@pytest.mark.parametrize("place", PLACES)
def test_no_band_lies_a_tenth_of_a_pixel_off_its_field(corpus: TruthCorpus, place: str) -> None:
    names = [n for n in ONE_IMAGE if n != "esa_worldcover" and is_stored(corpus, place, n)]
    assert sum(check_in_place(corpus, (place, name)) for name in names) >= 20


@pytest.mark.parametrize("place", COMPOSED)
def test_a_composite_holds_the_class_seen_most_often_in_the_year(corpus: TruthCorpus, place: str) -> None:
    check_mode(corpus, (place, "dynamic_world"))


@pytest.mark.parametrize("place", PLACES)
def test_climate_is_that_of_the_months_before_the_scene(corpus: TruthCorpus, place: str) -> None:
    if is_stored(corpus, place, "era5"):
        check_climate(corpus, (place, "era5"))


# -- that the places are what they are here for -------------------------------------------------------------------


def test_every_place_has_optical_images_and_heights_and_every_modality_is_somewhere(corpus: TruthCorpus) -> None:
    stored = {chip for chip, row in corpus.rows.items() if row["status"] == "stored"}
    for place in PLACES:
        for name in ("sentinel2_l2a", "sentinel2_l1c", "sentinel2_scl", "cloud_score_plus", "aster_gdem"):
            assert (place, name) in stored
        assert {(place, "sentinel1_asc"), (place, "sentinel1_desc")} & stored
    assert {name for _, name in stored} >= {*ONE_IMAGE, "dynamic_world", "era5"}
    assert len(stored) > 0.8 * len(corpus.rows)


def test_the_places_lie_in_both_hemispheres_and_on_both_sides_of_the_antimeridian(corpus: TruthCorpus) -> None:
    zones = {place: corpus.rows[place, "sentinel2_l2a"]["epsg"] for place in PLACES}
    assert zones == {
        "north": 32632, "south": 32722, "seam": 32633, "west_of_the_antimeridian": 32660,
        "across_the_antimeridian": 32660, "east_of_the_antimeridian": 32601, "fiji": 32701, "svalbard": 32633,
    }  # fmt: skip
    lon, _ = moved(32660, 4326, *centres(corpus.rows["across_the_antimeridian", "sentinel2_l2a"]))
    assert (lon > 179.9).any()
    assert (lon < -179.9).any()


def test_the_scene_at_the_seam_is_of_the_other_zone(corpus: TruthCorpus) -> None:
    row = corpus.rows["seam", "sentinel2_l2a"]
    assert row["epsg"] == 32633
    assert projection(row["scene_ids"][0], "B2")[0] == 32632


def test_elsewhere_the_scene_is_of_the_samples_own_zone(corpus: TruthCorpus) -> None:
    for place in PLACES.keys() - {"seam"}:
        row = corpus.rows[place, "sentinel2_l2a"]
        assert projection(row["scene_ids"][0], "B2")[0] == row["epsg"], place


def test_classes_meet_and_pixels_are_masked_somewhere(corpus: TruthCorpus) -> None:
    """Nearest chips of one class, or bilinear chips without an edge, would show little."""
    mixed = [p for p in PLACES if len(np.unique(corpus.chip((p, "esa_worldcover")))) > 1]
    assert len(mixed) >= 5
    partly = [row for row in corpus.rows.values() if row["modality"] == "canopy_height" and row["valid_fraction"]]
    assert any(0.0 < row["valid_fraction"] < 1.0 for row in partly)
