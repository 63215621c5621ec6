"""The rules of choosing, on scene tables written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mmbuild import choose
from mmbuild.choose import Sample, Scene
from mmbuild.recipe import Recipe
from tests.corpora import small_recipe

ANCHOR_DAY = datetime(2019, 6, 15, 10, 0, tzinfo=UTC)


def sample(**changes: object) -> Sample:
    facts: dict[str, object] = {
        "slot": 0, "alternate": 0, "sample_id": "000000", "lon": 9.0, "lat": 48.0, "epsg": 32632,
        "x0": 499_980.0, "y0": 5_400_000.0, "gsd": 10.0, "size": 16, "date": None, "anchor_year": 2019,
    }  # fmt: skip
    return Sample(**(facts | changes))  # type: ignore[arg-type]


def scene(modality: str, index: str, when: datetime | None = ANCHOR_DAY, **changes: object) -> Scene:
    facts: dict[str, object] = {"slot": 0, "modality": modality, "scene_id": f"C/{index}", "time": when, "epsg": 32632}
    return Scene(**(facts | changes))  # type: ignore[arg-type]


def recipe(*overrides: str) -> Recipe:
    return small_recipe("anchor.modality=sentinel2_l2a", *overrides)


def days(count: float) -> datetime:
    return ANCHOR_DAY + timedelta(days=count)


def test_the_least_cloudy_scene_comes_first() -> None:
    table = [scene("sentinel2_l2a", name, cloud=cloud) for name, cloud in [("a", 9.0), ("b", 1.0), ("c", 5.0)]]
    ranked = choose.rank_anchors(sample(), table, recipe("anchor.pick=least_cloudy"))
    assert [s.scene_id for s in ranked] == ["C/b", "C/c", "C/a"]


def test_the_nearest_scene_to_the_samples_own_date_comes_first() -> None:
    table = [scene("sentinel2_l2a", name, days(offset)) for name, offset in [("a", -9), ("b", 2), ("c", -3)]]
    rules = recipe()
    rules = rules.model_copy(update={"anchor": rules.anchor.model_copy(update={"pick": "nearest", "max_days": 20.0})})
    ranked = choose.rank_anchors(sample(date=ANCHOR_DAY), table, rules)
    assert [s.scene_id for s in ranked] == ["C/b", "C/c", "C/a"]


def test_a_random_pick_is_a_function_of_seed_slot_and_alternate() -> None:
    table = [scene("sentinel2_l2a", f"s{i:02d}") for i in range(20)]
    first = choose.rank_anchors(sample(), table, recipe("anchor.pick=random"))
    again = choose.rank_anchors(sample(), list(reversed(table)), recipe("anchor.pick=random"))
    other = choose.rank_anchors(sample(alternate=1), table, recipe("anchor.pick=random"))
    assert first == again
    assert [s.scene_id for s in first] != [s.scene_id for s in other]


def test_scenes_on_the_samples_own_crs_are_preferred() -> None:
    table = [scene("sentinel2_l2a", "near", cloud=0.0, epsg=32631), scene("sentinel2_l2a", "own", cloud=9.0)]
    ranked = choose.rank_anchors(sample(), table, recipe("anchor.pick=least_cloudy"))
    assert ranked[0].scene_id == "C/own"


def test_scenes_above_the_cloud_limit_or_outside_the_window_are_left_out() -> None:
    table = [
        scene("sentinel2_l2a", "cloudy", cloud=99.0),
        scene("sentinel2_l2a", "late", datetime(2020, 1, 1, tzinfo=UTC)),
    ]
    assert choose.rank_anchors(sample(), table, recipe("anchor.max_cloud=50")) == []


def test_the_last_moment_of_the_year_belongs_to_the_window() -> None:
    start, end = choose.anchor_window(sample(), recipe().anchor)
    assert start == datetime(2019, 1, 1, tzinfo=UTC)
    assert end == datetime(2020, 1, 1, tzinfo=UTC)


def test_accept_takes_the_first_ranked_scene_that_is_clear_enough() -> None:
    ranked = [scene("sentinel2_l2a", name) for name in "abc"]
    assert choose.accept(ranked, {"C/a": 0.2, "C/b": 0.8, "C/c": 1.0}, 0.7) is ranked[1]
    assert choose.accept(ranked, {"C/a": 0.2, "C/b": None}, 0.7) is None
    assert choose.accept(ranked, {}, None) is ranked[0]


@pytest.mark.parametrize(
    ("ranked", "clear", "status", "reason"),
    [
        ([], {}, "no_data", "no sentinel2_l2a scene covers the sample with at most 40 % cloud"),
        (
            ["a", "b"],
            {"C/a": 0.25, "C/b": 0.5},
            "rejected",
            "2 of 2 sentinel2_l2a scenes screened, the clearest has 0.50",
        ),
    ],
)
def test_a_sample_without_an_anchor_says_why(
    ranked: list[str], clear: dict[str, float | None], status: str, reason: str
) -> None:
    scenes = [scene("sentinel2_l2a", name) for name in ranked]
    rules = recipe("anchor.max_cloud=40", "anchor.min_clear=0.9").anchor
    found = choose.why_no_anchor(scenes, clear, rules)
    assert found[0] == status
    assert found[1].startswith(reason)


def test_the_nearest_follower_is_taken_and_its_distance_kept() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor, scene("sentinel1_asc", "far", days(-5)), scene("sentinel1_asc", "near", days(3))]
    choice = choose.choose_all(sample(), anchor, table, recipe())["sentinel1_asc"]
    assert choice.scenes[0].scene_id == "C/near"
    assert choice.delta_days == pytest.approx(3.0)


def test_a_follower_too_far_away_is_no_data_with_the_distance_in_the_reason() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor, scene("sentinel1_asc", "far", days(30))]
    choice = choose.choose_all(sample(), anchor, table, recipe("modalities.sentinel1_asc.max_days=12"))["sentinel1_asc"]
    assert choice.status == "no_data"
    assert choice.reason == "the nearest sentinel1_asc scene is 30.0 days away, at most 12 are allowed"


def test_a_companion_is_the_image_of_the_hosts_scene() -> None:
    anchor = scene("sentinel2_l2a", "20190615T1")
    table = [anchor, scene("sentinel2_scl", "20190610T1"), scene("sentinel2_scl", "20190615T1")]
    assert choose.choose_all(sample(), anchor, table, recipe())["sentinel2_scl"].scenes[0].scene_id == "C/20190615T1"


def test_the_product_that_was_not_drawn_is_not_asked() -> None:
    rules = small_recipe("anchor.one_of=[sentinel2_l1c, sentinel2_l2a]")
    anchor = scene("sentinel2_l1c", "a")
    choices = choose.choose_all(sample(), anchor, [anchor], rules)
    assert choices["sentinel2_l2a"].status == "not_asked"
    assert choices["sentinel2_scl"].status == "not_asked"
    assert choices["sentinel2_l1c"].scenes == (anchor,)


def test_a_yearly_composite_names_its_window_and_images() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor] + [scene("dynamic_world", str(m), datetime(2019, m, 1, tzinfo=UTC)) for m in (1, 7, 12)]
    table.append(scene("dynamic_world", "next", datetime(2020, 1, 1, tzinfo=UTC)))
    choice = choose.choose_all(sample(), anchor, table, recipe())["dynamic_world"]
    assert choice.window == (datetime(2019, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC))
    assert [s.scene_id for s in choice.scenes] == ["C/1", "C/7", "C/12"]


def test_every_modality_of_the_recipe_gets_a_choice_in_recipe_order() -> None:
    rules = recipe()
    assert list(choose.choose_all(sample(), None, [], rules)) == list(rules.modalities)
