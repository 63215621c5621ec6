"""The kept index: it spares parsing, and never says anything that the commit records do not."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.remote import range_server
from mmbuild.cube import open_corpus
from mmbuild.records import RECORD_SCHEMA
from mmbuild.store import open_store
from mmbuild.stream import kept
from mmbuild.stream.index import Index, read_index, write_index
from tests.batches import assert_same_samples, make
from tests.shards import MODALITIES, PER_SHARD, SLOTS, TinyCorpus, write_corpus

NAMES = list(MODALITIES)


@pytest.fixture
def indexed(tmp_path: Path) -> TinyCorpus:
    corpus = write_corpus(tmp_path / "corpus")
    write_index(corpus.open())
    return corpus


def parsed(corpus: TinyCorpus, names: list[str] = NAMES) -> Index:
    """The index from the records alone."""
    (corpus.path / kept.KEPT).rename(corpus.path / "aside")
    try:
        return read_index(corpus.open(), names)
    finally:
        (corpus.path / "aside").rename(corpus.path / kept.KEPT)


def assert_equal(one: Index, two: Index) -> None:
    for what in ("lon", "lat", "anchor_s", "stamps"):
        np.testing.assert_array_equal(getattr(one, what), getattr(two, what), err_msg=what)
    assert one.tables.keys() == two.tables.keys()
    for name, table in one.tables.items():
        for what in ("start", "length", "epoch_s"):
            np.testing.assert_array_equal(getattr(table, what), getattr(two.tables[name], what), err_msg=name)


def change(corpus: TinyCorpus, shard: int) -> None:
    """Another commit record, whose chips lie elsewhere."""
    rows = [row | {"offset": row["offset"] + 1} for row in corpus.rows if row["slot"] // PER_SHARD == shard]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), corpus.path / f"shards/{shard:06d}.parquet")


def falsify(corpus: TinyCorpus) -> None:
    """A kept index that is whole and says of every shard what its record does not."""
    path = corpus.path / kept.KEPT
    arrays = dict(np.load(path))
    del arrays["version"]
    path.write_bytes(kept.packed(arrays | {"lon": arrays["lon"] + 100}))


@pytest.mark.parametrize("names", [NAMES, ["radar"], ["zone", "cover"]], ids=len)
def test_it_gives_what_the_records_say_without_parsing_them(indexed: TinyCorpus, names: list[str]) -> None:
    assert_equal(read_index(indexed.open(), names), parsed(indexed, names))
    falsify(indexed)
    assert (read_index(indexed.open(), names).lon > 100).all()


def test_of_a_record_with_other_bytes_only_the_record_is_believed(indexed: TinyCorpus) -> None:
    falsify(indexed)
    change(indexed, 1)
    index = read_index(indexed.open(), NAMES)
    own = slice(PER_SHARD, 2 * PER_SHARD)
    assert (index.lon[own] < 100).all()
    assert (np.delete(index.lon, np.arange(SLOTS)[own]) > 100).all()
    for name in NAMES:
        assert (index.tables[name].start[own] == parsed(indexed).tables[name].start[own]).all()


def test_a_record_that_is_gone_is_gone_and_one_that_came_is_read(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    last = corpus.path / "shards/000002.parquet"
    last.rename(tmp_path / "later")
    write_index(corpus.open())
    (tmp_path / "later").rename(last)
    (corpus.path / "shards/000000.parquet").unlink()
    index = read_index(corpus.open(), NAMES)
    assert_equal(index, parsed(corpus))
    assert np.isnan(index.lon[:PER_SHARD]).all()
    assert not index.tables["zone"].length[:PER_SHARD].any()
    assert (index.stamps != 0).tolist() == [False, True, True, False]


def test_a_file_of_which_any_byte_is_flipped_is_not_believed(indexed: TinyCorpus) -> None:
    path, rng, truth = indexed.path / kept.KEPT, random.Random(0), parsed(indexed)
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        assert kept.unpacked(bytes(data)) is None
    for cut in (0, 3, 100, len(whole) - 1):
        assert kept.unpacked(whole[:cut]) is None
    path.write_bytes(whole[:-1])
    assert_equal(read_index(indexed.open(), NAMES), truth)


def test_a_kept_index_of_other_modalities_is_not_used(indexed: TinyCorpus) -> None:
    truth, path = parsed(indexed), indexed.path / kept.KEPT
    path.write_bytes(kept.packed({k: v for k, v in np.load(path).items() if k != "version" and "radar" not in k}))
    assert_equal(read_index(indexed.open(), NAMES), truth)


def test_a_kept_index_that_cannot_be_read_is_not_needed(indexed: TinyCorpus) -> None:
    truth, path = parsed(indexed), indexed.path / kept.KEPT
    path.unlink()
    path.mkdir()
    assert_equal(read_index(indexed.open(), NAMES), truth)


def test_a_kept_index_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    data = kept.packed({"lon": np.zeros(3)})
    assert kept.unpacked(data) is not None
    monkeypatch.setattr(kept, "VERSION", kept.VERSION + 1)
    assert kept.unpacked(data) is None


def test_equal_records_give_equal_bytes_that_numpy_reads(indexed: TinyCorpus, tmp_path: Path) -> None:
    again = write_corpus(tmp_path / "again")
    write_index(again.open())
    data = (indexed.path / kept.KEPT).read_bytes()
    assert data == (again.path / kept.KEPT).read_bytes()
    arrays = np.load(io.BytesIO(data))
    offsets = [row["offset"] for row in indexed.rows if row["modality"] == "zone"]
    assert arrays["zone/start"][:, 0].tolist() == [max(offset, 0) for offset in offsets]


def test_it_serves_readers_of_a_web_server_too(indexed: TinyCorpus) -> None:
    with range_server(indexed.path, latency_s=0.0) as url:
        assert_same_samples(make(url), make(indexed))
        change(indexed, 0)
        assert_equal(read_index(open_corpus(url), NAMES), parsed(indexed))
        assert open_store(url).exists(kept.KEPT)
