"""Faithful mode: what it changes in a recipe, how it is told, and the published choices that it repeats."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmbuild import anchors, choose
from mmbuild.build import build_corpus
from mmbuild.choose import Anchored, Sample, Scene
from mmbuild.cli.plans import print_mode
from mmbuild.errors import UserError
from mmbuild.plan import locate, samples_of
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.recipe.quirks import known_quirks
from mmbuild.sources.earthengine import _reduce_months
from mmbuild.sources.earthengine.blocks import block_of
from tests.test_choose import sample as at
from tests.test_choose import scene
from tests.test_recipes import RECIPES, mmbuild

WITH_QUIRKS = [path.stem for path in RECIPES if load_recipe(path).quirks]
FAITHFUL = "mode=faithful"
L2A, L1C = "sentinel2_l2a", "sentinel2_l1c"
# Tiles of the published corpus: latitude, longitude, year and level of their image (MMEarth, data_100k tile_info).
PUBLISHED = [(-14.499441524746077, -56.98355999998649, 2018, L1C), (38.79440357691547, -121.77260250000097, 2017, L1C)]


def test_the_three_reference_corpora_have_quirks() -> None:
    assert {"mmearth", "ssl4eo_s12", "scale_alibi_small"} <= set(WITH_QUIRKS)


def test_every_quirk_has_a_sentence_and_one_way_to_come_about_and_some_recipe_has_it() -> None:
    used = {name for recipe in WITH_QUIRKS for name in load_recipe(recipe).quirks}
    assert set(known_quirks()) == used
    for quirk in known_quirks().values():
        assert quirk.about.endswith(".")
        assert len(quirk.about) < 140


@pytest.mark.parametrize("name", WITH_QUIRKS)
def test_faithful_mode_sets_what_its_quirks_say_and_nothing_else(name: str) -> None:
    fixed, faithful = load_recipe(name).resolved(), load_recipe(name, [FAITHFUL]).resolved()
    told = {key: v for q in load_recipe(name).quirks for key, v in (known_quirks()[q].set or {}).items()}
    assert flat(faithful).items() >= {key: value for key, value in told.items() if value is not None}.items()
    changed = {key for key in flat(fixed).keys() | flat(faithful) if flat(fixed).get(key) != flat(faithful).get(key)}
    assert changed <= {*told, "mode"}


def flat(data: object, key: str = "") -> dict[str, object]:
    if not isinstance(data, dict):
        return {key: data}
    return {k: v for name, value in data.items() for k, v in flat(value, f"{key}.{name}" if key else name).items()}


def test_plan_names_every_quirk_that_the_mode_switches_on() -> None:
    names = load_recipe("mmearth").quirks
    text = mmbuild("plan", "mmearth", "--samples", 4, "--set", FAITHFUL).stdout
    assert "mode: faithful, which switches on 15 quirks" in text
    assert all(name in text for name in names)
    assert "sampler.allocation" in text
    shown = json.loads(mmbuild("plan", "mmearth", "--samples", 4, "--set", FAITHFUL, "--json").stdout)
    assert (shown["mode"], shown["quirks"]) == ("faithful", names)


@pytest.mark.parametrize("name", WITH_QUIRKS)
def test_what_is_printed_of_a_mode_names_its_quirks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_mode(load_recipe(name))
    assert "mode: fixed; --set mode=faithful switches on" in capsys.readouterr().out
    print_mode(load_recipe(name, [FAITHFUL]))
    text = capsys.readouterr().out
    assert all(quirk in text for quirk in load_recipe(name).quirks)


def test_what_is_set_by_hand_goes_before_a_quirk() -> None:
    recipe = load_recipe("mmearth", [FAITHFUL, "alternates=3", "anchor.max_cloud=25"])
    assert (recipe.alternates, recipe.anchor.max_cloud) == (3, 25)
    assert recipe.samples == 1_500_000


def test_a_recipe_that_was_written_out_keeps_what_was_set_by_hand(tmp_path: Path) -> None:
    recipe = load_recipe("mmearth", [FAITHFUL, "anchor.max_cloud=25"])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.resolved(), sort_keys=False))
    (tmp_path / "modalities").symlink_to(Path(__file__).parents[1] / "recipes/modalities")
    assert load_recipe(path).digest == recipe.digest


def test_mode_and_effects_count_in_the_digest_and_the_list_of_quirks_does_not() -> None:
    digest = load_recipe("mmearth").digest
    assert load_recipe("mmearth", ["quirks=[]"]).digest == digest
    assert load_recipe("mmearth", [FAITHFUL]).digest != digest


def test_an_unknown_quirk_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"quirks.0: 'floor_alocation' -> is no known quirk; did you mean floor_allo"):
        load_recipe("mmearth", ["quirks=[floor_alocation]"])


def test_a_quirk_that_does_not_fit_a_recipe_is_named_where_it_fails() -> None:
    with pytest.raises(UserError, match=r"quirk published_cities: sampler\.cities: there is no such key"):
        load_recipe("mmearth", [FAITHFUL, "quirks=[published_cities]"])


# -- the draws of published tiles ---------------------------------------------------------------------------------


def faithful(*overrides: str) -> Recipe:
    return load_recipe("mmearth", [FAITHFUL, *overrides])


@pytest.mark.parametrize(("lat", "lon", "year", "level"), PUBLISHED)
def test_the_year_and_level_of_published_tiles_are_drawn_again(
    lat: float, lon: float, year: int, level: str, tmp_path: Path
) -> None:
    places = tmp_path / "places.csv"
    places.write_text(f"lon,lat,biome,ecoregion\n{lon!r},{lat!r},1,1\n")
    recipe = faithful(f"sampler={{kind: points, file: {places}}}", "samples=1")
    (own,) = samples_of(locate(recipe, stop=1).to_dict("records"))
    assert (own.lat, own.lon, own.anchor_year) == (lat, lon, year)
    (step,) = anchors.steps(own, recipe)
    middle = step.window[0] + (step.window[1] - step.window[0]) / 2
    table = [scene(name, f"{name}{i}", middle + timedelta(days=i)) for name in (L2A, L1C) for i in range(5)]
    ranked = anchors.rank_anchors(own, step, table, recipe)
    assert [found.modality for found in ranked] == [level], "one scene is drawn, and no other is tried"


def test_a_level_without_scenes_falls_back_to_l1c_and_never_to_l2a() -> None:
    when = datetime(2018, 6, 1, tzinfo=UTC)
    recipe, drawn_l1c = faithful(), at(lat=PUBLISHED[0][0], lon=PUBLISHED[0][1], anchor_year=2018)
    step = anchors.steps(drawn_l1c, recipe)[0]
    assert anchors.rank_anchors(drawn_l1c, step, [scene(L2A, "a", when)], recipe) == []
    drawn_l2a = next(
        at(lat=float(lat), lon=9.0, anchor_year=2018)
        for lat in range(40)
        if levels(at(lat=float(lat), lon=9.0, anchor_year=2018), recipe, when) == [L2A]
    )
    assert [s.modality for s in anchors.rank_anchors(drawn_l2a, step, [scene(L1C, "a", when)], recipe)] == [L1C]


def levels(where: Sample, recipe: Recipe, when: datetime) -> list[str]:
    table = [scene(name, "a", when) for name in (L2A, L1C)]
    return [s.modality for s in anchors.rank_anchors(where, anchors.steps(where, recipe)[0], table, recipe)]


@pytest.mark.parametrize(
    ("year", "first", "last", "outside"),
    [
        (2017, "2017-01-01", "2017-12-30", "2017-12-31"),
        (2018, "2018-01-01", "2018-11-29", "2018-11-30"),
        (2019, "2018-12-01", "2019-12-30", "2019-12-31"),
        (2020, "2020-01-01", "2020-12-30", "2020-12-31"),
    ],
)
def test_the_windows_end_before_their_last_day(year: int, first: str, last: str, outside: str) -> None:
    window = anchors.steps(at(anchor_year=year), faithful())[0].window
    inside = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (first, last, outside)]
    assert [window[0] <= day < window[1] for day in inside] == [True, True, False]


# -- climate, radar, clouds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "months"), [("fixed", 12), ("faithful", 13)])
def test_a_year_of_climate_has_twelve_months_or_thirteen(mode: str, months: int) -> None:
    recipe = load_recipe("mmearth", [f"mode={mode}"])
    modality, anchor = recipe.modality_defs["era5"], scene(L2A, "a", datetime(2019, 6, 15, tzinfo=UTC))
    rain = {"total_precipitation_sum": 1.0, "temperature_2m": 280.0, "temperature_2m_min": 270.0}
    images = [
        Scene(slot=0, modality="era5", scene_id=f"E/{y}{m:02}", time=datetime(y, m, 1, tzinfo=UTC),
              values={**rain, "temperature_2m_max": 290.0})
        for y in (2018, 2019) for m in range(1, 13)
    ]  # fmt: skip
    step = anchors.steps(at(anchor_year=2019), recipe)[0]
    choice = choose.choose_all(at(), Anchored(step=step, scene=anchor, status="stored"), images, recipe)["era5"]
    values = dict(zip(modality.band_names, _reduce_months(modality, block_of(modality), choice), strict=True))
    assert len(choice.scenes) == months
    assert values["year_precipitation"] == months
    assert (values["prev_precipitation"], values["current_precipitation"]) == (1.0, 1.0)


def test_radar_of_any_date_is_taken_and_a_granule_of_more_than_ten_percent_cloud_is_not() -> None:
    recipe, anchor = faithful(), scene(L2A, "a", datetime(2018, 6, 15, tzinfo=UTC))
    step = anchors.steps(at(anchor_year=2018), recipe)[0]
    far = scene("sentinel1_asc", "far", datetime(2020, 6, 15, tzinfo=UTC))
    anchored = Anchored(step=step, scene=anchor, status="stored")
    assert choose.choose_all(at(), anchored, [far], recipe)["sentinel1_asc"].scenes == (far,)
    fixed = load_recipe("mmearth")
    assert choose.choose_all(at(), anchored, [far], fixed)["sentinel1_asc"].status == "no_data"
    assert recipe.anchor.min_clear is None
    cloudy = [scene(name, "c", datetime(2018, 6, 1, tzinfo=UTC), cloud=11.0) for name in (L2A, L1C)]
    assert anchors.rank_anchors(at(), step, cloudy, recipe) == []


def test_ssl4eo_takes_the_latest_scene_of_each_sensor_by_itself() -> None:
    recipe = load_recipe("ssl4eo_s12", [FAITHFUL, "times.phase_days=0"])
    step = anchors.steps(at(), recipe)[1]
    assert step.target is not None
    days = [step.target + timedelta(days=d) for d in (-14, 3, 13)]
    table = [scene(n, f"{n}{i}", when) for n in (L2A, L1C, "sentinel1") for i, when in enumerate(days)]
    optical = [s for s in table if s.modality == L2A and s.scene_id.endswith(("0", "1"))]
    ranked = anchors.rank_anchors(at(), step, optical, recipe)
    assert ranked[0].scene_id.endswith("1")
    anchored = Anchored(step=step, scene=ranked[0], status="stored")
    choices = choose.choose_all(at(), anchored, table, recipe)
    assert {n: choices[n].scenes[0].scene_id[-1] for n in (L1C, "sentinel1")} == {L1C: "2", "sentinel1": "2"}
    nearest = choose.choose_all(at(), anchored, table, load_recipe("ssl4eo_s12", ["times.phase_days=0"]))
    assert {n: nearest[n].scenes[0].scene_id[-1] for n in (L1C, "sentinel1")} == {L1C: "1", "sentinel1": "1"}


def test_a_faithful_corpus_is_built_and_says_so(tmp_path: Path) -> None:
    settings = [FAITHFUL, "grid.size=16", "samples=8", "store.samples_per_shard=8", "sampler.allocation=divisor"]
    recipe = load_recipe("mmearth", [*settings, "sampler.points=counter", "sampler.areas=polygons"])
    few = {"sentinel2_l2a", "sentinel2_l1c", "era5", "biome", "esa_worldcover"}
    uses = {name: use for name, use in recipe.modalities.items() if name in few}
    corpus = build_corpus(recipe.model_copy(update={"modalities": uses, "source": None}).model_copy(
        update={"source": load_recipe("tiny").source}), tmp_path / "corpus")  # fmt: skip
    assert corpus.recipe.mode == "faithful"
    assert corpus.modalities["era5"].months == (-12, 0)
    rows = [row for row in corpus.records().to_pylist() if row["modality"] == "era5" and row["status"] == "stored"]
    assert {row["scene_count"] for row in rows} == {13}
    lost = [row for row in corpus.records().to_pylist() if row["sample_status"] != "stored"]
    assert {row["alternate"] for row in lost} <= {0}, "no other place was tried"
    assert np.isfinite(corpus.read_chip("era5", rows[0]["slot"])).all()
