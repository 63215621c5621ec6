"""Compiled code beside the Python it stands in for: the same batches to the last bit, the same refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbuild.cli import main
from mmbuild.cube import ArrayLayout
from mmbuild.stream import compiled, transforms
from mmbuild.stream.convert import converter
from mmbuild.stream.index import NO_TIME, ChipTable
from mmbuild.stream.loader import Loader
from mmbuild.stream.reader import Reader
from mmbuild.stream.targets import Convert, Crop, Geometry, Target
from mmbuild.stream.transforms import Field, Statistics
from tests.shards import TinyCorpus, modality, write_corpus

SIDE = 12
needs_compiled = pytest.mark.skipif(not compiled.is_built(), reason="mmbuild was installed without a C compiler")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("compiled") / "corpus")


@pytest.fixture
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk in Python is an error."""

    def refuse(*_: Any, **__: Any) -> list[Any]:
        raise AssertionError("compiled code left a chunk to Python")

    monkeypatch.setattr(Reader, "_fill_each", refuse)


# -- whole batches


OPTIONS: dict[str, dict[str, Any]] = {
    "stored": {"raw": True},
    "stored windows": {"raw": True, "crop": 16},
    "stored windows, flips and turns": {"raw": True, "crop": 16, "augment": True},
    "common bands of two levels": {"raw": True, "modalities": ["optic", "zone"]},
    "masked": {"normalize": False},
    "normalised": {},
    "flips and turns of whole chips": {"augment": True},
    "windows, flips and turns": {"crop": 8, "augment": True},
    "bands of an alias": {"modalities": ["optic", "cover"], "crop": 12, "augment": True},
}


@needs_compiled
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batches_are_those_of_the_python_code(
    tiny: TinyCorpus, options: dict[str, Any], no_python: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(Loader(tiny.path, batch_size=5, **options))
    monkeypatch.undo()
    monkeypatch.setattr(compiled, "_chunks", None)
    expected = list(Loader(tiny.path, batch_size=5, **options))
    assert len(found) == len(expected) > 3
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for key, value in two.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(one[key], value, rtol=0, atol=0, equal_nan=True)
            else:
                assert np.array_equal(one[key], value)


# -- one chip: any stored type, any window and turn, beside the plain functions


def table_of(name: str, dtype: str, bands: int, **more: Any) -> ChipTable:
    one = modality(
        name, level="pixel", dtype=dtype, nodata=99, bands=" ".join("abcdef"[:bands]), gsd=10, valid=(0, 90), **more
    )
    layout = ArrayLayout(
        modality=one, gsd=10, times=1, chip=(bands, SIDE, SIDE), samples_per_shard=1, codec="lz4", level=5
    )
    nothing = np.zeros((1, 1), np.uint32)
    return ChipTable(layout=layout, start=nothing, length=nothing, epoch_s=np.full((1, 1), NO_TIME))


def done(
    table: ChipTable, chip: np.ndarray, convert: Convert | None, *, geometry: Geometry, bands: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The values and the mask that compiled code makes of a chip, once it is encoded."""
    side = SIDE if geometry.crop is None else geometry.crop.size
    shape = (1, 1, table.layout.chip[0] if bands is None else len(bands), side, side)
    dtype = chip.dtype if convert is None else np.int64 if convert.kind == compiled.CLASSES else np.float32
    data, mask = np.full(shape, 7, dtype), np.full(shape, True)
    target = Target(
        table=table, data=data, missing=0, mask=None if convert is None else mask, convert=convert, geometry=geometry,
        bands=bands,
    )  # fmt: skip
    chunk = np.frombuffer(table.layout.encode(chip), np.uint8)
    work = np.zeros(1, compiled.ROW)
    record = target.record
    assert record is not None
    target.describe(record, work, np.array([0]), np.array([0]))
    work["fd"], work["source"], work["length"] = -1, chunk.ctypes.data, len(chunk)
    *_, read, decoded = compiled.fill(work)
    assert (read, decoded, work["failed"].tolist()) == (len(chunk), chip.nbytes, [0])
    return data[0, 0], mask[0, 0]


def geometries() -> list[Any]:
    crop = Crop(units=SIDE, size=5, rows=np.array([3]), cols=np.array([6]))
    turned = [
        Geometry(crop=cut, flips=np.array([flip]), turns=np.array([turns]))
        for cut in (None, crop)
        for flip in (False, True)
        for turns in range(4)
    ]
    return [Geometry(), Geometry(crop=crop), *turned]


def looked_at(chip: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The same pixels by numpy's own functions: (1, 1, band, y, x)."""
    if geometry.crop is not None:
        chip = chip[:, 3:8, 6:11]
    if geometry.flips is not None and geometry.turns is not None:
        chip = np.rot90(chip[..., ::-1] if geometry.flips[0] else chip, geometry.turns[0], axes=(1, 2))
    return chip[None, None]


def measured_chip(dtype: str) -> np.ndarray:
    """Bands: measured, half measured, empty, empty but for one pixel, never observed, constant."""
    rng = np.random.default_rng(3)
    chip = rng.integers(0, 90, (6, SIDE, SIDE)).astype(dtype)
    chip[1][rng.random((SIDE, SIDE)) < 0.5] = 99
    chip[2:4] = 99
    chip[3, 4, 8] = 1
    if chip.dtype.kind == "f":
        chip[0, 3:5] = math.nan
        chip[1, 5, 7:9] = math.inf, -math.inf
    return chip


STATISTICS = Statistics(
    mean=np.array([40, 30.3, 20, 10, math.nan, 5]), std=np.array([9, 7.1, 5, 3, math.nan, 0], dtype=float)
)


def field_of(table: ChipTable, statistics: Statistics | None) -> Field:
    name, chip = table.layout.name, table.layout.chip
    made = {name: table.layout.modality}
    known = None if statistics is None else {name: statistics}
    return transforms.make_fields(made, {name: (1, *chip)}, {name: 10.0}, known)[0]


@needs_compiled
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("geometry", geometries())
def test_values_are_those_of_the_plain_functions(dtype: str, geometry: Geometry) -> None:
    chip, table = measured_chip(dtype), table_of("one", dtype, 6, values="continuous")
    stored, nodata = looked_at(chip, geometry), table.layout.modality.fill
    data, mask = done(table, chip, converter(field_of(table, STATISTICS), 0), geometry=geometry)
    values, valid = transforms.normalise(stored, nodata, STATISTICS)
    np.testing.assert_array_equal(data, values[0, 0])
    np.testing.assert_array_equal(mask, valid[0, 0])
    data, mask = done(table, chip, converter(field_of(table, None), 0), geometry=geometry)
    values, valid = transforms.as_stored(stored, nodata)
    np.testing.assert_array_equal(data, values[0, 0])
    np.testing.assert_array_equal(mask, valid[0, 0])
    assert 0 < valid.sum() < valid.size


@needs_compiled
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("geometry", geometries())
def test_classes_are_those_of_the_plain_function(dtype: str, geometry: Geometry) -> None:
    codes = (10, 20, 90)
    table = table_of("one", dtype, 1, values="categorical", codes=codes)
    chip = np.random.default_rng(1).choice([10, 20, 30, 90, 99], (1, SIDE, SIDE)).astype(dtype)
    data, mask = done(table, chip, converter(field_of(table, None), 0), geometry=geometry)
    indexes, valid = transforms.class_indexes(looked_at(chip, geometry), codes)
    np.testing.assert_array_equal(data, indexes[0, 0])
    np.testing.assert_array_equal(mask, valid[0, 0])


@needs_compiled
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("geometry", geometries())
@pytest.mark.parametrize("bands", [None, np.array([4, 0, 1])], ids=["all", "three"])
def test_stored_values_of_any_size_are_cut_and_turned(dtype: str, geometry: Geometry, bands: np.ndarray | None) -> None:
    chip, table = measured_chip(dtype), table_of("one", dtype, 6, values="continuous")
    data, _ = done(table, chip, None, geometry=geometry, bands=bands)
    expected = looked_at(chip if bands is None else chip[bands], geometry)[0, 0]
    np.testing.assert_array_equal(data, expected)


def test_types_that_cannot_be_converted_are_left_to_python() -> None:
    wide = table_of("one", "float64", 6, values="continuous")
    assert converter(field_of(wide, STATISTICS), 0).kind is None
    assert converter(field_of(table_of("one", "int16", 1, values="categorical", codes=(1, 2)), None), 0).kind is None


# -- what is wrong


@needs_compiled
@pytest.mark.parametrize("what", ["short", "flipped", "another size", "beyond the file", "cut", "another length"])
def test_a_chunk_that_is_not_whole_fails_and_its_place_stays_as_it_was(what: str, tmp_path: Path) -> None:
    table = table_of("one", "uint16", 1, values="continuous")
    good = table.layout.encode(np.random.default_rng(0).integers(0, 90, (1, SIDE, SIDE)).astype(np.uint16))
    other = table_of("one", "uint16", 2, values="continuous").layout.encode(np.ones((2, SIDE, SIDE), np.uint16))
    chunk = {"short": good[:15], "flipped": good[:30] + bytes([good[30] ^ 1]) + good[31:], "another size": other}
    data = np.full((1, 1, 1, SIDE, SIDE), 7, np.uint16)
    target = Target(table=table, data=data, missing=0)
    path = tmp_path / "shard"
    path.write_bytes(chunk.get(what, good))
    work = np.zeros(1, compiled.ROW)
    record = target.record
    assert record is not None
    target.describe(record, work, np.array([0]), np.array([0]))
    length = path.stat().st_size + {"beyond the file": 1, "cut": -1}.get(what, 0)
    with path.open("rb") as file:
        work["fd"], work["source"], work["length"] = file.fileno(), 1 if what == "another length" else 0, length
        compiled.fill(work)
        assert work["failed"].tolist() == [1]
        assert (data == 7).all()
        path.write_bytes(good)
        work["source"], work["length"] = 0, len(good)
        compiled.fill(work)
    assert work["failed"].tolist() == [0]
    assert not (data == 7).all()


# -- without a compiler


def test_bench_says_when_nothing_is_compiled_and_what_to_do(
    tiny: TinyCorpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["mmbuild", "bench", str(tiny.path), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    options = "--seconds", "0.1", "--batch-size", "4"
    assert ("no compiled code" in told(*options)) is not compiled.is_built()
    monkeypatch.setattr(compiled, "_chunks", None)
    assert "no compiled code" in told(*options)
    assert '"compiled": false' in told(*options, "--json")


def test_code_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.is_built():
        monkeypatch.setattr(compiled._chunks, "ROW_BYTES", 8)
    assert not compiled.is_built()


def test_without_the_functions_of_other_packages_python_does_it(
    tiny: TinyCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_functions", lambda: None)
    assert not compiled.is_built()
    assert sum(len(batch["id"]) for batch in Loader(tiny.path, batch_size=5)) == len(tiny.slots)
