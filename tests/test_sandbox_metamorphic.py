"""Relations that pixels of the offline Earth Engine must keep, whatever the values: shift, split, order, every door.

Asked of the synthetic Earth through the genuine client, with images made as corpora make them; and of random GeoTIFFs,
against GDAL's warper.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ee
import numpy as np
import pytest
import rasterio
import requests
from rasterio.io import MemoryFile
from rasterio.warp import Resampling, reproject

from mmbuild.sandbox import open_world
from mmbuild.sandbox.archive import open_archive
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Server, serve
from tests.sandbox_worlds import connected, disconnect, grid, initialize, pixels
from tests.test_sandbox_archive import LEFT, TOP, write_archive, write_tiff

# Near Munich, on the 60 m lattice of UTM 32N.
EASTING, NORTHING, UTM = 690000.0, 5330040.0, "EPSG:32632"
LON, LAT = 11.57, 48.09


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The synthetic Earth behind HTTP, with the client of this process pointed at it."""
    with serve(Sandbox(open_world())) as server:
        initialize(server.url)
        yield server
        disconnect()


def here(collection: str, start: str = "2020-06-01", end: str = "2020-07-01") -> ee.ImageCollection:
    return ee.ImageCollection(collection).filterBounds(ee.Geometry.Point([LON, LAT])).filterDate(start, end)


def optical() -> ee.Image:
    return ee.Image(here("COPERNICUS/S2_SR_HARMONIZED").first())


def stack() -> ee.Image:
    """Eight bands from seven products: nearest and bilinear, levels, other CRSs, a mode over time, a slope."""
    elevation = ee.Image("USGS/SRTMGL1_003").select("elevation")
    return ee.Image.cat(
        [
            optical().select(["B4", "SCL"]),
            optical().select("B11").resample("bilinear").toFloat(),
            ee.Image(here("COPERNICUS/S1_GRD").first()).select("VV").resample("bilinear").toFloat(),
            ee.Terrain.slope(elevation).resample("bilinear").toFloat(),
            here("GOOGLE/DYNAMICWORLD/V1").select("label").mode().unmask(99, False).toUint8(),
            ee.ImageCollection("ESA/WorldCover/v200").first().select("Map"),
            ee.Image("users/nlang/ETH_GlobalCanopyHeight_2020_10m_v1").rename("canopy"),
        ]
    )


def same(left: np.ndarray, right: np.ndarray) -> None:
    """Equal to the last bit, band by band."""
    assert left.dtype.names == right.dtype.names
    for name in left.dtype.names:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


LATTICES = pytest.mark.parametrize(
    ("left", "top", "gsd", "crs"),
    [
        (EASTING, NORTHING, 10.0, UTM),
        (EASTING + 3.7, NORTHING - 1.2, 25.0, UTM),
        (1287000.0, 6125000.0, 9.5546, "EPSG:3857"),
        # Degrees that doubles hold: a grid moved by pixels is then moved exactly, and not by a rounded amount.
        (47350 / 4096, 197018 / 4096, 1 / 4096, "EPSG:4326"),
    ],
)


@LATTICES
def test_shifting_the_grid_by_pixels_is_slicing(server: Server, left: float, top: float, gsd: float, crs: str) -> None:
    image = stack()
    whole = pixels(image, grid(left, top, size=48, gsd=gsd, crs=crs))
    assert sum(len(np.unique(whole[name])) > 1 for name in whole.dtype.names) >= 6
    for row, column in ((0, 16), (16, 0), (7, 13)):
        part = pixels(image, grid(left + column * gsd, top - row * gsd, size=32, gsd=gsd, crs=crs))
        same(whole[row : row + 32, column : column + 32], part)


@LATTICES
def test_four_chips_side_by_side_are_the_big_chip(
    server: Server, left: float, top: float, gsd: float, crs: str
) -> None:
    image = stack()
    whole = pixels(image, grid(left, top, size=48, gsd=gsd, crs=crs))
    rows = [
        np.hstack([pixels(image, grid(left + c * gsd, top - r * gsd, size=24, gsd=gsd, crs=crs)) for c in (0, 24)])
        for r in (0, 24)
    ]
    same(whole, np.vstack(rows))


def test_the_order_of_bands_does_not_matter(server: Server) -> None:
    image, where = stack(), grid(EASTING, NORTHING, size=24)
    where["crsCode"] = UTM
    whole = pixels(image, where)
    names = whole.dtype.names
    for order in (names[::-1], names[3:] + names[:3]):
        same(whole[list(order)], pixels(image.select(list(order)), where))
        same(whole[list(order)], pixels(image, where, bandIds=list(order)))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: optical().select("B4"),
        lambda: optical().select("B11"),
        lambda: ee.Image(here("COPERNICUS/S1_GRD").first()).select("VV"),
        lambda: ee.Image("USGS/SRTMGL1_003"),
    ],
)
def test_reprojecting_to_the_own_projection_changes_nothing(
    server: Server, made: Callable[[], ee.Image], mode: str
) -> None:
    """On the image's own lattice, and on one that reads it at its own scale from elsewhere."""
    image = made()
    resampled = image.resample("bilinear") if mode == "bilinear" else image
    again = resampled.reproject(image.projection())
    native = native_grid(image, 24)
    same(pixels(image, native), pixels(again, native))
    if mode == "nearest":
        scale = abs(native["affineTransform"]["scaleX"])
        same(
            pixels(image, {**native, "affineTransform": shifted(native["affineTransform"], scale * 0.3)}),
            pixels(again, {**native, "affineTransform": shifted(native["affineTransform"], scale * 0.3)}),
        )


def shifted(affine: dict[str, float], by: float) -> dict[str, float]:
    return {**affine, "translateX": affine["translateX"] + by, "translateY": affine["translateY"] + by}


def native_grid(image: ee.Image, size: int) -> dict[str, Any]:
    """A window of the first band's own lattice around the place."""
    band = image.getInfo()["bands"][0]
    a, _, c, _, e, f = band["crs_transform"]
    x, y = ee.Geometry.Point([LON, LAT]).transform(band["crs"], 0.001).coordinates().getInfo()
    column, row = np.floor((x - c) / a), np.floor((y - f) / e)
    message = grid(c + a * column, f + e * row, size=size, crs=band["crs"])
    return {**message, "affineTransform": {**message["affineTransform"], "scaleX": a, "scaleY": e}}


# -- every door --------------------------------------------------------------------------------------------------------


def fetched(image: ee.Image, form: str, where: dict[str, Any]) -> bytes:
    """getDownloadURL of exactly this grid."""
    affine, size = where["affineTransform"], where["dimensions"]
    transform = [affine[key] for key in ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")]
    params = {
        "crs": where["crsCode"],
        "crs_transform": transform,
        "dimensions": [size["width"], size["height"]],
        "format": form,
    }
    answer = requests.get(image.getDownloadURL(params), timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("crs", [UTM, "EPSG:3857"])
def test_computed_pixels_equal_downloaded_npy_and_geotiff(server: Server, crs: str) -> None:
    image = stack()
    where = grid(EASTING, NORTHING, size=(24, 32)) if crs == UTM else grid(1287000.0, 6125000.0, size=(24, 32))
    where["crsCode"] = crs
    computed = pixels(image, where)
    same(computed, np.load(io.BytesIO(fetched(image, "NPY", where))))
    mask = pixels(image.mask(), where)
    with MemoryFile(fetched(image, "GEO_TIFF", where)) as file, file.open() as found:
        assert found.descriptions == computed.dtype.names
        assert found.transform.to_gdal()[0] == where["affineTransform"]["translateX"]
        for name, layer in zip(found.descriptions, found.read(), strict=True):
            valid = mask[name] > 0
            assert valid.any()
            np.testing.assert_array_equal(layer[valid], computed[name][valid].astype(layer.dtype), err_msg=name)
            assert (layer[~valid] == found.nodata).all()


@pytest.mark.parametrize("bands", [["B4", "B8"], ["B11"], ["B1"]])
def test_computed_pixels_equal_a_sampled_rectangle_on_the_native_lattice(server: Server, bands: list[str]) -> None:
    image = optical().select(bands)
    where = native_grid(image, 24)
    affine = where["affineTransform"]
    left, top, gsd = affine["translateX"], affine["translateY"], affine["scaleX"]
    region = ee.Geometry.Rectangle([left, top - 24 * gsd, left + 24 * gsd, top], where["crsCode"], False)
    sampled = image.sampleRectangle(region, defaultValue=0).getInfo()["properties"]
    computed = pixels(image, where)
    for name in bands:
        np.testing.assert_array_equal(sampled[name], computed[name])


def test_get_pixels_equals_compute_pixels(server: Server) -> None:
    asset = optical().getInfo()["id"]
    where = native_grid(optical().select("B4"), 24)
    raw = ee.data.getPixels({"assetId": asset, "fileFormat": "NPY", "bandIds": ["B4", "SCL"], "grid": where})
    same(np.load(io.BytesIO(raw)), pixels(ee.Image(asset).select(["B4", "SCL"]), where))


# -- GDAL --------------------------------------------------------------------------------------------------------------

# Pixels a little smaller than the file's 10 m: where GDAL shrinks, it averages more than four pixels.
TARGETS = [("EPSG:32632", 9.0), ("EPSG:3857", 11.0), ("EPSG:4326", 0.00008), ("EPSG:3035", 9.0)]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GeoTIFF of 80 x 80 random values in UTM 33N, served as an archive."""
    folder = tmp_path_factory.mktemp("noise")
    values = np.random.default_rng(7).normal(100.0, 30.0, (1, 80, 80)).astype(np.float32)
    write_tiff(folder / "places" / "one" / "noise.tif", values)
    with connected(open_archive(write_archive(folder, files="places/{place}/noise.tif", bands=["x"]))):
        yield folder / "places" / "one" / "noise.tif"


@pytest.mark.parametrize(("crs", "gsd"), TARGETS)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_gdal_warps_random_values_to_the_same_pixels(noise: Path, crs: str, gsd: float, mode: str) -> None:
    """Nearest: equal but where a centre is within 0.01 px of an edge. Bilinear: within 1e-3 of the spread."""
    with rasterio.open(noise) as source:
        (x,), (y,) = rasterio.warp.transform(source.crs, crs, [LEFT + 400], [TOP - 400])
        left, top = x - 16 * gsd, y + 16 * gsd
        target = np.zeros((32, 32), np.float32)
        reproject(
            rasterio.band(source, 1), target, dst_transform=rasterio.Affine(gsd, 0, left, 0, -gsd, top), dst_crs=crs,
            resampling=Resampling[mode], tolerance=0.0,
        )  # fmt: skip
        columns, rows = centres_on(source, crs, left, top, gsd)
    image = ee.Image("A/B/one")
    image = image.resample("bilinear") if mode == "bilinear" else image
    answer = pixels(image.toFloat(), grid(left, top, size=32, gsd=gsd, crs=crs))["x"]
    assert answer.std() > 10
    if mode == "bilinear":
        np.testing.assert_allclose(answer, target, atol=0.03)
    else:
        sure = np.minimum(abs(columns - np.rint(columns)), abs(rows - np.rint(rows))) > 0.01
        assert sure.mean() > 0.8
        np.testing.assert_array_equal(answer[sure], target[sure])


def centres_on(
    source: rasterio.DatasetReader, crs: str, left: float, top: float, gsd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fractional column and row in the file of each target pixel's centre."""
    x, y = np.meshgrid(left + gsd * (np.arange(32) + 0.5), top - gsd * (np.arange(32) + 0.5))
    there = rasterio.warp.transform(crs, source.crs, x.ravel(), y.ravel())
    to_pixel = ~source.transform
    x, y = (np.array(axis).reshape(32, 32) for axis in there)
    return to_pixel.a * x + to_pixel.c, to_pixel.e * y + to_pixel.f
