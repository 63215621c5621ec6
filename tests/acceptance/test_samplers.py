"""The biome sampler on the real ecoregions at full size, and polygons that users really bring."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from mmbuild import samplers
from mmbuild.recipe import AreaSampler, BiomeSampler
from mmbuild.samplers.area import read_polygons

REAL = Path(__file__).parents[3] / "shared/realdata/vector/ecoregions2017/Ecoregions2017.shp"
N = 100_000
BIOME = BiomeSampler(kind="biome")


@pytest.fixture(scope="module")
def polygons() -> gpd.GeoDataFrame:
    assert REAL.exists(), f"{REAL} is not here; the acceptance tests need the real ecoregions"
    return read_polygons(REAL)


@pytest.fixture(scope="module")
def drawn(polygons: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, float]:
    """The places, and the seconds of processor time they took; both cores may be busy with something else."""
    began = time.process_time()
    frame = samplers.candidates(BIOME, n=N, seed=0, alternates=0, regions=polygons)
    return frame, time.process_time() - began


@pytest.fixture(scope="module")
def places(drawn: tuple[gpd.GeoDataFrame, float]) -> gpd.GeoDataFrame:
    return drawn[0]


def tag(places: gpd.GeoDataFrame, name: str) -> Any:
    return places.tags.map(lambda tags: tags[name])


def test_a_hundred_thousand_places_take_less_than_five_seconds(drawn: tuple[gpd.GeoDataFrame, float]) -> None:
    frame, seconds = drawn
    assert len(frame) == N
    assert seconds < 5, f"{seconds:.1f} s"


def test_every_place_is_inside_its_ecoregion(places: gpd.GeoDataFrame, polygons: gpd.GeoDataFrame) -> None:
    shapes = dict(zip(polygons.ECO_ID.astype(int), polygons.geometry, strict=True))
    own = np.array([shapes[eco] for eco in tag(places, "ecoregion")], dtype=object)
    assert shapely.contains_xy(own, places.lon, places.lat).all()


def test_biomes_differ_by_one_place_at_most(places: gpd.GeoDataFrame) -> None:
    counts = tag(places, "biome").value_counts()
    assert sorted(counts.index) == list(range(1, 15))
    assert counts.max() - counts.min() <= 1


def test_every_ecoregion_is_within_one_and_a_half_places_of_its_quota(
    places: gpd.GeoDataFrame, polygons: gpd.GeoDataFrame
) -> None:
    """Areas by an independent rule: equal-area projection (World Cylindrical, edges cut short)."""
    real = polygons[polygons.BIOME_NAME != "N/A"]
    dense = gpd.GeoSeries(shapely.segmentize(real.geometry.to_numpy(), 0.2), crs=4326).to_crs("ESRI:54034")
    area = dense.area.groupby(real.ECO_ID.astype(int).to_numpy()).sum()
    biome = real.groupby(real.ECO_ID.astype(int)).BIOME_NUM.first().astype(int)
    share = area / area.groupby(biome).transform("sum")
    totals = tag(places, "biome").value_counts()
    quota = share * biome.map(totals)
    counts = tag(places, "ecoregion").value_counts().reindex(quota.index, fill_value=0)
    assert len(quota) == 846
    worst = (counts - quota).abs().max()
    assert worst <= 1.5, worst


def test_places_are_uniform_over_equal_areas_inside_large_ecoregions(
    places: gpd.GeoDataFrame, polygons: gpd.GeoDataFrame
) -> None:
    """Chi-square over cells of equal area (longitude x sine of latitude), eight large ecoregions of eight biomes.

    Cells at the border count by their part inside; the bound is the 99.99 % point, as eight tests are made.
    """
    shapes = dict(zip(polygons.ECO_ID.astype(int), polygons.geometry, strict=True))
    counts = tag(places, "ecoregion").value_counts()
    biomes = dict(zip(polygons.ECO_ID.astype(int), polygons.BIOME_NUM, strict=True))
    chosen: dict[float, int] = {}
    for eco in counts.index:
        chosen.setdefault(biomes[eco], eco)
    large = sorted(chosen.values(), key=lambda eco: -counts[eco])[:8]
    assert counts[large].min() > 800
    for eco in large:
        own = places[tag(places, "ecoregion") == eco]
        statistic, freedom = chi_square(samplers.on_globe(shapes[eco], "real"), own.lon, own.lat)
        assert freedom > 10
        # Wilson and Hilferty's approximation of the 99.99 % point.
        bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
        assert statistic < bound, f"ecoregion {eco}: {statistic:.0f} of {freedom} degrees of freedom"


def chi_square(shape: Any, lon: Any, lat: Any) -> tuple[float, int]:
    west, south, east, north = shape.bounds
    x = np.linspace(west, east, 17)
    y = np.degrees(np.arcsin(np.linspace(*np.sin(np.radians([south, north])), 17)))
    cells = shapely.box(*np.broadcast_arrays(x[:-1, None], y[None, :-1], x[1:, None], y[None, 1:])).ravel()
    valid = shapely.make_valid(shape)
    expected = samplers.sphere_area(shapely.intersection(cells, valid)) / samplers.sphere_area([valid])[0] * len(lon)
    i, j = (np.clip(np.searchsorted(edges, v, side="right") - 1, 0, 15) for edges, v in ((x, lon), (y, lat)))
    found = np.bincount(i * 16 + j, minlength=256)
    enough = expected >= 5
    statistic = ((found - expected)[enough] ** 2 / expected[enough]).sum()
    return float(statistic), int(enough.sum()) - 1


def area_places(shapes: list[Any], folder: Path, n: int = 20_000) -> gpd.GeoDataFrame:
    gpd.GeoDataFrame({"k": range(len(shapes))}, geometry=shapes, crs=4326).to_file(folder / "a.gpkg")
    return samplers.candidates(AreaSampler(kind="area", file=str(folder / "a.gpkg")), n=n, seed=1, alternates=0)


def test_overlapping_polygons_of_a_user_give_every_square_metre_the_same_chance(tmp_path: Path) -> None:
    discs = [shapely.Point(x, 30).buffer(4) for x in (0, 3, 6, 9)]
    frame = area_places(discs, tmp_path)
    union = shapely.union_all(discs)
    assert shapely.covers(union, frame.geometry.to_numpy()).all()
    statistic, freedom = chi_square(union, frame.lon, frame.lat)
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_a_polygon_over_the_antimeridian_is_filled_evenly_on_both_sides(tmp_path: Path) -> None:
    frame = area_places([shapely.Polygon([(165, -20), (200, -25), (190, 10), (170, 5)])], tmp_path)
    east = np.where(frame.lon < 0, frame.lon + 360, frame.lon)
    assert (frame.lon.between(-180, 180)).all()
    statistic, freedom = chi_square(shapely.Polygon([(165, -20), (200, -25), (190, 10), (170, 5)]), east, frame.lat)
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_slivers_get_places_by_their_area_and_all_inside(tmp_path: Path) -> None:
    """Strips of ten metres' width, one of them slanted, beside a block: the strips are a hundredth of all."""
    strips = [
        shapely.Polygon([(0, 0), (10, 8), (10, 8.0001), (0, 0.0001)]),
        shapely.box(20, 0, 20.0001, 10),
    ]
    areas = samplers.sphere_area(strips)
    side = float(np.degrees(np.sqrt(99 * areas.sum())))
    frame = area_places([*strips, shapely.box(30, -side / 2, 30 + side, side / 2)], tmp_path)
    owner = frame.tags.map(lambda tags: tags["k"]).to_numpy()
    assert ((owner < 2).mean() - 0.01) < 4 * np.sqrt(0.01 * 0.99 / len(frame))
    assert (owner < 2).any()
    for k, strip in enumerate(strips):
        own = frame.geometry[owner == k].to_numpy()
        assert shapely.covers(strip.buffer(1e-9), own).all()
