"""Places around cities: who is drawn, how far they scatter, and that no two share ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyproj import Geod, Transformer

from mmbuild import published, samplers
from mmbuild.errors import UserError
from mmbuild.grid import corners, tile_at, tile_grid, utm_grid
from mmbuild.recipe import CitiesSampler, UtmGrid, WebmercatorGrid
from mmbuild.samplers import cities
from tests.places import rows

GRID = UtmGrid(kind="utm", gsd=10.0, size=264)
FACTS = Path(__file__).parents[2] / "shared/facts/data/simplemaps_basic_v171_top10k.csv"
CITIES = "name,lat,lng,population,country,big\nA,0.0,3.0,3000000,AA,1\nB,60.0,9.0,1000000,BB,1\nC,-45.0,170.0,10,CC,0\n"
WGS84 = Geod(ellps="WGS84")


def spec(**more: Any) -> CitiesSampler:
    return CitiesSampler(kind="cities", **more)


def three(folder: Path, **more: Any) -> CitiesSampler:
    (folder / "c.csv").write_text(CITIES)
    return spec(**{"cities": str(folder / "c.csv"), "top": 3} | more)


def drawn(asked: CitiesSampler, n: int, grid: Any = GRID, **more: Any) -> Any:
    return samplers.candidates(asked, **{"n": n, "seed": 3, "alternates": 0, "grid": grid} | more)


def overlapping(frame: pd.DataFrame, side_m: float) -> int:
    """Pairs of different slots whose squares, turned to true north, share ground; one place at a time."""
    found = 0
    for k in range(len(frame)):
        lon, lat = frame.lon.iat[k], frame.lat.iat[k]
        near = frame[(abs(frame.lat - lat) < 0.05) & (frame.slot > frame.slot.iat[k])]
        for other in near.itertuples():
            azimuth, _, distance = WGS84.inv(lon, lat, other.lon, other.lat)
            east, north = distance * np.sin(np.radians(azimuth)), distance * np.cos(np.radians(azimuth))
            # Corners move by up to 30 m each, and squares lean by up to three degrees: allow a tenth.
            found += max(abs(east), abs(north)) < 0.9 * side_m
    return found


def test_corners_of_many_chips_are_those_of_each() -> None:
    lon = np.array([0.5, 5.99999, 6.0, 4.0, 20.5, -179.9, 30.0])
    lat = np.array([0.0, 10.0, -10.0, 60.0, 78.0, -55.0, -0.001])
    epsg, x0, y0 = corners(lon, lat, GRID)
    for k in range(len(lon)):
        box = utm_grid(lon[k], lat[k], gsd=10.0, size=264)
        assert (epsg[k], x0[k], y0[k]) == (box.crs.to_epsg(), box.affine.c, box.affine.f)
    tiles = WebmercatorGrid(kind="webmercator", zoom=14)
    epsg, x0, y0 = corners(lon, lat, tiles)
    for k in range(len(lon)):
        box = tile_grid(*tile_at(lon[k], lat[k], 14))
        assert (epsg[k], x0[k], y0[k]) == (3857, pytest.approx(box.affine.c), pytest.approx(box.affine.f))


def test_cities_are_drawn_evenly_or_by_their_people(tmp_path: Path) -> None:
    even = drawn(three(tmp_path, overlap="allow"), 6_000).tags.map(lambda t: t["city"]).value_counts()
    assert (abs(even - 2_000) < 150).all()
    people = drawn(three(tmp_path, overlap="allow", weights="population"), 6_000).tags.map(lambda t: t["city"])
    assert people.value_counts()["A"] == pytest.approx(4_500, abs=150)


def test_the_offset_is_gaussian_on_the_ground_in_both_directions_at_any_latitude(tmp_path: Path) -> None:
    frame = drawn(three(tmp_path, overlap="allow", top=2, std_km=20.0), 8_000)
    for name, lon, lat in (("A", 3.0, 0.0), ("B", 9.0, 60.0)):
        own = frame[frame.tags.map(lambda t, name=name: t["city"] == name)]
        to_ground = Transformer.from_crs(4326, f"+proj=aeqd +lat_0={lat} +lon_0={lon}", always_xy=True)
        for axis in to_ground.transform(own.lon, own.lat):
            assert np.mean(axis) == pytest.approx(0, abs=1_300)
            assert np.std(axis) == pytest.approx(20_000, rel=0.05)


def test_the_published_offset_counts_degrees_of_both_axes_alike(tmp_path: Path) -> None:
    frame = drawn(three(tmp_path, overlap="allow", top=2, offset="degrees"), 8_000)
    own = frame[frame.tags.map(lambda t: t["city"] == "B")]
    degrees = published.km_to_degrees(50)
    assert np.std(own.lon) == pytest.approx(degrees, rel=0.05)
    assert np.std(own.lat) == pytest.approx(degrees, rel=0.05)


@pytest.mark.parametrize("grid", [GRID, WebmercatorGrid(kind="webmercator", zoom=14)])
def test_no_two_chips_share_ground_and_without_the_rule_they_do(grid: Any, tmp_path: Path) -> None:
    frame = drawn(three(tmp_path, std_km=15.0), 150, grid, alternates=1)
    epsg, x0, y0 = corners(frame.lon.to_numpy(), frame.lat.to_numpy(), grid)
    squares = pd.DataFrame({"epsg": epsg, "x0": x0, "y0": y0, "slot": frame.slot})
    wide = 2640 if grid.kind == "utm" else 2 * 20037508.342789244 / 2**14
    assert shared(squares, wide) == 0
    frame = drawn(three(tmp_path, std_km=15.0, overlap="allow"), 150, grid, alternates=1)
    epsg, x0, y0 = corners(frame.lon.to_numpy(), frame.lat.to_numpy(), grid)
    assert shared(pd.DataFrame({"epsg": epsg, "x0": x0, "y0": y0, "slot": frame.slot}), wide) > 20


def shared(squares: pd.DataFrame, wide: float) -> int:
    """Pairs of squares of different slots that share ground, zone by zone."""
    found = 0
    for _, zone in squares.groupby("epsg"):
        x, y, slot = zone.x0.to_numpy(), zone.y0.to_numpy(), zone.slot.to_numpy()
        near = (abs(x[:, None] - x) < wide - 1e-3) & (abs(y[:, None] - y) < wide - 1e-3)
        found += int((near & (slot[:, None] < slot)).sum())
    return found


def test_chips_on_both_sides_of_a_zone_border_do_not_share_ground(tmp_path: Path) -> None:
    (tmp_path / "border.csv").write_text("name,lat,lng,population\nA,45.0,6.0,1\n")
    asked = spec(cities=str(tmp_path / "border.csv"), top=1, std_km=12.0)
    frame = drawn(asked, 150)
    assert corners(frame.lon, frame.lat, GRID)[0].min() < corners(frame.lon, frame.lat, GRID)[0].max()
    assert overlapping(frame, 2640.0) == 0
    assert overlapping(drawn(asked.model_copy(update={"overlap": "allow"}), 150), 2640.0) > 20


def test_blocks_give_what_taking_places_one_by_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(three(tmp_path, std_km=12.0), 120, alternates=1)
    for size in (1, 7, 50):
        monkeypatch.setattr("mmbuild.samplers._overlap.BLOCK", size)
        assert rows(drawn(three(tmp_path, std_km=12.0), 120, alternates=1)) == rows(whole)


def test_more_places_keep_the_first_although_ground_is_scarce(tmp_path: Path) -> None:
    asked = three(tmp_path, std_km=12.0)
    small, large = (drawn(asked, n, alternates=2) for n in (60, 130))
    assert rows(small) == rows(large)[: len(small)]
    assert rows(drawn(asked, 130, start=60, alternates=2)) == rows(large)[len(small) :]


def test_the_published_rule_looks_in_one_cell_of_a_degree_only(tmp_path: Path) -> None:
    frame = drawn(three(tmp_path, std_km=12.0, overlap="published"), 150)
    lon, lat = frame.lon.to_numpy(), frame.lat.to_numpy()
    km = np.hypot(lon[:, None] - lon, lat[:, None] - lat) / published.km_to_degrees(1.0)
    keys = np.array([published.grid_key(*place) for place in zip(lon, lat, strict=True)])
    same = (keys[:, None] == keys).all(axis=2) & ~np.eye(len(frame), dtype=bool)
    assert not ((km < 1.98) & same).any()
    assert ((km < 1.98) & ~same & ~np.eye(len(frame), dtype=bool)).any()


def test_near_alternates_are_around_the_city_of_the_slot(tmp_path: Path) -> None:
    frame = drawn(three(tmp_path, overlap="allow"), 300, alternates=4)
    city = frame.tags.map(lambda t: t["city"]).to_numpy().reshape(-1, 5)
    assert (city[:, 1:3] == city[:, :1]).all()
    assert (city[:, 3:] != city[:, :1]).any()


def test_ground_that_is_full_is_an_error_with_remedies(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        drawn(three(tmp_path, std_km=0.0), 5)
    assert str(error.value) == (
        "sampler.overlap: no free ground found in 1000 draws; "
        "ask for fewer samples, use more cities (top) or a larger std_km, or set overlap: allow"
    )


def test_geonames_has_ten_thousand_cities_ready() -> None:
    found = cities.read_cities(spec(weights="population"))
    assert (len(found.tags), found.tags[0]["city"]) == (10_000, "Shanghai")
    assert found.tags[-1]["population"] == pytest.approx(62_000, abs=1_000)


def test_the_list_of_ssl4eo_has_two_times_ten_thousand_cities() -> None:
    best, theirs = (cities.read_cities(spec(cities="simplemaps", keep=keep)) for keep in (None, "published"))
    assert (len(best.tags), len(theirs.tags)) == (10_000, 10_000)
    names = [{t["city"] for t in found.tags} for found in (best, theirs)]
    assert "Yellowknife" in names[1] - names[0]
    assert (best.tags[-1]["population"], best.tags[0]["city"]) == (29_615, "Tokyo")


@pytest.mark.skipif(not FACTS.exists(), reason="../shared/facts is not here: the list of cities as it was handed on")
def test_the_layout_of_the_ssl4eo_list_is_read_from_a_file() -> None:
    found = cities.read_cities(spec(cities=str(FACTS), keep="in_faithful_top10k"))
    assert (len(found.tags), found.tags[0]) == (10_000, {"city": "Tokyo", "country": "JP", "population": 37_977_000})


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (CITIES, {"top": 4}, "sampler.top: the list FILE has 3 cities, the top 4 are asked; set it to at most 3"),
        (CITIES, {"keep": "large"}, "FILE: has no column 'large'; set sampler.keep to one of name, lat, lng"),
        (CITIES, {"keep": "big", "top": 3}, "sampler.top: the list FILE has 2 cities"),
        ("name,lat,lng\nA,1,1\n", {"top": 1}, "FILE: has no column of populations among name, lat, lng; call it"),
        (
            "name,lat,lng,pop\nA,1,1,1 mio\n", {"top": 1},
            "FILE: row 1, column pop: '1 mio' is not a population; write a number, such as 29615",
        ),
        (
            "name,lat,lng,pop\nA,1,1,\n", {"top": 1, "weights": "population"},
            "sampler.weights: no city of the list FILE has a population; set it to uniform",
        ),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used_are_refused(text: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(UserError) as error:
        cities.read_cities(spec(**{"cities": str(tmp_path / "c.csv"), "top": 3} | more))
    assert str(error.value).replace(str(tmp_path / "c.csv"), "FILE").startswith(message)


def test_the_survey_tells_countries_and_refusals(tmp_path: Path) -> None:
    told = samplers.survey(three(tmp_path, std_km=15.0), n=60, seed=3, alternates=0, grid=GRID)
    assert told.places == sum(count for _, count in told.strata) == 60
    assert {name for name, _ in told.strata} == {"AA", "BB", "CC"}
    assert told.notes[0] == "3 of 3 cities have a place"
    assert told.notes[1].endswith("draws refused for overlap, of 60 places and alternates")
    assert int(told.notes[1].split()[0]) > 0
