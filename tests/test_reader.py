"""reader.py: what it returns is what zarr-python reads, and what is damaged or missing is said, never made up."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbuild.cube import open_corpus
from mmbuild.errors import IntegrityError, UserError
from mmbuild.store import open_store
from mmbuild.stream import compiled, fetch, plan
from mmbuild.stream.index import NO_TIME
from mmbuild.stream.reader import Crop, Reader
from tests.shards import MODALITIES, PER_SHARD, SLOTS, TinyCorpus, write_corpus


@pytest.fixture(autouse=True, params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with compiled code and without it."""
    if request.param == "python":
        monkeypatch.setattr(compiled, "_chunks", None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("reader") / "corpus")


@pytest.fixture
def copy(tmp_path: Path) -> TinyCorpus:
    """A corpus that a test may damage."""
    return write_corpus(tmp_path / "corpus")


def shard_object(corpus: TinyCorpus, name: str, shard: int) -> Path:
    return next(
        path for path in sorted((corpus.path / f"cube.zarr/{name}/data/c/{shard}").rglob("*")) if path.is_file()
    )


def row_of(corpus: TinyCorpus, name: str, slot: int) -> dict[str, Any]:
    return next(row for row in corpus.rows if row["modality"] == name and row["slot"] == slot)


def first_stored(corpus: TinyCorpus, name: str) -> int:
    return int(np.flatnonzero(corpus.stored[name])[0])


@pytest.mark.parametrize(
    "slots", [range(SLOTS), [20, 3, 3, 0, 11, 6], [2], []], ids=["all", "some twice", "one", "none"]
)
def test_chips_equal_what_zarr_reads_in_the_order_asked(tiny: TinyCorpus, slots: list[int]) -> None:
    found = Reader(tiny.open()).read(slots)
    assert list(found) == list(MODALITIES)
    for name, chips in found.items():
        expected = np.asarray(tiny.array(name)[...])[list(slots)]
        assert chips.data.dtype == expected.dtype
        np.testing.assert_array_equal(chips.data, expected)
        np.testing.assert_array_equal(chips.data, tiny.truth[name][list(slots)])


def test_chips_equal_what_xarray_reads(tiny: TinyCorpus) -> None:
    import xarray as xr

    found = Reader(tiny.open(), ["radar"]).read(range(SLOTS))["radar"]
    with xr.open_zarr(tiny.path / "cube.zarr", group="radar", consolidated=False, mask_and_scale=False) as data:
        np.testing.assert_array_equal(found.data, data["data"].values)


def test_what_is_not_stored_is_nodata_and_flagged(tiny: TinyCorpus) -> None:
    found = Reader(tiny.open()).read(range(SLOTS))
    for name, chips in found.items():
        np.testing.assert_array_equal(chips.stored[:, 0], tiny.stored[name])
        assert not chips.stored.all()
        assert (chips.data[~chips.stored] == MODALITIES[name].fill).all()


def test_only_commit_records_are_trusted(copy: TinyCorpus) -> None:
    """A chip that lies in the shard but that no record calls stored is not read."""
    slot = first_stored(copy, "radar")
    rows = [
        row | {"status": "failed"} if (row["modality"], row["slot"]) == ("radar", slot) else row for row in copy.rows
    ]
    path = copy.path / f"shards/{slot // PER_SHARD:06d}.parquet"
    own = [row for row in rows if row["slot"] // PER_SHARD == slot // PER_SHARD]
    pq.write_table(pa.Table.from_pylist(own, schema=pq.read_schema(path)), path)
    chips = Reader(copy.open(), ["radar"]).read([slot])["radar"]
    assert not chips.stored.any()
    assert (chips.data == MODALITIES["radar"].fill).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(tiny: TinyCorpus, threads: int) -> None:
    reader = Reader(tiny.open(), threads=threads)
    with ThreadPoolExecutor(3) as pool:  # three consumers at the same time
        for found in pool.map(lambda _: reader.read(range(SLOTS)), range(6)):
            for name, chips in found.items():
                np.testing.assert_array_equal(chips.data, tiny.truth[name])
    reader.close()


def test_a_modality_subset_touches_only_its_own_objects(copy: TinyCorpus) -> None:
    for name in set(MODALITIES) - {"cover"}:
        for path in (copy.path / f"cube.zarr/{name}/data/c").rglob("0"):
            if path.is_file():
                path.unlink()
    found = Reader(copy.open(), ["cover"]).read(range(SLOTS))
    assert list(found) == ["cover"]
    np.testing.assert_array_equal(found["cover"].data, copy.truth["cover"])


def test_a_crop_equals_the_slice_of_the_whole_chip_on_the_same_ground(tiny: TinyCorpus) -> None:
    """units: 24, 12 and 6 pixels have 6 units in common, of 4, 2 and 1 pixels."""
    slots = np.array([4, 0, 17, 9])
    crop = Crop(units=6, size=3, rows=np.array([0, 1, 3, 2]), cols=np.array([3, 0, 2, 1]))
    found = Reader(tiny.open()).read(slots, crop=crop)
    for name, pixels in {"optic_a": 4, "optic_b": 4, "radar": 2, "cover": 1}.items():
        assert found[name].data.shape[-2:] == (3 * pixels, 3 * pixels)
        for i, slot in enumerate(slots):
            top, left = crop.rows[i] * pixels, crop.cols[i] * pixels
            expected = tiny.truth[name][slot, :, :, top : top + 3 * pixels, left : left + 3 * pixels]
            np.testing.assert_array_equal(found[name].data[i], expected)
    np.testing.assert_array_equal(found["climate"].data, tiny.truth["climate"][slots])


def test_a_crop_that_does_not_divide_a_chip_is_refused(tiny: TinyCorpus) -> None:
    crop = Crop(units=12, size=3, rows=np.zeros(1, dtype=int), cols=np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match=r"cover: \(6, 6\) pixels do not divide into 12 units"):
        Reader(tiny.open()).read([0], crop=crop)


def test_neighbours_are_fetched_together_and_every_chunk_once(tiny: TinyCorpus) -> None:
    table = Reader(tiny.open()).tables["radar"]
    slots = np.array([9, 2, 8, 1, 2, 20])
    chunks = plan.find_chunks([table], slots)
    cuts = plan.ranges(chunks)
    rows = [row for cut in cuts for row in chunks.rows(*cut)]
    stored = {i for i, slot in enumerate(slots) if tiny.stored["radar"][slot]}
    assert {position for _, _, _, _, _, position, _ in rows} == stored
    assert len(rows) == len(stored)
    assert len(cuts) <= 3  # one a shard object at most: its chunks are near each other
    for _, _, start, length, slot, _, _ in rows:
        assert (start, length) == tuple(row_of(tiny, "radar", slot)[key] for key in ("offset", "length"))


def test_far_neighbours_and_long_runs_are_fetched_apart(tiny: TinyCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = plan.find_chunks([Reader(tiny.open()).tables["radar"]], np.arange(SLOTS))
    assert len(chunks) == int(tiny.stored["radar"].sum())
    assert len(plan.ranges(chunks)) == 3
    monkeypatch.setattr(plan, "MAX_RANGE_BYTES", 1)
    assert len(plan.ranges(chunks)) == len(chunks)
    monkeypatch.setattr(plan, "MAX_RANGE_BYTES", 2**30)
    monkeypatch.setattr(plan, "MAX_GAP_BYTES", -1)
    assert len(plan.ranges(chunks)) == len(chunks)


@pytest.mark.parametrize("threads", [1, 2, 7, 1000])
def test_work_is_cut_into_shrinking_parts_that_cover_every_chunk_once(tiny: TinyCorpus, threads: int) -> None:
    tables = list(Reader(tiny.open()).tables.values())
    chunks = plan.find_chunks(tables, np.arange(SLOTS))
    cuts = plan.shrinking_parts(chunks, tables, threads)
    assert [high for _, high in cuts] + [0] == [len(chunks)] + [low for low, _ in cuts]
    size = {
        i: plan.CALL_BYTES + table.layout.modality.np_dtype.itemsize * int(np.prod(table.layout.chip))
        for i, table in enumerate(tables)
    }
    costs = [sum(size[row[0]] for row in chunks.rows(*cut)) for cut in cuts]
    left = sum(costs)
    for cost in costs:
        assert (
            0 < cost <= max(left / (2 * threads), sum(costs) / (plan.SMALLEST_PARTS * threads)) + 2 * max(size.values())
        )
        left -= cost
    assert plan.shrinking_parts(plan.find_chunks(tables, np.arange(0)), tables, threads) == []


def test_threads_that_take_part_after_part_end_within_a_part_of_each_other(tiny: TinyCorpus) -> None:
    """A thread that was held up for a quarter of the work costs no more than one smallest part in the end."""
    tables = list(Reader(tiny.open()).tables.values())
    chunks = plan.find_chunks(tables, np.tile(np.arange(SLOTS), 50))
    cost = np.array([table.layout.modality.np_dtype.itemsize * int(np.prod(table.layout.chip)) for table in tables])
    cost = cost[chunks.columns[0]] + plan.CALL_BYTES
    until = [cost.sum() // 4, 0]
    for low, high in plan.shrinking_parts(chunks, tables, 2):
        until[int(np.argmin(until))] += cost[low:high].sum()
    assert abs(until[0] - until[1]) <= cost.sum() / (plan.SMALLEST_PARTS * 2) + 2 * cost.max()


@pytest.mark.parametrize("place", ["first byte", "middle", "checksum"])
def test_flipped_bytes_are_reported_with_sample_and_modality(copy: TinyCorpus, place: str) -> None:
    slot = first_stored(copy, "radar")
    row = row_of(copy, "radar", slot)
    path = shard_object(copy, "radar", slot // PER_SHARD)
    data = bytearray(path.read_bytes())
    inside = {"first byte": 0, "middle": row["length"] // 2, "checksum": row["length"] - 1}[place]
    data[row["offset"] + inside] ^= 1
    path.write_bytes(data)
    reader = Reader(copy.open())
    with pytest.raises(
        IntegrityError, match=rf"sample {slot:06d}, modality radar, time 0: its checksum is wrong; cube\.zarr/"
    ):
        reader.read(range(SLOTS))
    # The others can still be read.
    reader.read([s for s in range(SLOTS) if s != slot])


@pytest.mark.parametrize("how", ["truncated", "gone"])
def test_missing_bytes_are_reported_with_sample_and_modality(copy: TinyCorpus, how: str) -> None:
    path = shard_object(copy, "cover", 0)
    path.write_bytes(b"") if how == "truncated" else path.unlink()
    with pytest.raises(IntegrityError, match=r"sample 00000\d, modality cover, time 0: its bytes are missing"):
        Reader(copy.open()).read(range(SLOTS))


def test_a_chunk_of_another_size_is_reported(copy: TinyCorpus) -> None:
    slot = first_stored(copy, "radar")
    cover = row_of(copy, "cover", first_stored(copy, "cover"))
    reader = Reader(copy.open(), ["radar"])
    table = reader.tables["radar"]
    start, length = table.start.copy(), table.length.copy()
    # A chunk that is whole but belongs to another modality, put where radar's is looked for.
    data = shard_object(copy, "cover", 0).read_bytes()
    chunk = data[cover["offset"] : cover["offset"] + cover["length"]]
    path = shard_object(copy, "radar", slot // PER_SHARD)
    start[slot, 0], length[slot, 0] = path.stat().st_size, len(chunk)
    path.write_bytes(path.read_bytes() + chunk)
    reader.tables["radar"] = replace(table, start=start, length=length)
    with pytest.raises(
        IntegrityError, match=rf"sample {slot:06d}, modality radar.*it decodes to 36 bytes where 1152 belong"
    ):
        reader.read([slot])


def test_verify_compares_the_sha256_of_the_record(copy: TinyCorpus) -> None:
    slot = first_stored(copy, "radar")
    Reader(copy.open()).read(range(SLOTS), verify=True)
    path = copy.path / f"shards/{slot // PER_SHARD:06d}.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        if (row["modality"], row["slot"]) == ("radar", slot):
            row["sha256"] = "0" * 64
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    reader = Reader(copy.open())
    reader.read([slot])
    crop = Crop(units=6, size=1, rows=np.zeros(1, dtype=int), cols=np.zeros(1, dtype=int))
    for window in (None, crop):
        with pytest.raises(
            IntegrityError, match=rf"sample {slot:06d}, modality radar.*sha256 differs from the commit record"
        ):
            reader.read([slot], crop=window, verify=True)


def test_acquisition_times_come_from_the_records(tiny: TinyCorpus) -> None:
    for name, table in Reader(tiny.open()).tables.items():
        for row in (row for row in tiny.rows if row["modality"] == name):
            when = row["datetime"]
            assert table.epoch_s[row["slot"], 0] == (NO_TIME if when is None else int(when.timestamp()))


def test_files_stay_open_but_not_more_than_allowed(tiny: TinyCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd"))
    reader = Reader(tiny.open())
    for _ in range(3):
        reader.read(range(SLOTS))
    assert len(os.listdir("/proc/self/fd")) - before == 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_replaced_under_an_open_reader_still_reads_as_its_records_say(copy: TinyCorpus) -> None:
    """A retry replaces objects by rename: who opened before goes on with the old bytes."""
    reader = Reader(copy.open(), ["radar"])
    reader.read(range(SLOTS))
    path = shard_object(copy, "radar", 0)
    (path.parent / "new").write_bytes(b"\0" * path.stat().st_size)
    (path.parent / "new").replace(path)
    np.testing.assert_array_equal(reader.read(range(SLOTS))["radar"].data, copy.truth["radar"])


def test_a_reader_can_be_sent_to_another_process(tiny: TinyCorpus) -> None:
    again = pickle.loads(pickle.dumps(Reader(tiny.open(), ["cover"])))
    np.testing.assert_array_equal(again.read(range(SLOTS))["cover"].data, tiny.truth["cover"])


def test_an_object_store_gives_the_same_chips(tiny: TinyCorpus, bucket_url: str) -> None:
    store = open_store(bucket_url)
    for path in tiny.path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tiny.path).as_posix(), path.read_bytes())
    found = Reader(open_corpus(bucket_url)).read(range(SLOTS), verify=True)
    for name, chips in found.items():
        np.testing.assert_array_equal(chips.data, tiny.truth[name])
    store.delete("/".join(["cube.zarr/radar/data/c/1", *"0000"]))
    with pytest.raises(IntegrityError, match=r"modality radar, time 0: its bytes are missing"):
        Reader(open_corpus(bucket_url)).read(range(SLOTS))


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_that_does_not_exist_is_refused(tiny: TinyCorpus, slot: int) -> None:
    with pytest.raises(IndexError, match=f"slot {slot} must be 0 to {SLOTS - 1}"):
        Reader(tiny.open()).read([0, slot])


def test_an_unknown_modality_is_refused(tiny: TinyCorpus) -> None:
    with pytest.raises(UserError, match=r"no modality 'lidar' in this corpus.*choose from optic_a, optic_b"):
        Reader(tiny.open(), ["lidar"])
