"""Features, listings, assets and refusals of the offline Earth Engine, through the genuine client over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import ee
import geopandas as gpd
import numpy as np
import pytest
import requests
import shapely

from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Server, serve
from tests.sandbox_worlds import disconnect, grid, initialize, sentinel_world
from tests.test_sandbox_downloads import LEFT, TOP, box, formula, scene


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the client of this process pointed at it."""
    with serve(Sandbox(sentinel_world())) as server:
        initialize(server.url)
        yield server
        disconnect()


# -- features in pages -----------------------------------------------------------------------------------------------


def many(count: int) -> ee.FeatureCollection:
    return ee.FeatureCollection(
        ee.List.sequence(0, count - 1).map(lambda i: ee.Feature(ee.Geometry.Point([0, 0]), {"i": i}))
    )


def test_computed_features_become_a_pandas_frame_page_by_page(server: Server) -> None:
    before = server.sandbox.requests["table:computeFeatures"]
    frame = ee.data.computeFeatures({"expression": many(25), "pageSize": 10, "fileFormat": "PANDAS_DATAFRAME"})
    assert frame["i"].tolist() == list(range(25))
    assert server.sandbox.requests["table:computeFeatures"] == before + 3


def test_computed_features_become_a_geopandas_frame(server: Server) -> None:
    asked = {"expression": ee.FeatureCollection("C/REGIONS"), "fileFormat": "GEOPANDAS_GEODATAFRAME"}
    frame = ee.data.computeFeatures(asked)
    assert isinstance(frame, gpd.GeoDataFrame)
    assert frame.geometry.iloc[1].equals(shapely.box(2, 0, 3, 1))
    assert frame["name"].tolist() == ["one", "two"]


def test_rows_of_a_table_asset_are_listed_filtered_and_paged(server: Server) -> None:
    first = ee.data.listFeatures({"assetId": "C/REGIONS", "pageSize": 1})
    assert [f["properties"]["name"] for f in first["features"]] == ["one"]
    rest = ee.data.listFeatures({"assetId": "C/REGIONS", "pageToken": first["nextPageToken"]})
    assert [f["properties"]["name"] for f in rest["features"]] == ["two"]
    assert "nextPageToken" not in rest
    frame = ee.data.listFeatures({"assetId": "C/REGIONS", "filter": "area < 1", "fileFormat": "PANDAS_DATAFRAME"})
    assert frame["ECO_ID"].tolist() == [2]
    near = ee.data.listFeatures({"assetId": "C/REGIONS", "region": '{"type": "Point", "coordinates": [0.5, 0.5]}'})
    assert [f["properties"]["ECO_ID"] for f in near["features"]] == [1]
    with pytest.raises(ee.EEException, match="Asset 'C/NO' does not exist"):
        ee.data.listFeatures({"assetId": "C/NO"})


# -- listing assets --------------------------------------------------------------------------------------------------


def listed(**params: Any) -> list[str]:
    found = ee.data.listImages({"parent": "projects/earthengine-public/assets/C/S2", **params})
    return [image["id"].removeprefix("C/S2/S") for image in found["images"]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"startTime": "2020-01-09T00:00:00Z"}, ["008", "009"]),
        ({"startTime": "2020-01-03T00:00:00Z", "endTime": "2020-01-05T00:00:00Z"}, ["002", "003"]),
        ({"properties": ["CLOUDY<2"]}, ["000", "003"]),
        ({"properties": ["pass=ASC", "CLOUDY >= 5"]}, ["001", "005", "007"]),
        ({"properties": ["pass != ASC", 'pass != "DESC"']}, []),
        ({"properties": ["nothing=1"]}, []),
        ({"filter": "properties.offset = 4"}, ["004"]),
        ({"filter": 'startTime > "2020-01-09T00:00:00Z" AND properties.CLOUDY > 0'}, ["009"]),
        ({"region": {"type": "Point", "coordinates": [4.275, 45.14]}, "properties": ["offset<2"]}, ["000", "001"]),
        ({"region": "POINT (10 45)"}, []),
    ],
)
def test_images_are_listed_by_time_place_and_properties(
    server: Server, params: dict[str, Any], expected: list[str]
) -> None:
    """CLOUDY is 7 * day mod 10; odd days are ASC."""
    assert listed(**params) == expected


def test_a_basic_view_has_only_names(server: Server) -> None:
    found = ee.data.listAssets({"parent": "C/S2", "pageSize": 1, "view": "BASIC"})["assets"]
    assert found == [{"type": "IMAGE", "name": "projects/earthengine-public/assets/C/S2/S000", "id": "C/S2/S000"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CLOUDY", "Invalid filter: cannot read 'CLOUDY'"),
        ('CLOUDY < 1 OR CLOUDY > 2', "expected AND before 'OR CLOUDY > 2'"),
        ('intersects("nowhere")', "Invalid geometry 'nowhere'"),
        ('startTime > "soon"', "Bad date/time 'soon'"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_read_is_refused(server: Server, text: str, message: str) -> None:
    with pytest.raises(ee.EEException, match=message):
        listed(filter=text)


def test_folders_hold_datasets(server: Server) -> None:
    top = ee.data.listAssets("projects/earthengine-public/assets")["assets"]
    assert top == [{"type": "FOLDER", "name": "projects/earthengine-public/assets/C", "id": "C"}]
    inside = ee.data.listAssets("C")["assets"]
    kinds = [("C/DEM", "IMAGE"), ("C/REGIONS", "TABLE"), ("C/S2", "IMAGE_COLLECTION")]
    assert [(a["id"], a["type"]) for a in inside] == kinds
    assert ee.data.listAssets("projects/my-project/assets") == {"assets": []}
    assert ee.data.getAsset("C")["type"] == "FOLDER"
    with pytest.raises(ee.EEException, match="Collection 'D' does not exist"):
        ee.data.listAssets("D")


# -- getPixels -------------------------------------------------------------------------------------------------------


def stored(**params: Any) -> np.ndarray:
    raw = ee.data.getPixels({"assetId": "C/S2/S000", "fileFormat": "NPY", **params})
    return np.load(io.BytesIO(raw))


def test_an_asset_without_a_grid_comes_on_the_lattice_of_its_first_band(server: Server) -> None:
    pixels = stored(bandIds=["B5", "B4"])
    assert (pixels.shape, pixels.dtype.names) == ((60, 60), ("B5", "B4"))
    np.testing.assert_array_equal(pixels["B5"], 100 * np.arange(60)[:, None] + np.arange(60))


def test_a_region_cuts_the_window_of_an_asset(server: Server) -> None:
    region = box(30, 50, 70, 20).transform("EPSG:4326").getInfo()
    pixels = stored(bandIds=["B4"], region={key: region[key] for key in ("type", "coordinates")})
    inside = pixels["B4"] > 0
    np.testing.assert_array_equal(pixels["B4"][inside], formula(2, 3, *pixels.shape)[inside])
    assert pixels.shape in [(h, w) for h in (3, 4) for w in (4, 5)]
    assert inside.mean() > 0.5


def test_an_asset_that_is_not_there_is_404(server: Server) -> None:
    with pytest.raises(ee.EEException, match="Asset 'C/S2/NONE' does not exist") as caught:
        ee.data.getPixels({"assetId": "C/S2/NONE", "fileFormat": "NPY", "grid": grid(LEFT, TOP)})
    assert caught.value.__context__.resp.status == 404


# -- what is not here ------------------------------------------------------------------------------------------------

TASK = r"Not here: the offline Earth Engine runs no batch tasks; use computePixels or getDownloadURL"
PICTURE = r"Not here: the offline Earth Engine draws no pictures or map tiles; use computePixels or getDownloadURL"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ee.batch.Export.image.toDrive(scene("B4"), scale=10, region=box(0, 10, 10, 0)).start(), TASK),
        (lambda: ee.batch.Export.image.toAsset(scene("B4"), assetId="projects/tests/assets/x", scale=10,
                                               region=box(0, 10, 10, 0)).start(), TASK),
        (lambda: ee.batch.Export.table.toDrive(ee.FeatureCollection("C/REGIONS")).start(), TASK),
        (lambda: ee.batch.Export.video.toDrive(ee.ImageCollection("C/S2").select(["B4", "B4", "B4"]), dimensions=8,
                                               region=box(0, 10, 10, 0)).start(), TASK),
        (lambda: ee.batch.Export.map.toCloudStorage(scene("B4"), bucket="b", maxZoom=1).start(), TASK),
        (lambda: scene("B4").getMapId({"min": 0, "max": 9}), PICTURE),
        (lambda: scene("B4").getThumbURL({"min": 0, "max": 9, "dimensions": 8}), PICTURE),
        (lambda: scene("B4").getThumbURL({"dimensions": 8, "format": "jpg"}), PICTURE),
        (lambda: ee.ImageCollection("C/S2").select("B4").getVideoThumbURL({"dimensions": 8}), PICTURE),
        (lambda: ee.ImageCollection("C/S2").select("B4").getFilmstripThumbURL({"dimensions": 8}), PICTURE),
        (lambda: ee.data.createAsset({"type": "FOLDER"}, "projects/tests/assets/x"), "is read-only"),
        (lambda: ee.data.deleteAsset("projects/tests/assets/x"), "is read-only"),
        (lambda: ee.data.getIamPolicy("projects/tests/assets/x"), "is read-only"),
        (lambda: ee.data.copyAsset("C/DEM", "projects/tests/assets/x"), "is read-only"),
        (lambda: ee.data.updateProjectConfig({"maxConcurrentExports": 2}), "is read-only"),
    ],
)  # fmt: skip
def test_what_needs_googles_machines_is_refused_at_once_with_what_to_use(
    server: Server, ask: Any, message: str
) -> None:
    """Status 400: the client repeats 5xx for a minute."""
    with pytest.raises(ee.EEException, match=message) as caught:
        ask()
    assert caught.value.__context__.resp.status == 400


def test_map_tiles_are_refused_over_http(server: Server) -> None:
    answer = requests.get(f"{server.url}/v1/projects/tests/maps/m/tiles/1/0/0", timeout=10)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_a_project_has_a_configuration_and_no_tasks(server: Server) -> None:
    assert ee.data.getProjectConfig() == {"name": "projects/tests/config", "maxConcurrentExports": 0}
    assert ee.data.listOperations() == []
    with pytest.raises(ee.EEException, match="Operation 'projects/tests/operations/x' not found"):
        ee.data.getOperation("projects/tests/operations/x")
