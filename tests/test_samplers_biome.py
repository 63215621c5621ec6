"""Places by biome and ecoregion: proportions, published allocation, areas and seeds, clear errors."""

from __future__ import annotations

import heapq
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbuild import samplers
from mmbuild.errors import UserError
from mmbuild.published import point_seed
from mmbuild.samplers import area, biome
from tests.places import (
    FOUR,
    REAL,
    biome_spec,
    ecoregions,
    needs_real,
    rows,
)


def slow_seats(areas: list[Fraction], count: int) -> list[int]:
    """Sainte-Laguë one seat at a time, in exact arithmetic."""
    heap = [(-a, i, 1) for i, a in enumerate(areas)]
    heapq.heapify(heap)
    order = []
    for _ in range(count):
        _, i, divisor = heapq.heappop(heap)
        order.append(i)
        heapq.heappush(heap, (-areas[i] / (divisor + 2), i, divisor + 2))
    return order


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=12), st.integers(0, 200))
def test_ecoregions_follow_sainte_lague(areas: list[int], count: int) -> None:
    found = biome.seats(np.array(areas, float), count).tolist()
    assert found == slow_seats([Fraction(a) for a in areas], count)


def test_biomes_take_turns_in_the_order_of_their_numbers() -> None:
    frame = samplers.candidates(biome_spec(), n=101, seed=1, alternates=0, regions=FOUR)
    assert frame.tags.map(lambda t: t["biome"]).tolist() == [1, 4] * 50 + [1]


def test_biome_places_carry_their_strata_as_tags_and_lie_inside() -> None:
    frame = samplers.candidates(biome_spec(), n=200, seed=1, alternates=4, regions=FOUR)
    assert frame.tags[0] == {
        "biome": 1, "biome_name": "biome 1", "ecoregion": 10, "ecoregion_name": "eco 10", "realm": "Palearctic",
    }  # fmt: skip
    shapes = dict(zip(FOUR.ECO_ID, FOUR.geometry, strict=True))
    assert all(shapes[t["ecoregion"]].contains(p) for t, p in zip(frame.tags, frame.geometry, strict=True))
    assert (frame.crs.to_epsg(), str(frame.date.dtype), frame.date.isna().all()) == (4326, "datetime64[ms, UTC]", True)


def test_ecoregion_counts_are_proportional_to_area_within_one() -> None:
    frame = samplers.candidates(biome_spec(), n=320, seed=1, alternates=0, regions=FOUR)
    counts = frame.tags.map(lambda t: t["ecoregion"]).value_counts()
    assert counts.to_dict() == {7: 160, 10: 100, 11: 50, 12: 10}  # areas 10 : 5 : 1 at the same latitudes


def test_features_with_one_id_are_one_ecoregion() -> None:
    halves = ecoregions(
        [(10, 1, shapely.box(0, 0, 5, 10)), (10, 1, shapely.box(5, 0, 10, 10)), (12, 1, shapely.box(30, 0, 31, 10))]
    )
    whole = ecoregions([(10, 1, shapely.box(0, 0, 10, 10)), (12, 1, shapely.box(30, 0, 31, 10))])
    a, b = (samplers.candidates(biome_spec(), n=50, seed=3, alternates=2, regions=r) for r in (halves, whole))
    assert rows(a) == rows(b)


def test_near_alternates_stay_in_the_ecoregion_and_far_ones_in_the_biome() -> None:
    frame = samplers.candidates(biome_spec(), n=400, seed=2, alternates=4, regions=FOUR)
    eco = frame.tags.map(lambda t: t["ecoregion"]).to_numpy().reshape(-1, 5)
    kind = frame.tags.map(lambda t: t["biome"]).to_numpy().reshape(-1, 5)
    assert (kind == kind[:, :1]).all()
    assert (eco[:, 1:3] == eco[:, :1]).all()
    has_others = eco[:, 0] != 7
    assert (eco[has_others, 3:] != eco[has_others, :1]).all()
    assert (eco[~has_others] == 7).all()
    far = eco[eco[:, 0] == 12, 3:].ravel()
    assert 0.55 < (far == 10).mean() < 0.78  # areas 10 : 5


def test_far_alternates_of_the_same_slot_follow_area() -> None:
    frame = samplers.candidates(biome_spec(biomes=[1]), n=3000, seed=2, alternates=3, regions=FOUR)
    eco = frame.tags.map(lambda t: t["ecoregion"]).to_numpy().reshape(-1, 4)
    third = eco[eco[:, 0] == 10, 3]
    assert (third == 11).mean() == pytest.approx(5 / 6, abs=0.04)


def test_biomes_and_names_can_be_chosen_and_left_out() -> None:
    only = samplers.candidates(biome_spec(biomes=[4]), n=5, seed=0, alternates=0, regions=FOUR)
    assert {t["biome"] for t in only.tags} == {4}
    without = samplers.candidates(biome_spec(exclude=["eco 10"]), n=50, seed=0, alternates=4, regions=FOUR)
    assert {t["ecoregion"] for t in without.tags} == {7, 11, 12}


def test_rock_and_ice_is_in_no_biome() -> None:
    ice = ecoregions([(0, 1, shapely.box(50, 0, 90, 60))])
    ice["BIOME_NAME"] = "N/A"
    frame = samplers.candidates(biome_spec(), n=50, seed=0, alternates=0, regions=pd.concat([FOUR, ice]))
    assert 0 not in {t["ecoregion"] for t in frame.tags}


@pytest.mark.parametrize(
    ("more", "regions", "text"),
    [
        ({"biomes": [9]}, FOUR, "sampler.biomes: 9 is not in the polygons; they have 1, 4"),
        (
            {"exclude": ["Taiga"]}, FOUR,
            "sampler.exclude: 'Taiga' is not in the polygons; they have Palearctic, biome 1",
        ),
        (
            {"exclude": ["Palearctic"]}, FOUR,
            "RESOLVE/ECOREGIONS/2017: no ecoregion is left to draw from; see sampler.biomes",
        ),
        (
            {}, FOUR.drop(columns=["REALM", "ECO_ID"]),
            "RESOLVE/ECOREGIONS/2017: columns ECO_ID, REALM are missing; RESOLVE 2017 has",
        ),
        (
            {}, None,
            "sampler.ecoregions: RESOLVE/ECOREGIONS/2017: there are no such polygons; "
            "name a file, or build with a source",
        ),
    ],
)  # fmt: skip
def test_biome_errors_say_what_is_there(more: dict[str, Any], regions: Any, text: str) -> None:
    with pytest.raises(UserError) as error:
        samplers.candidates(biome_spec(**more), n=5, seed=0, alternates=0, regions=regions)
    assert str(error.value).startswith(text)


def test_ecoregions_can_come_from_a_file(tmp_path: Path) -> None:
    FOUR.to_file(tmp_path / "eco.gpkg")
    from_file = samplers.candidates(
        biome_spec(ecoregions=str(tmp_path / "eco.gpkg")), n=20, seed=0, alternates=4, regions=None
    )
    assert rows(from_file) == rows(samplers.candidates(biome_spec(), n=20, seed=0, alternates=4, regions=FOUR))


@needs_real
def test_fourteen_real_biomes_get_the_same_number_of_places_inside_their_ecoregions() -> None:
    polygons = area.read_polygons(REAL)
    frame = samplers.candidates(biome_spec(), n=1000, seed=0, alternates=4, regions=polygons)
    first = frame[frame.alternate == 0]
    counts = first.tags.map(lambda t: t["biome"]).value_counts()
    assert sorted(counts.index) == list(range(1, 15))
    assert counts.max() - counts.min() <= 1
    shapes = dict(zip(polygons.ECO_ID.astype(int), polygons.geometry, strict=True))
    own = np.array([shapes[t["ecoregion"]] for t in frame.tags], dtype=object)
    assert shapely.contains(own, frame.geometry.to_numpy()).all()


# --- as published


def published(n: int, regions: Any, seed: int, **more: Any) -> Any:
    spec = biome_spec(allocation="floor", areas="published", points="published_seeds", **more)
    return samplers.candidates(spec, n=n, seed=seed, alternates=1, regions=regions)


@needs_real
def test_the_floor_allocation_of_the_real_ecoregions_is_the_published_one() -> None:
    spec = biome_spec(allocation="floor", areas="published")
    told = samplers.survey(spec, n=10_000, seed=0, alternates=0, regions=area.read_polygons(REAL))
    assert (told.places, told.notes[0]) == (9_611, "846 ecoregions: 0 to 226 places each, 215 without any")
    # In the order of the published list of biomes, which begins with the tundra.
    assert [name for name, _ in told.strata][:2] == ["Tundra", "Tropical & Subtropical Moist Broadleaf Forests"]
    assert told.notes[1].startswith("these places are bound to this number of samples")


@needs_real
def test_points_under_published_seeds_lie_in_their_ecoregions_and_do_not_follow_the_recipes_seed() -> None:
    polygons = area.read_polygons(REAL)
    frame, other = (published(2_000, polygons, seed, biomes=[11]) for seed in (0, 1))
    shapes = dict(zip(polygons.ECO_NAME, polygons.geometry, strict=True))
    assert all(shapes[t["ecoregion_name"]].covers(p) for t, p in zip(frame.tags, frame.geometry, strict=True))
    first = frame.alternate == 0
    assert frame[first].tags.iloc[0]["ecoregion_name"] == "Ahklun and Kilbuck Upland Tundra"
    assert rows(frame[first]) == rows(other[first])
    assert not (frame[~first].lon == other[~first].lon).any()
    assert not frame.duplicated(["lon", "lat"]).any()


def test_floor_and_divisor_are_two_allocations_of_the_same_areas() -> None:
    floor = samplers.candidates(biome_spec(allocation="floor"), n=35, seed=0, alternates=0, regions=FOUR)
    counts = floor.tags.map(lambda t: t["ecoregion"]).value_counts().to_dict()
    assert counts == {7: 17, 10: 10, 11: 5, 12: 1}  # 17 a biome; 17 x (10, 5, 1) / 16, rounded down
    assert floor.tags.map(lambda t: t["ecoregion"]).tolist() == [10] * 10 + [11] * 5 + [12] + [7] * 17


def test_a_source_that_draws_points_is_asked_in_the_published_batches_by_the_published_seeds() -> None:
    asked: list[tuple[str, int, int]] = []

    def draw(name: str, count: int, seed: int) -> np.ndarray:
        asked.append((name, count, seed))
        return np.full((count, 2), 5.0)

    spec = biome_spec(points="published_seeds", biomes=[1])
    frame = samplers.candidates(spec, n=8320, seed=0, alternates=1, regions=FOUR, random_points=draw)
    assert asked == [
        ("eco 10", 5000, point_seed(0, "eco 10", 5000, 0)),
        ("eco 10", 200, point_seed(0, "eco 10", 200, 1)),
        ("eco 11", 2600, point_seed(1, "eco 11", 2600, 0)),
        ("eco 12", 520, point_seed(2, "eco 12", 520, 0)),
    ]
    is_first = frame.alternate == 0
    assert (frame.lon[is_first] == 5.0).all()
    assert (frame.lon[~is_first] != 5.0).all()


def test_a_point_that_the_source_draws_beyond_utm_is_replaced_by_one_inside() -> None:
    cap = ecoregions([(1, 11, shapely.box(0, 70, 10, 89))])
    frame = samplers.candidates(
        biome_spec(points="published_seeds"), n=5, seed=0, alternates=0, regions=cap,
        random_points=lambda name, count, seed: np.column_stack([np.full(count, 5.0), np.linspace(80, 88, count)]),
    )  # fmt: skip
    assert frame.lat.tolist()[:2] == [80.0, 82.0]
    assert ((frame.lat >= 70) & (frame.lat < 84)).all()


@needs_real
def test_published_areas_are_those_of_the_polygons_but_for_their_detail() -> None:
    polygons = area.read_polygons(REAL)
    own, theirs = (biome._biomes(biome_spec(areas=a, biomes=[6]), polygons) for a in ("polygons", "published"))
    areas = np.array([[e.area for members in table for e in members] for table in (own, theirs)])
    assert areas.shape == (2, 26)
    assert np.median(np.abs(areas[0] / areas[1] - 1)) < 0.02


def test_published_areas_of_ecoregions_that_nobody_published_are_refused() -> None:
    mixed = FOUR.copy()
    mixed.loc[0, "ECO_NAME"] = "Caatinga"
    with pytest.raises(UserError) as error:
        samplers.candidates(biome_spec(areas="published"), n=4, seed=0, alternates=0, regions=mixed)
    assert str(error.value) == (
        "RESOLVE/ECOREGIONS/2017: 3 ecoregions are not in the published table of areas, the first is 'eco 7'; "
        "set sampler.areas: polygons, or leave them out with sampler.exclude"
    )


def test_a_synthetic_earth_has_no_published_areas_and_the_survey_says_so() -> None:
    told = samplers.survey(biome_spec(areas="published"), n=32, seed=0, alternates=0, regions=FOUR)
    assert told.notes[1] == "none of these ecoregions is in the published table of areas: their polygons' areas count"
    assert told.strata == [("biome 1", 16), ("biome 4", 16)]
    assert told.notes[0] == "4 ecoregions: 1 to 16 places each, 0 without any"


def test_the_survey_counts_the_places_that_are_drawn() -> None:
    for more in ({}, {"allocation": "floor"}):
        spec = biome_spec(**more)
        told = samplers.survey(spec, n=101, seed=0, alternates=0, regions=FOUR)
        frame = samplers.candidates(spec, n=101, seed=0, alternates=0, regions=FOUR)
        assert told.places == len(frame)
        assert dict(told.strata) == frame.tags.map(lambda t: t["biome_name"]).value_counts().to_dict()
