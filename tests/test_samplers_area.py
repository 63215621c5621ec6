"""Places uniform in the polygons of a user, whatever their format and CRS."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

from mmbuild import samplers
from mmbuild.errors import UserError
from tests.places import (
    FOUR,
    area_spec,
    places,
)


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
