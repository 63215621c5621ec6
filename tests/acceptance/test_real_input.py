"""Real satellite files go through the genuine client and protocol, and come out as the files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from mmbuild.cube import open_corpus
from tests.real_places import (
    ARCHIVE,
    EXPECTED,
    L1C_BANDS,
    L2A_BANDS,
    SHIFTED,
    SSL4EO,
    TERRAMESH,
    Chip,
    RealCorpus,
    bands_of,
    compare,
    compare_with_gdal,
    declared_shifts,
    terramesh,
    wrong_pixels,
)

NODATA = {
    "sentinel2_l2a": 65535, "sentinel2_l1c": 65535, "sentinel1_asc": -9999, "sentinel1_desc": -9999,
    "copernicus_dem_glo30": -9999, "esa_worldcover": 255, "terramesh_s1rtc": -9999, "terramesh_dem": -32768,
    "terramesh_lulc": 0,
}  # fmt: skip
CHIP_PIXELS = 128 * 128


@pytest.fixture(scope="module")
def corpus(shared: Path, mmbuild: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> RealCorpus:
    """The corpus of the command in the issue."""
    out = tmp_path_factory.mktemp("real") / "out"
    mmbuild(
        "build", "recipes/real_mini.yaml", out, "--archive", "recipes/archives/realdata.yaml",
        "--archive-root", "../shared/realdata",
    )  # fmt: skip
    return RealCorpus(out=out, realdata=shared / "realdata")


def test_every_place_has_the_modalities_of_its_files_and_no_others(corpus: RealCorpus) -> None:
    rows = corpus.rows()
    stored = {chip for chip, row in rows.items() if row["status"] == "stored"}
    assert stored == set(EXPECTED)
    assert len(EXPECTED) == 25
    assert all(row["reason"] for chip, row in rows.items() if chip not in stored)
    assert {row["sample_status"] for row in rows.values()} == {"stored"}
    assert len({place for place, _ in rows}) == 7


def test_the_corpus_does_not_call_itself_synthetic(corpus: RealCorpus) -> None:
    assert open_corpus(corpus.out).synthetic is False


@pytest.mark.parametrize("chip", EXPECTED, ids="-".join)
def test_a_stored_chip_equals_an_independent_reading_of_its_file(corpus: RealCorpus, chip: Chip) -> None:
    compared = compare(corpus, chip, NODATA[chip[1]])
    bands = [file for file in bands_of(corpus.realdata, *chip).values() if file is not None]
    # Nearest across coordinate systems leaves out a strip of 0.01 px on each side of every native pixel.
    assert compared >= 0.94 * len(bands) * CHIP_PIXELS


@pytest.mark.parametrize("chip", EXPECTED, ids="-".join)
def test_a_stored_chip_is_what_gdal_makes_of_its_file(corpus: RealCorpus, chip: Chip) -> None:
    compare_with_gdal(corpus, chip, NODATA[chip[1]])


@pytest.mark.parametrize("chip", EXPECTED, ids="-".join)
def test_the_comparison_notices_a_shift_by_one_pixel(corpus: RealCorpus, chip: Chip) -> None:
    """Read 10 m further east the same files give other pixels, so equality above means that chips are aligned."""
    for name, stored, file, row in corpus.planes(chip):
        if file is not None:
            wrong, _ = wrong_pixels(stored, file.lattice, row | {"x0": row["x0"] + 10.0}, NODATA[chip[1]])
            assert wrong > 0, f"{chip} {name}"


def test_chips_carry_the_dates_of_their_files(corpus: RealCorpus) -> None:
    rows = corpus.rows()
    days = {
        ("parana_coast", "sentinel2_l2a"): "2021-07-23", ("parana_coast", "sentinel2_l1c"): "2021-07-23",
        ("parana_coast", "terramesh_s1rtc"): "2021-07-21", ("parana_coast", "terramesh_lulc"): "2021-07-23",
        ("north_tanzania", "sentinel2_l2a"): "2023-06-10", ("north_tanzania", "sentinel2_l1c"): "2023-06-10",
        ("north_tanzania", "terramesh_s1rtc"): "2023-06-10", ("north_tanzania", "terramesh_lulc"): "2023-06-10",
        ("north_jutland", "sentinel2_l2a"): "2017-10-30", ("north_jutland", "sentinel2_l1c"): "2017-10-30",
        ("north_jutland", "terramesh_s1rtc"): "2017-10-30", ("north_jutland", "terramesh_lulc"): "2017-10-30",
        ("punjab_june", "sentinel2_l2a"): "2020-06-04", ("punjab_june", "sentinel2_l1c"): "2020-06-04",
        ("punjab_june", "sentinel1_desc"): "2020-06-07",
        ("punjab_august", "sentinel2_l2a"): "2020-08-13", ("punjab_august", "sentinel2_l1c"): "2020-08-23",
        ("punjab_august", "sentinel1_asc"): "2020-09-03",
    }  # fmt: skip
    assert {chip: f"{rows[chip]['datetime']:%Y-%m-%d}" for chip in days} == days
    undated = [chip for chip in EXPECTED if chip not in days]
    assert all(rows[chip]["datetime"] is None for chip in undated)
    for chip, folder in SSL4EO.items():
        assert [scene.rsplit("/", 1)[-1] for scene in rows[chip]["scene_ids"]] == [Path(folder).name]


# -- what the archive declares, checked against the raw numbers ---------------------------------------------------


@pytest.mark.parametrize("place", TERRAMESH)
def test_the_shift_of_baseline_04_is_in_the_raw_numbers_exactly_where_it_is_undone(shared: Path, place: str) -> None:
    """Cirrus band 10 of a clear scene is dark: 1000 and a little where the shift is, next to nothing where not."""
    raw = rasterio.open(terramesh(shared / "realdata", place, "S2L1C.tif")).read()
    is_shifted = bool(raw.min() >= 1000 and np.median(raw[L1C_BANDS.index("B10")]) > 1000)
    assert is_shifted == ((place, "sentinel2_l1c") in SHIFTED)
    if not is_shifted:
        assert np.median(raw[L1C_BANDS.index("B10")]) < 100
    # Surface reflectance darker than the shift itself cannot carry it.
    assert rasterio.open(terramesh(shared / "realdata", place, "S2L2A.tif")).read().min() < 1000


@pytest.mark.parametrize("place", TERRAMESH)
def test_the_bands_of_the_files_are_in_the_order_that_is_declared(shared: Path, place: str) -> None:
    """Each L2A band is most like the L1C band of its name, and their near infrared and red give the published NDVI."""
    top, surface, ndvi = (
        rasterio.open(terramesh(shared / "realdata", place, f)).read().astype(np.float64)
        for f in ("S2L1C.tif", "S2L2A.tif", "NDVI.tif")
    )
    likeness = np.corrcoef(surface.reshape(12, -1), top.reshape(13, -1))[:12, 12:]
    assert tuple(L1C_BANDS[i] for i in likeness.argmax(axis=1)) == L2A_BANDS
    red, infrared = surface[L2A_BANDS.index("B4")], surface[L2A_BANDS.index("B8")]
    # The published NDVI is kept in half precision: steps of 1/2048 below one.
    assert np.abs((infrared - red) / (infrared + red) - ndvi[0]).max() <= 2**-11


def test_the_archive_declares_that_shift_and_no_other() -> None:
    declared = declared_shifts(yaml.safe_load(ARCHIVE.read_text()))
    assert declared == [("colocated/terramesh/{place}/S2L1C.tif", TERRAMESH["parana_coast"], -1000)]
