"""The stream beyond one shuffled epoch: blocks, filters, damage, caches, servers, random access, several corpora."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.remote import range_server
from mmbuild.errors import IntegrityError, UserError
from mmbuild.stream import assembly, order, transforms
from mmbuild.stream.buffers import Blocks, Entry
from mmbuild.stream.dataset import Mixture, Samples, collate
from mmbuild.stream.reader import Reader
from tests.batches import assert_same_samples, by_id, ids, make
from tests.shards import GONE, MODALITIES, SLOTS, TinyCorpus, write_corpus


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("extras") / "corpus")


@pytest.fixture
def copy(tmp_path: Path) -> TinyCorpus:
    """A corpus that a test may damage."""
    return write_corpus(tmp_path / "corpus")


# -- values: the fast way against its oracle


@pytest.mark.parametrize("normalize", [True, False])
def test_values_written_in_place_equal_those_of_the_plain_functions_to_the_last_bit(
    tiny: TinyCorpus, normalize: bool
) -> None:
    loader = make(tiny, normalize=normalize, crop=16, augment=True, seed=5)
    reader = Reader(tiny.open())
    for batch in loader:
        slots = batch["index"].numpy()
        geometry = transforms.choose_geometry(batch["id"], (6, 4), augment=True, seed=5, epoch=0)
        chips = reader.read(slots, crop=geometry.crop)
        for field in loader.fields:
            own = {m.name: chips[m.name] for m in field.members}
            if field.is_pixel:
                own = {k: type(c)(data=transforms.turn(c.data, geometry), stored=c.stored) for k, c in own.items()}
            values = transforms.transform(field, own)
            np.testing.assert_array_equal(batch[field.name].numpy(), values.data[:, 0])
            np.testing.assert_array_equal(batch[f"{field.name}_mask"].numpy(), values.mask[:, 0])


def test_raw_batches_are_the_stored_values_in_their_own_dtypes(tiny: TinyCorpus) -> None:
    for batch in make(tiny, raw=True, modalities=list(MODALITIES)):
        slots = batch["index"].numpy()
        for name, m in MODALITIES.items():
            assert batch[name].numpy().dtype == m.np_dtype
            np.testing.assert_array_equal(batch[name].numpy(), tiny.truth[name][slots][:, 0])
            assert f"{name}_mask" not in batch


# -- memory


def test_memory_is_used_again_when_the_last_array_of_a_batch_is_gone_and_not_before() -> None:
    blocks = Blocks({"a": Entry(shape=(3,), dtype=np.dtype(np.float32))}, rows=4)
    first = blocks.take(4)["a"]
    address = first.ctypes.data
    part = torch.from_numpy(first[1:2])
    part.fill_(7)
    del first
    second = blocks.take(4)["a"]
    assert second.ctypes.data != address
    second[...] = 0
    assert (part == 7).all()
    del part
    assert blocks.take(2)["a"].ctypes.data == address
    assert blocks.held == 2


def test_memory_of_batches_that_were_kept_for_a_while_is_given_back() -> None:
    blocks = Blocks({"a": Entry(shape=(3,), dtype=np.dtype(np.float32))}, rows=4, usual=2)
    kept = [blocks.take(4) for _ in range(7)]
    assert blocks.held == 7
    kept.clear()
    assert blocks.held == 2
    again = [blocks.take(4) for _ in range(3)]
    assert (len(again), blocks.held) == (3, 3)


def test_an_epoch_whose_batches_are_let_go_takes_few_blocks(tiny: TinyCorpus) -> None:
    loader = make(tiny, batch_size=1, prefetch=2)
    for _ in range(3):
        for _batch in loader:
            pass
    assert loader._assembly.blocks.held <= 5


def test_more_batches_are_made_ahead_where_they_take_little_memory(
    tiny: TinyCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(tiny, prefetch=None).prefetch == assembly.MOST_AHEAD
    assert make(tiny, prefetch=0).prefetch == 0
    block = make(tiny)._assembly.blocks._nbytes
    monkeypatch.setattr(assembly, "BATCHES_BYTES", 3 * block)
    assert make(tiny, prefetch=None).prefetch == 2
    assert make(tiny, prefetch=None, batch_size=16).prefetch == 1


# -- block shuffle


def test_block_order_is_a_permutation_that_moves_a_sample_back_by_less_than_the_window() -> None:
    groups = order.block_groups(np.arange(1000), 64, 16)
    assert np.bincount(groups).max() == 16
    assert len(np.unique(groups)) == 63
    found = order.block_order(groups, window=8, seed=1, epoch=2, digest="d")
    assert sorted(found.tolist()) == list(range(1000))
    first_seen, last_seen = {}, {}
    for place, group in enumerate(groups[found].tolist()):
        first_seen.setdefault(group, place)
        last_seen[group] = place
    in_work = [sum(first_seen[g] <= p <= last_seen[g] for g in first_seen) for p in range(0, 1000, 7)]
    assert max(in_work) <= 2 * 8
    assert order.block_order(groups, window=8, seed=1, epoch=3, digest="d").tolist() != found.tolist()


def test_block_shuffling_mixes_nearly_as_well_as_full_shuffling() -> None:
    """Blocks of 32, window 8: neighbours are uncorrelated, and a batch of 128 draws from twelve blocks or more."""
    groups = order.block_groups(np.arange(20_000), 64, 32)
    found = order.block_order(groups, window=8, seed=0, epoch=0, digest="d")
    within = found % 32
    assert abs(np.corrcoef(within[:-1], within[1:])[0, 1]) < 0.02
    assert np.mean(np.diff(found) == 1) < 0.02
    drawn = [len(np.unique(groups[found[i : i + 128]])) for i in range(0, 20_000 - 128, 128)]
    assert np.median(drawn) >= 11
    later = order.block_order(groups, window=8, seed=0, epoch=1, digest="d")
    assert abs(np.corrcoef(np.argsort(found), np.argsort(later))[0, 1]) < 0.2


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_a_block_shuffled_epoch_without_loss_or_repeat(tiny: TinyCorpus, world_size: int) -> None:
    options = {"shuffle": "blocks", "block": 4, "window": 2, "batch_size": 2, "modalities": ["zone"]}
    ranks = [list(make(tiny, rank=r, world_size=world_size, **options)) for r in range(world_size)]
    assert sorted(i for rank in ranks for i in ids(rank)) == sorted(item["id"] for item in tiny.items)
    alone = list(make(tiny, **{**options, "batch_size": 2 * world_size}))
    for k, batch in enumerate(alone):  # the same samples at every step, whoever reads them
        assert sorted(ids([rank[k] for rank in ranks])) == sorted(batch["id"])


def test_a_block_shuffled_run_resumes_on_another_world_size(tiny: TinyCorpus) -> None:
    options = {"shuffle": "blocks", "block": 4, "window": 2, "modalities": ["zone"]}
    first = make(tiny, batch_size=3, **options)
    stream = iter(first)
    seen = ids([next(stream), next(stream)])
    state = first.state_dict()
    for rank in range(2):
        loader = make(tiny, batch_size=2, rank=rank, world_size=2, **options)
        loader.load_state_dict(state)
        seen += ids(loader)
    assert sorted(seen) == sorted(item["id"] for item in tiny.items)
    with pytest.raises(UserError, match="window was 2 and is 3 now"):
        make(tiny, **{**options, "window": 3}).load_state_dict(state)
    with pytest.raises(UserError, match="shuffle was 2 and is 1 now"):
        make(tiny).load_state_dict(state)


# -- filters


def with_assets(corpus: TinyCorpus) -> None:
    """Put what the catalogue of a built corpus has and the hand-made one lacks into it."""
    items = pq.read_table(corpus.path / "items.parquet")
    slots = items["mmbuild:index"].to_pylist()
    days = [{"href": "x", "mmbuild:delta_days": float(slot - 10)} for slot in slots]
    radar = [one if corpus.stored["radar"][slot] else None for one, slot in zip(days, slots, strict=True)]
    kind = pa.struct([("href", pa.string()), ("mmbuild:delta_days", pa.float64())])
    assets = pa.StructArray.from_arrays([pa.array(radar, kind)], names=["radar"])
    items = items.append_column("assets", assets).append_column("biome", pa.array([slot % 3 for slot in slots]))
    pq.write_table(items, corpus.path / "items.parquet")


FILTERS = {
    "biome == 1": lambda c, s: s % 3 == 1,
    "biome in (0, 2) and not split == 'val'": lambda c, s: s % 3 != 1 and s % 9 != 0,
    "radar.present": lambda c, s: c.stored["radar"][s],
    "abs(radar.delta_days) <= 3": lambda c, s: c.stored["radar"][s] and abs(s - 10) <= 3,
    "radar.delta_days > 5 or lon < 8.03": lambda c, s: (c.stored["radar"][s] and s - 10 > 5) or s < 3,
    "'2020-03-05' <= datetime < '2020-03-08'": lambda c, s: s in (4, 5, 6),
}


@pytest.mark.parametrize("where", FILTERS)
def test_a_filter_takes_exactly_the_samples_that_pass(copy: TinyCorpus, where: str) -> None:
    with_assets(copy)
    expected = [slot for slot in range(SLOTS) if slot != GONE and FILTERS[where](copy, slot)]
    loader = make(copy, where=where, shuffle=False, modalities=["zone"])
    assert [slot for batch in loader for slot in batch["index"].tolist()] == expected
    with pytest.raises(UserError, match=r"loader state: (samples|digest)"):
        make(copy, shuffle=False).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("biom == 1", "the catalogue has no column 'biom'; choose from lon, lat, id, split, datetime, biome"),
        ("lidar.present", "no modality 'lidar' in this catalogue; choose from radar"),
        ("radar.cloud < 1", "radar has no 'cloud'; choose from present, delta_days, href"),
        ("biome ==", "is not an expression"),
        ("biome == 7", "no sample of 20 passes"),
        ("biome == 'one'", "compares int64 with string"),
        ("open('x') == 1", r"\"open\('x'\)\" cannot be asked"),
        ("biome", "is not true or false"),
    ],
)
def test_a_filter_that_cannot_be_read_says_why(copy: TinyCorpus, where: str, reason: str) -> None:
    with_assets(copy)
    with pytest.raises(UserError, match=f"where: .*{reason}"):
        make(copy, where=where)


# -- damage


@pytest.mark.parametrize("name", ["radar", "climate"])
def test_damaged_chips_are_skipped_and_counted_if_asked_for(copy: TinyCorpus, name: str) -> None:
    slot = int(np.flatnonzero(copy.stored[name])[2])
    row = next(row for row in copy.rows if row["modality"] == name and row["slot"] == slot)
    path = next(p for p in (copy.path / f"cube.zarr/{name}/data/c/{slot // 8}").rglob("*") if p.is_file())
    data = bytearray(path.read_bytes())
    data[row["offset"] + 18] ^= 4
    path.write_bytes(data)
    loader = make(copy, on_damage="skip")
    found = by_id(loader)
    assert len(found) == SLOTS - 1
    assert not found[f"{slot:06d}"][f"{name}_mask"].any()
    assert loader.damaged == [(f"{slot:06d}", name)]
    whole = by_id(make(write_corpus(copy.path.parent / "whole")))
    for sample_id in found.keys() - {f"{slot:06d}"}:
        torch.testing.assert_close(found[sample_id][name], whole[sample_id][name], rtol=0, atol=0)


# -- foreign arrays


def test_an_array_in_other_codecs_gives_the_same_batches_through_zarr_python(copy: TinyCorpus) -> None:
    import zarr

    expected = list(make(copy))
    group = zarr.open_group(copy.path / "cube.zarr", mode="a")
    del group["radar/data"]
    array = group.create_array(
        "radar/data", shape=copy.truth["radar"].shape, dtype="float32", chunks=(5, 1, 2, 6, 12), fill_value=-9999.0
    )
    array[...] = copy.truth["radar"]
    assert_same_samples(make(copy), expected)


# -- cubes without commit records


def without_records(corpus: TinyCorpus) -> None:
    """Only the cube, its catalogue and its recipe are left; of the two land covers one is in foreign codecs."""
    import zarr

    for path in (corpus.path / "shards").iterdir():
        path.unlink()
    group = zarr.open_group(corpus.path / "cube.zarr", mode="a")
    del group["cover/data"]
    array = group.create_array("cover/data", shape=corpus.truth["cover"].shape, dtype="uint8", fill_value=255)
    array[...] = corpus.truth["cover"]


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "server"])
def test_a_cube_without_commit_records_streams_what_zarr_python_reads(copy: TinyCorpus, remote: bool) -> None:
    without_records(copy)
    with range_server(copy.path, latency_s=0) as url:
        loader = make(url if remote else copy, raw=True, modalities=list(MODALITIES))
        found = by_id(loader)
    assert sorted(found) == sorted(item["id"] for item in copy.items)
    for sample_id, entries in found.items():
        for name in MODALITIES:
            np.testing.assert_array_equal(entries[name].numpy(), copy.array(name)[int(sample_id), 0])
    assert loader.meter.read_bytes > 0


def test_its_damage_is_found_and_told_by_place(copy: TinyCorpus) -> None:
    without_records(copy)
    row = next(row for row in copy.rows if row["modality"] == "radar" and row["length"] > 0)
    path = next(p for p in (copy.path / f"cube.zarr/radar/data/c/{row['slot'] // 8}").rglob("*") if p.is_file())
    data = bytearray(path.read_bytes())
    data[row["offset"] + 18] ^= 4
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"sample at slot {row['slot']}, modality radar, time 0: its checksum"):
        list(make(copy))
    data[-1] ^= 4
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"the index at the end of cube.*radar/data/c/0/0/0/0/0 is damaged"):
        make(copy)


# -- random access, several corpora


def test_random_access_gives_the_samples_of_the_loader(tiny: TinyCorpus) -> None:
    samples = Samples(tiny.path, crop=16)
    assert len(samples) == SLOTS - 1
    batch = next(iter(make(tiny, crop=16, shuffle=False)))
    again = collate([samples[i] for i in range(4)])
    assert batch.keys() == again.keys()
    assert_same_samples([batch], [again])
    assert samples[-1]["id"] == f"{SLOTS - 1:06d}"
    with pytest.raises(IndexError, match=f"sample 20 must be 0 to {SLOTS - 2}"):
        samples[SLOTS - 1]
    with pytest.raises(UserError, match="Samples: rank is not its business"):
        Samples(tiny.path, rank=1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_random_access_works_in_worker_processes(tiny: TinyCorpus, method: str) -> None:
    samples = Samples(tiny.path, modalities=["radar", "zone"])
    samples[0]
    wrapped = DataLoader(
        samples, batch_size=5, num_workers=2, collate_fn=collate,
        multiprocessing_context=multiprocessing.get_context(method),
    )  # fmt: skip
    assert_same_samples(wrapped, make(tiny, modalities=["radar", "zone"]))
    assert len(pickle.dumps(samples)) < 1_000_000


def test_a_mixture_gives_every_corpus_its_share_and_resumes(tiny: TinyCorpus, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", slots=60, seed=1)

    def mixture() -> Mixture:
        return Mixture([make(tiny, batch_size=2), make(other, batch_size=2)], [1, 3])

    whole = mixture()
    epoch = [(batch["corpus"], tuple(batch["id"])) for batch in whole]
    counts = [sum(len(names) for which, names in epoch if which == k) for k in (0, 1)]
    assert abs(counts[1] / sum(counts) - 0.75) < 0.05
    for k in (0, 1):
        seen = [i for which, names in epoch if which == k for i in names]
        assert len(seen) == len(set(seen))
    first = mixture()
    stream = iter(first)
    taken = [next(stream) for _ in range(7)]
    state = first.state_dict()
    second = mixture()
    second.load_state_dict(state)
    rest = [(batch["corpus"], tuple(batch["id"])) for batch in second]
    assert [(b["corpus"], tuple(b["id"])) for b in taken] + rest == epoch
    with pytest.raises(UserError, match="2 loaders and 1 weights"):
        Mixture([make(tiny), make(other)], [1])


def test_a_mixture_without_weights_has_samples_of_every_corpus_in_every_batch(tiny: TinyCorpus, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", seed=5)
    whole = [by_id(make(corpus, augment=True, crop=16)) for corpus in (tiny, other)]

    def mixed(rank: int = 0, world_size: int = 1) -> Mixture:
        options: dict[str, Any] = {"augment": True, "crop": 16, "rank": rank, "world_size": world_size}
        return Mixture([make(tiny, batch_size=6, **options), make(other, batch_size=2, **options)])

    batches = list(mixed())
    taken: list[list[str]] = [[], []]
    for batch in batches:
        assert batch["corpus"].shape == (len(batch["id"]),)
        for i, sample_id in enumerate(batch["id"]):
            which = int(batch["corpus"][i])
            taken[which].append(sample_id)
            for key, value in whole[which][sample_id].items():
                torch.testing.assert_close(batch[key][i], value, rtol=0, atol=0, equal_nan=True, msg=key)
    assert sorted(taken[0]) == sorted(whole[0])  # the first is gone through once
    assert len(taken[1]) == len(set(taken[1])) == 2 * len(batches)
    stopped = mixed()
    stream = iter(stopped)
    next(stream)
    rest: list[str] = []
    for rank in range(2):
        again = mixed(rank, 2)
        again.load_state_dict(stopped.state_dict())
        rest += [sample_id for batch in again for sample_id in batch["id"] if batch["corpus"][0] == 0]
    assert set(taken[0]) - set(batches[0]["id"]) <= set(rest)


def test_corpora_that_are_not_alike_cannot_be_joined(tiny: TinyCorpus) -> None:
    with pytest.raises(UserError, match="Mixture: cover of loader 1 is not like that of loader 0"):
        Mixture([make(tiny, crop=16), make(tiny, crop=8)])
    with pytest.raises(UserError, match="Mixture: 0 loaders and no weights"):
        Mixture([])


# -- other people's loops


def test_it_goes_through_lightning_fabric_and_a_dataloader_as_it_is(tiny: TinyCorpus) -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped = DataLoader(make(tiny), batch_size=None, num_workers=0)
    through = fabric.setup_dataloaders(wrapped, use_distributed_sampler=False)
    assert_same_samples(list(through), list(make(tiny)))
    assert len(through) == len(make(tiny))
