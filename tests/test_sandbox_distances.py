"""Distance algorithms of the offline Earth Engine against brute force and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ee
import numpy as np
import pytest

from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import connected, grid, pixels, sentinel_world

LEFT, TOP = 600000.0, 5000040.0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with connected(sentinel_world()) as sandbox:
        yield sandbox


def marked() -> ee.Image:
    """1 where a pixel of B4 is a multiple of 37, else 0; masked where it is a multiple of 74."""
    value = ee.Image("C/S2/S000").select("B4").reproject(ee.Image("C/S2/S000").select("B4").projection())
    return value.mod(37).eq(0).updateMask(value.mod(74).neq(0))


def marks(size: int) -> np.ndarray:
    """(row, column) of the valid marks among the first pixels."""
    value = 1000 * np.arange(size)[:, None] + np.arange(size)
    return np.argwhere((value % 37 == 0) & (value % 74 != 0))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "squared_euclidean": lambda dy, dx: dy**2 + dx**2,
    "manhattan": lambda dy, dx: dy + dx,
    "chebyshev": np.maximum,
}


@pytest.mark.parametrize("metric", list(METRICS))
def test_each_pixel_has_the_distance_to_the_nearest_mark(sandbox: Sandbox, metric: str) -> None:
    """In the middle of the scene, where no mark beyond the first 60 x 60 px can be nearer; by brute force."""
    where = grid(LEFT + 200, TOP - 200, size=(12, 16))
    answer = pixels(marked().fastDistanceTransform(20, "pixels", metric), where)["distance"]
    rows, columns = np.mgrid[20:32, 20:36]
    each = METRICS[metric](np.abs(marks(60)[:, 0, None, None] - rows), np.abs(marks(60)[:, 1, None, None] - columns))
    assert each.min(axis=0).max() > 3
    np.testing.assert_array_equal(answer, each.min(axis=0))


def test_what_has_nothing_near_gets_the_reach_of_the_search(sandbox: Sandbox) -> None:
    far = pixels(ee.Image(0).fastDistanceTransform(9), grid(LEFT, TOP, size=2))["distance"]
    np.testing.assert_array_equal(far, np.full((2, 2), 81.0))


def test_distances_are_in_pixels_of_the_requested_grid(sandbox: Sandbox) -> None:
    edge = ee.Image.pixelCoordinates(ee.Projection("EPSG:32631")).select("x").gte(LEFT + 100)
    for gsd in (10.0, 20.0):
        found = pixels(edge.fastDistanceTransform(20, "pixels", "manhattan"), grid(LEFT, TOP, size=(1, 5), gsd=gsd))
        expected = 100 / gsd - np.arange(5)
        np.testing.assert_array_equal(found["distance"][0], np.maximum(expected, 0))


def spectra() -> tuple[ee.Image, ee.Image]:
    return ee.Image([3.0, 4.0]).rename(["a", "b"]), ee.Image([4.0, 3.0]).rename(["a", "b"])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("sam", np.arccos(24 / 25)),
        ("sed", 2.0),
        ("sid", 2 * (3 / 7 - 4 / 7) * np.log(3 / 4)),
    ],
)
def test_spectral_distance_of_two_spectra(sandbox: Sandbox, metric: str, expected: float) -> None:
    left, right = spectra()
    found = pixels(left.spectralDistance(right, metric), grid(LEFT, TOP, size=1))["distance"][0, 0]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_masked_band_masks_the_spectral_distance(sandbox: Sandbox) -> None:
    left, right = spectra()
    some = left.updateMask(ee.Image([1, 0]))
    assert pixels(some.spectralDistance(right, "sed").mask(), grid(LEFT, TOP, size=1))["distance"][0, 0] == 0
    dark = ee.Image([0.0, 0.0]).rename(["a", "b"])
    assert pixels(dark.spectralDistance(right, "sam").mask(), grid(LEFT, TOP, size=1))["distance"][0, 0] == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: ee.Image([1, 2]).fastDistanceTransform(), "Needs an image of one band"),
        (lambda: ee.Image(1).fastDistanceTransform(5, "meters"), "Unknown units 'meters'"),
        (lambda: ee.Image(1).fastDistanceTransform(5, "pixels", "cosine"), "Unknown metric 'cosine'"),
        (lambda: ee.Image(1).spectralDistance(ee.Image([1, 2])), "the same number of bands, found 1 and 2"),
        (lambda: ee.Image(1).spectralDistance(ee.Image(2), "emd"), "spectralDistance with metric 'emd'"),
    ],
)
def test_what_cannot_be_measured_is_refused(sandbox: Sandbox, made: Callable[[], ee.Image], message: str) -> None:
    with pytest.raises(ee.EEException, match=message):
        made().getInfo()
