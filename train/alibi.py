"""Attention biases from distances on the ground: 2D-ALiBi, X-ALiBi and Scale-ALiBi are one rule.

Every token has its centre in metres; the bias of head h is -slope_h x distance / unit. Distances are computed once for
a pair of grids and indexed by the tokens that are kept. Nothing here is learned or stored in a checkpoint.
Sources: ALiBi (Press et al. 2022), CROMA (Fuller et al. 2023), Scale-ALiBi.

Shapes: Q queries, K keys, L tokens of a whole grid, row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tokens that cover a tile from its upper left corner; token_m: side of a token on the ground, metres."""

    height: int
    width: int
    token_m: float

    def __len__(self) -> int:
        return self.height * self.width

    def centres(self) -> Tensor:
        """(L, 2) float64 (row, column) of each token's centre, metres from the corner."""
        rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) * self.token_m for n in (self.height, self.width))
        return torch.cartesian_prod(rows, columns)


def slopes(heads: int) -> Tensor:
    """(heads,) float32 slopes 2^(-2^(3-n) k), k = 1..2^n; others take every second slope of the next power of two.

    Source: ALiBi's rule with the ratio that CROMA uses.
    """
    whole = 2 ** int(math.log2(heads))
    ratio = 2 ** -(2 ** -(math.log2(whole) - 3))
    found = torch.tensor([ratio ** (k + 1) for k in range(whole)])
    return found if whole == heads else torch.cat([found, slopes(2 * whole)[0::2][: heads - whole]])


@lru_cache(maxsize=64)
def distances(queries: Grid, keys: Grid, unit_m: float, device: torch.device) -> Tensor:
    """(len(queries), len(keys)) float32 distances between token centres in ``unit_m``.

    Made outside inference mode, so that training may use what an evaluation made first.
    """
    with torch.inference_mode(False):
        return (torch.cdist(queries.centres(), keys.centres()) / unit_m).float().to(device)


def pick(table: Tensor, queries: Tensor | None, keys: Tensor | None) -> Tensor:
    """(B, Q, K) of a (L, M) table at the kept tokens (B, Q) and (B, K); None keeps all, as (1, L, M)."""
    if queries is None or keys is None:
        return table[None]
    return table[queries[:, :, None], keys[:, None, :]]


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Biases for ``heads`` heads; unit_m: the distance that counts as 1, the side of a reference token."""

    heads: int
    unit_m: float

    def distances(self, queries: Grid, keys: Grid, device: torch.device) -> Tensor:
        """(len(queries), len(keys)) in units."""
        return distances(queries, keys, self.unit_m, device)

    def bias(self, picked: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, heads, Q, K) to add to attention scores; picked: (B, Q, K) distances in units."""
        return (-_slopes_on(self.heads, picked.device)[:, None, None] * picked[:, None]).to(dtype)


@lru_cache(maxsize=64)
def _slopes_on(heads: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return slopes(heads).to(device)
