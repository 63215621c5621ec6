"""Losses on the validation split while a model trains: centred windows, one mask for each sample, nothing else drawn.

Refuses a split without samples. The numbers are means over all scored values of the split, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mmbuild.cube import Corpus
from mmbuild.stream.loader import Loader
from train import log
from train.config import Settings
from train.losses import Losses, same_counts
from train.views import Viewer

SPLIT = "val"
# A sample's mask at validation is that of this seed and epoch, whatever those of the run are.
MASK_SEED, MASK_EPOCH = 0, 0


class Validation:
    """Scores a model's own losses on one split. names: what is loaded, None = everything; batch: samples at a time."""

    def __init__(
        self, corpus: Corpus, config: Settings, names: Sequence[str] | None, *, batch: int, fabric: Fabric,
        split: str = SPLIT,
    ) -> None:  # fmt: skip
        self._fabric, self.every = fabric, config.validate_every
        self._loader = Loader(
            corpus, split=split, modalities=names, batch_size=batch, shuffle=False, rank=fabric.global_rank,
            world_size=fabric.world_size, crop=config.model.crop, time=config.view.still_time, threads=config.threads,
            device=fabric.device,
        )  # fmt: skip
        self._view = Viewer(config.view, self._loader.fields, side=config.model.crop, seed=config.seed, still=True)

    def is_due(self, step: int, total: int) -> bool:
        """Every so many steps, and at the end."""
        return self.every is not None and (step % self.every == 0 or step == total)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The split as the model sees it, once."""
        for batch in self._loader:
            yield self._view(batch)

    def score(self, module: Any) -> dict[str, float]:
        """The mean loss of each task, NaN where nothing is scored."""
        found = mean_losses(module, self.batches(), self._fabric)
        return {log.VALIDATION + name: value for name, value in found.items()}


def mean_losses(module: Any, batches: Iterable[Mapping[str, Any]], fabric: Fabric | None = None) -> dict[str, float]:
    """The mean loss of each task over all batches of all processes, NaN where nothing is scored."""
    fabric = fabric if fabric is not None and fabric.world_size > 1 else None
    counts = same_counts if fabric is None else lambda own: fabric.all_reduce(own, reduce_op="mean")
    nothing = torch.zeros(2, len(module.loss_names), dtype=torch.float64)
    sums = sum(summed_losses(module, batches, counts), start=nothing)
    if fabric is not None:
        sums = torch.as_tensor(fabric.all_reduce(sums.to(fabric.device), reduce_op="mean")).cpu()
    return dict(zip(module.loss_names, (sums[0] / sums[1]).tolist(), strict=True))


def summed_losses(
    module: Any, batches: Iterable[Mapping[str, Any]], counts: Callable[[Tensor], Tensor] = same_counts
) -> Iterator[Tensor]:
    """Of each batch (2, T) in float64: the sum of each of T tasks' losses over its scored values, and their number."""
    module.eval()
    try:
        for batch in batches:
            with torch.no_grad():
                losses: Losses = module(batch, module.masks(batch, seed=MASK_SEED, epoch=MASK_EPOCH), counts)
            means, scored = (torch.stack([own[name] for name in module.loss_names]) for own in losses[1:])
            yield torch.stack([means * scored, scored]).double().cpu()
    finally:
        module.train()
