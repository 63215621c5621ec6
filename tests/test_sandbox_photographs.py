"""Synthetic aerial photographs: one picture whatever window or level asks for it, and coarse levels at little cost."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mmbuild.sandbox.assets import BandInfo, ImageInfo
from mmbuild.sandbox.earth import Earth, SyntheticWorld
from mmbuild.sandbox.earth_aerial import AerialDataset
from mmbuild.sandbox.mgrs import transformer
from mmbuild.sandbox.raster import Grid, Reader, Stored
from mmbuild.sandbox.values import Projection

NAIP = "USDA/NAIP/DOQQ"
IOWA = (-93.595, 42.005)
# Part of the way across the photograph: fields, wood and the shore of a lake.
ROW, COL = 1600, 1600


def photograph(world: SyntheticWorld | None = None) -> tuple[AerialDataset, ImageInfo, BandInfo]:
    dataset = (world or SyntheticWorld()).synthetic_dataset(NAIP)
    image = dataset.images(bounds=(*IOWA, *IOWA), start_ms=1_514_764_800_000)[0]
    return dataset, image, image.bands[0]


def blocks(values: NDArray, n: int) -> NDArray:
    """Means of n x n blocks."""
    rows, cols = values.shape[0] // n, values.shape[1] // n
    return values.astype(np.float64).reshape(rows, n, cols, n).mean(axis=(1, 3))


def test_a_window_holds_the_product_at_its_pixel_centres() -> None:
    world = SyntheticWorld()
    dataset, image, band = photograph(world)
    x = band.transform[2] + band.transform[0] * (COL + np.arange(40) + 0.5)
    y = band.transform[5] + band.transform[4] * (ROW + np.arange(30) + 0.5)
    at = transformer(band.crs, 4326).transform(*np.meshgrid(x, y))
    product, valid = Earth(world).product(NAIP, image.index, band.id, *at)
    values, mask = dataset.window(image, band.id, ROW, COL, 30, 40)
    assert values.dtype == product.dtype == np.uint8
    assert np.array_equal(values, product)
    assert valid.all()
    assert mask.all()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_pixel_of_a_level_is_the_same_whatever_window_asks_for_it(n: int) -> None:
    dataset, image, band = photograph()
    whole, _ = dataset.level_window(image, band.id, n, ROW // n, COL // n, 300, 280)
    fresh, again, _ = photograph()
    part, _ = fresh.level_window(again, band.id, n, ROW // n + 37, COL // n + 11, 90, 203)
    assert np.array_equal(part, whole[37:127, 11:214])


@pytest.mark.parametrize("n", [2, 4, 8])
def test_a_level_looks_like_the_means_of_its_native_pixels(n: int) -> None:
    dataset, image, band = photograph()
    native, _ = dataset.window(image, band.id, ROW, COL, 800, 800)
    level, _ = dataset.level_window(image, band.id, n, ROW // n, COL // n, 800 // n, 800 // n)
    means = blocks(native, n)
    assert abs(level.mean() - means.mean()) < 0.01 * means.mean()
    assert abs(level.std() - means.std()) < 0.05 * means.std()
    assert np.corrcoef(level.ravel(), means.ravel())[0, 1] > 0.97


def test_a_pixel_of_a_level_at_the_edge_is_as_valid_as_its_share_of_the_photograph() -> None:
    dataset, image, band = photograph()
    assert band.width is not None
    first = band.width // 4 - 1
    values, mask = dataset.level_window(image, band.id, 4, 100, first, 3, 4)
    left_over = band.width % 4
    expected = [1.0, left_over / 4, 0.0, 0.0] if left_over else [1.0, 0.0, 0.0, 0.0]
    assert np.array_equal(mask, [expected] * 3)
    assert (values[mask == 0.0] == 0).all()
    outside, none = dataset.level_window(image, band.id, 4, -10, first, 3, 4)
    assert not outside.any()
    assert not none.any()


def test_a_coarse_request_reads_the_level_just_finer_and_draws_no_native_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 native pixels in one: a sixteenth of the points."""
    dataset, image, band = photograph()
    left, top = band.transform[2] + 0.6 * COL, band.transform[5] - 0.6 * ROW
    node = Stored(dataset, image, band, Projection(band.crs, band.transform))
    asked: list[tuple[int, ...]] = []
    drawn = AerialDataset.window

    def noted(self: AerialDataset, image: ImageInfo, band: str, *window: int) -> tuple[NDArray, NDArray]:
        asked.append(window)
        return drawn(self, image, band, *window)

    monkeypatch.setattr(AerialDataset, "window", noted)
    node.read(Reader(), Grid(band.crs, (0.6, 0.0, left, 0.0, -0.6, top), 12, 12))
    assert asked == [(ROW, COL, 12, 12)]
    seen, _ = node.read(Reader(), Grid(band.crs, (2.9, 0.0, left, 0.0, -2.9, top), 240, 240))
    assert len(asked) == 1
    level, _ = dataset.level_window(image, band.id, 4, ROW // 4, COL // 4, 300, 300)
    nearest = np.floor((np.arange(240) + 0.5) * 2.9 / 2.4).astype(int)
    assert np.array_equal(seen, level[np.ix_(nearest, nearest)])
