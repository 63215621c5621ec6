"""What losses are set beside: the best constants, and what statistics of an image tell without seeing where pixels lie.

Both are fitted on one split and scored on another.

Shapes: B samples, C channels, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from train import contrastive, losses
from train.features import image_statistics
from train.losses import IGNORE, SumCount, Task
from train.metrics import percentile_interval, resampled
from train.models.mpmae import fold_time

# A forest of few samples: leaves that average three of them, a third of the statistics at each split.
TREES, LEAF, SHARE, SEED = 200, 3, 1 / 3, 0


class Constants:
    """Stands in for a model's losses: notes what is to be predicted, then scores the best constants for it.

    Which loss is which follows from their order within a forward pass.
    """

    def __init__(self) -> None:
        self.noting = True
        self._place = 0
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, Tensor] = {}
        self._squared_error, self._cross_entropy, self._info_nce = (
            losses.squared_error, losses.cross_entropy, contrastive.info_nce,
        )  # fmt: skip

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        with (
            patch.object(losses, "squared_error", self.squared_error),
            patch.object(losses, "cross_entropy", self.cross_entropy),
            patch.object(contrastive, "info_nce", self.info_nce),
        ):
            yield

    def each(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches, one forward pass each."""
        for batch in batches:
            self._place = 0
            yield batch

    def _note(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and counts of the loss at hand, with these added while they are noted."""
        place, self._place = self._place, self._place + 1
        if self.noting:
            self._sums[place] = self._sums.get(place, 0) + sums.double()
            self._counts[place] = self._counts.get(place, 0) + counts.double()
        return self._sums[place], self._counts[place]

    def squared_error(self, prediction: Tensor, target: Tensor, valid: Tensor) -> SumCount:
        """The mean of each number that a head predicts: of (B, C), or of (B, L, ...) over samples and patches."""
        over = (0,) if target.ndim == 2 else (0, 1)
        sums, counts = self._note(torch.where(valid, target, 0.0).sum(dim=over), valid.sum(dim=over))
        constant = (sums / counts.clamp(min=1)).to(target.dtype).expand_as(target)
        return self._squared_error(prediction if self.noting else constant, target, valid)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> SumCount:
        """The frequency of each class, and one sample more spread over all, for those that train does not have."""
        classes = logits.shape[-1]
        counts, _ = self._note(torch.bincount(codes[codes != IGNORE], minlength=classes), torch.ones(1))
        constant = (counts + 1 / classes).log().to(logits.dtype).expand_as(logits)
        return self._cross_entropy(logits if self.noting else constant, codes)

    def info_nce(
        self, queries: Tensor, keys: Tensor, scale: Tensor, *, start: int, valid: Tensor, valid_keys: Tensor
    ) -> SumCount:
        """The logarithm of the number of keys: what features that are all the same give."""
        if self.noting:
            return self._info_nce(queries, keys, scale, start=start, valid=valid, valid_keys=valid_keys)
        return valid.sum() * valid_keys.sum().clamp(min=1).log(), valid.sum()


# -- how sure a share is


def interval(errors: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of a share of the constants' error.

    errors: (2, n) each sample's sum of errors: of what is set beside the constants, and of the constants.
    NaN where these are all 0.
    """
    if not errors[1].any():
        return float("nan"), float("nan")
    return percentile_interval(_ratio(errors[:, resampled(errors.shape[1], seed=SEED)].sum(axis=2)))


def _ratio(errors: np.ndarray) -> np.ndarray:
    """Of the first error over the second, (2, ...) -> (...)."""
    ratio: np.ndarray = np.divide(errors[0], errors[1], out=np.full(errors.shape[1:], np.nan), where=errors[1] > 0)
    return ratio


# -- forests


Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Forest:
    """What random forests leave of the squared error of a constant; NaN where there is nothing to predict.

    val: grown on train, scored on val; low, high: its 95 % bootstrap interval over the samples of val.
    """

    val: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of B samples: statistics of the input, (B, K), and of each task number, sum and sum of squares, (B, C, 3)."""

    inputs: np.ndarray
    targets: dict[str, np.ndarray]


def forests(module: Any, splits: Mapping[str, Batches]) -> dict[str, Forest]:
    """One for each task of ``module`` that measures something; ``splits`` has train and val.

    A forest sees statistics of the whole input, nothing hidden, and predicts a sample's mean of one channel. Tasks of
    classes, and those whose patches are standardised, have none.
    """
    tasks = [one for one in getattr(module, "tasks", ()) if one.values == "continuous" and not one.norm_pix]
    if not tasks:
        return {}
    train, val = (_statistics(module.input, tasks, splits[split]) for split in ("train", "val"))
    return {
        one.name: _forest(_errors(train.inputs, train.targets[one.name], val.inputs, val.targets[one.name]))
        for one in tasks
    }


def _statistics(name: str, tasks: Sequence[Task], batches: Batches) -> Seen:
    inputs = []
    targets: dict[str, list[np.ndarray]] = {one.name: [] for one in tasks}
    for batch in batches:
        inputs.append(image_statistics(batch[name], batch[f"{name}_mask"]))
        for one in tasks:
            value, valid = (fold_time(batch[key], one.level) for key in (one.name, f"{one.name}_mask"))
            value, valid = (x.reshape(*x.shape[:2], -1) for x in (torch.where(valid, value, 0.0).double(), valid))
            moments = torch.stack([valid.sum(dim=2), value.sum(dim=2), value.square().sum(dim=2)], dim=2)
            targets[one.name].append(moments.numpy())
    return Seen(inputs=np.concatenate(inputs), targets={task: np.concatenate(parts) for task, parts in targets.items()})


def _forest(errors: np.ndarray) -> Forest:
    """From errors of forests and of constants, (2, n)."""
    low, high = interval(errors)
    return Forest(val=float(_ratio(errors.sum(axis=1))), low=low, high=high)


def _errors(seen: np.ndarray, known: np.ndarray, new: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(2, n) each sample's squared errors over all channels of one task: of forests, and of constants."""
    from sklearn.ensemble import RandomForestRegressor

    errors = np.zeros((2, len(new)))
    for channel in range(known.shape[1]):
        count, total, _ = known[:, channel].T
        here = count > 0
        if not here.any():
            continue
        forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, max_features=SHARE, random_state=SEED)
        forest.fit(seen[here], total[here] / count[here])
        guesses = (forest.predict(new), total.sum() / count.sum())
        errors += [_squares(wanted[:, channel], guess) for guess in guesses]
    return errors


def _squares(moments: np.ndarray, prediction: np.ndarray | float) -> np.ndarray:
    """Each sample's sum of squared errors of one number against all its values."""
    count, total, squares = moments.T
    squared: np.ndarray = squares - 2 * prediction * total + prediction**2 * count
    return squared
