"""Xee against `mmbuild sandbox`: its cube is what computePixels answers, scene by scene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ee
import numpy as np
import pytest

from tests.foreign.sandbox import request_counts, run_client, running_sandbox
from tests.foreign.xee_cube import BANDS, CRS, HEIGHT, LEFT, TOP, WIDTH, collection
from tests.sandbox_worlds import disconnect, grid, initialize, pixels


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What Xee read, with the client of this process pointed at the same sandbox."""
    folder = tmp_path_factory.mktemp("xee")
    with running_sandbox() as url:
        report = run_client("xee_cube", url, folder)
        counts = request_counts(url)
        initialize(url)
        yield {**report, "arrays": dict(np.load(Path(folder) / "cube.npz")), "counts": counts}
        disconnect()


def test_the_cube_has_time_y_and_x(cube: dict[str, Any]) -> None:
    arrays = cube["arrays"]
    assert cube["dims"] == {name: ["time", "y", "x"] for name in BANDS}
    starts = collection().aggregate_array("system:time_start").getInfo()
    assert len(starts) > 1
    assert arrays["time"].astype("datetime64[ms]").astype(np.int64).tolist() == starts
    np.testing.assert_array_equal(arrays["x"], LEFT + 10 * (np.arange(WIDTH) + 0.5))
    np.testing.assert_array_equal(arrays["y"], TOP - 10 * (np.arange(HEIGHT) + 0.5))


def test_every_value_is_what_compute_pixels_answers(cube: dict[str, Any]) -> None:
    where = grid(LEFT, TOP, size=(HEIGHT, WIDTH), crs=CRS)
    images = collection().toList(100)
    for position in range(len(cube["arrays"]["time"])):
        image = ee.Image(images.get(position))
        values, masks = pixels(image, where), pixels(image.mask(), where)
        for name in BANDS:
            expected = np.where(masks[name] > 0, values[name].astype(np.float32), np.nan)
            np.testing.assert_array_equal(cube["arrays"][name][position], expected, err_msg=name)
    assert np.nanstd(cube["arrays"]["B4"]) > 10


def test_the_cube_says_that_it_is_synthetic(cube: dict[str, Any]) -> None:
    assert cube["attributes"]["synthetic"] == "True" or cube["attributes"]["synthetic"] is True


def test_xee_asks_once_for_metadata_and_once_per_variable(cube: dict[str, Any]) -> None:
    assert (cube["counts"]["value:compute"], cube["counts"]["image:computePixels"]) == (1, len(BANDS))
