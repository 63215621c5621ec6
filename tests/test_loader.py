"""loader.py: batches are the cube's content, every sample comes once, and a run resumes exactly on any world size."""

from __future__ import annotations

import itertools
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmbuild.errors import IntegrityError, UserError
from mmbuild.stats import compute
from mmbuild.stream.loader import Batch, Loader
from mmbuild.stream.transforms import IGNORE_INDEX
from tests.shards import GONE, MODALITIES, SLOTS, TinyCorpus, write_corpus


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("loader") / "corpus")


@pytest.fixture
def copy(tmp_path: Path) -> TinyCorpus:
    """A corpus that a test may damage."""
    return write_corpus(tmp_path / "corpus")


def make(tiny: TinyCorpus, **options: Any) -> Loader:
    return Loader(tiny.path, **{"batch_size": 4, "prefetch": 1, **options})


def ids(batches: Iterator[Batch] | list[Batch]) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch["id"]]


def assert_same(one: Batch, two: Batch) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, two[key], rtol=0, atol=0, equal_nan=True, msg=key)
        else:
            assert value == two[key]


# -- what a batch holds


def test_batches_equal_the_zarr_content_masked_then_normalised(tiny: TinyCorpus) -> None:
    loader = make(tiny, modalities=list(MODALITIES))
    for batch in loader:
        slots = batch["index"].numpy()
        for name, m in MODALITIES.items():
            stored = np.asarray(tiny.array(name)[...])[slots][:, 0]
            assert batch[name].shape == batch[f"{name}_mask"].shape == stored.shape
            mask = batch[f"{name}_mask"].numpy()
            if m.values == "categorical":
                codes = sorted(m.class_codes)
                expected = np.vectorize(lambda v: codes.index(v) if v in codes else IGNORE_INDEX)(stored)  # noqa: B023
                assert batch[name].dtype == torch.int64
                np.testing.assert_array_equal(batch[name], expected)
                np.testing.assert_array_equal(mask, expected >= 0)
                continue
            assert batch[name].dtype == torch.float32
            for i, band in enumerate(m.band_names):
                known = tiny.stats["modalities"][name]["bands"][band]
                valid = (stored[:, i] != m.fill) & (known["mean"] is not None)
                np.testing.assert_array_equal(mask[:, i], valid)
                got = batch[name][:, i].numpy()
                assert (got[~valid] == 0).all()
                if valid.any():
                    z = (stored[:, i].astype(np.float64) - known["mean"]) / (known["std"] or 1)
                    np.testing.assert_allclose(got[valid], z[valid], rtol=1e-5, atol=1e-5)


def test_with_the_statistics_of_stats_py_the_train_split_has_mean_0_and_deviation_1(copy: TinyCorpus) -> None:
    compute(copy.open(), {item["mmbuild:index"]: item["split"] for item in copy.items})
    batches = list(make(copy, split="train", modalities=["optic_a", "radar", "climate"]))
    for name, bands in {"optic_a": 4, "radar": 2, "climate": 1}.items():
        for band in range(bands):
            values = torch.cat([b[name][:, band][b[f"{name}_mask"][:, band]] for b in batches]).double()
            assert abs(values.mean().item()) < 1e-5
            assert abs(values.std(correction=0).item() - 1) < 1e-5


def test_a_batch_says_which_samples_where_when_and_how_large_pixels_are(tiny: TinyCorpus) -> None:
    rows = {(row["slot"], row["modality"]): row for row in tiny.rows}
    for batch in make(tiny):
        assert batch["gsd"] == {"optic": 10, "radar": 20, "cover": 40, "climate": None, "zone": None}
        assert batch["epoch"] == 0
        assert batch["lon"].dtype == batch["lat"].dtype == torch.float64
        for i, slot in enumerate(batch["index"].tolist()):
            row = rows[slot, "radar"]
            assert batch["id"][i] == row["sample_id"]
            assert (batch["lon"][i].item(), batch["lat"][i].item()) == (row["lon"], row["lat"])
            assert batch["time"][i].item() == int(row["anchor_time"].timestamp())
            when = row["datetime"]
            assert batch["radar_time"][i].item() == (-(2**63) if when is None else int(when.timestamp()))


def test_the_alternatives_of_the_anchor_come_as_one_with_the_level_of_each_sample(tiny: TinyCorpus) -> None:
    loader = make(tiny)
    assert [field.name for field in loader.fields] == ["optic", "radar", "cover", "climate", "zone"]
    alone = {name: by_id(make(tiny, modalities=[name]), (name,)) for name in ("optic_a", "optic_b")}
    seen = set()
    for batch in loader:
        for k, (sample_id, slot) in enumerate(zip(batch["id"], batch["index"].tolist(), strict=True)):
            level = 0 if tiny.stored["optic_a"][slot] else 1 if tiny.stored["optic_b"][slot] else -1
            assert batch["optic_level"][k].item() == level
            seen.add(level)
            if level == -1:
                assert not batch["optic_mask"][k].any()
                assert batch["optic_time"][k].item() == -(2**63)
            else:
                name, places = (("optic_a", [0, 1, 3]), ("optic_b", [2, 1, 0]))[level]
                torch.testing.assert_close(batch["optic"][k], alone[name][sample_id][0][places], rtol=0, atol=0)
    assert seen == {0, 1, -1}


def test_chips_that_are_not_stored_are_masked_everywhere(tiny: TinyCorpus) -> None:
    for batch in make(tiny, normalize=False):
        for k, slot in enumerate(batch["index"].tolist()):
            if not tiny.stored["radar"][slot]:
                assert torch.isnan(batch["radar"][k]).all()
                assert not batch["radar_mask"][k].any()
            if not tiny.stored["cover"][slot]:
                assert (batch["cover"][k] == IGNORE_INDEX).all()


def test_dtype_and_modalities_are_by_argument(tiny: TinyCorpus) -> None:
    batch = next(iter(make(tiny, modalities=["radar", "cover"], dtype=torch.bfloat16, device="cpu")))
    assert batch["radar"].dtype == torch.bfloat16
    assert batch["cover"].dtype == torch.int64
    assert not {"optic", "climate", "zone"} & batch.keys()


def test_every_catalogued_sample_comes_once_an_epoch_and_no_other(tiny: TinyCorpus) -> None:
    loader = make(tiny)
    expected = sorted(f"{slot:06d}" for slot in range(SLOTS) if slot != GONE)
    first, second = ids(iter(loader)), ids(iter(loader))
    assert sorted(first) == sorted(second) == expected
    assert first != second
    assert first != expected
    assert ids(iter(make(tiny, shuffle=False))) == expected


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_holds_its_own_samples(tiny: TinyCorpus, split: str) -> None:
    expected = sorted(item["id"] for item in tiny.items if item["split"] == split)
    assert sorted(ids(iter(make(tiny, split=split)))) == expected


def test_a_batch_once_yielded_never_changes(tiny: TinyCorpus) -> None:
    kept, copies = [], []
    for batch in make(tiny, batch_size=3, prefetch=3):
        kept.append(batch)
        copies.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
    for one, two in zip(kept, copies, strict=True):
        assert_same(one, two)
    addresses = {batch["optic"].data_ptr() for batch in kept}
    assert len(addresses) == len(kept)
    # A consumer that writes into its batch changes no later one.
    loader = make(tiny, batch_size=3)
    for batch, expected in zip(loader, copies, strict=True):
        assert_same(batch, expected)
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 0}, {"threads": 4, "prefetch": 5}], ids=str)
def test_threads_and_prefetch_change_nothing(tiny: TinyCorpus, options: dict[str, int]) -> None:
    for one, two in zip(make(tiny), make(tiny, **options), strict=True):
        assert_same(one, two)


# -- windows and augmentation


def test_a_crop_equals_the_centre_slice_of_the_whole_chip(tiny: TinyCorpus) -> None:
    """16 of 24 pixels: 4 off each side of the finest, 2 and 1 off the coarser."""
    loader = make(tiny, crop=16, shuffle=False)
    assert {field.name: field.shape[-1] for field in loader.fields if field.is_pixel} == {
        "optic": 16,
        "radar": 8,
        "cover": 4,
    }
    for cut, whole in zip(loader, make(tiny, shuffle=False), strict=True):
        for name, margin in {"optic": 4, "radar": 2, "cover": 1}.items():
            inner = slice(margin, -margin)
            for key in (name, f"{name}_mask"):
                torch.testing.assert_close(cut[key], whole[key][..., inner, inner], rtol=0, atol=0)
        torch.testing.assert_close(cut["climate"], whole["climate"], rtol=0, atol=0)


def by_id(loader: Loader, keys: tuple[str, ...]) -> dict[str, tuple[torch.Tensor, ...]]:
    return {i: tuple(batch[key][k] for key in keys) for batch in loader for k, i in enumerate(batch["id"])}


def test_augmentation_is_keyed_by_sample_id_and_independent_of_batch_size_and_ranks(tiny: TinyCorpus) -> None:
    keys = ("optic", "radar", "cover")
    base = by_id(make(tiny, crop=16, augment=True), keys)
    for options in ({"batch_size": 7}, {"world_size": 2, "rank": 0}, {"world_size": 2, "rank": 1}, {"shuffle": False}):
        other = by_id(make(tiny, crop=16, augment=True, **options), keys)
        for sample_id, tensors in other.items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, base[sample_id], strict=True))
    loader = make(tiny, crop=16, augment=True)
    first, second = by_id(loader, keys), by_id(loader, keys)
    assert any(not torch.equal(first[i][0], second[i][0]) for i in first)


def test_augmentation_is_one_of_the_windows_flips_and_turns_jointly_for_all_gsds(tiny: TinyCorpus) -> None:
    """For every sample a single (window, flip, turn) explains all modalities: 3 x 3 x 2 x 4 ways are tried."""
    keys = ("optic", "radar", "cover")
    whole = by_id(make(tiny), keys)
    ways = list(itertools.product(range(3), range(3), ((), (-1,)), range(4)))
    for sample_id, cut in by_id(make(tiny, crop=16, augment=True), keys).items():
        explained = [
            all(
                torch.equal(laid(full, way, p), got)
                for full, got, p in zip(whole[sample_id], cut, (4, 2, 1), strict=True)
            )
            for way in ways
        ]
        assert any(explained), sample_id


def laid(chip: torch.Tensor, way: tuple[int, int, tuple[int, ...], int], pixels: int) -> torch.Tensor:
    """A window of 4 units of ``pixels``, flipped and turned, by torch's own means."""
    row, col, flip, turns = way
    cut = chip[..., row * pixels : (row + 4) * pixels, col * pixels : (col + 4) * pixels]
    return torch.rot90(cut.flip(flip), turns, (-2, -1))


# -- ranks, state, resume


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_an_epoch_without_loss_or_repeat(tiny: TinyCorpus, world_size: int) -> None:
    loaders = [make(tiny, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    per_rank = [list(loader) for loader in loaders]
    assert {len(batches) for batches in per_rank} == {len(loaders[0])}
    sizes = [len(batch["id"]) for batches in per_rank for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    by_step = [ids(list(step)) for step in zip(*per_rank, strict=True)]
    # World size only cuts: joined step by step, the order is that of one rank alone.
    assert [i for step in by_step for i in step] == ids(iter(make(tiny, batch_size=2 * world_size)))


def test_drop_last_gives_full_batches_only(tiny: TinyCorpus) -> None:
    loader = make(tiny, batch_size=3, drop_last=True)
    assert [len(batch["id"]) for batch in loader] == [3] * 6
    assert len(loader) == 6
    assert loader.epoch == 1


@pytest.mark.parametrize("world_size", [1, 3, 30])
def test_a_rank_without_samples_in_a_step_gets_an_empty_batch(tiny: TinyCorpus, world_size: int) -> None:
    batches = [list(make(tiny, batch_size=20, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(own) for own in batches} == {1}
    assert sorted(ids([own[0] for own in batches])) == sorted(item["id"] for item in tiny.items)
    assert batches[0][0]["optic"].shape[1:] == (3, 24, 24)


plans = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)


@given(plan=plans, epoch=st.integers(0, 2))
@settings(deadline=None, max_examples=25)
def test_resuming_with_another_world_size_and_batch_size_yields_exactly_the_remaining_samples(
    tiny: TinyCorpus, plan: list[tuple[int, int, int]], epoch: int
) -> None:
    """Stop after some steps of each (world size, batch size, steps) and go on with the next; compare a straight run."""
    corpus = tiny.open()
    straight = Loader(corpus, batch_size=5, modalities=["zone"], prefetch=0)
    straight.load_state_dict(straight.state_dict() | {"epoch": epoch})
    expected = ids(iter(straight))
    state: dict[str, Any] = straight.state_dict() | {"epoch": epoch, "offset": 0}
    seen: list[str] = []
    for world_size, batch_size, steps in [*plan, (2, 4, 100)]:
        if state["epoch"] != epoch:
            break
        loaders = [
            Loader(corpus, batch_size=batch_size, rank=r, world_size=world_size, modalities=["zone"], prefetch=2)
            for r in range(world_size)
        ]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
        streams = [iter(loader) for loader in loaders]
        for _ in range(steps):
            batches = [next(stream, None) for stream in streams]
            seen += ids([batch for batch in batches if batch is not None])
            if None in batches:
                break
        states = [loader.state_dict() for loader in loaders]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert seen == expected
    assert (state["epoch"], state["offset"]) == (epoch + 1, 0)


def test_a_resumed_run_gives_the_same_batches_as_a_straight_one_at_every_step(tiny: TinyCorpus) -> None:
    options = {"crop": 16, "augment": True, "batch_size": 3}
    straight = make(tiny, **options)
    batches = [*straight, *straight]
    for taken in range(len(batches)):
        first = make(tiny, **options, prefetch=4)
        stream = (batch for _ in range(2) for batch in first)
        for _ in range(taken):
            next(stream)
        state = first.state_dict()
        stream.close()
        second = make(tiny, **options)
        second.load_state_dict(state)
        assert_same(next(iter(second)), batches[taken])


def test_state_reflects_the_batches_yielded_and_not_those_read_ahead(tiny: TinyCorpus) -> None:
    loader = make(tiny, prefetch=5)
    assert (loader.state_dict()["epoch"], loader.state_dict()["offset"]) == (0, 0)
    stream = iter(loader)
    for step in range(1, 5):
        next(stream)
        assert (loader.epoch, loader.state_dict()["offset"]) == (0, 4 * step)
    next(stream)
    assert (loader.epoch, loader.state_dict()["offset"]) == (1, 0)
    assert all(isinstance(value, int | str) for value in loader.state_dict().values())


def test_after_a_break_the_next_iteration_is_the_next_epoch(tiny: TinyCorpus) -> None:
    loader = make(tiny)
    next(iter(loader))
    straight = make(tiny)
    list(straight)
    assert ids(iter(loader)) == ids(iter(straight))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"seed": 1}, "seed was 0 and is 1 now (another seed is another order)"),
        ({"shuffle": False}, "shuffle was 1 and is 0 now"),
        ({"split": "train"}, "samples was 20 and is 14 now (the corpus grew, or the split or filter is another one)"),
    ],
    ids=["seed", "shuffle", "split"],
)
def test_a_state_of_another_order_is_refused_with_the_reason(
    tiny: TinyCorpus, other: dict[str, Any], reason: str
) -> None:
    state = make(tiny).state_dict()
    with pytest.raises(UserError) as caught:
        make(tiny, **other).load_state_dict(state)
    assert reason in str(caught.value)
    assert "use the corpus, split and seed of the run that saved it" in str(caught.value)


def test_a_state_of_another_corpus_is_refused(tiny: TinyCorpus, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other")
    lock = json.loads((other.path / "recipe.lock.json").read_text())
    (other.path / "recipe.lock.json").write_text(json.dumps(lock | {"digest": "0" * 64}))
    with pytest.raises(UserError, match=r"digest was .* now \(another corpus, split, filter or set of samples\)"):
        make(other).load_state_dict(make(tiny).state_dict())
    grown = write_corpus(tmp_path / "grown", slots=SLOTS + 4)
    with pytest.raises(UserError, match="samples was 20 and is 24 now"):
        make(grown).load_state_dict(make(tiny).state_dict())


@pytest.mark.parametrize("change", [{"offset": 99}, {"offset": -1}, {"epoch": -1}], ids=str)
def test_a_state_that_is_no_place_is_refused(tiny: TinyCorpus, change: dict[str, int]) -> None:
    loader = make(tiny)
    with pytest.raises(UserError, match="loader state: no place"):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(UserError, match="loader state: epoch is missing"):
        loader.load_state_dict({"version": 2})


# -- DataLoader, threads, errors


def test_it_works_in_a_dataloader_without_workers(tiny: TinyCorpus) -> None:
    plain = list(make(tiny))
    wrapped = DataLoader(make(tiny), batch_size=None, num_workers=0)
    assert len(wrapped) == len(plain)
    for one, two in zip(wrapped, plain, strict=True):
        assert_same(one, two)


def test_it_refuses_dataloader_worker_processes_with_the_reason(tiny: TinyCorpus) -> None:
    wrapped = DataLoader(make(tiny), batch_size=None, num_workers=1)
    with pytest.raises(UserError, match=r"every DataLoader worker process would repeat the epoch.*num_workers=0"):
        list(wrapped)


def test_it_can_be_pickled_so_that_spawned_workers_meet_the_same_refusal(tiny: TinyCorpus) -> None:
    for one, two in zip(pickle.loads(pickle.dumps(make(tiny))), make(tiny), strict=True):
        assert_same(one, two)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mmbuild-batch")]


def test_reading_ahead_stops_with_the_iteration(tiny: TinyCorpus) -> None:
    stream = iter(make(tiny, prefetch=4))
    next(stream)
    assert own_threads()
    stream.close()  # type: ignore[attr-defined]
    assert not own_threads()
    list(make(tiny))
    assert not own_threads()


def test_an_error_while_reading_ahead_names_the_sample_and_keeps_the_state(copy: TinyCorpus) -> None:
    loader = make(copy, batch_size=2, prefetch=4)
    order = ids(iter(make(copy, batch_size=2)))
    bad = next(i for i, sample_id in enumerate(order) if i >= 8 and copy.stored["radar"][int(sample_id)])
    row = next(r for r in copy.rows if r["modality"] == "radar" and r["sample_id"] == order[bad])
    path = copy.path / f"cube.zarr/radar/data/c/{row['slot'] // 8}/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[row["offset"] + 20] ^= 255
    path.write_bytes(data)
    seen: list[str] = []
    with pytest.raises(IntegrityError, match=f"sample {order[bad]}, modality radar"):
        seen.extend(sample_id for batch in loader for sample_id in batch["id"])
    assert loader.state_dict()["offset"] == bad // 2 * 2
    assert not own_threads()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "trian"}, r"no sample in split 'trian'; the catalogue has: none 1, test 2, train 14, val 3"),
        ({"modalities": ["lidar"]}, "no modality or alias 'lidar'"),
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"threads": 0}, "threads: 0 must be at least 1"),
        ({"prefetch": -1}, "prefetch: -1 must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank: 2 must be 0 to 1"),
        ({"crop": 10}, "crop: 10 cuts through the pixels of cover"),
        ({"crop": 10, "modalities": ["zone"]}, "crop: 10, but no pixel-level modality was asked for"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_readable_line(tiny: TinyCorpus, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        make(tiny, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "text"), [("items.parquet", "mmbuild catalog"), ("stats.json", "mmbuild stats")])
def test_a_corpus_without_catalogue_or_statistics_says_what_to_run(copy: TinyCorpus, key: str, text: str) -> None:
    (copy.path / key).unlink()
    with pytest.raises(UserError, match=text):
        make(copy)


def test_a_catalogued_sample_without_commit_record_is_reported(copy: TinyCorpus) -> None:
    (copy.path / "shards/000001.parquet").unlink()
    with pytest.raises(IntegrityError, match="sample 000008 is catalogued but has no commit record"):
        make(copy)


def test_its_repr_says_synthetic_when_the_corpus_is(tiny: TinyCorpus, tmp_path: Path) -> None:
    assert repr(make(tiny)).startswith("<SYNTHETIC Loader handmade all: 20 samples")
    real = write_corpus(tmp_path / "real", synthetic=False)
    assert "SYNTHETIC" not in repr(make(real))
