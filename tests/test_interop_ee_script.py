"""Plain `ee` programs against `mmbuild sandbox`: MMEarth's way, step by step, and SSL4EO's sampled rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ee
import numpy as np
import pytest
import rasterio
import rasterio.windows
from pyproj import Transformer

from tests.foreign.mmearth_steps import CLIMATE, L2A_BANDS
from tests.foreign.sandbox import request_counts, run_client, running_sandbox
from tests.foreign.ssl4eo_steps import CROPS, RADAR
from tests.sandbox_worlds import disconnect, grid, initialize, pixels


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One sandbox process, with the client of this process pointed at it too."""
    with running_sandbox() as url:
        initialize(url)
        yield url
        disconnect()


@pytest.fixture(scope="module")
def tile(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the MMEarth steps left: the report, the counters, and the GeoTIFF as bands by product."""
    folder = tmp_path_factory.mktemp("mmearth")
    before = request_counts(address)
    report = run_client("mmearth_steps", address, folder)
    after = request_counts(address)
    with rasterio.open(folder / "tile.tif") as file:
        data, profile, names = file.read(), dict(file.profile), list(file.descriptions)
    counts = {name: after[name] - before.get(name, 0) for name in after}
    return {**report, "data": data, "profile": profile, "names": names, "counts": counts}


def test_the_steps_make_as_many_round_trips_as_the_original(tile: dict[str, Any]) -> None:
    """MMEarth's own code: 20 to 22 a tile, the two of the download among them."""
    counts = tile["counts"]
    assert (counts["thumbnails:create"], counts["thumbnails:getPixels"]) == (1, 1)
    assert 18 <= counts["value:compute"] <= 22


def test_the_stack_has_the_bands_that_were_announced(tile: dict[str, Any]) -> None:
    order = ("sentinel2", "sentinel1_asc", "sentinel1_desc", "aster", "dynamic_world", "canopy_height_eth",
             "esa_worldcover")  # fmt: skip
    announced = [name for product in order for name in tile["bands"][product] or []]
    assert len(tile["names"]) == len(announced)
    # The second orbit's VV is called VV_1: the stack numbers what it already has.
    assert [name.removesuffix("_1") for name in tile["names"]] == announced
    assert set(tile["bands"]["sentinel2"]) <= set(L2A_BANDS)
    assert tile["bands"]["aster"] == ["b1", "slope"]
    assert tile["profile"]["dtype"] == "float32"


def test_the_file_is_a_few_pixels_larger_than_the_crop(tile: dict[str, Any]) -> None:
    """Its edges lie on multiples of 10 m, outside the polygon's by less than a pixel."""
    profile = tile["profile"]
    assert 128 <= min(profile["height"], profile["width"]) <= max(profile["height"], profile["width"]) <= 140
    transform = profile["transform"]
    assert (transform.a, transform.e, transform.c % 10, transform.f % 10) == (10, -10, 0, 0)
    corners = np.array(tile["corners"][0])
    x, y = Transformer.from_crs(4326, tile["crs"], always_xy=True).transform(corners[:, 0], corners[:, 1])
    assert 0 <= min(x) - transform.c < 10
    # The northern edge of a box in degrees bulges a little between its corners.
    assert -0.5 < transform.f - max(y) < 10.5


def crop(tile: dict[str, Any], size: int = 128) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The middle of the file, as MMEarth cuts it, and the grid of that window."""
    _, height, width = tile["data"].shape
    row, column = (height - size) // 2, (width - size) // 2
    data = tile["data"][:, row : row + size, column : column + size]
    transform = rasterio.windows.transform(
        rasterio.windows.Window(column, row, size, size), tile["profile"]["transform"]
    )
    where = grid(transform.c, transform.f, size=size, crs=tile["crs"])
    return dict(zip(tile["names"], data, strict=True)), where


def test_the_optical_bands_equal_computed_pixels_of_the_chosen_scene(tile: dict[str, Any]) -> None:
    """In the middle 96 px: the steps clip before they interpolate, so 60 m bands differ near the polygon's edge."""
    found, where = crop(tile, 96)
    scene = ee.Image(f"COPERNICUS/S2_SR_HARMONIZED/{tile['ids']['sentinel2']}")
    reference = scene.select("B4").projection()
    smooth = [name for name in tile["bands"]["sentinel2"] if name not in ("SCL", "QA60")]
    image = scene.select(smooth).float().resample("bilinear").reproject(reference)
    expected = pixels(image.addBands(scene.select("SCL").float()), where)
    for name in (*smooth, "SCL"):
        valid = np.isfinite(found[name])
        assert valid.mean() > 0.98
        np.testing.assert_array_equal(found[name][valid], expected[name][valid], err_msg=name)
    assert found["B4"].std() > 10


def test_clipping_before_interpolating_changes_the_edge(tile: dict[str, Any]) -> None:
    """What MMEarth's order of steps costs, and why the sandbox must not be kinder than the service."""
    found, where = crop(tile)
    scene = ee.Image(f"COPERNICUS/S2_SR_HARMONIZED/{tile['ids']['sentinel2']}").select(["B4", "B1"])
    unclipped = pixels(scene.float().resample("bilinear").reproject(scene.select("B4").projection()), where)
    differs = {name: np.isfinite(found[name]) & (found[name] != unclipped[name]) for name in ("B4", "B1")}
    assert not differs["B4"].any()
    assert 0.01 < differs["B1"].mean() < 0.3
    assert not differs["B1"][16:-16, 16:-16].any()


def test_the_maps_hold_their_classes(tile: dict[str, Any]) -> None:
    found, where = crop(tile)
    cover = ee.ImageCollection("ESA/WorldCover/v100").first().select("Map")
    valid = np.isfinite(found["Map"])
    np.testing.assert_array_equal(found["Map"][valid], pixels(cover, where)["Map"][valid])
    seen = np.isfinite(found["label"])
    assert seen.mean() > 0.9
    assert set(np.unique(found["label"][seen])) <= set(range(1, 10))


def test_the_weather_is_twelve_numbers_in_order(tile: dict[str, Any]) -> None:
    months, year = tile["climate"]["months"], tile["climate"]["year"]
    assert list(months) == tile["bands"]["era5"]
    assert [name.split("_", 1)[1] for name in months] == CLIMATE * 2
    values = list(months.values())
    assert values[1] < values[0] < values[2]
    assert list(year) == [
        f"{i}_{name}_{how}" for i, (name, how) in enumerate(zip(CLIMATE, ("mean", "min", "max", "sum"), strict=True))
    ]
    mean, low, high, rain = year.values()
    # A composite is read on its default lattice of one degree, so it is not quite the place of the months.
    assert low < mean < high
    assert values[3] + values[7] > 0
    assert rain > 0


def test_sampled_rectangles_crop_to_their_sizes_and_equal_computed_pixels(
    address: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each band on its own lattice: 10, 20 and 60 m of one scene, and the two polarisations of another."""
    folder = tmp_path_factory.mktemp("ssl4eo")
    report = run_client("ssl4eo_steps", address, folder)
    patch = np.load(folder / "patch.npz")
    corners = np.array(report["corners"])
    for product, crops in (("s2c", CROPS), ("s1", RADAR)):
        for name, size in crops.items():
            whole = patch[f"{product}_{name}_whole"]
            assert patch[f"{product}_{name}"].shape == (size, size)
            band = ee.Image(report["ids"][product]).select(name)
            info = band.getInfo()["bands"][0]
            a, _, left, _, e, top = info["crs_transform"]
            x, y = Transformer.from_crs(4326, info["crs"], always_xy=True).transform(corners[:, 0], corners[:, 1])
            column, row = np.floor((min(x) - left) / a), np.floor((max(y) - top) / e)
            where = grid(left + a * column, top + e * row, gsd=a, size=whole.shape, crs=info["crs"])
            np.testing.assert_array_equal(whole, pixels(band, where)[name], err_msg=name)
            assert whole.std() > 0
