"""The parts of CROMA and Scale-ALiBi: pre-norm transformer blocks whose attention takes a bias, and a masked decoder.

Encoders see the tokens that are kept and nothing else, and have no position embedding: the bias carries position.
Sources: CROMA (Fuller et al. 2023), MAE (He et al. 2022).

Shapes: B samples, N kept tokens, L tokens of the whole grid, D width, h heads. bias: (B or 1, h, queries, keys).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.alibi import Grid

MLP_RATIO = 4


class Attention(nn.Module):
    """Self-attention of normalised tokens, (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, bias))


class CrossAttention(nn.Module):
    """Attention from x to a context; both pass one LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        x, context = self.norm(x), self.norm(context)
        given = ((self.q, x), (self.k, context), (self.v, context))
        q, k, v = (layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, tokens in given)
        return self.out(attend(q, k, v, bias))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention with a bias on its scores, heads side by side: (B, h, N, D / h) -> (B, N, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """LayerNorm, four times as wide, GELU, back; without a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, MLP_RATIO * dim)
        self.down = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    """Self-attention and MLP with residuals."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.attention(x, bias)
        return x + self.mlp(x)


class FusionBlock(nn.Module):
    """Self-attention, attention to a context, MLP, each with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.cross = CrossAttention(dim, heads)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, context: Tensor, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        x = x + self.attention(x, self_bias)
        x = x + self.cross(x, context, cross_bias)
        return x + self.mlp(x)


class Encoder(nn.Module):
    """Tokens of one sensor; (B, N, values of a patch) -> (B, N, D)."""

    def __init__(self, *, values: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(values, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, patches: Tensor, bias: Tensor) -> Tensor:
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class Fusion(nn.Module):
    """Tokens of one sensor that look at a context, which is not changed; (B, N, D) -> (B, N, D)."""

    def __init__(self, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor, self_bias: Tensor, cross_bias: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, context, self_bias, cross_bias)
        return self.norm(x)


class Decoder(nn.Module):
    """Puts kept tokens in their places, mask tokens in all others, and predicts every patch; (B, L, values).

    Positions are fixed sines and cosines; attention has no bias here (an answer of CROMA's author says so).
    """

    def __init__(self, *, dim: int, width: int, depth: int, heads: int, values: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, values)

    def forward(self, x: Tensor, kept: Tensor, grid: Grid) -> Tensor:
        """kept: (B, N) where the tokens lie."""
        x = self.embed(x)
        width = x.shape[-1]
        whole = self.mask_token.to(x.dtype).expand(len(x), len(grid), width)
        x = whole.scatter(1, kept[:, :, None].expand(-1, -1, width), x)
        x = x + sine_positions(width, grid.height, grid.width, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, None)
        return self.out(self.norm(x))


@lru_cache(maxsize=16)
def sine_positions(width: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows x columns, width) float32: the first half of the channels encodes the column, the second the row.

    Source: MAE's fixed 2-D positions, whose grid is built with the column first.
    """
    with torch.inference_mode(False):
        quarter = width // 4
        rates = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        row, column = (x.reshape(-1, 1) for x in torch.meshgrid(
            torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
        ))  # fmt: skip
        parts = [f(place * rates) for place in (column, row) for f in (torch.sin, torch.cos)]
        return torch.cat(parts, dim=1).float().to(device)


def keep(x: Tensor, kept: Tensor) -> Tensor:
    """(B, L, D) -> (B, N, D) at the kept places (B, N)."""
    return x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights as torch's own defaults do, from ``generator``; mask tokens from a normal of 0.02.

    Source: CROMA trains from torch's defaults.
    """
    for one in module.modules():
        if isinstance(one, nn.Linear):
            nn.init.kaiming_uniform_(one.weight, a=math.sqrt(5), generator=generator)
            if one.bias is not None:
                limit = 1 / math.sqrt(one.in_features)
                nn.init.uniform_(one.bias, -limit, limit, generator=generator)
    for name, parameter in module.named_parameters():
        if name.endswith("mask_token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
