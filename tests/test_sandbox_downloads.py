"""Downloads of the offline Earth Engine: the genuine client asks for an address over HTTP, `requests` gets the file."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import ee
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import requests
import shapely
from pyproj import Transformer
from rasterio.io import MemoryFile

from mmbuild.sandbox.downloads import Downloads
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Server, serve
from mmbuild.sandbox.values import EarthEngineError
from tests.sandbox_worlds import FormulaDataset, FormulaWorld, disconnect, grid, initialize, sentinel_world

LEFT, TOP = 600000.0, 5000040.0
UTM = "EPSG:32631"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the client of this process pointed at it."""
    world = sentinel_world()
    mixed = FormulaDataset(
        "C/MIXED",
        "table",
        rows=[
            (shapely.Point(1.5, 2.5), {"name": "a, b", "count": 3}),
            (None, {"name": "none", "share": 0.25, "list": [1, 2]}),
        ],
    )
    with serve(Sandbox(FormulaWorld([*world.datasets, mixed]))) as server:
        initialize(server.url)
        yield server
        disconnect()


def scene(*bands: str) -> ee.Image:
    return ee.Image("C/S2/S000").select(list(bands))


def box(left: float, bottom: float, right: float, top: float) -> ee.Geometry:
    """A box in metres right of and below the corner of the scene."""
    return ee.Geometry.Rectangle([LEFT + left, TOP - bottom, LEFT + right, TOP - top], UTM, False)


def download(image: ee.Image, form: str | None = "GEO_TIFF", **params: Any) -> requests.Response:
    answer = requests.get(image.getDownloadURL({**params, **({"format": form} if form else {})}), timeout=10)
    assert answer.status_code == 200, answer.text
    return answer


def opened(data: bytes) -> tuple[np.ndarray, Any, dict[str, Any]]:
    """Pixels, transform and the rest of a GeoTIFF."""
    with MemoryFile(data) as file, file.open() as found:
        about = {"crs": found.crs.to_epsg(), "bands": found.descriptions, "nodata": found.nodata}
        return found.read(), found.transform, about


def members(answer: requests.Response) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def formula(row0: int, col0: int, height: int, width: int) -> np.ndarray:
    """What B4 of the first scene holds."""
    return 1000 * np.arange(row0, row0 + height)[:, None] + np.arange(col0, col0 + width)


# -- images: where the pixels lie ------------------------------------------------------------------------------------


def test_a_region_at_odd_metres_is_rounded_outwards_to_multiples_of_the_scale(server: Server) -> None:
    """With a CRS the lattice starts at (0, 0) of the CRS, so 8 x 6 px at odd metres are 9 x 7."""
    region = box(103, 163, 183, 103)
    pixels, transform, about = opened(download(scene("B4"), region=region, scale=10, crs=UTM).content)
    assert transform == rasterio.Affine(10, 0, LEFT + 100, 0, -10, TOP - 100)
    assert about == {"crs": 32631, "bands": ("B4",), "nodata": 0}
    np.testing.assert_array_equal(pixels[0], formula(10, 10, 7, 9))


@pytest.mark.parametrize(
    ("params", "transform", "shape"),
    [
        ({"scale": 20}, (20, 0, LEFT + 100, 0, -20, TOP - 100), (3, 4)),
        ({"dimensions": [16, 6]}, (5, 0, LEFT + 100, 0, -10, TOP - 100), (6, 16)),
        ({"dimensions": "4x3"}, (20, 0, LEFT + 100, 0, -20, TOP - 100), (3, 4)),
        ({"dimensions": 16}, (5, 0, LEFT + 100, 0, -5, TOP - 100), (12, 16)),
        ({}, (10, 0, LEFT + 100, 0, -10, TOP - 100), (6, 8)),
        ({"crs": UTM, "crs_transform": [10, 0, LEFT + 3, 0, -10, TOP]}, (10, 0, LEFT + 93, 0, -10, TOP - 100), (6, 9)),
        ({"crs": "EPSG:32632", "scale": 30}, None, (3, 4)),
    ],
)
def test_the_parameters_of_a_download_decide_its_grid(
    server: Server, params: dict[str, Any], transform: tuple[float, ...] | None, shape: tuple[int, int]
) -> None:
    pixels, found, about = opened(download(scene("B4"), region=box(100, 160, 180, 100), **params).content)
    assert pixels.shape[1:] == shape
    assert transform is None or found == rasterio.Affine(*transform)
    if transform is None:
        assert (about["crs"], found.a, found.c % 30, found.f % 30) == (32632, 30, 0, 0)


def test_crs_transform_and_dimensions_are_that_rectangle_exactly(server: Server) -> None:
    params = {"crs": UTM, "crs_transform": [10, 0, LEFT + 50, 0, -10, TOP - 20], "dimensions": [5, 4]}
    pixels, transform, _ = opened(download(scene("B4"), **params).content)
    assert transform == rasterio.Affine(10, 0, LEFT + 50, 0, -10, TOP - 20)
    np.testing.assert_array_equal(pixels[0], formula(2, 5, 4, 5))


def test_a_lonlat_region_is_a_planar_box(server: Server) -> None:
    """West, south, east, north: the pixels that its outline in UTM touches, no more."""
    west, south, east, north = 4.2737, 45.1400, 4.2747, 45.1408
    x, y = Transformer.from_crs(4326, 32631, always_xy=True).transform(
        [west, east, west, east], [south, south, north, north]
    )
    pixels, transform, _ = opened(download(scene("B4"), region=[west, south, east, north], scale=10, crs=UTM).content)
    assert (transform.c, transform.f) == (np.floor(min(x) / 10) * 10, np.ceil(max(y) / 10) * 10)
    assert pixels.shape[1:] == (
        np.ceil(max(y) / 10) - np.floor(min(y) / 10),
        np.ceil(max(x) / 10) - np.floor(min(x) / 10),
    )


def test_without_parameters_the_whole_image_comes_on_its_own_lattice(server: Server) -> None:
    pixels, transform, _ = opened(download(scene("B4")).content)
    assert transform == rasterio.Affine(10, 0, LEFT, 0, -10, TOP)
    np.testing.assert_array_equal(pixels[0], np.minimum(formula(0, 0, 120, 120), 65535))


def test_outside_the_image_a_download_is_nodata(server: Server) -> None:
    pixels, _, about = opened(download(scene("B4").add(1).toInt32(), region=box(-20, 10, 20, 0), scale=10).content)
    np.testing.assert_array_equal(pixels[0], [[about["nodata"], about["nodata"], 1, 2]])


# -- images: formats -------------------------------------------------------------------------------------------------


def test_npy_is_a_structured_array_with_each_band_in_its_type(server: Server) -> None:
    answer = download(scene("B4", "SCL"), "NPY", region=box(0, 20, 30, 0), scale=10)
    pixels = np.load(io.BytesIO(answer.content))
    assert pixels.dtype == np.dtype([("B4", "<u2"), ("SCL", "u1")])
    np.testing.assert_array_equal(pixels["B4"], formula(0, 0, 2, 3))
    assert answer.headers["content-disposition"] == 'attachment; filename="S000.npy"'


def test_a_zip_holds_one_geotiff_with_all_bands_under_the_given_name(server: Server) -> None:
    answer = download(scene("B4", "B5"), "ZIPPED_GEO_TIFF", region=box(0, 20, 30, 0), scale=10, name="chip")
    found = members(answer)
    assert list(found) == ["chip.tif"]
    assert opened(found["chip.tif"])[2]["bands"] == ("B4", "B5")
    assert answer.headers["content-disposition"] == 'attachment; filename="chip.zip"'


def test_by_default_each_band_is_a_file_on_its_own_lattice_named_after_image_and_band(server: Server) -> None:
    found = members(download(ee.Image("C/S2/S000").select(["B4", "SCL"]), None, region=box(0, 40, 40, 0)))
    assert list(found) == ["S000.B4.tif", "S000.SCL.tif"]
    assert [opened(data)[1].a for data in found.values()] == [10, 20]
    np.testing.assert_array_equal(opened(found["S000.SCL.tif"])[0][0], [[0, 1], [1, 2]])


def test_a_computed_image_is_called_download(server: Server) -> None:
    image = ee.Image([1, 2]).rename(["a", "b"]).toUint8()
    found = members(download(image, None, region=box(0, 20, 20, 0), scale=10, crs=UTM))
    assert list(found) == ["download.a.tif", "download.b.tif"]
    assert list(members(download(scene("B4").add(1), "ZIPPED_GEO_TIFF"))) == ["download.tif"]


def test_bands_have_their_own_scales_in_files_per_band(server: Server) -> None:
    bands = [{"id": "B5", "scale": 40}, {"id": "B4"}]
    found = members(download(scene("B4", "B5"), None, bands=bands, region=box(0, 80, 80, 0), scale=10))
    assert {name: opened(data)[0].shape for name, data in found.items()} == {
        "S000.B5.tif": (1, 2, 2),
        "S000.B4.tif": (1, 8, 8),
    }


def test_a_list_of_bands_chooses_and_orders_them(server: Server) -> None:
    answer = download(ee.Image("C/S2/S000"), "NPY", bands=["SCL", "B4"], region=box(0, 10, 10, 0), scale=10)
    assert np.load(io.BytesIO(answer.content)).dtype.names == ("SCL", "B4")


def test_the_same_request_has_the_same_address_and_the_same_bytes(server: Server) -> None:
    params = {"region": box(0, 20, 30, 0), "scale": 10, "format": "ZIPPED_GEO_TIFF"}
    first, second = (scene("B4").getDownloadURL(dict(params)) for _ in range(2))
    assert first == second
    assert requests.get(first, timeout=10).content == requests.get(second, timeout=10).content


# -- images: refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "params", "message"),
    [
        (lambda: ee.Image(1).toUint8(), {"dimensions": [4096, 4097]},
         r"Total request size \(33562624 bytes\) must be less than or equal to 33554432 bytes\."),
        (lambda: ee.Image(1), {"dimensions": [10001, 1]},
         r"Pixel grid dimensions \(10001x1\) must be less than or equal to 10000\."),
        (lambda: ee.Image.constant([0] * 1025), {"dimensions": [1, 1]}, r"Too many bands: 1025; at most 1024"),
        (lambda: ee.Image(1), {"dimensions": [1, 1], "format": "TF_RECORD_IMAGE"},
         r"does not write the file format 'TF_RECORD_IMAGE', only NPY, GEO_TIFF, ZIPPED_GEO_TIFF and"),
        (lambda: ee.Image("C/S2/NONE"), {"dimensions": [1, 1]}, r"Image asset 'C/S2/NONE' not found"),
    ],
)  # fmt: skip
def test_what_cannot_be_downloaded_is_refused_when_the_address_is_asked_for(
    server: Server, image: Any, params: dict[str, Any], message: str
) -> None:
    """32 MiB counted with the mask byte: a uint8 image of 4096 x 4096 px is the largest."""
    with pytest.raises(ee.EEException, match=message):
        image().getDownloadURL({"format": "NPY", "crs": UTM, "region": box(0, 10, 10, 0), **params})


def test_the_largest_download_is_accepted(server: Server) -> None:
    params = {"format": "NPY", "crs": UTM, "region": box(0, 10, 10, 0), "dimensions": [4096, 4096]}
    assert ee.Image(1).toUint8().getDownloadURL(params).startswith(server.url)


def test_a_region_is_needed_where_an_image_has_no_edge(server: Server) -> None:
    with pytest.raises(ee.EEException, match="The geometry for image clipping must not be unbounded"):
        ee.Image(1).getDownloadURL({"scale": 10, "crs": UTM})


@pytest.mark.parametrize("path", ["thumbnails/none:getPixels", "tables/none:getFeatures"])
def test_an_address_that_nobody_made_is_not_found(server: Server, path: str) -> None:
    answer = requests.get(f"{server.url}/v1/projects/tests/{path}", timeout=10)
    assert answer.status_code == 404
    assert "was not found; create it again" in answer.json()["error"]["message"]


def test_only_the_newest_requests_are_kept() -> None:
    downloads = Downloads(entries=2)
    names = [downloads.keep("projects/p/thumbnails", {"n": 1}), downloads.keep("projects/p/thumbnails", {"n": 2})]
    downloads.find(names[0])
    downloads.keep("projects/p/thumbnails", {"n": 3})
    assert (len(downloads), downloads.find(names[0])) == (2, {"n": 1})
    with pytest.raises(EarthEngineError, match="was not found") as caught:
        downloads.find(names[1])
    assert caught.value.code == 404


def test_large_requests_push_out_others_by_their_size() -> None:
    downloads = Downloads(size_bytes=1000)
    first = downloads.keep("projects/p/thumbnails", {"text": "a" * 600})
    again = downloads.keep("projects/p/thumbnails", {"text": "a" * 600})
    assert (first == again, len(downloads)) == (True, 1)
    downloads.keep("projects/p/thumbnails", {"text": "b" * 600})
    assert len(downloads) == 1
    with pytest.raises(EarthEngineError, match="was not found"):
        downloads.find(first)


# -- tables ----------------------------------------------------------------------------------------------------------


def table(collection: ee.FeatureCollection, *args: Any) -> str:
    answer = requests.get(collection.getDownloadURL(*args), timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_table_as_csv_has_the_index_the_properties_and_the_geometry(server: Server) -> None:
    rows = list(csv.DictReader(io.StringIO(table(ee.FeatureCollection("C/MIXED")))))
    assert list(rows[0]) == ["system:index", "count", "list", "name", "share", ".geo"]
    assert [rows[0][key] for key in ("count", "name", "share")] == ["3", "a, b", ""]
    assert json.loads(rows[0][".geo"]) == {"type": "Point", "coordinates": [1.5, 2.5]}
    assert [rows[1][key] for key in ("share", "list")] == ["0.25", "[1,2]"]
    assert json.loads(rows[1][".geo"]) == {"type": "MultiPoint", "coordinates": []}


def test_selectors_and_a_name_for_a_table(server: Server) -> None:
    url = ee.FeatureCollection("C/REGIONS").getDownloadURL("csv", ["name", "ECO_ID"], 'my "places"')
    answer = requests.get(url, timeout=10)
    assert answer.text == "name,ECO_ID\none,1\ntwo,2\n"
    assert answer.headers["content-disposition"] == 'attachment; filename="my _places_.csv"'


@pytest.mark.parametrize("form", ["geojson", "json"])
def test_a_table_as_geojson_opens_with_geopandas(server: Server, form: str) -> None:
    frame = gpd.read_file(io.StringIO(table(ee.FeatureCollection("C/REGIONS"), form, ["name"])))
    assert list(frame.columns) == ["id", "name", "geometry"]
    assert frame.geometry.bounds["minx"].tolist() == [0.0, 2.0]


def test_only_features_make_a_table_and_only_in_known_formats(server: Server) -> None:
    with pytest.raises(ee.EEException, match="Expected a FeatureCollection"):
        ee.FeatureCollection(ee.ImageCollection("C/S2")).getDownloadURL("csv")
    with pytest.raises(ee.EEException, match="does not write the file format 'KML', only CSV, GEO_JSON and JSON"):
        ee.FeatureCollection("C/REGIONS").getDownloadURL("kml")


# -- sampleRectangle -------------------------------------------------------------------------------------------------


def test_each_band_of_a_sampled_rectangle_has_its_own_size(server: Server) -> None:
    found = scene("B4", "B5").sampleRectangle(box(0, 40, 60, 0)).getInfo()["properties"]
    np.testing.assert_array_equal(found["B4"], formula(0, 0, 4, 6))
    assert np.shape(found["B5"]) == (2, 3)


def test_masked_pixels_are_refused_or_get_the_default_value(server: Server) -> None:
    with pytest.raises(ee.EEException, match="band 'B4' with no default value set"):
        scene("B4").sampleRectangle(box(-10, 10, 10, 0)).getInfo()
    found = scene("B4").sampleRectangle(box(-10, 10, 10, 0), defaultValue=-5).get("B4").getInfo()
    assert found == [[-5, 0]]


def test_a_rectangle_holds_262144_pixels_of_a_band(server: Server) -> None:
    image = ee.Image(7).toUint8().setDefaultProjection(UTM, [10, 0, LEFT, 0, -10, TOP])
    assert np.shape(image.sampleRectangle(box(0, 5120, 5120, 0)).get("constant").getInfo()) == (512, 512)
    with pytest.raises(ee.EEException, match=r"Too many pixels in sample; must be <= 262144\. Got 262656\."):
        image.sampleRectangle(box(0, 5130, 5120, 0)).getInfo()


# -- the images behind downloads -------------------------------------------------------------------------------------


def test_a_clip_gives_an_image_edges(server: Server) -> None:
    info = scene("B4").clip(box(33, 61, 68, 20)).getInfo()["bands"][0]
    assert (info["dimensions"], info["origin"]) == ([4, 5], [3, 2])
    assert info["crs_transform"] == [10, 0, LEFT, 0, -10, TOP]


def test_clipped_to_bounds_an_image_keeps_the_corners_that_a_clip_masks(server: Server) -> None:
    corners = [[LEFT, TOP - 40], [LEFT + 40, TOP - 40], [LEFT, TOP]]
    triangle = ee.Geometry.Polygon(corners, proj=UTM, geodesic=False)
    both = {
        name: np.load(io.BytesIO(download(image.add(1), "NPY").content))["B4"] > 0
        for name, image in {
            "bounds": scene("B4").clipToBoundsAndScale(triangle),
            "clip": scene("B4").clip(triangle),
        }.items()
    }
    assert both["bounds"].all()
    np.testing.assert_array_equal(both["clip"], np.tri(4, dtype=bool))


def test_a_scaled_clip_has_pixels_of_its_own_wherever_it_is_read(server: Server) -> None:
    """Nearest from 30 m pixels, masked outside of its 2 x 2 window."""
    native = scene("B4").reproject(scene("B4").projection())
    image = native.clipToBoundsAndScale(geometry=box(30, 90, 90, 30), scale=30)
    raw = ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid(LEFT, TOP, size=12)})
    values = np.load(io.BytesIO(raw))["B4"]
    coarse = np.repeat(np.repeat(formula(0, 0, 12, 12)[1::3, 1::3], 3, axis=0), 3, axis=1)
    inside = np.zeros((12, 12), dtype=bool)
    inside[3:9, 3:9] = True
    np.testing.assert_array_equal(values, np.where(inside, coarse, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 4}, "'width' and 'height' must be given together"),
        ({"width": 4, "height": 4, "scale": 10}, "are mutually exclusive"),
        ({"maxDimension": 4, "scale": 10}, "are mutually exclusive"),
    ],
)
def test_a_scale_is_given_in_one_way(server: Server, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ee.EEException, match=message):
        scene("B4").clipToBoundsAndScale(geometry=box(0, 10, 10, 0), **arguments).getInfo()


def test_bands_are_sliced_like_a_list(server: Server) -> None:
    image = ee.Image([1, 2, 3, 4]).rename(["a", "b", "c", "d"])
    assert image.slice(1, 3).bandNames().getInfo() == ["b", "c"]
    assert image.slice(-2).bandNames().getInfo() == ["c", "d"]


def test_a_rectangle_in_pixels_of_a_projection_lies_where_they_are(server: Server) -> None:
    projection = ee.Projection(UTM, [10, 0, LEFT, 0, -10, TOP])
    found = ee.Geometry.Rectangle([3, 2, 7, 5], projection, False).bounds(1, UTM).coordinates().getInfo()[0]
    assert (min(found), max(found)) == ([LEFT + 30, TOP - 50], [LEFT + 70, TOP - 20])


def test_an_image_keeps_its_id_until_it_is_computed_with(server: Server) -> None:
    """geedim finds the masks of an image by that id, after bands were chosen and added."""
    image = ee.Image("C/S2/S000")
    kept = image.select("B4").addBands(image.select("B5")).clip(box(0, 10, 10, 0)).toFloat()
    assert kept.getInfo()["id"] == "C/S2/S000"
    assert "id" not in kept.add(1).getInfo()
    assert ee.ImageCollection("C/S2").limit(3).get("system:id").getInfo() == "C/S2"


def test_arithmetic_has_edges_where_its_inputs_meet(server: Server) -> None:
    left, right = scene("B4").clip(box(0, 50, 60, 0)), scene("B4").clip(box(20, 100, 100, 30))
    info = left.add(right).getInfo()["bands"][0]
    assert (info["origin"], info["dimensions"]) == ([2, 3], [4, 2])
    assert "dimensions" not in ee.Image(1).add(2).getInfo()["bands"][0]
