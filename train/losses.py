"""What a model is asked to predict and how it is scored: tasks, masked and nodata-aware losses, their weighting.

A loss is a pair (sum, count) until the very end, so that invalid targets weigh nothing and several processes agree on
one mean. A value that is not valid never reaches a sum, whatever it is, NaN included.

Shapes: B samples, L patches (row by row), P pixels of a patch (row by row), C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_PIX_EPS = 1e-6  # added to the variance of a patch (MAE, ConvNeXt V2, MMEarth)
CONTRASTIVE = "contrastive"  # how logs call the contrast between sensors
IGNORE = -1  # class code of a target that must not be scored

Weighting = Literal["uncertainty", "equal"]
NormPix = Literal["joint", "sensor", "none"]
SumCount = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One modality to predict; level x values decide the head and the loss, its name decides nothing.

    channels: bands of the target (times folded in). classes: 0 for continuous values.
    patch: side of a patch in this modality's own pixels, 0 at image level. norm_pix: standardise every target patch.
    """

    name: str
    level: Literal["pixel", "image"]
    values: Literal["continuous", "categorical"]
    channels: int
    classes: int = 0
    patch: int = 0
    norm_pix: bool = False

    @property
    def outputs(self) -> int:
        """Numbers predicted per patch, or per sample at image level; order (pixel row, column, channel, class)."""
        return max(self.patch, 1) ** 2 * self.channels * max(self.classes, 1)


class Losses(NamedTuple):
    """What one forward pass gives: the weighted total to descend; each task's own mean (detached) and count of values.

    A tuple, because wrappers that spread a model over devices look into tuples and dicts only.
    """

    total: Tensor
    per_task: dict[str, Tensor]
    counts: dict[str, Tensor]


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, y, x) -> (B, L, P, C)."""
    b, c, height, width = x.shape
    x = x.reshape(b, c, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch, c)


def patchify_by_band(x: Tensor, patch: int) -> Tensor:
    """(B, C, y, x) -> (B, L, C, P)."""
    b, c, height, width = x.shape
    x = x.reshape(b, c, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c, patch * patch)


def normalise_patches(target: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) variance of the valid values of each patch, all channels jointly.

    target, valid: (B, L, P, C), or with the last two exchanged. Invalid values become 0, whatever they are.
    """
    return normalise_together([target], [valid])[0]


def normalise_together(targets: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
    """As ``normalise_patches``, with one mean and one variance for the patches of several tensors."""
    count = sum(v.sum(dim=(2, 3), keepdim=True) for v in valid)
    targets = [torch.where(v, t, 0.0) for t, v in zip(targets, valid, strict=True)]
    mean = sum(t.sum(dim=(2, 3), keepdim=True) for t in targets) / torch.clamp(torch.as_tensor(count), min=1)
    centred = [torch.where(v, t - mean, 0.0) for t, v in zip(targets, valid, strict=True)]
    squares = sum(t.square().sum(dim=(2, 3), keepdim=True) for t in centred)
    scale = (squares / torch.clamp(torch.as_tensor(count) - 1, min=1) + NORM_PIX_EPS).rsqrt()
    return [t * scale for t in centred]


def squared_error(prediction: Tensor, target: Tensor, valid: Tensor) -> SumCount:
    """Sum of squared errors over the valid values, and how many there are; all shapes equal."""
    shown, wanted = (torch.where(valid, x, 0.0) for x in (prediction, target))
    return F.mse_loss(shown, wanted, reduction="sum"), valid.sum()


def cross_entropy(logits: Tensor, codes: Tensor) -> SumCount:
    """Sum of -log p(code) over codes that are not IGNORE; logits (..., K), codes (...)."""
    logits, codes = logits.reshape(-1, logits.shape[-1]).float(), codes.reshape(-1)
    return F.cross_entropy(logits, codes, ignore_index=IGNORE, reduction="sum"), (codes != IGNORE).sum()


def task_loss(task: Task, prediction: Tensor, target: Tensor, valid: Tensor, removed: Tensor) -> SumCount:
    """Score one task.

    prediction: (B, L, outputs) at pixel level, (B, outputs) at image level.
    target, valid: (B, C, y, x) or (B, C); valid True = a real value.
    removed: (B, L) bool; at pixel level only removed patches are scored.
    """
    if task.level == "pixel":
        target, valid = patchify(target, task.patch), patchify(valid, task.patch)
        scored = valid & removed[:, :, None, None]
    else:
        scored = valid
    if task.values == "categorical":
        logits = prediction.reshape(*target.shape, task.classes)
        return cross_entropy(logits, torch.where(scored, target, IGNORE))
    if task.norm_pix:
        target = normalise_patches(target.float(), valid)
    return squared_error(prediction.float().reshape(target.shape), target.float(), scored)


def same_counts(counts: Tensor) -> Tensor:
    """One process: its counts are everyone's."""
    return counts


def global_means(pairs: Sequence[SumCount], mean_counts: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(n,) means and counts of n losses, the counts averaged over all processes in one call; 0 where nothing counts.

    The average over processes of such means, and of their gradients, is that of one global mean.
    """
    counts = mean_counts(torch.stack([count for _, count in pairs]).float())
    sums = torch.stack([total for total, _ in pairs])
    return torch.where(counts > 0, sums / counts.clamp(min=1e-9), sums * 0.0), counts


def reconstruction(
    prediction: Tensor, targets: Sequence[tuple[Tensor, Tensor, Tensor]], norm_pix: NormPix
) -> list[SumCount]:
    """Squared errors of one prediction of several sensors, one pair for each.

    prediction: (B, L, C, P), C = the channels of all sensors in order. targets: for each sensor (target, valid,
    removed) of shapes (B, L, c, P), (B, L, c, P), (B, L); only removed patches are scored.
    norm_pix: standardise each target patch over all sensors together (``joint``), each for itself, or not at all.
    """
    values, valid = [target[0].float() for target in targets], [target[1] for target in targets]
    if norm_pix == "joint":
        values = normalise_together(values, valid)
    elif norm_pix == "sensor":
        values = [normalise_patches(one, its_valid) for one, its_valid in zip(values, valid, strict=True)]
    predictions = prediction.float().split([one.shape[2] for one in values], dim=2)
    scored = [its_valid & target[2][:, :, None, None] for its_valid, target in zip(valid, targets, strict=True)]
    return [squared_error(*one) for one in zip(predictions, values, scored, strict=True)]


def contrast_and_reconstruct(
    contrasts: Sequence[SumCount],
    errors: Mapping[str, SumCount],
    mean_counts: Callable[[Tensor], Tensor],
) -> Losses:
    """The mean of the contrasts, as one task, plus the errors of each sensor; all weigh 1."""
    means, counts = global_means([*contrasts, *errors.values()], mean_counts)
    n = len(contrasts)
    means, counts = (torch.cat([x[:n].mean().reshape(1), x[n:]]) for x in (means, counts))
    names = (CONTRASTIVE, *errors)
    return Losses(
        total=means.sum(),
        per_task=dict(zip(names, means.detach(), strict=True)),
        counts=dict(zip(names, counts, strict=True)),
    )


class MultiTaskLoss(nn.Module):
    """Combine task losses: ``uncertainty`` sums exp(-s) L + share x s with a learned s per task, ``equal`` sums L.

    log_sigma_share: 0.5 makes the second term log sigma, as s is the logarithm of its square; the code of MMEarth and
    of MultiMAE adds s. A task without a single valid value in the batch adds nothing (and its s is not moved).
    Source: MMEarth, equation 1, after Kendall et al. 2018; s starts at 0.
    """

    def __init__(self, tasks: tuple[Task, ...], weighting: Weighting, *, log_sigma_share: float = 0.5) -> None:
        super().__init__()
        self.tasks = tasks
        self.weighting = weighting
        self.log_sigma_share = log_sigma_share
        if weighting == "uncertainty":
            self.log_vars = nn.Parameter(torch.zeros(len(tasks)))

    def forward(
        self,
        predictions: Mapping[str, Tensor],
        targets: Mapping[str, tuple[Tensor, Tensor]],
        removed: Tensor,
        mean_counts: Callable[[Tensor], Tensor] = same_counts,
    ) -> Losses:
        """Score every task. targets: name -> (target, valid).

        mean_counts: turns this process's counts into their mean over all processes; then averaged gradients are
        those of one global mean.
        """
        pairs = [task_loss(t, predictions[t.name], *targets[t.name], removed) for t in self.tasks]
        means, counts = global_means(pairs, mean_counts)
        if self.weighting == "uncertainty":
            weighted = torch.exp(-self.log_vars) * means + self.log_sigma_share * self.log_vars
        else:
            weighted = means
        weighted = torch.where(counts > 0, weighted, weighted * 0.0)
        names = [t.name for t in self.tasks]
        return Losses(
            total=weighted.sum(),
            per_task=dict(zip(names, means.detach(), strict=True)),
            counts=dict(zip(names, counts, strict=True)),
        )
