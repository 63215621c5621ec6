"""Composites of a time step, and what tells clear ground: every pixel against the scenes asked for one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mmbuild import anchors, choose
from mmbuild.choose import Anchored, Choice, Sample, Scene
from mmbuild.errors import UserError
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.registry import load_modalities
from mmbuild.sources import Ask, SourceSpec
from mmbuild.sources.earthengine import EarthEngine
from tests.test_choose import sample as at
from tests.test_choose import scene

MODALITIES = load_modalities()
OPTICAL, COUNT, CLASSES, SCORES = "sentinel2_l2a", "sentinel2_l2a_count", "sentinel2_scl", "cloud_score_plus"
CLEAR = [4, 5, 6, 7, 11]
WINDOW = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 3, 1, tzinfo=UTC))


def source(*, clear_by: str | None = None) -> EarthEngine:
    known = {name: m.judged_by(clear_by) for name, m in MODALITIES.items()}
    return EarthEngine(SourceSpec(name="sandbox"), known, dict.fromkeys(known, 10.0))


@pytest.fixture(scope="module")
def place() -> Sample:
    from mmbuild.grid import utm_grid

    box = utm_grid(9.0, 48.5, gsd=10, size=24)
    facts = {"x0": box.affine.c, "y0": box.affine.f, "epsg": 32632, "size": 24, "lon": 9.0, "lat": 48.5}
    return at(**facts, anchor_year=2020)


@pytest.fixture(scope="module")
def cloudy(place: Sample) -> list[Scene]:
    """Scenes whose ground is in part clear, in part not, and one that is all clear and one that is all cloud."""
    found = source().search([place], {0: [Ask(modality=MODALITIES[OPTICAL], window=WINDOW)]})
    found.sort(key=lambda scene: scene.scene_id)
    fractions = dict(zip([s.scene_id for s in found], source().screen([(place, s) for s in found]), strict=True))
    partly = [s for s in found if 0.02 < (fractions[s.scene_id] or 0) < 0.98][:2]
    whole = [next(s for s in found if fractions[s.scene_id] == full) for full in (0.0, 1.0)]
    assert partly, "no scene of the synthetic Earth is partly cloudy here"
    return [*partly, *whole]


def read(place: Sample, name: str, scenes: list[Scene], clear_by: str | None = None, **how: str) -> np.ndarray:
    chip = source(clear_by=clear_by).read(place, {"": Choice(modality=name, scenes=tuple(scenes), **how)})  # type: ignore[arg-type]
    return chip[""]


def one_by_one(place: Sample, scenes: list[Scene], judge: str = CLASSES) -> np.ndarray:
    """(scene, band, y, x) with NaN where a scene is not valid, or its ground is not clear."""
    values = []
    for one in scenes:
        pixels = read(place, OPTICAL, [one]).astype(float)
        told = read(place, judge, [_of(one, judge)])
        clear = np.isin(told[0], CLEAR) if judge == CLASSES else told[1] >= 0.6
        values.append(np.where((pixels == 65535) | ~clear, np.nan, pixels))
    return np.stack(values)


def _of(one: Scene, judge: str) -> Scene:
    """The image of another product that belongs to a scene."""
    collection = MODALITIES[judge].sources["earthengine"]["collection"]
    return Scene(slot=0, modality=judge, scene_id=f"{collection}/{choose.scene_index(one)}", time=one.time)


@pytest.mark.parametrize("rule", ["median", "mean"])
def test_a_composite_is_made_of_clear_pixels_alone(place: Sample, cloudy: list[Scene], rule: str) -> None:
    stack = one_by_one(place, cloudy)
    made = read(place, OPTICAL, cloudy, reduce=rule)
    seen = ~np.isnan(stack).all(axis=0)
    assert 0 < np.isnan(stack).mean() < 1, "nothing was masked, so nothing is proved"
    assert np.array_equal(made != 65535, seen)
    expected = (np.nanmedian if rule == "median" else np.nanmean)(stack[:, seen], axis=0)
    # Values are interpolated before they are combined; one by one they had been rounded to whole numbers.
    assert np.abs(made[seen] - expected).max() <= 1.0


def test_the_count_is_that_of_the_observations_behind_the_composite(place: Sample, cloudy: list[Scene]) -> None:
    stack = one_by_one(place, cloudy)[:, 3]
    made = read(place, COUNT, cloudy, reduce="count")
    assert np.array_equal(made[0], (~np.isnan(stack)).sum(axis=0))
    assert len(np.unique(made)) > 1


def test_a_pixel_that_no_scene_saw_clearly_is_nodata_with_a_count_of_zero(place: Sample, cloudy: list[Scene]) -> None:
    cloud = [cloudy[-2]]
    assert (read(place, OPTICAL, cloud, reduce="median") == 65535).all()
    assert (read(place, COUNT, cloud, reduce="count") == 0).all()


def test_a_recipe_may_have_clear_ground_told_by_another_product(place: Sample, cloudy: list[Scene]) -> None:
    by_score = np.isnan(one_by_one(place, cloudy, SCORES)[:, 3])
    made = read(place, COUNT, cloudy, SCORES, reduce="count")
    # At the edge of a cloud the score, made at 10 m, is interpolated for storing and not for judging.
    assert np.mean(made[0] != (~by_score).sum(axis=0)) < 0.1
    shares = source(clear_by=SCORES).screen([(place, one) for one in cloudy])
    assert shares == pytest.approx([float(np.mean(~masked)) for masked in by_score], abs=0.1)
    rule = MODALITIES[OPTICAL].judged_by(SCORES).clear
    assert rule is not None
    assert (rule.modality, rule.band, rule.at_least) == (SCORES, "cs_cdf", 0.6)


def test_an_image_without_cloud_probabilities_screens_as_unknown(place: Sample) -> None:
    judge = source(clear_by="sentinel2_cloudprob")
    window = (datetime(2019, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC))
    probability = MODALITIES["sentinel2_cloudprob"]
    with_bands = judge.search([place], {0: [Ask(modality=probability, window=window)]})
    has = {s.scene_id for s in with_bands if "MSK_CLDPRB" in (s.bands or ())}
    optical = [Scene(slot=0, modality=OPTICAL, scene_id=s.scene_id, time=s.time) for s in with_bands]
    lacking = [s for s in optical if s.scene_id not in has][:2]
    having = [s for s in optical if s.scene_id in has][:2]
    assert lacking, "every image has the band, so nothing is proved"
    assert judge.screen([(place, s) for s in lacking]) == [None] * len(lacking)
    assert all(share is not None for share in judge.screen([(place, s) for s in having]))


# -- which scenes -------------------------------------------------------------------------------------------------


def monthly(*overrides: str) -> Recipe:
    return load_recipe("multitemporal", overrides)


def composite(table: list[Scene], rules: Recipe, time: int = 5) -> dict[str, Choice]:
    step = anchors.steps(at(), rules)[time]
    return choose.choose_all(at(), Anchored(step=step, status="stored"), table, rules)


def test_a_composite_takes_the_scenes_of_its_month_and_the_least_cloudy_where_there_are_too_many() -> None:
    june = datetime(2019, 6, 1, 10, tzinfo=UTC)
    table = [scene(OPTICAL, f"{day:02}", june + timedelta(days=day), cloud=float(day % 7)) for day in range(0, 40, 3)]
    choice = composite(table, monthly())[OPTICAL]
    assert choice.window == (datetime(2019, 6, 1, tzinfo=UTC), datetime(2019, 7, 1, tzinfo=UTC))
    assert [s.cloud for s in choice.scenes] == [0.0, 3.0, 2.0, 1.0, 0.0, 3.0]
    assert [s.time for s in choice.scenes] == sorted(s.time for s in choice.scenes if s.time)
    assert choice.reduce == "median"


def test_a_pass_cut_into_scenes_counts_once_and_on_the_samples_own_crs() -> None:
    when = datetime(2019, 6, 10, 10, tzinfo=UTC)
    table = [
        scene(OPTICAL, "other zone", when, epsg=32631),
        scene(OPTICAL, "own zone", when + timedelta(seconds=14)),
        scene(OPTICAL, "next pass", when + timedelta(days=5)),
    ]
    assert [s.scene_id for s in composite(table, monthly())[OPTICAL].scenes] == ["C/own zone", "C/next pass"]


def test_a_count_goes_with_its_composite() -> None:
    table = [scene(OPTICAL, "a", datetime(2019, 6, 10, 10, tzinfo=UTC))]
    choices = composite(table, monthly())
    assert choices[COUNT].scenes == choices[OPTICAL].scenes
    assert choices[COUNT].reduce == "count"
    assert composite([], monthly())[COUNT].status == "not_asked"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["times=null"], "modalities.sentinel2_l2a.composite: 'median' -> needs the time steps to make it of"),
        (["modalities.esa_worldcover.composite=mean"], "esa_worldcover has no scenes of its own to make one of"),
        (["modalities.sentinel1.composite=null", "modalities.sentinel1.max_scenes=null"], "counts the observations"),
        (["modalities.sentinel1.composite=null"], "limits a composite, and there is none"),
        (["times.at_least=13"], "times.at_least: 13 -> there are 12 steps; lower it or remove it"),
        (["anchor.clear_by=esa_worldcover"], "tells nothing of clear ground of sentinel2_l2a"),
        (["times={kind: seasons, dates: [2020-06-01, 2020-01-01], max_days: 9}"], "must rise without repeats"),
        (["times={kind: seasons, dates: [2020-06-01, 2020-13-01], max_days: 9}"], "times.dates"),
        (["times={kind: seasons, dates: [2020-01-01, 2020-06-01], max_days: 9}"], "the dates of times say which years"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_fix(settings: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        monthly(*settings)
    assert text in str(caught.value)
