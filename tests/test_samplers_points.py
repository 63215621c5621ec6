"""Places of a table: every format, and what is wrong with a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from mmbuild import samplers
from mmbuild.errors import UserError
from tests.places import (
    FOUR,
    points_spec,
    rows,
)

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
