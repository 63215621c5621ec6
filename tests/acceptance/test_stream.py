"""What the stream must show: every sample once on any number of ranks, exact resume, flat memory, bad servers, size."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.remote import range_server
from mmbuild.cube import open_corpus
from mmbuild.errors import IntegrityError
from mmbuild.store import open_store
from mmbuild.stream import order
from mmbuild.stream.cache import Cache
from mmbuild.stream.index import read_index, write_index
from mmbuild.stream.loader import Batch, Loader
from tests.shards import GONE, MODALITIES, PER_SHARD, TinyCorpus, write_corpus

SLOTS = 401


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("stream") / "corpus", slots=SLOTS)


def catalogued(corpus: TinyCorpus) -> list[str]:
    return sorted(item["id"] for item in corpus.items)


def values(batches: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of every sample; a sample that comes twice fails."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for batch in batches:
        for i, sample_id in enumerate(batch["id"]):
            assert sample_id not in found
            found[sample_id] = {k: v[i].clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    return found


def assert_equal(one: dict[str, dict[str, torch.Tensor]], two: dict[str, dict[str, torch.Tensor]]) -> None:
    assert one.keys() == two.keys()
    for sample_id, entries in one.items():
        for key, value in entries.items():
            torch.testing.assert_close(value, two[sample_id][key], rtol=0, atol=0, equal_nan=True)


# -- every sample once, on any number of ranks

GLOO = """
import json, sys
import torch.distributed as dist
from mmbuild.stream.loader import Loader
path, rank, world, meeting, shuffle = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(world))
loader = Loader(path, batch_size=7, rank=int(rank), world_size=int(world), shuffle=json.loads(shuffle))
for _ in range(2):
    steps = []
    for batch in loader:
        parts = [None] * int(world)
        dist.all_gather_object(parts, batch["id"])  # deadlocks if ranks had different numbers of batches
        steps.append([i for part in parts for i in part])
    if int(rank) == 0:
        print(json.dumps(steps))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("shuffle", [True, "blocks"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_real_processes_share_an_epoch_without_loss_or_repeat(
    corpus: TinyCorpus, tmp_path: Path, world_size: int, shuffle: Any
) -> None:
    arguments = [str(world_size), str(tmp_path / "meeting"), json.dumps(shuffle)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GLOO, str(corpus.path), str(rank), *arguments], stdout=subprocess.PIPE, text=True
        )
        for rank in range(world_size)
    ]
    out = [process.communicate(timeout=300)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks)
    epochs = [json.loads(line) for line in out[0].splitlines()]
    for steps in epochs:
        assert sorted(i for step in steps for i in step) == catalogued(corpus)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("shuffle", [True, "blocks"])
def test_resume_at_50_random_steps_under_another_world_size_equals_the_straight_run(
    corpus: TinyCorpus, shuffle: Any
) -> None:
    """Values too: every tensor of every remaining sample, with random windows, flips and turns."""
    opened, rng = corpus.open(), random.Random(0)
    options: dict[str, Any] = {"shuffle": shuffle, "block": 8, "window": 4, "crop": 16, "augment": True, "seed": 3}
    straight = list(Loader(opened, batch_size=8, **options))
    truth = values(straight)
    for _ in range(50):
        taken = rng.randrange(len(straight))
        first = Loader(opened, batch_size=8, **options)
        stream = iter(first)
        for _ in range(taken):
            next(stream)
        state = json.loads(json.dumps(first.state_dict()))
        stream.close()  # type: ignore[attr-defined]
        world, batch, threads = rng.choice([1, 2, 3, 5, 8]), rng.choice([1, 4, 8, 13]), rng.choice([1, 2, 3])
        rest: list[Batch] = []
        for rank in range(world):
            loader = Loader(opened, batch_size=batch, rank=rank, world_size=world, threads=threads, **options)
            loader.load_state_dict(state)
            rest += list(loader)
            loader._reader.close()
        first._reader.close()
        left = [i for one in straight[taken:] for i in one["id"]]
        found = values(rest)
        assert sorted(found) == sorted(left)
        assert_equal(found, {i: truth[i] for i in left})


# -- memory


def test_memory_stays_flat_over_a_bounded_soak(corpus: TinyCorpus) -> None:
    """Some hundred epochs: what is left after warming up grows by less than would make a gigabyte in 24 hours."""
    loader = Loader(corpus.path, batch_size=16, crop=16, augment=True)
    process, seconds = psutil.Process(), float(os.environ.get("MMBUILD_SOAK_S", "75"))
    marks: list[tuple[float, int]] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for batch in loader:
            assert batch["id"]
        del batch
        if loader.epoch % 10 == 0:
            gc.collect()
            marks.append((time.monotonic() - began, process.memory_info().rss))
    late = [(t, rss) for t, rss in marks if t > seconds / 3]
    slope = np.polyfit([t for t, _ in late], [rss for _, rss in late], 1)[0]
    grown = slope * 24 * 3600 / 2**30
    print(f"{loader.epoch} epochs; {grown:+.2f} GiB a day, extrapolated from {seconds:.0f} s")
    assert grown < 1.0
    assert max(rss for _, rss in late) - min(rss for _, rss in late) < 16 * 2**20
    assert loader._assembly.blocks.held <= 2 * (loader.prefetch + 1)


# -- servers that misbehave, damaged bytes


@pytest.mark.parametrize("shuffle", [True, "blocks"])
def test_a_server_that_drops_refuses_and_truncates_loses_no_sample_and_repeats_none(
    corpus: TinyCorpus, shuffle: Any
) -> None:
    with range_server(corpus.path, latency_s=0.002, faults=0.2) as url:
        loader = Loader(url, batch_size=16, shuffle=shuffle, block=8)
        assert_equal(values(loader), values(Loader(corpus.path, batch_size=16)))


def test_an_object_store_serves_a_corpus(corpus: TinyCorpus, bucket_url: str) -> None:
    store = open_store(bucket_url)
    for path in corpus.path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(corpus.path).as_posix(), path.read_bytes())
    for shuffle in (True, "blocks"):
        loader = Loader(bucket_url, batch_size=16, shuffle=shuffle, block=8)
        assert_equal(values(loader), values(Loader(corpus.path, batch_size=16)))


def test_every_flipped_byte_is_reported_with_its_sample_and_modality(tmp_path: Path) -> None:
    corpus, rng = write_corpus(tmp_path / "corpus", slots=64), random.Random(1)
    stored = [row for row in corpus.rows if row["length"] > 0]
    for _ in range(60):
        row = rng.choice(stored)
        path = next(
            p for p in (corpus.path / f"cube.zarr/{row['modality']}/data/c/{row['slot'] // PER_SHARD}").rglob("*")
            if p.is_file()
        )  # fmt: skip
        whole = path.read_bytes()
        data = bytearray(whole)
        data[row["offset"] + rng.randrange(row["length"])] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        options: dict[str, Any] = {"batch_size": 16, "modalities": list(MODALITIES)}
        with pytest.raises(IntegrityError, match=f"sample {row['sample_id']}, modality {row['modality']}"):
            list(Loader(corpus.path, **options))
        skipping = Loader(corpus.path, on_damage="skip", **options)
        assert len(values(skipping)) == 64 - 1
        assert skipping.damaged == [(row["sample_id"], row["modality"])]
        path.write_bytes(whole)


# -- the cache of several processes that are killed

FILL = """
import sys
from mmbuild.stream.cache import Cache
cache, i = Cache(sys.argv[1], 2_000_000), 0
while True:
    cache.put(f"entry {i % 400}", bytes([i % 400 % 251]) * 20_000)
    got = cache.get(f"entry {(i * 7) % 400}")
    assert got is None or got == bytes([(i * 7) % 400 % 251]) * 20_000
    i += 1
"""


def test_a_cache_shared_by_processes_that_are_killed_holds_whole_entries_and_its_limit(tmp_path: Path) -> None:
    for _ in range(5):
        fillers = [subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path)]) for _ in range(3)]
        time.sleep(2.5)
        for process in fillers:
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
    cache = Cache(tmp_path, 2_000_000)
    found = [cache.get(f"entry {i}") for i in range(400)]
    assert sum(one is not None for one in found) > 20
    assert all(one is None or one == bytes([i % 251]) * 20_000 for i, one in enumerate(found))
    assert 0 <= cache.sweep() <= 2_000_000


# -- scale


def test_the_order_of_1_24_million_samples_takes_under_a_second_and_100_mb() -> None:
    n = 1_240_000
    groups = order.block_groups(np.arange(n), 128, 32)
    for make in (
        lambda: order.epoch_order(n, seed=1, epoch=2, digest="d"),
        lambda: order.block_order(groups, window=8, seed=1, epoch=2, digest="d"),
    ):
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            found = make()
            best = min(best, time.perf_counter() - began)
        assert best < 1.0
        tracemalloc.start()
        make()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100 * 2**20
        assert len(np.unique(found)) == n


def test_an_index_of_10_000_shards_opens_in_under_5_seconds(tmp_path: Path) -> None:
    """124 samples a shard and six modalities: 1.24 million samples, 7.4 million chips."""
    per_shard, shards = 124, 10_000
    tiny = write_corpus(tmp_path / "tiny", slots=8)
    table = pq.read_table(tiny.path / "shards/000000.parquet")
    lock = json.loads((tiny.path / "recipe.lock.json").read_text())
    lock["samples"] = per_shard * shards
    lock["recipe"]["store"]["samples_per_shard"] = per_shard
    (tiny.path / "recipe.lock.json").write_text(json.dumps(lock))
    rows = pa.concat_tables([table] * -(-per_shard // 8)).slice(0, per_shard * len(MODALITIES))
    slots = np.repeat(np.arange(per_shard), len(MODALITIES))
    column = rows.schema.get_field_index("slot")
    for shard in range(shards):
        own = rows.set_column(column, "slot", pa.array(slots + shard * per_shard))
        pq.write_table(own, tiny.path / f"shards/{shard:06d}.parquet")
    corpus = open_corpus(tiny.path)
    began = time.perf_counter()
    write_index(corpus)
    print(f"index of {shards} shards, made from the records: {time.perf_counter() - began:.2f} s")
    best = float("inf")
    for _ in range(2):
        began, cpu = time.perf_counter(), time.process_time()
        index = read_index(corpus, list(MODALITIES))
        best = min(best, time.perf_counter() - began)
        print(f"opened as a finished corpus: {best:.2f} s, {time.process_time() - cpu:.2f} s CPU")
    assert index.n_slots == per_shard * shards
    again = index.tables["radar"]
    assert (again.length[:8] == again.length[-per_shard : -per_shard + 8]).all()
    assert per_shard > GONE
    assert sum(t.start.nbytes + t.length.nbytes + t.epoch_s.nbytes for t in index.tables.values()) < 150 * 2**20
    assert best < 5.0
