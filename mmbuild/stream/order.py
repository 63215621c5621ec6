"""Which sample comes when: a function of (seed, epoch, digest of corpus and filter), and how ranks share it.

World size and batch size never change the order; they only cut it. So a position in an epoch is one number,
the count of samples that all ranks together have taken, and a run resumes from it on any number of ranks.
"""

from __future__ import annotations

import hashlib

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
    hashed = hashlib.sha256(f"order {ORDER_VERSION}\n{seed}\n{epoch}\n{digest}".encode()).digest()
    draws = np.random.Philox(key=np.frombuffer(hashed[:16], dtype="<u8").astype(np.uint64)).random_raw(n)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


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
