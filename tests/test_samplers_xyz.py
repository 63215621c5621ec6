"""Tiles inside areas: exactly those of web maps, each once, whole, and covered where that is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import geopandas as gpd
import mercantile
import numpy as np
import pandas as pd
import pytest
import shapely

from mmbuild import samplers
from mmbuild.errors import UserError
from mmbuild.grid import tile_at, tile_grid
from mmbuild.recipe import XyzSampler
from mmbuild.recipe.places import US_STATES
from mmbuild.samplers import xyz
from tests.places import rows


def spec(**more: Any) -> XyzSampler:
    return XyzSampler(kind="xyz", **more)


def drawn(asked: XyzSampler, n: int, zoom: int = 15, **more: Any) -> Any:
    return samplers.candidates(asked, **{"n": n, "seed": 3, "alternates": 0, "zoom": zoom} | more)


def names(frame: Any) -> list[str]:
    return [tags["tile"] for tags in frame.tags]


def test_all_tiles_of_a_larger_one_come_once_and_no_other() -> None:
    frame = drawn(spec(tiles=["9/135/204"]), 4**4, zoom=13)
    children = {f"{t.z}/{t.x}/{t.y}" for t in mercantile.children(135, 204, 9, zoom=13)}
    assert len(children) == 4**4
    assert sorted(names(frame)) == sorted(children)
    assert names(frame) != sorted(children)


def test_the_place_of_a_tile_is_its_middle_on_its_grid() -> None:
    frame = drawn(spec(tiles=["9/135/204", "3/7/7", "2/0/0"]), 300, zoom=17)
    for tags, lon, lat in zip(frame.tags, frame.lon, frame.lat, strict=True):
        z, x, y = map(int, tags["tile"].split("/"))
        assert tile_at(lon, lat, 17) == (x, y, z)
        box = tile_grid(x, y, z, size=256)
        east, north = mercantile.xy(lon, lat)
        assert (east, north) == (
            pytest.approx(box.affine.c + 128 * box.affine.a, abs=1e-3),
            pytest.approx(box.affine.f - 128 * box.affine.a, abs=1e-3),
        )


def test_a_tile_listed_twice_or_within_another_counts_once() -> None:
    asked = spec(tiles=["9/135/204", "10/270/408", "9/135/204", "9/136/204"])
    assert sorted(names(drawn(asked, 2 * 4**3, zoom=12))) == sorted(
        f"12/{t.x}/{t.y}" for x in (135, 136) for t in mercantile.children(x, 204, 9, zoom=12)
    )


def test_tiles_of_a_polygon_are_those_that_lie_in_it_whole(tmp_path: Path) -> None:
    shape = shapely.Polygon([(10, 50), (12, 50.3), (11.5, 51.2), (10.2, 51)], [[(10.8, 50.5), (11, 50.5), (11, 50.8)]])
    gpd.GeoDataFrame({"label": ["x"]}, geometry=[shape], crs=4326).to_file(tmp_path / "a.geojson")
    inside = [t for t in mercantile.tiles(*shape.bounds, zooms=11) if shape.covers(shapely.box(*mercantile.bounds(t)))]
    frame = drawn(spec(file=str(tmp_path / "a.geojson")), len(inside), zoom=11)
    assert sorted(names(frame)) == sorted(f"11/{t.x}/{t.y}" for t in inside)
    assert {tags["label"] for tags in frame.tags} == {"x"}


def test_overlapping_and_touching_polygons_give_no_tile_twice_and_lose_none_between_them(tmp_path: Path) -> None:
    shapes = [shapely.box(10, 50, 11, 51), shapely.box(10.5, 50, 11.5, 51), shapely.box(11.5, 50, 12, 51)]
    gpd.GeoDataFrame({"area": list("abc")}, geometry=shapes, crs=4326).to_file(tmp_path / "a.gpkg")
    whole = xyz.cover(shapely.box(10, 50, 12, 51), 13)
    frame = drawn(spec(file=str(tmp_path / "a.gpkg")), len(whole), zoom=13)
    assert len(set(names(frame))) == len(whole)
    area = frame.tags.map(lambda t: t["area"])
    assert (area[frame.lon < 11] == "a").all()
    assert set(area) == {"a", "b", "c"}


def test_more_tiles_keep_the_first_and_slots_can_be_asked_apart() -> None:
    asked = spec(states=["Rhode Island"])
    small, large = (drawn(asked, n, zoom=14, alternates=2) for n in (50, 200))
    assert rows(small) == rows(large)[: len(small)]
    assert rows(drawn(asked, 200, zoom=14, alternates=2, start=50)) == rows(large)[len(small) :]
    assert len(set(names(large))) == len(large)
    alone = drawn(asked, 200, zoom=14)
    assert names(alone) == names(large[large.alternate == 0])
    assert names(alone) != names(drawn(asked, 200, zoom=14, seed=4))


def test_more_samples_than_tiles_are_refused_with_the_number() -> None:
    with pytest.raises(UserError) as error:
        drawn(spec(tiles=["9/135/204"]), 60, zoom=13, alternates=4)
    assert str(error.value) == (
        "sampler: the areas hold 256 tiles, enough for 51 samples with 4 alternates each; 60 samples are asked; "
        "ask for fewer, set alternates: 0, or name more areas"
    )
    assert len(drawn(spec(tiles=["9/135/204"]), 256, zoom=13)) == 256
    with pytest.raises(UserError, match="257 samples are asked; ask for fewer, or name more areas"):
        drawn(spec(tiles=["9/135/204"]), 257, zoom=13)


def test_states_are_where_they_are() -> None:
    frame = drawn(spec(states=["Georgia", "Puerto Rico"]), 2_000, zoom=15)
    area = frame.tags.map(lambda t: t["area"])
    assert frame.lat[area == "Georgia"].between(30.3, 35.01).all()
    assert frame.lon[area == "Puerto Rico"].between(-68, -65.2).all()
    # Ground of 153,900 and 8,870 km2; tiles are smaller in the north by the cosine squared.
    ratio = 153_900 / np.cos(np.radians(32.6)) ** 2 / (8_870 / np.cos(np.radians(18.2)) ** 2)
    assert (area == "Georgia").sum() / (area == "Puerto Rico").sum() == pytest.approx(ratio, rel=0.25)


def test_every_state_that_a_recipe_may_name_has_its_outline() -> None:
    table = gpd.read_file(xyz.US_STATES)
    assert sorted(table["area"]) == sorted(US_STATES)
    assert table.geometry.is_valid.all()


Boxes = list[list[tuple[float, float, float, float]]]


FLIGHTS = [
    (shapely.box(-84.5, 31.5, -83.0, 33.5), "2019-06-01T15:00"),
    (shapely.box(-83, 31.5, -82.0, 33.5), "2019-06-02T15:00"),
    (shapely.box(-83, 31.5, -82.0, 33.5), "2021-07-03T15:00"),
    (shapely.box(-82, 33, -81, 33.3), "2021-07-04T15:00"),
]


def flown(asked: Boxes | None = None) -> Any:
    """A source with photographs over parts of Georgia, two of them side by side, one of them taken twice."""
    shapes, times = zip(*FLIGHTS, strict=True)

    def footprints(groups: Boxes) -> gpd.GeoDataFrame:
        if asked is not None:
            asked.extend(groups)
        wanted = shapely.union_all([shapely.box(*b) for group in groups for b in group])
        there = [k for k, shape in enumerate(shapes) if shape.intersects(wanted)]
        table = {"time": pd.to_datetime([times[k] for k in there])}
        return gpd.GeoDataFrame(table, geometry=[shapes[k] for k in there], crs=4326)

    return footprints


def covered_tiles(zoom: int) -> list[str]:
    """All covered tiles of Georgia, the slow way."""
    georgia = gpd.read_file(xyz.US_STATES).set_index("area").geometry["Georgia"]
    shapes = [shape for shape, _ in FLIGHTS]
    tiles = mercantile.tiles(*shapely.union_all(shapes).bounds, zooms=zoom)
    boxes = [(t, shapely.box(*mercantile.bounds(t))) for t in tiles]
    return [f"{t.z}/{t.x}/{t.y}" for t, box in boxes if georgia.covers(box) and any(s.covers(box) for s in shapes)]


def test_only_tiles_that_images_cover_are_drawn_and_all_of_them_can_be() -> None:
    there = covered_tiles(12)
    frame = drawn(spec(states=["Georgia"], covered_by="naip"), len(there), zoom=12, footprints=flown())
    assert sorted(names(frame)) == sorted(there)
    with pytest.raises(UserError) as error:
        drawn(spec(states=["Georgia"], covered_by="naip"), len(there) + 1, zoom=12, footprints=flown())
    assert f"the areas hold {len(there):,} tiles that naip covers, enough for" in str(error.value)
    with pytest.raises(UserError, match="tiles that naip covers"):
        drawn(spec(states=["Georgia"], covered_by="naip"), 200, zoom=12, alternates=3, footprints=flown())


def test_covered_tiles_follow_from_seed_and_slot_however_many_are_asked() -> None:
    asked = spec(states=["Georgia"], covered_by="naip")
    small, large = (drawn(asked, n, zoom=15, alternates=3, footprints=flown()) for n in (40, 300))
    assert rows(small) == rows(large)[: len(small)]
    assert rows(drawn(asked, 300, zoom=15, alternates=3, start=40, footprints=flown())) == rows(large)[len(small) :]
    assert len(set(names(large))) == len(large)
    order = drawn(spec(states=["Georgia"]), 3_000, zoom=15)
    there = set(covered_tiles(15))
    assert names(large[large.alternate == 0]) == [name for name in names(order) if name in there][:300]


def test_a_covered_tile_has_the_date_of_an_image_that_covers_it_whole() -> None:
    frame = drawn(spec(states=["Georgia"], covered_by="naip"), 2_000, zoom=15, alternates=1, footprints=flown())
    twice = []
    for tags, date in zip(frame.tags, frame.date, strict=True):
        z, x, y = map(int, tags["tile"].split("/"))
        box = shapely.box(*mercantile.bounds(x, y, z))
        dates = {pd.Timestamp(time, tz="UTC") for shape, time in FLIGHTS if shape.covers(box)}
        assert date in dates
        twice += [date == max(dates)] if len(dates) == 2 else []
    assert len(twice) > 300
    assert 0.4 < np.mean(twice) < 0.6


def test_coverage_is_asked_of_candidates_alone_and_once_of_a_cell_with_many() -> None:
    few: Boxes = []
    drawn(spec(states=["Georgia"], covered_by="naip"), 30, zoom=15, alternates=1, footprints=flown(few))
    ground = sum(shapely.box(*b).area for group in few for b in group)
    assert ground < 0.05 * gpd.read_file(xyz.US_STATES).set_index("area").geometry["Georgia"].area
    assert sum(map(len, few)) < 60 / 0.2 * 1.5
    many: Boxes = []
    drawn(spec(states=["Georgia"], covered_by="naip"), 3_000, zoom=15, alternates=2, footprints=flown(many))
    whole = [group[0] for group in many if shapely.box(*group[0]).area > 1.0]
    assert 15 < len(whole) == len(set(whole)) < 30
    assert len(many) < 60


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1024, 5_000])
def test_the_order_of_tiles_is_a_permutation_without_a_list(size: int) -> None:
    order = xyz.permuted(np.arange(size), size, 7)
    assert sorted(order.tolist()) == list(range(size))
    if size >= 100:
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 4 / np.sqrt(size)
        assert (order == xyz.permuted(np.arange(size), size, 8)).mean() < 0.1


def test_the_survey_counts_tiles_and_areas() -> None:
    told = samplers.survey(spec(states=["Iowa", "Ohio"]), n=100, seed=0, alternates=1, zoom=14)
    assert (told.places, sum(count for _, count in told.strata)) == (100, 100)
    assert [name for name, _ in told.strata] == ["Iowa", "Ohio"]
    assert "tiles of zoom 14 lie in the areas, enough for" in told.notes[0]
    asked = spec(states=["Georgia"], covered_by="naip")
    note = samplers.survey(asked, n=50, seed=0, alternates=1, zoom=15, footprints=flown()).notes[0]
    told = re.match(
        r"([\d,]+) tiles .* naip covers ([\d,]+) of the ([\d,]+) that were looked at: enough for ([\d,]+) s", note
    )
    assert told is not None, note
    there, covered, looked, enough = (int(part.replace(",", "")) for part in told.groups())
    assert enough == there * covered // looked // 2
    # Photographs over 7.3 square degrees of Georgia's 14.6.
    assert 0.2 < covered / looked < 0.6
