"""The stream from servers: object stores, web servers of byte ranges, good and bad ones, and the cache before them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.remote import range_server
from mmbuild.store import open_store
from mmbuild.stream import pipeline
from mmbuild.stream.cache import Cache
from mmbuild.stream.fetch import Allowance
from tests.batches import assert_same_samples, make
from tests.shards import MODALITIES, SLOTS, TinyCorpus, write_corpus


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("servers") / "corpus")


@pytest.mark.parametrize("options", [{}, {"shuffle": "blocks", "block": 4, "window": 2}], ids=["random", "blocks"])
@pytest.mark.parametrize("faults", [0.0, 0.25])
def test_a_web_server_of_ranges_gives_the_same_samples_even_a_bad_one(
    tiny: TinyCorpus, options: dict[str, Any], faults: float
) -> None:
    with range_server(tiny.path, latency_s=0.001, faults=faults) as url:
        loader = make(url, **options)
        assert_same_samples(loader, make(tiny))
        assert_same_samples(loader, [*make(tiny)])


def test_an_object_store_gives_the_same_samples(tiny: TinyCorpus, bucket_url: str) -> None:
    store = open_store(bucket_url)
    for path in tiny.path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tiny.path).as_posix(), path.read_bytes())
    assert_same_samples(make(bucket_url, shuffle="blocks", block=8), make(tiny))


def test_what_was_read_once_comes_from_the_cache(tiny: TinyCorpus, tmp_path: Path) -> None:
    with range_server(tiny.path, latency_s=0.0) as url:
        options = {"cache": tmp_path / "cache", "shuffle": "blocks", "block": 8}
        first = make(url, **options)
        list(first)
        asked = first._reader.requests
        assert asked is not None
        assert asked.requests > 0
        second = make(url, **options)
        assert_same_samples(second, make(tiny))
        again = second._reader.requests
        assert again is not None
        assert again.requests < asked.requests / 2  # image-level tables are read past it


def test_the_cache_keeps_its_limit_and_the_newest(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100_000)
    for i in range(100):
        cache.put(f"entry {i}", bytes([i]) * 5_000)
    cache.sweep()
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*")) <= 100_000
    assert cache.get("entry 99") == bytes([99]) * 5_000
    assert cache.get("entry 0") is None


def test_a_damaged_entry_of_the_cache_is_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100_000)
    cache.put("entry", b"x" * 100)
    path = next(tmp_path.glob("*/*"))
    path.write_bytes(path.read_bytes()[:50])
    assert cache.get("entry") is None
    assert not path.exists()
    (path.parent / "killed.1-1.partial").write_bytes(b"half")
    assert cache.get("entry") is None
    cache.put("entry", b"y")
    assert cache.get("entry") == b"y"


# -- what an epoch asks of a server


def test_memory_of_batches_is_used_again_and_image_level_values_are_asked_for_once_a_shard(tiny: TinyCorpus) -> None:
    with range_server(tiny.path, latency_s=0.0) as url:
        loader = make(url, shuffle="blocks", block=8)
        for _ in range(2):
            for batch in loader:
                assert batch["id"]
            del batch
        asked = loader._reader.requests
        assert asked is not None
        shards = -(-SLOTS // 8)
        images = sum(m.level == "image" for m in MODALITIES.values())
        pixels = 2 * shards * (len(MODALITIES) - images)
        assert shards * images < asked.requests <= shards * images + pixels
        assert loader._assembly.blocks.held <= 2 * (loader.prefetch + 1)


def test_what_is_needed_is_asked_for_at_once_and_what_comes_later_within_a_limit() -> None:
    sent: list[int] = []
    allowance = Allowance(10)

    def ask(*lengths: int) -> None:
        for length in lengths:
            allowance.ask(length, partial(sent.append, allowance.asked))

    ask(6, 4, 3)
    assert (sent, allowance.is_used_up) == ([0, 1], True)
    allowance.need(1)  # what was sent ahead is not sent again, and makes room
    assert (sent, allowance.is_used_up) == ([0, 1, 2], False)
    ask(20, 1)
    assert (sent, allowance.is_used_up) == ([0, 1, 2], True)  # in their order, though the last one would fit
    allowance.need(3)
    assert sent == [0, 1, 2]  # 20 never are within the limit
    allowance.need(4)
    assert (sent, allowance.is_used_up) == ([0, 1, 2, 3, 4], False)


@pytest.mark.parametrize("options", [{}, {"shuffle": "blocks", "block": 4, "window": 2}], ids=["random", "blocks"])
def test_a_server_gives_all_samples_where_nothing_may_be_asked_for_ahead(
    tiny: TinyCorpus, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "AHEAD_BYTES", 1)
    with range_server(tiny.path, latency_s=0.001) as url:
        assert_same_samples(make(url, **options), make(tiny))


def test_batches_of_few_bytes_are_not_all_outlined_at_once(tiny: TinyCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_PLANNED", 3)
    images = [name for name, m in MODALITIES.items() if m.level == "image"]
    with range_server(tiny.path, latency_s=0.0) as url:
        loader = make(url, batch_size=1, modalities=images, prefetch=0)
        outlined: list[int] = []
        outline = loader._assembly.outline

        def watched(positions: np.ndarray, epoch: int) -> Any:
            outlined.append(len(positions))
            return outline(positions, epoch)

        monkeypatch.setattr(loader._assembly, "outline", watched)
        for given, _batch in enumerate(loader, 1):
            assert len(outlined) <= given + 3
        assert len(outlined) == len(loader)


def test_a_shard_that_arrives_while_its_absence_is_looked_at_is_not_asked_for_again(tiny: TinyCorpus) -> None:
    with range_server(tiny.path, latency_s=0.0) as url:
        table = next(iter(make(url)._assembly._images.values()))
        look, slots = table.unknown, np.arange(3)

        def late(slots: np.ndarray) -> list[np.ndarray]:
            found = look(slots)
            for some in found:
                table.load(some)
            return found

        table.unknown = late  # type: ignore[method-assign]
        assert table.ask(slots) == []
