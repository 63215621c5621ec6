"""Which patches are hidden, a function of (seed, epoch, sample id), and where the pixels lie that are not.

Neither a resume nor the world size changes a mask.
Refuses torch's random state: a mask drawn from it would depend on everything that was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbuild.stream.order import sample_draws

# splitmix64 (Steele, Lea, Flood 2014): a counter-based generator that vectorises over samples and patches.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def keep_count(patches: int, ratio: float) -> int:
    """How many of ``patches`` stay visible: int(patches x (1 - ratio)) as MAE, MP-MAE and CROMA round, at least 1."""
    return max(1, int(patches * (1 - ratio)))


def removed_patches(
    ids: Sequence[str], patches: int, ratio: float, *, seed: int, epoch: int, purpose: str = "mask"
) -> Tensor:
    """Draw one mask per sample; (len(ids), patches) bool, True = removed (hidden from the encoder).

    The arguments are those of ``kept_patches``.
    """
    return removed_but(kept_patches(ids, patches, ratio, seed=seed, epoch=epoch, purpose=purpose), patches)


def removed_but(kept: Tensor, patches: int) -> Tensor:
    """(B, N) kept places -> (B, patches) bool, True = removed."""
    removed = torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device)
    return removed.scatter_(1, kept, False)


def kept_patches(
    ids: Sequence[str], patches: int, ratio: float, *, seed: int, epoch: int, purpose: str = "mask"
) -> Tensor:
    """Draw which patches of each sample stay visible; (len(ids), N) int64 in the order of the draw.

    Every sample keeps the same number of patches. purpose: tells several masks of one sample apart (one a sensor, say).
    """
    keys = [sample_draws(purpose, seed=seed, epoch=epoch, sample_id=sample)[0] for sample in ids]
    noise = _splitmix64(np.array(keys, dtype=np.uint64)[:, None], patches)
    order = np.argsort(noise, axis=1, kind="stable")
    return torch.from_numpy(order[:, : keep_count(patches, ratio)].copy())


def _splitmix64(keys: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers per key; keys (n, 1) uint64 -> (n, count) uint64."""
    z = keys + np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    z ^= z >> np.uint64(31)
    return z


# -- the visible pixels as a dense array


class _Take(torch.autograd.Function):
    """Rows of a matrix by unique indexes; its gradient is ``_Put`` (torch's own adds row by row, slowly on CPU)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(rows)
        return rows[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _put(gradient, index, ctx.count), None


class _Put(torch.autograd.Function):
    """Rows into a matrix of zeros by unique indexes; its gradient is ``_Take``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return _put(rows, index, count)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient[index], None, None


def _put(rows: Tensor, index: Tensor, count: int) -> Tensor:
    out = rows.new_zeros(count, rows.shape[1])
    out[index] = rows
    return out


# Typed names for what autograd leaves untyped.
_take_rows: Callable[[Tensor, Tensor], Tensor] = _Take.apply
_put_rows: Callable[[Tensor, Tensor, int], Tensor] = _Put.apply


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where pixels lie on a grid of height x width: all of them, or those that are visible, equally many a sample.

    index: (B x V,) positions in the flattened (B, y, x) of visible pixels, None when all are. Layers that mix
    pixels see an image with zeros at hidden places; all others work on the V visible pixels alone.
    """

    height: int
    width: int
    index: Tensor | None = None

    def take(self, image: Tensor) -> Tensor:
        """(B, C, y, x) -> (B, V, C)."""
        b, c = image.shape[:2]
        rows = image.permute(0, 2, 3, 1).reshape(-1, c)
        return (rows if self.index is None else _take_rows(rows, self.index)).reshape(b, -1, c)

    def put(self, pixels: Tensor) -> Tensor:
        """(B, V, C) -> (B, C, y, x), zero at hidden places."""
        b, _, c = pixels.shape
        rows = pixels.reshape(-1, c)
        if self.index is not None:
            rows = _put_rows(rows, self.index, b * self.height * self.width)
        return rows.reshape(b, self.height, self.width, c).permute(0, 3, 1, 2)


def visible_places(removed: Tensor, grid: tuple[int, int], scale: int) -> Places:
    """The visible pixels on a grid of patches of ``scale`` x ``scale`` pixels; removed: (B, L), equal sums."""
    height, width = grid[0] * scale, grid[1] * scale
    b, patches = len(removed), (~removed).nonzero()[:, 1].reshape(len(removed), -1)
    corner = (patches // grid[1]) * scale * width + (patches % grid[1]) * scale
    side = torch.arange(scale, device=removed.device)
    inside = (side[:, None] * width + side).flatten()
    sample = torch.arange(b, device=removed.device)[:, None, None] * height * width
    return Places(height=height, width=width, index=(sample + corner[:, :, None] + inside).flatten())
