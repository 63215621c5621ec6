"""The picture of a sample shows what is stored, as it is, and what is missing as missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from mmbuild.errors import UserError
from mmbuild.report import words
from mmbuild.report.picture import sample_figure, sample_picture
from tests.shards import GONE, MODALITIES, TinyCorpus, write_corpus

SLOT = 4
SAMPLE = f"{SLOT:06d}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("picture") / "corpus")


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.texts] + [t.get_text() for axes in figure.axes for t in axes.texts]


def image_of(figure: Figure, modality: str) -> AxesImage:
    """The image below a modality's heading."""
    names = [axes.texts[0].get_text() if axes.texts else "" for axes in figure.axes]
    head = figure.axes[names.index(modality)].get_position()
    over = [a for a in figure.axes if a.images and abs(a.get_position().y1 - head.y0) < 1e-6]
    return next(a.images[0] for a in over if abs(a.get_position().x0 - head.x0) < 1e-6)


def first_stored(tiny: TinyCorpus, name: str) -> int:
    return int(np.flatnonzero(tiny.stored[name])[0])


def test_every_modality_is_named(tiny: TinyCorpus) -> None:
    found = texts(sample_figure(tiny.open(), SAMPLE))
    assert set(MODALITIES) <= set(found)


def test_a_continuous_band_is_drawn_pixel_by_pixel_and_nodata_is_left_out(tiny: TinyCorpus) -> None:
    slot = first_stored(tiny, "radar")
    drawn = image_of(sample_figure(tiny.open(), f"{slot:06d}"), "radar").get_array()
    truth = tiny.truth["radar"][slot, 0, 0]
    assert (np.ma.getmaskarray(drawn) == (truth == MODALITIES["radar"].fill)).all()
    assert (drawn.compressed() == truth[truth != MODALITIES["radar"].fill]).all()


def test_classes_are_drawn_opaque_and_nodata_transparent(tiny: TinyCorpus) -> None:
    slot = first_stored(tiny, "cover")
    figure = sample_figure(tiny.open(), f"{slot:06d}")
    codes, drawn = tiny.truth["cover"][slot, 0, 0], image_of(figure, "cover").get_array()
    assert (drawn[..., 3] == (codes != 255)).all()
    for code in np.unique(codes[codes != 255]):
        share = f"{round(100 * (codes == code).mean())} %"
        name = "code 40, no known class" if code == 40 else f"class {code}"
        assert any(t.startswith(share) and t.endswith(name) for t in texts(figure)), (code, share)


def test_three_bands_are_stretched_linearly_over_the_display_range(tiny: TinyCorpus) -> None:
    slot = first_stored(tiny, "optic_a")
    corpus = tiny.open()
    shown = MODALITIES["optic_a"].display.model_copy(update={"bands": ("B3", "B2", "B1"), "range": (1000.0, 9000.0)})
    corpus.modalities["optic_a"] = MODALITIES["optic_a"].model_copy(update={"display": shown})
    drawn = image_of(sample_figure(corpus, f"{slot:06d}"), "optic_a").get_array()
    stored = tiny.truth["optic_a"][slot, 0, [2, 1, 0]].astype(float)
    valid = (stored != 65535).all(axis=0)
    assert (drawn[..., 3] == valid).all()
    expected = ((stored - 1000) / 8000).clip(0, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(drawn[valid][:, :3], expected[valid], atol=1e-12)


def test_a_scene_far_beyond_the_display_range_is_not_painted_white(tiny: TinyCorpus) -> None:
    slot = first_stored(tiny, "optic_a")
    corpus = tiny.open()
    shown = MODALITIES["optic_a"].display.model_copy(update={"bands": ("B3", "B2", "B1"), "range": (0.0, 10.0)})
    corpus.modalities["optic_a"] = MODALITIES["optic_a"].model_copy(update={"display": shown})
    figure = sample_figure(corpus, f"{slot:06d}")
    drawn = image_of(figure, "optic_a").get_array()
    assert 0.2 < drawn[drawn[..., 3] > 0][:, :3].mean() < 0.8
    low, high = next(re.findall(r"stored (\d+) to (\d+)", t)[0] for t in texts(figure) if t.startswith("red "))
    assert int(low) >= 0
    assert 10_000 < int(high) <= 12_000


def test_shares_of_zero_and_hundred_percent_mean_none_and_all() -> None:
    assert [words.share(f) for f in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]


def test_bands_that_a_scene_lacks_are_named() -> None:
    radar = MODALITIES["radar"]
    chip = np.full((2, 4, 4), radar.fill)
    assert words.coverage(radar, chip) == "no VV, VH"
    chip[0, :, :3] = 1.0
    assert words.coverage(radar, chip) == "no VH   75 % valid"
    assert words.coverage(radar, np.ones((2, 4, 4), dtype=np.float32)) == ""


def test_a_missing_modality_gets_an_empty_panel_with_its_status_and_reason(tiny: TinyCorpus) -> None:
    slot = int(np.flatnonzero(~tiny.stored["radar"] & tiny.stored["zone"])[0])
    figure = sample_figure(tiny.open(), f"{slot:06d}")
    assert {"no data", "left out"} <= set(texts(figure))
    with pytest.raises((StopIteration, IndexError)):
        image_of(figure, "radar")


def test_a_rejected_sample_is_a_page_of_empty_panels(tiny: TinyCorpus) -> None:
    assert not [axes for axes in sample_figure(tiny.open(), f"{GONE:06d}").axes if axes.images]


def test_synthetic_is_called_synthetic_and_nothing_else_is(tiny: TinyCorpus, tmp_path: Path) -> None:
    assert any(t.startswith("SYNTHETIC") for t in texts(sample_figure(tiny.open(), SAMPLE)))
    real = write_corpus(tmp_path / "real", synthetic=False).open()
    assert not any("SYNTHETIC" in t for t in texts(sample_figure(real, SAMPLE)))


def test_the_title_says_the_place_and_the_split_of_the_catalogue(tiny: TinyCorpus) -> None:
    for item in tiny.items[:9]:
        found = " ".join(texts(sample_figure(tiny.open(), item["id"])))
        assert re.search(r"47\.0000° N, 8\.\d{4}° E", found)
        assert f"split: {item['split'] or 'none'}" in found


def test_the_same_sample_gives_the_same_file(tiny: TinyCorpus, tmp_path: Path) -> None:
    one, two = (sample_picture(tiny.open(), SAMPLE, tmp_path / name) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_an_unknown_sample_is_refused_with_the_ids_there_are(tiny: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no sample '9'; choose one of 000000 to 000020"):
        sample_picture(tiny.open(), "9", tmp_path / "no.png")
