"""How the published codes compute, on our weights: tables repeated for each sample, scores in memory, every pixel.

It gives our losses and is what benchmarks/train.py measures beside ours.

Shapes: B samples, h heads, N tokens that are kept, L tokens of a grid, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from train import convnext, sensors, transformer
from train.alibi import Alibi, slopes
from train.masking import Places
from train.sensors import Seen


def scores_in_memory(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(dim=-1), v).flatten(2)


def gathered_bias(queries: Seen, keys: Seen, alibi: Alibi, like: Tensor) -> Tensor:
    """The whole table for each head, repeated for each sample, and then gathered at the kept pairs."""
    table = alibi.distances(queries.grid, keys.grid, like.device)
    whole = -slopes(alibi.heads).to(like.device)[:, None, None] * table
    if queries.kept is None or keys.kept is None:
        return whole[None]
    b, n, m = len(queries.kept), queries.kept.shape[1], keys.kept.shape[1]
    pairs = (queries.kept[:, :, None] * len(keys.grid) + keys.kept[:, None, :]).flatten(1)
    repeated = whole.repeat(b, 1, 1, 1).flatten(2).transpose(1, 2)
    picked = repeated.gather(1, pairs[:, :, None].repeat(1, 1, alibi.heads))
    return picked.transpose(1, 2).reshape(b, alibi.heads, n, m).to(like.dtype)


def embedded_first(seen: Seen, encoder: transformer.Encoder, alibi: Alibi) -> Tensor:
    """Every patch is embedded before the hidden ones are dropped."""
    x = encoder.embed(seen.patches.flatten(2))
    if seen.kept is not None:
        x = sensors.keep(x, seen.kept)
    bias = seen.bias_to(seen, alibi, x)
    for block in encoder.blocks:
        x = block(x, bias)
    return encoder.norm(x)


@dataclass(frozen=True, kw_only=True)
class EveryPixel:
    """Stands for the visible pixels: all of them, those that are hidden multiplied by 0."""

    height: int
    width: int
    mask: Tensor

    def take(self, image: Tensor) -> Tensor:
        return image.permute(0, 2, 3, 1).flatten(1, 2) * self.mask

    def put(self, pixels: Tensor) -> Tensor:
        return (pixels * self.mask).unflatten(1, (self.height, self.width)).permute(0, 3, 1, 2)


def every_pixel(removed: Tensor, grid: tuple[int, int], scale: int) -> EveryPixel:
    shown = (~removed).float().unflatten(1, grid)
    shown = shown.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)[:, :, None]
    return EveryPixel(height=grid[0] * scale, width=grid[1] * scale, mask=shown)


def masked_block(block: convnext.Block, x: Tensor, places: EveryPixel | Places) -> Tensor:
    """As the block, with the mask once more before the responses of a whole image are summed."""
    hidden = block.norm(places.take(block.dwconv(places.put(x))))
    hidden = F.gelu(block.pwconv1(hidden))
    hidden = hidden * places.mask if isinstance(places, EveryPixel) else hidden
    return x + block.pwconv2(block.grn(hidden))


@contextmanager
def straightforward_formulation() -> Iterator[None]:
    """Exchange how we compute for how the published code does, or does when its sparse layers are written densely."""
    with (
        patch.object(convnext, "visible_places", every_pixel),
        patch.object(convnext.Block, "forward", masked_block),
        patch.object(transformer, "attend", scores_in_memory),
        patch.object(Seen, "bias_to", gathered_bias),
        patch.object(Seen, "tokens", embedded_first),
    ):
        yield
