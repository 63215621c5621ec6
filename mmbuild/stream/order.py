"""Which sample comes when: a function of (seed, epoch, digest of corpus and filter), and how ranks share it.

World size and batch size never change the order; they only cut it. So a position in an epoch is one number,
the count of samples that all ranks together have taken, and a run resumes from it on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

# Part of every key: raise it when the order of an epoch changes, so that no old state is continued silently.
ORDER_VERSION = 1


def order_digest(corpus_digest: str, filter_text: str, sample_ids: list[str]) -> str:
    """Name what is ordered: the corpus, the filter as text, the samples that passed it in catalogue order."""
    head = f"{ORDER_VERSION}\n{corpus_digest}\n{filter_text}\n{len(sample_ids)}\n"
    return hashlib.sha256((head + "\n".join(sample_ids)).encode()).hexdigest()


def epoch_order(n: int, *, seed: int, epoch: int, digest: str) -> np.ndarray:
    """A permutation of 0..n-1, int64, keyed by (seed, epoch, digest).

    Sorts the first n outputs of Philox under a hashed key. The raw stream of a bit generator is what numpy
    promises to keep between versions (NEP 19); ``Generator.permutation`` is not.
    """
    draws = _random_raw(f"order {ORDER_VERSION}\n{seed}\n{epoch}\n{digest}", n)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def _random_raw(key: str, n: int) -> np.ndarray:
    """n uint64 of Philox under a hashed key."""
    hashed = hashlib.sha256(key.encode()).digest()
    return np.random.Philox(key=np.frombuffer(hashed[:16], dtype="<u8").astype(np.uint64)).random_raw(n)


def block_order(groups: np.ndarray, *, window: int, seed: int, epoch: int, digest: str) -> np.ndarray:
    """A permutation of the samples in which those of a group stay near each other, int64, keyed as ``epoch_order``.

    groups: (n,) the group of each sample, 0..G-1: samples that lie side by side in one shard. The groups are permuted,
    and every sample is moved back by less than ``window`` groups. So a reader holds ``window`` groups at a time and
    fetches each once, and a batch draws from about that many: whole-number keys, the same on every machine.
    """
    rank = np.argsort(
        epoch_order(int(groups.max(initial=-1)) + 1, seed=seed, epoch=epoch, digest=digest), kind="stable"
    )
    draws = _random_raw(f"window {ORDER_VERSION}\n{seed}\n{epoch}\n{digest}", len(groups)) >> np.uint64(32)
    keys = (rank[groups].astype(np.uint64) << np.uint64(32)) + draws * np.uint64(window)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def next_corpus(taken: Sequence[int], weights: Sequence[float]) -> int:
    """Which of several corpora gives the next batch: the one that is furthest behind its share of samples.

    taken: samples that each has given so far. A function of the counts alone, so that every rank chooses the same.
    """
    total, whole = sum(taken), sum(weights)
    behind = [weight / whole * total - own for own, weight in zip(taken, weights, strict=True)]
    ratio = [short + weight / whole for short, weight in zip(behind, weights, strict=True)]
    return max(range(len(ratio)), key=lambda i: (ratio[i], -i))


def count_batches(n: int, batch_size: int, *, drop_last: bool, start: int = 0) -> int:
    """How many global batches ``start``..n makes."""
    left = max(n - start, 0)
    return left // batch_size if drop_last else -(-left // batch_size)


def batches(n: int, batch_size: int, *, drop_last: bool, start: int = 0) -> list[tuple[int, int]]:
    """Cut positions start..n into global batches, as half-open (start, stop).

    drop_last: every batch has ``batch_size`` samples; a shorter tail is left out. Otherwise the samples are
    spread evenly: as few batches as ``batch_size`` allows, sizes that differ by at most one, smaller first.
    Cutting again from the end of any batch gives the same later batches: the position alone is the state.
    """
    count = count_batches(n, batch_size, drop_last=drop_last, start=start)
    if count == 0:
        return []
    if drop_last:
        return [(start + i * batch_size, start + (i + 1) * batch_size) for i in range(count)]
    small, larger = divmod(n - start, count)
    edges = start + np.cumsum([0] + [small] * (count - larger) + [small + 1] * larger)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def share(start: int, stop: int, *, rank: int, world_size: int) -> tuple[int, int]:
    """The part of a global batch that ``rank`` reads: consecutive parts that differ by at most one sample.

    A part is empty when the batch has fewer samples than there are ranks.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} must be in 0..{world_size - 1}")
    size = stop - start
    return start + size * rank // world_size, start + size * (rank + 1) // world_size


def sample_draws(purpose: str, *, seed: int, epoch: int, sample_id: str) -> np.ndarray:
    """Eight uint64 keyed by (purpose, seed, epoch, sample id): what augmentation and masks are drawn from."""
    text = f"{purpose}\n{seed}\n{epoch}\n{sample_id}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=64).digest(), dtype="<u8").astype(np.uint64)


def block_groups(slots: np.ndarray, samples_per_shard: int, block: int) -> np.ndarray:
    """The group of every sample: up to ``block`` neighbours of one shard; numbered 0.. without gaps, int64."""
    per_shard = -(-samples_per_shard // block)
    shard, within = np.divmod(np.asarray(slots, dtype=np.int64), samples_per_shard)
    keys = shard * per_shard + within // block
    by_key = np.argsort(keys, kind="stable")
    groups = np.empty_like(by_key)
    groups[by_key] = np.cumsum(np.diff(keys[by_key], prepend=keys[by_key][:1]) != 0)
    return groups.astype(np.int64, copy=False)
