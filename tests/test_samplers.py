"""Where samples come from: uniform on the sphere, a function of (seed, slot, alternate), and clear about bad input."""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from mmbuild import samplers
from mmbuild.errors import UserError
from mmbuild.recipe import AreaSampler, BiomeSampler, PointsSampler
from mmbuild.samplers import area, biome, draw, on_globe, prepare, sphere_area, uniform

REAL = Path(__file__).parents[2] / "shared/realdata/vector/ecoregions2017/Ecoregions2017.shp"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="../shared/realdata is not here: the RESOLVE polygons")
# 99.9 % point of chi-square with 63 degrees of freedom (tables).
CHI2_63 = 103.44
# The first places of a published corpus must never move: these numbers do not change with a version.
PINNED_UNIFORM = [0.8423780054435147, 0.8231184981671879, 0.5161443548994615]
PINNED_DRAWS = [[11.559556858, 21.666894763], [12.683950593, 38.986238866], [22.808404677, 36.104412191]]


def points_spec(file: Path, **more: Any) -> PointsSampler:
    return PointsSampler(kind="points", file=str(file), **more)


def area_spec(file: Path) -> AreaSampler:
    return AreaSampler(kind="area", file=str(file))


def biome_spec(**more: Any) -> BiomeSampler:
    return BiomeSampler(kind="biome", **more)


def ecoregions(rows: list[tuple[int, int, Any]]) -> gpd.GeoDataFrame:
    """(ECO_ID, BIOME_NUM, polygon) as the table a source would answer with."""
    return gpd.GeoDataFrame(
        {
            "ECO_ID": [r[0] for r in rows],
            "ECO_NAME": [f"eco {r[0]}" for r in rows],
            "BIOME_NUM": [float(r[1]) for r in rows],
            "BIOME_NAME": [f"biome {r[1]}" for r in rows],
            "REALM": ["Palearctic"] * len(rows),
        },
        geometry=[r[2] for r in rows],
        crs="EPSG:4326",
    )


FOUR = ecoregions(
    [
        (10, 1, shapely.box(0, 0, 10, 10)),
        (11, 1, shapely.box(20, 0, 25, 10)),
        (12, 1, shapely.box(30, 0, 31, 10)),
        (7, 4, shapely.box(0, 50, 10, 60)),
    ]
)


def rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(zip(frame.slot, frame.alternate, frame.lon, frame.lat, frame.tags.map(json.dumps), strict=True))


def many(geometry: Any, n: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return draw(prepare(on_globe(geometry, "test")), seed=seed, slots=np.arange(n), alternates=np.zeros(n, int))


# --- randomness


def test_uniform_numbers_are_pinned() -> None:
    assert uniform(0, "place", [0, 1, 2]).tolist() == PINNED_UNIFORM


def slow_uniform(seed: int, purpose: str, *counters: int) -> float:
    """The same with Python's whole numbers."""
    full = 2**64
    state = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    for counter in counters:
        z = (state + (counter + 1) * 0x9E3779B97F4A7C15) % full
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % full
        state = z ^ (z >> 31)
    return (state >> 11) / 2**53


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63), st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4))
def test_uniform_numbers_agree_with_plain_python(seed: int, counters: list[int]) -> None:
    assert uniform(seed, "split", *counters).tolist() == [slow_uniform(seed, "split", *counters)]


def test_uniform_numbers_are_uniform_along_every_counter_and_uncorrelated_between_neighbours() -> None:
    n = 64_000
    for counters in (
        (np.arange(n), 0, 0, 0),
        (5, np.arange(n), 0, 0),
        (5, 0, np.arange(n), 0),
        (2**40 + np.arange(n), 1, 2, 2),
    ):
        u = uniform(3, "place", *counters)
        found = np.bincount((u * 64).astype(int), minlength=64)
        assert ((found - n / 64) ** 2 / (n / 64)).sum() < CHI2_63
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(n)


def test_another_seed_or_purpose_gives_other_numbers() -> None:
    a, b, c = (uniform(s, p, np.arange(1000)) for s, p in ((0, "place"), (1, "place"), (0, "split")))
    assert not np.isin(a, b).any()
    assert not np.isin(a, c).any()


# --- the sphere


@pytest.mark.parametrize(
    "polygon",
    [
        shapely.box(-10, 60, 30, 80),
        shapely.Polygon([(0, 0), (40, 10), (10, 60)]),
        shapely.Polygon([(0, -50), (40, -50), (40, -10), (0, -10)], [[(10, -40), (10, -20), (30, -20), (30, -40)]]),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 70, 6, 71)]),
    ],
)
def test_area_on_the_sphere_agrees_with_geographiclib(polygon: Any) -> None:
    dense = shapely.segmentize(polygon, 0.01)  # short geodesics approach straight lines in lon/lat
    truth, _ = Geod(a=1.0, b=1.0).geometry_area_perimeter(shapely.orient_polygons(dense))
    assert sphere_area([polygon])[0] == pytest.approx(abs(truth), rel=1e-6)


@pytest.mark.parametrize(
    ("west", "south", "east", "north"), [(-20, 60, 60, 84), (-180, -60, 180, 75), (-80, -80, -10, -60)]
)
def test_points_are_uniform_on_the_sphere(west: float, south: float, east: float, north: float) -> None:
    lon, lat = many(shapely.box(west, south, east, north), 32_000)
    s = np.sin(np.radians([south, north]))
    i = ((lon - west) / (east - west) * 8).astype(int)
    j = ((np.sin(np.radians(lat)) - s[0]) / (s[1] - s[0]) * 8).astype(int)
    found = np.bincount(i * 8 + j, minlength=64)
    assert ((found - 500) ** 2 / 500).sum() < CHI2_63


def test_points_are_uniform_in_a_ragged_polygon_with_a_hole() -> None:
    angle = np.radians(np.arange(0, 360, 2))
    radius = np.where(np.arange(180) % 2, 8.0, 20.0)
    star = shapely.Polygon(np.c_[30 + radius * np.cos(angle), 60 + radius * np.sin(angle)])
    polygon = shapely.difference(star, shapely.box(25, 55, 33, 62))
    n = 32_000
    lon, lat = many(polygon, n)
    assert shapely.contains_xy(polygon, lon, lat).all()
    cells = [shapely.box(x, y, x + 5, y + 5) for x in range(10, 50, 5) for y in range(40, 80, 5)]
    expected = sphere_area(shapely.intersection(polygon, cells)) / sphere_area([polygon]) * n
    found = np.bincount(((lon - 10) // 5 * 8 + (lat - 40) // 5).astype(int), minlength=64)
    big = expected > 5
    assert found[~big].sum() <= expected[~big].sum() * 2 + 5
    assert ((found - expected) ** 2 / np.where(big, expected, np.inf)).sum() < CHI2_63


def test_a_polygon_across_the_antimeridian_is_one_place_however_it_is_written() -> None:
    beyond = many(shapely.box(170, -20, 190, 10), 2000)
    west = many(shapely.box(-190, -20, -170, 10), 2000)
    cut = many(shapely.MultiPolygon([shapely.box(170, -20, 180, 10), shapely.box(-180, -20, -170, 10)]), 2000)
    for lon, lat in (beyond, west, cut):
        assert ((lon >= 170) & (lon < 180) | (lon >= -180) & (lon <= -170)).all()
        assert 850 < (lon > 0).sum() < 1150
        np.testing.assert_array_equal((lon, lat), beyond)


def test_no_point_is_drawn_beyond_the_ends_of_utm() -> None:
    _, lat = many(shapely.box(-180, 60, 180, 90), 5000)
    assert lat.max() < 84
    assert lat.max() > 83.9
    _, lat = many(shapely.box(-180, -90, 180, -60), 5000)
    assert -80 < lat.min() < -79.9


def test_a_polygon_wholly_beyond_utm_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"cap\.geojson: row 1: lies beyond 80° S or 84° N, where UTM ends; leave it out"
    ):
        on_globe(shapely.box(-180, 85, 180, 90), "cap.geojson: row 1")


def test_an_edge_with_two_readings_is_refused_with_both_remedies() -> None:
    fiji = shapely.Polygon([(178, -19), (-179, -19), (-179, -16), (178, -16)])
    with pytest.raises(UserError) as error:
        on_globe(fiji, "fiji.geojson: row 1")
    assert str(error.value) == (
        "fiji.geojson: row 1: an edge runs from longitude 178 to -179, which can be read in two ways; "
        "across the antimeridian write longitudes beyond 180 (170 to 190) or cut the polygon there; "
        "otherwise add a vertex in between"
    )


@pytest.mark.parametrize("shape", [None, shapely.Polygon(), shapely.Point(1, 2)])
def test_what_is_not_a_polygon_is_refused(shape: Any) -> None:
    with pytest.raises(UserError, match=r"a: row 3: is not a polygon; give every row a Polygon or MultiPolygon"):
        on_globe(shape, "a: row 3")


def test_draws_are_pinned() -> None:
    lon, lat = many(shapely.Polygon([(0, 0), (40, 10), (10, 60)]), 3, seed=42)
    np.testing.assert_allclose(np.c_[lon, lat], PINNED_DRAWS, atol=2e-9)


# --- biome


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


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_a_larger_n_keeps_the_first_places(kind: str, tmp_path: Path) -> None:
    small, large = (places(kind, tmp_path, n=n) for n in (30, 97))
    assert rows(small) == rows(large)[: len(small)]


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_any_range_of_slots_equals_the_slice(kind: str, tmp_path: Path) -> None:
    whole, part = places(kind, tmp_path, n=60), places(kind, tmp_path, n=41, start=23)
    assert part.slot.unique().tolist() == list(range(23, 41))
    assert rows(part) == rows(whole[whole.slot.between(23, 40)])


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_a_place_does_not_depend_on_the_number_of_alternates(kind: str, tmp_path: Path) -> None:
    few, more = (places(kind, tmp_path, n=20, alternates=a) for a in (1, 6))
    assert rows(few) == rows(more[more.alternate <= 1])


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_the_order_of_the_rows_is_slot_then_alternate_and_all_places_differ(kind: str, tmp_path: Path) -> None:
    frame = places(kind, tmp_path, n=50)
    assert list(zip(frame.slot, frame.alternate, strict=True)) == [(i, k) for i in range(50) for k in range(5)]
    assert not frame.duplicated(["lon", "lat"]).any()


@pytest.mark.parametrize("kind", ["biome", "area"])
def test_another_seed_gives_other_places(kind: str, tmp_path: Path) -> None:
    a, b = (places(kind, tmp_path, n=20, seed=s) for s in (0, 1))
    assert not (a.lon == b.lon).any()


def places(kind: str, folder: Path, **asked: Any) -> gpd.GeoDataFrame:
    if kind == "biome":
        return samplers.candidates(biome_spec(), regions=FOUR, **{"seed": 5, "alternates": 4} | asked)
    file = folder / "a.geojson"
    FOUR.to_file(file)
    return samplers.candidates(area_spec(file), **{"seed": 5, "alternates": 4} | asked)


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


@needs_real
def test_a_hundred_thousand_slots_take_less_than_a_minute() -> None:
    polygons = area.read_polygons(REAL)
    began = time.perf_counter()
    frame = samplers.candidates(biome_spec(), n=100_000, seed=0, alternates=0, regions=polygons)
    assert (len(frame), time.perf_counter() - began < 60) == (100_000, True)


# --- area


def test_area_places_are_uniform_over_all_polygons_and_keep_their_columns(tmp_path: Path) -> None:
    shapes = [shapely.box(0, 0, 2, 20), shapely.box(50, 0, 56, 20)]
    gpd.GeoDataFrame({"label": ["a", "b"], "n": [1, None]}, geometry=shapes, crs=4326).to_file(tmp_path / "a.gpkg")
    frame = samplers.candidates(area_spec(tmp_path / "a.gpkg"), n=4000, seed=0, alternates=0)
    in_a = frame.tags.map(lambda t: t["label"] == "a")
    assert in_a.mean() == pytest.approx(0.25, abs=0.03)
    assert (frame.lon[in_a] < 2).all()
    assert (frame.lon[~in_a] > 50).all()
    assert frame.tags[in_a[in_a].index[0]] == {"label": "a", "n": 1.0}
    assert frame.tags[in_a[~in_a].index[0]] == {"label": "b"}


def test_ground_that_two_polygons_share_is_not_drawn_twice_as_often(tmp_path: Path) -> None:
    shapes = [shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10), shapely.box(2, 2, 4, 4)]
    gpd.GeoDataFrame({"k": [0, 1, 2]}, geometry=shapes, crs=4326).to_file(tmp_path / "a.geojson")
    frame = samplers.candidates(area_spec(tmp_path / "a.geojson"), n=9000, seed=0, alternates=0)
    counts = np.bincount((frame.lon // 5).astype(int), minlength=3)
    assert ((counts - 3000) ** 2 / 3000).sum() < 13.8  # 99.9 % point, 2 degrees of freedom
    assert set(frame.tags.map(lambda t: t["k"])) == {0, 1}


def test_near_alternates_stay_in_the_polygon_of_the_slot(tmp_path: Path) -> None:
    frame = places("area", tmp_path, n=300)
    eco = frame.tags.map(lambda t: t["ECO_ID"]).to_numpy().reshape(-1, 5)
    assert (eco[:, 1:3] == eco[:, :1]).all()
    assert (eco[:, 3:] != eco[:, :1]).any()


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "parquet"])
def test_polygon_files_of_every_kind_and_crs_give_places_inside(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    local = gpd.GeoDataFrame({"k": [1]}, geometry=[shapely.box(300_000, 7_000_000, 700_000, 7_400_000)], crs=32632)
    local.to_parquet(file) if suffix == "parquet" else local.to_file(file)
    frame = samplers.candidates(area_spec(file), n=500, seed=0, alternates=0)
    back = frame.to_crs(32632).geometry
    # Edges were cut in a hundred before the change of CRS: between vertices they may bulge by a metre or so.
    assert (back.x.between(299_990, 700_010) & back.y.between(6_999_990, 7_400_010)).all()
    assert back.y.min() < 7_010_000
    assert back.y.max() > 7_390_000


def test_a_projected_polygon_across_the_antimeridian_is_read_the_short_way(tmp_path: Path) -> None:
    file = tmp_path / "fiji.gpkg"
    gpd.GeoDataFrame({"k": [1]}, geometry=[shapely.box(700_000, 8_000_000, 1_000_000, 8_200_000)], crs=32760).to_file(
        file
    )
    frame = samplers.candidates(area_spec(file), n=500, seed=0, alternates=0)
    assert ((frame.lon > 178) | (frame.lon < -178)).all()
    assert (frame.lon > 0).any()
    assert (frame.lon < 0).any()


def test_polygon_file_errors_say_file_and_fix(tmp_path: Path) -> None:
    FOUR.to_file(tmp_path / "naked.shp")
    (tmp_path / "naked.prj").unlink()
    (tmp_path / "bad.geojson").write_text("not json")
    (tmp_path / "polygons.txt").write_text("x")
    for name, text in {
        "naked.shp": "does not say its CRS; add it (a .prj file, or write the file again with a CRS)",
        "none.gpkg": "there is no such file; check the path; it counts from the recipe",
        "bad.geojson": "cannot be read: ",
        "polygons.txt": "cannot tell its format from '.txt'; use .geojson",
    }.items():
        with pytest.raises(UserError) as error:
            samplers.candidates(area_spec(tmp_path / name), n=1, seed=0, alternates=0)
        assert str(error.value).startswith(f"{tmp_path / name}: {text}")


# --- points


CSV = "site,Longitude,Latitude,when,crop\nA,10.5,-3,2020-06-30,NA\nB,-70,45.25,2019-01-01T12:30:00+02:00,\n"


def test_a_csv_becomes_places_with_dates_and_tags(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text(CSV)
    frame = samplers.candidates(points_spec(file, date_column="when", id_column="site"), n=None, seed=0, alternates=4)
    assert rows(frame) == [
        (0, 0, 10.5, -3.0, '{"crop": "NA", "site": "A"}'),
        (1, 0, -70.0, 45.25, '{"site": "B"}'),
    ]
    assert frame.date.tolist() == [pd.Timestamp("2020-06-30", tz="UTC"), pd.Timestamp("2019-01-01T10:30", tz="UTC")]
    assert str(frame.date.dtype) == "datetime64[ms, UTC]"


def test_the_same_places_come_out_of_every_format(tmp_path: Path) -> None:
    table = pd.DataFrame({"lon": [10.5, -70.0], "lat": [-3.0, 45.25], "crop": ["maize", "rye"], "n": [1, 2]})
    geo = gpd.GeoDataFrame(table[["crop", "n"]], geometry=gpd.points_from_xy(table.lon, table.lat), crs=4326)
    table.to_csv(tmp_path / "p.csv", index=False)
    table.to_parquet(tmp_path / "p.parquet")
    geo.to_parquet(tmp_path / "g.parquet")
    geo.to_file(tmp_path / "p.geojson")
    geo.to_file(tmp_path / "p.gpkg")
    geo.to_file(tmp_path / "p.shp")
    answers = [
        rows(samplers.candidates(points_spec(f), n=2, seed=0, alternates=0))
        for f in sorted(tmp_path.glob("[pg].*"))
        if f.suffix in (".csv", ".parquet", ".geojson", ".gpkg", ".shp")
    ]
    assert len(answers) == 6
    assert all(a == answers[0] for a in answers)
    assert answers[0][0] == (0, 0, 10.5, -3.0, '{"crop": "maize", "n": 1}')


def test_points_in_another_crs_are_transformed(tmp_path: Path) -> None:
    geo = gpd.GeoDataFrame({"k": [1]}, geometry=[shapely.Point(500_000, 0)], crs=32631)
    geo.to_file(tmp_path / "p.gpkg")
    frame = samplers.candidates(points_spec(tmp_path / "p.gpkg"), n=1, seed=0, alternates=0)
    assert (frame.lon[0], frame.lat[0]) == pytest.approx((3.0, 0.0), abs=1e-9)


def test_a_range_of_rows_keeps_their_slots(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n" + "".join(f"{i},{i}\n" for i in range(10)))
    whole = samplers.candidates(points_spec(tmp_path / "p.csv"), n=100, seed=0, alternates=0)
    part = samplers.candidates(points_spec(tmp_path / "p.csv"), n=6, start=4, seed=0, alternates=0)
    assert len(whole) == 10
    assert rows(part) == rows(whole)[4:6]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("lon,lat\n1,2\n,3\n", {}, ": row 2, column lon: the longitude is empty; fill it or remove the row"),
        (
            "lon,lat\n1,2\n3,nan\n", {},
            ": row 2, column lat: 'nan' is not a number; write decimal degrees, such as -12.5",
        ),
        ("lon,lat\n1,2\n3,\n", {}, ": row 2, column lat: the latitude is empty; fill it or remove the row"),
        (
            "lon,lat\n1,2\n3,12°N\n", {},
            ": row 2, column lat: '12°N' is not a number; write decimal degrees, such as -12.5",
        ),
        (
            "lon,lat\n190,2\n", {},
            ": row 1, column lon: the longitude 190 is not between -180 and 180; write -170 instead",
        ),
        (
            "lon,lat\n1,95\n", {},
            ": row 1, column lat: the latitude 95 is not between -80 and 84; "
            "check that longitude and latitude are not swapped and are in degrees",
        ),
        (
            "lon,lat\n1,88\n", {},
            ": row 1, column lat: the latitude 88 is not between -80 and 84; "
            "UTM grids end at 84° N and 80° S; remove the row",
        ),
        (
            "lon,lat\n500000,2\n", {},
            ": row 1, column lon: the longitude 500000 is not between -180 and 180; check that",
        ),
        ("a,lat\n1,2\n", {}, ": has no longitude column among a, lat; call it lon or longitude"),
        ("lon;lat\n1;2\n", {}, ": has no longitude column among lon;lat; call it lon or longitude"),
        ("lon,lat\n", {}, ": has no rows; give it at least one place"),
        ("", {}, ": cannot be read: No columns to parse from file; save it as UTF-8 CSV"),
        (
            "lon,lat,d\n1,2,2020-01-01\n1,2,30/06/2020\n", {"date_column": "d"},
            ": row 2, column d: '30/06/2020' is not a date; write YYYY-MM-DD, such as 2020-06-30",
        ),
        (
            "lon,lat,d\n1,2,2020-02-30\n", {"date_column": "d"},
            ": row 1, column d: '2020-02-30' is not a date; write YYYY-MM-DD",
        ),
        ("lon,lat,d\n1,2,2020\n", {"date_column": "d"}, ": row 1, column d: '2020' is not a date; write YYYY-MM-DD"),
        (
            "lon,lat,d\n1,2,2020-01-01\n", {"date_column": "date"},
            ": has no column 'date'; set sampler.date_column to one of lon, lat, d",
        ),
        (
            "lon,lat,k\n1,2,a\n1,3,a\n", {"id_column": "k"},
            ": row 2, column k: the id 'a' appears twice; give every row its own id",
        ),
        (
            "lon,lat,k\n1,2,a\n1,3,\n", {"id_column": "k"},
            ": row 2, column k: the id is empty; give every row its own id",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_fix(text: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError) as error:
        samplers.candidates(points_spec(tmp_path / "p.csv", **more), n=None, seed=0, alternates=0)
    assert str(error.value).startswith(f"{tmp_path / 'p.csv'}{message}")


def test_polygons_in_a_points_file_are_sent_to_the_other_sampler(tmp_path: Path) -> None:
    FOUR.to_file(tmp_path / "p.geojson")
    with pytest.raises(
        UserError, match=r"row 1, column geometry: is a Polygon, not a Point; .* use the sampler of kind area"
    ):
        samplers.candidates(points_spec(tmp_path / "p.geojson"), n=None, seed=0, alternates=0)


def test_every_sampler_file_is_a_kind_and_others_are_refused_by_name() -> None:
    assert {"points", "area", "biome"} <= set(samplers.kinds())
    assert all(callable(samplers.load(k).candidates) for k in samplers.kinds())
    with pytest.raises(UserError, match=r"sampler\.kind: there is no sampler 'pionts'; use one of area, biome, points"):
        samplers.load("pionts")
