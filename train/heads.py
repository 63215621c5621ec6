"""Heads that are trained on frozen features: one layer, or one hidden layer of 2048, with the papers' schedule.

AdamW (0.9, 0.999), weight decay 0.01, batches of 1024, five warm-up epochs and a hundred that follow a cosine; of
CROMA's 27 learning rates the one that is best on validation samples. All rates are tried at once, as a batch of heads.
Source: CROMA (Fuller et al. 2023), appendix; the hidden layer's width: Scale-ALiBi.

Shapes: n samples, d features, K classes, R rates.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train import optim

RATES = tuple(digit * 10.0**power for power in (-4, -3, -2) for digit in range(1, 10))
EPOCHS, WARMUP_EPOCHS, BATCH, DECAY = 105, 5, 1024, 0.01
HIDDEN = 2048
# So many weights of all heads together are trained at once; more rates go one after another.
WEIGHTS_AT_ONCE = 2**24


def head_predict(
    train: np.ndarray,
    labels: np.ndarray,
    val: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    *,
    classes: int,
    hidden: int | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> tuple[np.ndarray, float]:
    """Predictions of the head whose rate was best on ``val`` (the middle one when val is empty), and that rate.

    hidden: width of the hidden layer, None for a linear head. The smaller rate wins ties.
    """
    sizes = [train.shape[1], *([hidden] if hidden else []), classes]
    weights = sum(a * b for a, b in pairwise(sizes))
    at_once = max(1, min(len(RATES), WEIGHTS_AT_ONCE // weights))
    rates = list(RATES) if len(val[1]) else [RATES[len(RATES) // 2]]
    best: tuple[float, np.ndarray, float] | None = None
    for first in range(0, len(rates), at_once):
        some = rates[first : first + at_once]
        heads = _Heads(sizes, some, seed)
        heads.fit(torch.from_numpy(train).float(), torch.from_numpy(labels), epochs)
        scores = (heads.predict(val[0]) == val[1]).mean(axis=1) if len(val[1]) else np.zeros(len(some))
        place = int(scores.argmax())
        if best is None or scores[place] > best[0]:
            best = (float(scores[place]), heads.predict(test)[place], some[place])
    assert best is not None
    return best[1], best[2]


class _Heads:
    """R heads with equal first weights and a learning rate each."""

    def __init__(self, sizes: list[int], rates: list[float], seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._layers: list[tuple[Tensor, Tensor]] = []
        for inside, outside in pairwise(sizes):
            bound = 1 / math.sqrt(inside)  # as torch.nn.Linear draws both
            weight = torch.empty(inside, outside).uniform_(-bound, bound, generator=self._generator)
            bias = torch.empty(1, outside).uniform_(-bound, bound, generator=self._generator)
            both = (x.expand(len(rates), *x.shape).clone().requires_grad_() for x in (weight, bias))
            self._layers.append(tuple(both))  # type: ignore[arg-type]
        # AdamW has no rate for each row of a tensor: the step of rate 1 is taken and then scaled, head by head.
        self._rates = torch.tensor(rates)[:, None, None]
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for layer in self._layers for p in layer]

    def logits(self, x: Tensor) -> Tensor:
        """(n, d) -> (R, n, K)."""
        for i, (weight, bias) in enumerate(self._layers):
            x = torch.matmul(x, weight) + bias
            x = F.gelu(x) if i + 1 < len(self._layers) else x
        return x

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, d) -> (R, n) classes."""
        return self.logits(torch.from_numpy(x).float()).argmax(dim=2).numpy()

    def fit(self, x: Tensor, labels: Tensor, epochs: int) -> None:
        per_epoch = -(-len(x) // BATCH)
        step = 0
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=self._generator)
            for rows in order.split(BATCH):
                logits = self.logits(x[rows])
                truth = labels[rows].expand(len(logits), -1)
                F.cross_entropy(logits.transpose(1, 2), truth, reduction="none").mean(dim=1).sum().backward()
                step += 1
                share = optim.learning_rate(
                    step - 0.5, peak=1.0, warmup=WARMUP_EPOCHS * per_epoch, total=epochs * per_epoch
                )
                self._step(step, share)

    @torch.no_grad()
    def _step(self, step: int, share: float) -> None:
        """AdamW (Loshchilov and Hutter 2019) with the rate of each head."""
        first, second, eps = 0.9, 0.999, 1e-8
        rate = self._rates * share
        parameters = [p for layer in self._layers for p in layer]
        for parameter, (mean, square) in zip(parameters, self._moments, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (square / (1 - second**step)).sqrt_().add_(eps)
            parameter.mul_(1 - rate * DECAY).sub_(rate * (mean / (1 - first**step)) / scale)
            parameter.grad = None
