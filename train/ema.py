"""Averaged weights: an exponential moving average that follows training and never steers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.distributed import spread_like, whole


class Ema:
    """average = decay x average + (1 - decay) x weight after every step, for every trained weight of a module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = dict(module.named_parameters())
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights."""
        torch._foreach_lerp_(list(self._averages.values()), list(self._weights.values()), 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by name, whole and on the CPU; every process has to ask."""
        return {name: whole(average).cpu() for name, average in self._averages.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        for name, average in self._averages.items():
            average.copy_(spread_like(state[name], average))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averages for its weights meanwhile."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])
