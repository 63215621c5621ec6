"""InfoNCE between pairs of sensors over all processes, with gradients through both sides.

A sample that lacks one sensor of a pair is neither a row nor a column of that pair.

Shapes: B samples of this process, G samples of all processes, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses import SumCount

INITIAL_TEMPERATURE = 0.07
# CLIP (Radford et al. 2021) keeps logits from being scaled by more than 100; the references here do not.
LARGEST_LOGIT_SCALE = math.log(100)


class _GatherRows(torch.autograd.Function):
    """Rows of all processes in their order; the gradient of a row is the sum of what every process asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        most = max(sizes)
        padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, most - len(rows)))
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.sizes[: ctx.rank])
        return gradient[start : start + ctx.sizes[ctx.rank]], None, None


_gather_rows: Callable[[Tensor, tuple[int, ...], int], Tensor] = _GatherRows.apply


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """(B, ...) -> (G, ...) and where this process's rows start; processes may hold different numbers of rows.

    Differentiable. With one process, or none set up, the rows themselves.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts, rank = tuple(torch.cat(sizes).tolist()), dist.get_rank()
    return _gather_rows(rows, counts, rank), sum(counts[:rank])


def info_nce(
    queries: Tensor, keys: Tensor, scale: Tensor, *, start: int, valid: Tensor, valid_keys: Tensor
) -> SumCount:
    """Cross-entropy of finding each query's own key among all keys: its sum over valid queries, and their number.

    queries: (B, D), keys: (G, D), both of unit length; the key of query i is ``start + i``. valid: (B,), valid_keys:
    (G,) bool. scale: factor on the cosines.
    """
    logits = (scale * queries.float() @ keys.float().T).masked_fill(~valid_keys, float("-inf"))
    targets = torch.arange(len(queries), device=queries.device) + start
    # An invalid query would find all keys but its own; its row is emptied before any loss is computed.
    logits = torch.where(valid[:, None], logits, 0.0)
    return torch.where(valid, F.cross_entropy(logits, targets, reduction="none"), 0.0).sum(), valid.sum()


class Contrast(nn.Module):
    """A projection for each sensor, one temperature, and InfoNCE over ordered pairs (queries, keys) of sensors.

    detach_keys: no gradient through keys, which is what gathering into new tensors does in the references.
    clamps: keeps the temperature from below 1 / 100.
    """

    def __init__(
        self, dim: int, pairs: Sequence[tuple[str, str]], *, detach_keys: bool = False, clamps: bool = True
    ) -> None:
        super().__init__()
        self.pairs, self.detach_keys, self.clamps = tuple(pairs), detach_keys, clamps
        self.projections = nn.ModuleDict({name: nn.Linear(dim, dim) for name in dict.fromkeys(sum(self.pairs, ()))})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def forward(self, pooled: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> list[SumCount]:
        """One loss a pair. pooled: (B, D) by sensor; present: (B,) bool by sensor, False = the sample lacks it."""
        names = list(self.projections)
        z = torch.stack([F.normalize(self.projections[name](pooled[name]).float(), dim=-1) for name in names], dim=1)
        here = torch.stack([present[name] for name in names], dim=1)
        everyone, start = gather_rows(torch.cat([z, here[:, :, None].to(z.dtype)], dim=2))
        keys, here_keys = everyone[:, :, :-1], everyone[:, :, -1] > 0
        keys = keys.detach() if self.detach_keys else keys
        limit = LARGEST_LOGIT_SCALE if self.clamps else float("inf")
        scale = self.logit_scale.float().clamp(max=limit).exp()
        place = {name: i for i, name in enumerate(names)}
        losses = []
        with torch.autocast(z.device.type, enabled=False):
            for a, b in ((place[a], place[b]) for a, b in self.pairs):
                valid, valid_keys = here[:, a] & here[:, b], here_keys[:, a] & here_keys[:, b]
                losses.append(info_nce(z[:, a], keys[:, b], scale, start=start, valid=valid, valid_keys=valid_keys))
        return losses
