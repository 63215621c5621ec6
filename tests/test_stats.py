"""Statistics against numpy on all values at once: exact, of the train split alone, and blind to missing pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shards import GONE, MODALITIES, TinyCorpus, modality, write_corpus

from mmbuild import stats
from mmbuild.stats import Bins, Continuous


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("stats") / "corpus")


def splits_of(tiny: TinyCorpus) -> dict[int, str]:
    return {int(item["mmbuild:index"]): item["split"] for item in tiny.items}


@pytest.fixture(scope="module")
def found(tiny: TinyCorpus) -> dict[str, Any]:
    return stats.compute(tiny.open(), splits_of(tiny))


def train_values(tiny: TinyCorpus, name: str, band: int) -> np.ndarray:
    """Every value of one band of the stored train chips, nodata among them, in float64."""
    slots = [slot for slot, split in splits_of(tiny).items() if split == "train" and tiny.stored[name][slot]]
    return tiny.truth[name][slots][:, :, band].ravel().astype(np.float64)


BANDS = [(m.name, b) for m in MODALITIES.values() if m.values == "continuous" for b in range(len(m.bands))]


@pytest.mark.parametrize(("name", "b"), BANDS)
def test_continuous_bands_agree_with_numpy(tiny: TinyCorpus, found: dict[str, Any], name: str, b: int) -> None:
    m = MODALITIES[name]
    everything = train_values(tiny, name, b)
    values = everything[everything != m.nodata]
    band = found["modalities"][name]["bands"][m.band_names[b]]
    assert (band["count"], band["nodata_count"]) == (len(values), len(everything) - len(values))
    assert band["valid_fraction"] == len(values) / len(everything)
    if not len(values):
        assert all(band[key] is None for key in ("mean", "std", "min", "max", "p2", "p98", "histogram"))
        return
    assert (band["min"], band["max"]) == (values.min(), values.max())
    assert band["mean"] == pytest.approx(math.fsum(values) / len(values), rel=1e-13)
    assert band["std"] == pytest.approx(values.std(), rel=1e-12, abs=1e-12)
    low, high = m.bands[b].valid_range
    half_bin = 0 if m.np_dtype.kind == "u" else (high - low) / 2**16 / 2
    for percent in (2, 98):
        truth = np.percentile(values, percent, method="inverted_cdf")
        assert band[f"p{percent}"] == pytest.approx(truth, abs=half_bin * 1.001)
    assert band["outside_valid_range"] == ((values < low) | (values > high)).sum()


def test_there_is_a_band_without_any_value_and_one_that_never_varies(found: dict[str, Any]) -> None:
    """The corpus under test has both, so the test above saw them."""
    bands = found["modalities"]["climate"]["bands"]
    assert (bands["c"]["count"], bands["c"]["mean"]) == (0, None)
    assert (bands["p"]["mean"], bands["p"]["std"], bands["p"]["p2"]) == (3.0, 0.0, 3.0)


@pytest.mark.parametrize(("name", "b"), BANDS)
def test_histograms_agree_with_numpy(tiny: TinyCorpus, found: dict[str, Any], name: str, b: int) -> None:
    m = MODALITIES[name]
    values = train_values(tiny, name, b)
    values = values[values != m.nodata]
    shown = found["modalities"][name]["bands"][m.band_names[b]]["histogram"]
    if shown is None:
        assert not len(values)
        return
    edges = shown["start"] + shown["width"] * np.arange(len(shown["counts"]) + 1)
    low, high = m.bands[b].valid_range
    inside = np.clip(values, low, np.nextafter(high, low))
    assert len(shown["counts"]) <= 256
    assert shown["counts"] == np.histogram(inside, edges)[0].tolist()
    assert sum(shown["counts"]) == len(values)
    assert shown["counts"][0] > 0
    assert shown["counts"][-1] > 0


def test_class_counts_agree_with_numpy_and_strangers_stand_apart(tiny: TinyCorpus, found: dict[str, Any]) -> None:
    for name in ("cover", "zone"):
        m = MODALITIES[name]
        values = train_values(tiny, name, 0)
        band = found["modalities"][name]["bands"][m.band_names[0]]
        assert band["classes"] == {str(code): int((values == code).sum()) for code in m.class_codes}
        assert band["undeclared"] == {"40": int((values == 40).sum())}
        assert band["count"] == int((values != m.nodata).sum())
        assert band["count"] + band["nodata_count"] == len(values)


def test_only_train_samples_count(tiny: TinyCorpus, found: dict[str, Any]) -> None:
    splits = splits_of(tiny)
    assert found["samples"] == {
        "none": sum(s == "" for s in splits.values()),
        "test": sum(s == "test" for s in splits.values()),
        "train": sum(s == "train" for s in splits.values()),
        "val": sum(s == "val" for s in splits.values()),
    }
    for name, entry in found["modalities"].items():
        assert entry["train_chips"] == sum(tiny.stored[name][s] for s, split in splits.items() if split == "train")


def test_chips_are_counted_by_status_over_all_samples_of_the_catalogue(tiny: TinyCorpus, found: dict[str, Any]) -> None:
    for name, entry in found["modalities"].items():
        stored = int(tiny.stored[name].sum())
        missing = 21 - stored - 1  # slot GONE is no sample
        assert not tiny.stored[name][GONE]
        assert entry["chips"] == {"stored": stored} | ({"no_data": missing} if missing else {})


def test_the_file_is_what_is_answered_and_has_no_nan(tiny: TinyCorpus, found: dict[str, Any]) -> None:
    text = (tiny.path / "stats.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == found


def test_the_file_is_the_same_with_any_number_of_threads(tiny: TinyCorpus) -> None:
    texts = []
    for threads in (1, 2, 5):
        stats.compute(tiny.open(), splits_of(tiny), threads=threads)
        texts.append((tiny.path / "stats.json").read_bytes())
    assert texts[0] == texts[1] == texts[2]


def test_the_loader_reads_mean_and_std(tiny: TinyCorpus, found: dict[str, Any]) -> None:
    from mmbuild.stream.transforms import read_statistics

    read = read_statistics(found, MODALITIES["radar"])
    truth = [train_values(tiny, "radar", b) for b in range(2)]
    np.testing.assert_allclose(read.mean, [v[v != -9999].mean() for v in truth], rtol=1e-12)
    np.testing.assert_allclose(read.std, [v[v != -9999].std() for v in truth], rtol=1e-12)


def test_without_train_samples_every_number_is_null(tmp_path: Path) -> None:
    tiny = write_corpus(tmp_path / "corpus")
    empty = stats.compute(tiny.open(), dict.fromkeys(splits_of(tiny), "test"))
    band = empty["modalities"]["radar"]["bands"]["VV"]
    assert {key: value for key, value in band.items() if value is not None} == {
        "count": 0, "nodata_count": 0, "outside_valid_range": 0,
    }  # fmt: skip
    assert empty["modalities"]["cover"]["bands"]["class"]["classes"] == {"10": 0, "20": 0, "90": 0, "95": 0}


RADAR = modality(
    "r", level="pixel", values="continuous", dtype="float32", nodata=-9999.0, bands="a b", gsd=10, valid=(-50, 50)
)
CHIPS = st.lists(
    hnp.arrays(
        np.float32, (2, 4, 3), elements=st.floats(-60, 60, width=32) | st.sampled_from([-9999.0, np.nan, np.inf])
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(CHIPS, st.integers(0, 8))
def test_any_chips_merged_at_any_point_give_the_moments_of_all(chips: list[np.ndarray], cut: int) -> None:
    def part(some: list[np.ndarray]) -> Continuous:
        total = Continuous(bins=[Bins.of(band.valid_range, RADAR.np_dtype) for band in RADAR.bands])
        for chip in some:
            total.add(chip, RADAR)
        return total

    total = part(chips[:cut])
    total.merge(part(chips[cut:]))
    for b in range(2):
        values = np.stack(chips)[:, b].astype(np.float64)
        values = values[np.isfinite(values) & (values != -9999)]
        summary = total.summary(b)
        assert summary["count"] == len(values)
        if len(values):
            assert summary["mean"] == pytest.approx(values.mean(), rel=1e-12, abs=1e-12)
            assert summary["std"] == pytest.approx(values.std(), rel=1e-10, abs=1e-7)


def test_a_large_offset_does_not_eat_the_deviation() -> None:
    """Where the sum of squares would cancel: values of 1e9 that differ by one."""
    far = modality("f", level="image", values="continuous", dtype="float64", nodata=-9999.0, bands="a", valid=(0, 2e9))
    total = Continuous(bins=[Bins.of((0, 2e9), far.np_dtype)])
    for value in (1e9, 1e9 + 1, 1e9 + 2):
        total.add(np.array([value]), far)
    assert total.summary(0)["std"] == pytest.approx(math.sqrt(2 / 3), rel=1e-9)


def test_values_beyond_the_valid_range_are_counted_and_kept() -> None:
    total = Continuous(bins=[Bins.of((-50, 50), np.dtype("float32"))] * 2)
    total.add(np.array([[-60, 0, 60], [1, 2, 3]], np.float32), RADAR)
    summary = total.summary(0)
    assert (summary["outside_valid_range"], summary["min"], summary["max"], summary["mean"]) == (2, -60, 60, 0)
    assert sum(summary["histogram"]["counts"]) == 3
