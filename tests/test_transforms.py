"""transforms.py: nodata never influences a value, classes map to 0..K-1, and geometry is one draw a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmbuild.errors import UserError
from mmbuild.stream import transforms
from mmbuild.stream.convert import converter
from mmbuild.stream.reader import Chips
from mmbuild.stream.targets import Scratch
from mmbuild.stream.transforms import IGNORE_INDEX, Field, Geometry, Statistics
from tests.shards import MODALITIES, modality

SHAPES = {
    "optic_a": (1, 4, 24, 24),
    "optic_b": (1, 3, 24, 24),
    "radar": (1, 2, 12, 12),
    "cover": (1, 1, 6, 6),
    "climate": (1, 3),
    "zone": (1, 1),
}
GSDS = {name: m.gsd for name, m in MODALITIES.items()}


def fields(
    names: Sequence[str] | None = None, *, normalize: bool = True, one_of: Sequence[str] = ()
) -> tuple[Field, ...]:
    statistics = {
        name: Statistics(mean=np.arange(len(m.bands)) + 10.0 * k, std=np.arange(len(m.bands)) + 1.0 + k)
        for k, (name, m) in enumerate(MODALITIES.items())
        if m.values == "continuous"
    }
    return transforms.make_fields(
        MODALITIES, SHAPES, GSDS, statistics if normalize else None, names=names, one_of=one_of
    )


def chips(name: str, stored: Sequence[bool], seed: int = 0) -> Chips:
    m, rng = MODALITIES[name], np.random.default_rng(seed)
    low, high = (0, 12_000) if m.np_dtype.kind == "u" else (-50, 50)
    shape = (len(stored), *SHAPES[name])
    values = rng.choice([*m.class_codes, 40], size=shape) if m.classes else rng.integers(low, high, size=shape)
    data = values.astype(m.np_dtype)
    data[rng.random(shape) < 0.3] = m.fill
    data[~np.array(stored)] = m.fill
    return Chips(data=data, stored=np.array(stored)[:, None])


# -- mask, then normalise


def test_valid_means_not_nodata_and_for_floats_finite() -> None:
    stored = np.array([-9999.0, 1.0, math.nan, math.inf, -math.inf], dtype=np.float32)
    assert transforms.valid_mask(stored, np.float32(-9999)).tolist() == [False, True, False, False, False]
    assert transforms.valid_mask(stored, np.float32("nan")).tolist() == [True, True, False, False, False]
    assert transforms.valid_mask(np.array([0, 255], np.uint8), np.uint8(255)).tolist() == [True, False]


@given(
    stored=hnp.arrays(np.uint16, hnp.array_shapes(min_dims=5, max_dims=5, max_side=4), elements=st.integers(0, 20_000)),
    data=st.data(),
)
def test_masked_before_normalised_so_that_nodata_never_influences_a_value(
    stored: np.ndarray, data: st.DataObject
) -> None:
    """Whatever the number that stands for nodata, valid values and mask come out the same, and nodata is exactly 0."""
    hole = data.draw(hnp.arrays(bool, stored.shape))
    bands = stored.shape[2]
    statistics = Statistics(mean=np.linspace(100, 5000, bands), std=np.linspace(1, 3000, bands))
    results = []
    for nodata in (np.uint16(65535), np.uint16(30_000)):
        results.append(transforms.normalise(np.where(hole, nodata, stored), nodata, statistics))
    (first, mask), (second, _) = results
    np.testing.assert_array_equal(mask, ~hole)
    np.testing.assert_array_equal(first, second)
    assert (first[hole] == 0).all()
    mean, std = (v.reshape(-1, 1, 1) for v in (statistics.mean, statistics.std))
    expected = (stored.astype(np.float64) - mean) / std
    np.testing.assert_allclose(first[~hole], expected[~hole], rtol=1e-5, atol=1e-5)


def test_a_constant_band_is_only_shifted_and_an_unobserved_band_stays_masked() -> None:
    stored = np.array([[[5.0, 7.0, 9.0]]], dtype=np.float32)
    statistics = Statistics(mean=np.array([3.0, 7.0, math.nan]), std=np.array([4.0, 0.0, math.nan]))
    values, mask = transforms.normalise(stored, np.float32(-9999), statistics)
    assert values.tolist() == [[[0.5, 0.0, 0.0]]]
    assert mask.tolist() == [[[True, True, False]]]


def test_without_normalising_values_stay_as_stored_and_nodata_is_nan() -> None:
    (field,) = fields(["optic_a"], normalize=False)
    given_chips = chips("optic_a", [True, False, True])
    values = transforms.transform(field, {"optic_a": given_chips})
    valid = given_chips.data != 65535
    np.testing.assert_array_equal(values.data[valid], given_chips.data[valid].astype(np.float32))
    assert np.isnan(values.data[~valid]).all()
    np.testing.assert_array_equal(values.mask, valid)


# -- classes


def test_class_codes_map_to_0_to_k_minus_1_and_everything_else_to_the_ignore_index() -> None:
    codes = (10, 20, 90, 95)
    stored = np.arange(256, dtype=np.uint8)
    indexes, mask = transforms.class_indexes(stored, codes)
    expected = [codes.index(value) if value in codes else IGNORE_INDEX for value in range(256)]
    assert indexes.dtype == np.int64
    assert indexes.tolist() == expected
    np.testing.assert_array_equal(mask, indexes >= 0)


@given(
    stored=hnp.arrays(np.int32, 20, elements=st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 400)),
    codes=st.lists(st.integers(-5, 400), min_size=1, max_size=20, unique=True).map(sorted),
)
def test_class_codes_map_for_any_integer_type(stored: np.ndarray, codes: list[int]) -> None:
    indexes, _ = transforms.class_indexes(stored, codes)
    assert indexes.tolist() == [codes.index(v) if v in codes else IGNORE_INDEX for v in stored.tolist()]


@pytest.mark.parametrize("name", ["cover", "zone"])
def test_categorical_fields_are_int64_indexes_with_the_ignore_index_where_nothing_is_stored(name: str) -> None:
    (field,) = fields([name])
    assert field.n_classes == len(MODALITIES[name].classes)
    given_chips = chips(name, [True, False, True, True])
    values = transforms.transform(field, {name: given_chips})
    codes = sorted(MODALITIES[name].class_codes)
    expected = np.vectorize(lambda v: codes.index(v) if v in codes else IGNORE_INDEX)(given_chips.data)
    assert values.data.dtype == np.int64
    np.testing.assert_array_equal(values.data, expected)
    np.testing.assert_array_equal(values.mask, expected >= 0)
    assert not values.mask[1].any()


# -- aliases


def test_the_alternatives_of_an_anchor_come_under_their_alias_with_their_common_bands() -> None:
    found = fields(one_of=["optic_a", "optic_b"])
    assert [field.name for field in found] == ["optic", "radar", "cover", "climate", "zone"]
    assert found[0].bands == ("B1", "B2", "B4")  # what both have, in the order of the first
    assert found[0].shape == (1, 3, 24, 24)
    assert [m.name for m in found[0].members] == ["optic_a", "optic_b"]
    assert found[0].is_alias
    assert not found[1].is_alias


def test_modalities_that_are_no_alternatives_keep_their_own_names() -> None:
    assert [field.name for field in fields()] == list(MODALITIES)
    assert [field.name for field in fields(["optic_b", "optic"])] == ["optic_b", "optic"]


def test_an_alias_takes_each_sample_from_the_member_that_is_stored_with_its_own_statistics() -> None:
    (field,) = fields(["optic"])
    a, b = chips("optic_a", [True, False, False, True], 1), chips("optic_b", [False, True, False, True], 2)
    values = transforms.transform(field, {"optic_a": a, "optic_b": b})
    assert values.level.tolist() == [0, 1, -1, 0]
    (own_a,), (own_b,) = fields(["optic_a"]), fields(["optic_b"])
    alone_a, alone_b = transforms.transform(own_a, {"optic_a": a}), transforms.transform(own_b, {"optic_b": b})
    for row, alone, places in ((0, alone_a, [0, 1, 3]), (1, alone_b, [2, 1, 0]), (3, alone_a, [0, 1, 3])):
        np.testing.assert_array_equal(values.data[row], alone.data[row][:, places])
        np.testing.assert_array_equal(values.mask[row], alone.mask[row][:, places])
    assert not values.mask[2].any()
    assert (values.data[2] == 0).all()


def test_an_alias_of_arrays_that_do_not_fit_together_is_refused() -> None:
    other = modality(
        "optic_c", level="pixel", values="continuous", dtype="uint16", nodata=65535, bands="B9", gsd=10, alias="optic"
    )  # fmt: skip
    known, shapes = MODALITIES | {"optic_c": other}, SHAPES | {"optic_c": (1, 1, 24, 24)}
    with pytest.raises(UserError, match="optic_a, optic_b, optic_c cannot share the alias optic: they differ"):
        transforms.make_fields(known, shapes, GSDS | {"optic_c": 10.0}, None, names=["optic"])
    coarse = SHAPES | {"optic_b": (1, 3, 12, 12)}
    with pytest.raises(UserError, match="optic_a, optic_b cannot share the alias optic: they differ"):
        transforms.make_fields(MODALITIES, coarse, GSDS, None, names=["optic"])


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match=r"no modality or alias 'lidar'.*choose from optic_a, .*zone, optic$"):
        fields(["lidar"])


# -- statistics


def test_statistics_are_read_by_band_name_and_a_band_without_any_is_nan() -> None:
    found = transforms.read_statistics(STATS, MODALITIES["radar"])
    np.testing.assert_array_equal(found.mean, [2.0, math.nan])
    np.testing.assert_array_equal(found.std, [3.0, math.nan])


STATS = {"modalities": {"radar": {"bands": {"VH": {"mean": None, "std": None}, "VV": {"mean": 2.0, "std": 3.0}}}}}


# -- geometry


def test_crop_units_are_common_to_all_modalities() -> None:
    assert transforms.crop_units({"a": 24, "b": 12, "c": 6}, 8) == (6, 2)
    assert transforms.crop_units({"a": 128, "b": 128}, 112) == (128, 112)
    assert transforms.crop_units({"a": 128}, 128) == (128, 128)


@pytest.mark.parametrize(
    ("crop", "text"),
    [
        (0, "crop: 0 must be 1 to 24 pixels"),
        (25, "crop: 25 must be 1 to 24 pixels"),
        (10, r"crop: 10 cuts through the pixels of c \(6 where the finest has 24\); use a multiple of 4"),
    ],
)
def test_a_crop_that_cuts_pixels_is_refused(crop: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        transforms.crop_units({"a": 24, "b": 12, "c": 6}, crop)


def draw(ids: Sequence[str], *, seed: int = 0, epoch: int = 0, augment: bool = True) -> Geometry:
    return transforms.choose_geometry(ids, (6, 2), augment=augment, seed=seed, epoch=epoch)


def as_tuples(geometry: Geometry) -> list[tuple[int, ...]]:
    assert geometry.crop is not None
    assert geometry.flips is not None
    assert geometry.turns is not None
    columns = (geometry.crop.rows, geometry.crop.cols, geometry.flips, geometry.turns)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def test_augmentation_is_keyed_by_sample_id_and_independent_of_the_batch() -> None:
    ids = [f"{i:06d}" for i in range(50)]
    whole = as_tuples(draw(ids))
    assert as_tuples(draw(ids[::-1])) == whole[::-1]
    assert [as_tuples(draw([i]))[0] for i in ids] == whole
    assert as_tuples(draw(ids, epoch=1)) != whole
    assert as_tuples(draw(ids, seed=1)) != whole
    assert draw([]).flips is not None  # an empty batch of a rank that has none left


def test_augmentation_reaches_every_window_flip_and_turn_evenly() -> None:
    drawn = as_tuples(draw([f"{i:06d}" for i in range(5000)]))
    for column, kinds in enumerate((5, 5, 2, 4)):
        counts = np.bincount([row[column] for row in drawn], minlength=kinds)
        expected = 5000 / kinds
        assert len(counts) == kinds
        assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_without_augmentation_the_window_is_centred_and_nothing_is_turned() -> None:
    geometry = draw(["a", "b"], augment=False)
    assert geometry.crop is not None
    assert geometry.crop.rows.tolist() == geometry.crop.cols.tolist() == [2, 2]
    pixels = np.arange(2 * 4 * 4).reshape(2, 1, 1, 4, 4)
    assert transforms.turn(pixels, geometry) is pixels


def test_turns_keep_modalities_of_different_gsd_on_the_same_ground() -> None:
    """A fine field is the coarse one repeated; turned with the same geometry it still is."""
    coarse = np.random.default_rng(0).integers(0, 99, size=(16, 1, 2, 6, 6))
    fine = coarse.repeat(2, axis=-1).repeat(2, axis=-2)
    geometry = draw([f"{i}" for i in range(16)])
    turned = transforms.turn(coarse, geometry)
    np.testing.assert_array_equal(transforms.turn(fine, geometry), turned.repeat(2, axis=-1).repeat(2, axis=-2))
    # All eight ways to lay a square are among them, each a rearrangement by hand of the first corner.
    ways = {(bool(f), int(t)) for f, t in zip(geometry.flips, geometry.turns, strict=True)}  # type: ignore[arg-type]
    assert len(ways) > 4
    for i, (_, _, flip, turns) in enumerate(as_tuples(geometry)):
        expected = np.fliplr(coarse[i, 0, 0]) if flip else coarse[i, 0, 0]
        np.testing.assert_array_equal(turned[i, 0, 0], np.rot90(expected, turns))


# -- the converters that the loader runs, beside the plain functions


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("turns", range(8))
def test_a_converter_gives_the_numbers_of_normalise_whatever_bands_hold(dtype: str, turns: int) -> None:
    """Bands: measured, half measured, empty, empty but for one pixel, never observed, constant."""
    rng, kind = np.random.default_rng(turns), np.dtype(dtype).kind
    one = modality(
        "one", level="pixel", values="continuous", dtype=dtype, nodata=99, bands="a b c d e f", gsd=10, valid=(0, 90)
    )
    chip = rng.integers(0, 90, (6, 12, 12)).astype(dtype)
    chip[1][rng.random((12, 12)) < 0.5] = 99
    chip[2:4] = 99
    chip[3, 7, 5] = 1
    if kind == "f":
        chip[0, 3:5] = math.nan
        chip[1, 5, 5] = math.inf
    mean, std = np.array([40, 30, 20, 10, math.nan, 5]), np.array([9, 7, 5, 3, math.nan, 0])
    made = transforms.make_fields(
        {"one": one}, {"one": (1, 6, 12, 12)}, {"one": 10.0}, {"one": Statistics(mean=mean, std=std)}
    )[0]
    view = np.rot90(chip[..., ::-1] if turns % 2 else chip, turns // 2, axes=(1, 2))
    data, mask = np.full(chip.shape, 7, np.float32), np.full(chip.shape, True)
    with np.errstate(all="ignore"):
        converter(made, 0).run(view, data, mask, Scratch())
        values, valid = transforms.normalise(view[None, None], one.fill, Statistics(mean=mean, std=std))
    np.testing.assert_array_equal(mask, valid[0, 0])
    np.testing.assert_array_equal(data, values[0, 0])
    assert mask.any(axis=(1, 2)).tolist() == [True, True, False, True, False, True]
