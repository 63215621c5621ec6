"""The optimiser and its learning rate: AdamW with no-decay groups; linear warm-up, then a cosine to zero.

The rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

# Parameters that are not a linear map: decaying them pulls norms, gates, tokens and loss weights to zero for no reason.
_NO_DECAY_NAMES = ("mask_token", "log_vars", "logit_scale", "gamma", "beta")


def learning_rate(step: float, *, peak: float, warmup: float, total: float) -> float:
    """Linear from 0 to ``peak`` over ``warmup``, then half a cosine down to 0 at ``total``; any unit (steps or epochs).

    Source: MAE's and MMEarth's ``adjust_learning_rate`` with a minimum of 0.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(total - warmup, 1e-9)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def peak_rate(*, lr: float | None, base_lr: float | None, batch: int) -> float:
    """The given rate, or ``base_lr`` x global batch / 256 (the linear scaling rule of MAE and its heirs)."""
    if lr is not None:
        return lr
    if base_lr is None:
        raise ValueError("one of lr and base_lr is needed")
    return base_lr * batch / 256


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Split named parameters in two groups: linear maps and convolutions decay, everything else does not."""
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY_NAMES
        (keep if exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the two groups of ``model``; the rate starts at 0 and is set by ``set_rate`` before each step."""
    return torch.optim.AdamW(parameter_groups(model.named_parameters(), weight_decay), lr=0.0, betas=betas)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
