"""geedim against `mmbuild sandbox`: the GeoTIFF it puts together from downloads is what computePixels answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ee
import numpy as np
import pytest
import rasterio

from tests.foreign.geedim_chip import BANDS, EXACT, LAT, LON, cloudy, scene
from tests.foreign.sandbox import request_counts, run_client, running_sandbox
from tests.sandbox_worlds import disconnect, grid, initialize, pixels


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What geedim wrote, with the client of this process pointed at the same sandbox."""
    folder = tmp_path_factory.mktemp("geedim")
    with running_sandbox() as url:
        report = run_client("geedim_chip", url, folder)
        counts = request_counts(url)
        initialize(url)
        yield {**report, "folder": folder, "counts": counts}
        disconnect()


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with rasterio.open(path) as file:
        return dict(zip(BANDS, file.read(), strict=True)), dict(file.profile)


def test_a_chip_by_region_and_scale_is_on_the_scenes_lattice(chips: dict[str, Any]) -> None:
    values, profile = read(chips["folder"] / "native.tif")
    left, top = profile["transform"].c, profile["transform"].f
    info = scene().select("B4").getInfo()["bands"][0]
    assert profile["crs"].to_string() == info["crs"]
    assert ((left - info["crs_transform"][2]) % 10, (top - info["crs_transform"][5]) % 10) == (0, 0)
    where = grid(left, top, size=(profile["height"], profile["width"]), crs=info["crs"])
    expected = pixels(scene().select(BANDS), where)
    for name in BANDS:
        np.testing.assert_array_equal(values[name], expected[name], err_msg=name)
    assert values["B8"].std() > 10


def test_the_chip_covers_its_region(chips: dict[str, Any]) -> None:
    _, profile = read(chips["folder"] / "native.tif")
    region = ee.Geometry.Point([LON, LAT]).buffer(320).bounds().transform(profile["crs"].to_string(), 0.01)
    corners = np.array(region.bounds(0.01, profile["crs"].to_string()).coordinates().getInfo()[0])
    left, bottom, right, top = rasterio.transform.array_bounds(
        profile["height"], profile["width"], profile["transform"]
    )
    assert 0 <= corners[:, 0].min() - left < 10.01
    assert 0 <= right - corners[:, 0].max() < 10.01
    assert 0 <= corners[:, 1].min() - bottom < 10.01
    assert 0 <= top - corners[:, 1].max() < 10.01


def test_geedim_knows_type_nodata_and_shape_before_it_downloads(chips: dict[str, Any]) -> None:
    _, profile = read(chips["folder"] / "native.tif")
    assert (profile["dtype"], profile["nodata"]) == ("uint16", chips["nodata"])
    assert chips["shape"] == [profile["height"], profile["width"]]
    assert chips["transform"] == list(profile["transform"])[:6]


def test_an_exact_grid_is_bilinear_from_the_native_lattice(chips: dict[str, Any]) -> None:
    values, profile = read(chips["folder"] / "exact.tif")
    a, _, left, _, _, top = EXACT["crs_transform"]
    assert list(profile["transform"])[:6] == EXACT["crs_transform"]
    where = grid(left, top, size=EXACT["shape"], gsd=a, crs=EXACT["crs"])
    expected = pixels(scene().select(BANDS).resample("bilinear").toFloat(), where)
    for name in BANDS:
        np.testing.assert_array_equal(values[name], expected[name], err_msg=name)


def test_geedims_cloud_mask_is_the_cloud_score_above_six_tenths(chips: dict[str, Any]) -> None:
    with rasterio.open(chips["folder"] / "masked.tif") as file:
        found, valid = file.read(1), file.read_masks(1) > 0
    where = grid(EXACT["crs_transform"][2], EXACT["crs_transform"][5], size=EXACT["shape"], gsd=20.0)
    where["crsCode"] = EXACT["crs"]
    index = cloudy().get("system:index").getInfo()
    scores = pixels(ee.Image(f"GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED/{index}").select("cs"), where)["cs"]
    np.testing.assert_array_equal(valid, scores > 0.6)
    assert 0.1 < valid.mean() < 0.9
    np.testing.assert_array_equal(found[valid], pixels(cloudy().select("B4"), where)["B4"][valid])


def test_geedim_makes_two_requests_a_tile(chips: dict[str, Any]) -> None:
    counts = chips["counts"]
    assert counts["thumbnails:create"] == counts["thumbnails:getPixels"] > 2
