"""The rules of choosing, on scene tables written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from mmbuild import anchors, choose
from mmbuild.choose import Anchored, Choice, Sample, Scene
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


def rank(table: list[Scene], rules: Recipe, where: Sample | None = None) -> list[Scene]:
    """Candidate anchors of the only step of a sample."""
    here = where or sample()
    return anchors.rank_anchors(here, anchors.steps(here, rules)[0], table, rules)


def all_choices(anchor: Scene | None, table: list[Scene], rules: Recipe) -> dict[str, Choice]:
    """The choices of the only step of a sample."""
    return choose.choose_all(sample(), Anchored(step=anchors.steps(sample(), rules)[0], scene=anchor), table, rules)


def test_the_least_cloudy_scene_comes_first() -> None:
    table = [scene("sentinel2_l2a", name, cloud=cloud) for name, cloud in [("a", 9.0), ("b", 1.0), ("c", 5.0)]]
    ranked = rank(table, recipe("anchor.pick=least_cloudy"))
    assert [s.scene_id for s in ranked] == ["C/b", "C/c", "C/a"]


def test_the_nearest_scene_to_the_samples_own_date_comes_first() -> None:
    table = [scene("sentinel2_l2a", name, days(offset)) for name, offset in [("a", -9), ("b", 2), ("c", -3)]]
    rules = recipe()
    rules = rules.model_copy(update={"anchor": rules.anchor.model_copy(update={"pick": "nearest", "max_days": 20.0})})
    ranked = rank(table, rules, sample(date=ANCHOR_DAY))
    assert [s.scene_id for s in ranked] == ["C/b", "C/c", "C/a"]


def test_a_random_pick_is_a_function_of_seed_slot_and_alternate() -> None:
    table = [scene("sentinel2_l2a", f"s{i:02d}") for i in range(20)]
    first = rank(table, recipe("anchor.pick=random"))
    again = rank(list(reversed(table)), recipe("anchor.pick=random"))
    other = rank(table, recipe("anchor.pick=random"), sample(alternate=1))
    assert first == again
    assert [s.scene_id for s in first] != [s.scene_id for s in other]


def test_scenes_on_the_samples_own_crs_are_preferred() -> None:
    table = [scene("sentinel2_l2a", "near", cloud=0.0, epsg=32631), scene("sentinel2_l2a", "own", cloud=9.0)]
    ranked = rank(table, recipe("anchor.pick=least_cloudy"))
    assert ranked[0].scene_id == "C/own"


def test_scenes_above_the_cloud_limit_or_outside_the_window_are_left_out() -> None:
    table = [
        scene("sentinel2_l2a", "cloudy", cloud=99.0),
        scene("sentinel2_l2a", "late", datetime(2020, 1, 1, tzinfo=UTC)),
    ]
    assert rank(table, recipe("anchor.max_cloud=50")) == []


def test_the_last_moment_of_the_year_belongs_to_the_window() -> None:
    start, end = anchors.anchor_window(sample(), recipe().anchor)
    assert start == datetime(2019, 1, 1, tzinfo=UTC)
    assert end == datetime(2020, 1, 1, tzinfo=UTC)


def test_accept_takes_the_first_ranked_scene_that_is_clear_enough() -> None:
    ranked = [scene("sentinel2_l2a", name) for name in "abc"]
    rules = recipe("anchor.min_clear=0.7").anchor
    assert anchors.accept(ranked, {"C/a": 0.2, "C/b": 0.8, "C/c": 1.0}, rules) is ranked[1]
    assert anchors.accept(ranked, {"C/a": 0.2, "C/b": None}, rules) is None
    assert anchors.accept(ranked, {}, rules.model_copy(update={"min_clear": None})) is ranked[0]


def test_the_least_cloudy_of_the_screened_scenes_is_the_clearest_on_the_samples_own_ground() -> None:
    ranked = [scene("sentinel2_l2a", name) for name in "abc"]
    rules = recipe("anchor.min_clear=0.7", "anchor.pick=least_cloudy").anchor
    assert anchors.accept(ranked, {"C/a": 0.75, "C/b": 0.9}, rules) is ranked[1]
    assert anchors.accept(ranked, {"C/a": 0.9, "C/b": 0.9}, rules) is ranked[0]
    assert anchors.accept(ranked, {"C/a": 0.1, "C/b": 0.6}, rules) is None


def test_the_latest_scene_of_the_window_comes_first() -> None:
    table = [scene("sentinel2_l2a", name, days(offset)) for name, offset in [("a", -9), ("b", 2), ("c", -3)]]
    assert [s.scene_id for s in rank(table, recipe("anchor.pick=latest"))] == ["C/b", "C/c", "C/a"]


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
    found = anchors.why_no_anchor(scenes, clear, rules)
    assert found[0] == status
    assert found[1].startswith(reason)


def test_the_nearest_follower_is_taken_and_its_distance_kept() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor, scene("sentinel1_asc", "far", days(-5)), scene("sentinel1_asc", "near", days(3))]
    choice = all_choices(anchor, table, recipe())["sentinel1_asc"]
    assert choice.scenes[0].scene_id == "C/near"
    assert choice.delta_days == pytest.approx(3.0)


def test_a_follower_too_far_away_is_no_data_with_the_distance_in_the_reason() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor, scene("sentinel1_asc", "far", days(30))]
    choice = all_choices(anchor, table, recipe("modalities.sentinel1_asc.max_days=12"))["sentinel1_asc"]
    assert choice.status == "no_data"
    assert choice.reason == "the nearest sentinel1_asc scene is 30.0 days away, at most 12 are allowed"


def test_a_companion_is_the_image_of_the_hosts_scene() -> None:
    anchor = scene("sentinel2_l2a", "20190615T1")
    table = [anchor, scene("sentinel2_scl", "20190610T1"), scene("sentinel2_scl", "20190615T1")]
    assert all_choices(anchor, table, recipe())["sentinel2_scl"].scenes[0].scene_id == "C/20190615T1"


def test_the_product_that_was_not_drawn_is_not_asked() -> None:
    rules = small_recipe("anchor.one_of=[sentinel2_l1c, sentinel2_l2a]")
    anchor = scene("sentinel2_l1c", "a")
    choices = all_choices(anchor, [anchor], rules)
    assert choices["sentinel2_l2a"].status == "not_asked"
    assert choices["sentinel2_scl"].status == "not_asked"
    assert choices["sentinel2_l1c"].scenes == (anchor,)


def test_a_yearly_composite_names_its_window_and_images() -> None:
    anchor = scene("sentinel2_l2a", "anchor")
    table = [anchor] + [scene("dynamic_world", str(m), datetime(2019, m, 1, tzinfo=UTC)) for m in (1, 7, 12)]
    table.append(scene("dynamic_world", "next", datetime(2020, 1, 1, tzinfo=UTC)))
    choice = all_choices(anchor, table, recipe())["dynamic_world"]
    assert choice.window == (datetime(2019, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC))
    assert [s.scene_id for s in choice.scenes] == ["C/1", "C/7", "C/12"]


def test_every_modality_of_the_recipe_gets_a_choice_in_recipe_order() -> None:
    rules = recipe()
    assert list(all_choices(None, [], rules)) == list(rules.modalities)


# -- several time steps -------------------------------------------------------------------------------------------

SEASONS = "times={kind: seasons, dates: [2018-12-21, 2019-03-20, 2019-06-21, 2019-09-22], max_days: 15}"


def seasons(*overrides: str) -> Recipe:
    return recipe("anchor.years=[]", SEASONS, *overrides)


def test_the_dates_of_a_sample_go_back_together_by_whole_days_that_differ_between_samples() -> None:
    rules = seasons()
    gaps, phases = set(), set()
    for slot in range(300):
        own = anchors.steps(sample(slot=slot), rules)
        targets = [step.target for step in own]
        assert all(t is not None and (t.hour, t.minute) == (0, 0) for t in targets)
        gaps.add(tuple((b - a).days for a, b in pairwise(targets)))  # type: ignore[operator]
        phases.add((datetime(2019, 9, 22, tzinfo=UTC) - targets[-1]).days)  # type: ignore[operator]
        assert all(step.window == (step.target - timedelta(days=15), step.target + timedelta(days=15)) for step in own)  # type: ignore[operator]
    assert gaps == {(89, 93, 93)}
    assert min(phases) >= 0
    assert max(phases) <= 364
    assert len(phases) > 150, "a random phase for every sample"


def test_months_follow_one_another_from_january_of_the_samples_year() -> None:
    own = anchors.steps(sample(), recipe("times={kind: months, count: 14}"))
    assert [step.window[0] for step in own[:2]] == [datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 2, 1, tzinfo=UTC)]
    assert own[12].window == (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC))
    assert all(a.window[1] == b.window[0] for a, b in pairwise(own))


def test_every_step_has_its_own_scenes_dates_and_distances() -> None:
    rules = seasons("times.phase_days=0", "modalities.sentinel1_asc.max_days=15")
    own = anchors.steps(sample(), rules)
    optical = [scene("sentinel2_l2a", f"o{i}", step.target + timedelta(days=i)) for i, step in enumerate(own)]  # type: ignore[operator]
    radar = [scene("sentinel1_asc", f"r{i}", s.time + timedelta(days=2)) for i, s in enumerate(optical) if i != 2]  # type: ignore[operator]
    found = choose.choose_steps(
        sample(),
        [Anchored(step=s, scene=o, status="stored") for s, o in zip(own, optical, strict=True)],
        [*optical, *radar],
        rules,
    )
    assert [found[f"sentinel2_l2a.{i}"].delta_days for i in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert [found[f"sentinel1_asc.{i}"].delta_days for i in (0, 1, 3)] == [2.0] * 3
    assert found["sentinel1_asc.2"].status == "no_data"
    assert [choice.time for key, choice in found.items() if key.startswith("sentinel2_l2a.")] == [0, 1, 2, 3]
    assert "esa_worldcover" in found, "what is static has one step"


def test_what_has_one_step_goes_by_the_first_step_with_an_anchor() -> None:
    rules = seasons("times.phase_days=0")
    own = anchors.steps(sample(), rules)
    second = scene("sentinel2_l2a", "o", own[1].target)
    table = [second, *(scene("dynamic_world", str(y), datetime(y, 6, 1, tzinfo=UTC)) for y in (2018, 2019))]
    anchored = [Anchored(step=s, reason="cloudy") for s in own]
    anchored[1] = Anchored(step=own[1], scene=second, status="stored")
    found = choose.choose_steps(sample(), anchored, table, rules)
    assert [s.scene_id for s in found["dynamic_world"].scenes] == ["C/2019"]
    assert found["sentinel2_l2a.0"].reason == "cloudy"
