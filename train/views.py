"""What a model gets to see of a loaded batch: a window resized, values rescaled, samples mixed.

Everything is the same for all modalities of a sample and a function of (seed, epoch, sample id); only a sample's
partner in a mixture depends on the batch: neighbours of the epoch's order are mixed, so that batches cut at even places
give the same mixtures on any number of devices. Time steps, flips, turns and windows that are not resized are the
loader's.

Shapes: B samples, T times, C bands, y x pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbuild.errors import UserError
from mmbuild.stream.order import sample_draws
from mmbuild.stream.transforms import Field
from train.config import View

# SatMAE's range: two standard deviations on both sides of the mean become 0 and 1.
SATMAE_STDS = 2.0
SCALINGS = {
    "standard": "(value - mean) / std by band",
    "satmae": "(value - mean + 2 std) / (4 std) by band, clipped to 0..1",
}
_PURPOSE = "view"
_MAX_DRAW = 2.0**64


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where each sample's window lies, in shares of the chip's side; rows, cols, sides: (B,)."""

    rows: np.ndarray
    cols: np.ndarray
    sides: np.ndarray


class Viewer:
    """Turns batches of a loader into what a model sees; ``fields`` says what that looks like.

    fields: those of the loader. side: pixels of the finest modality after a resize. still: for features of whole
    samples: values rescaled, and nothing that is drawn.
    """

    def __init__(
        self, view: View, fields: Sequence[Field], *, side: int, seed: int, batch: int = 2, still: bool = False
    ) -> None:
        self.view, self.seed, self.still = view, seed, still
        self._loaded = tuple(fields)
        pixels = [field for field in fields if field.is_pixel]
        self._finest = max((field.shape[-1] for field in pixels), default=0)
        self._side = side
        if not still:
            self._check(pixels, batch)
        self.fields = tuple(self._seen(field) for field in fields)

    def _check(self, pixels: Sequence[Field], batch: int) -> None:
        """UserError where the view does not fit what is loaded."""
        window, mixup = self.view.window, self.view.mixup
        if window and window[1] > self._finest:
            reason = f"view.window: {window[1]} is more than the {self._finest} pixels of a chip"
            raise UserError(reason, fix=f"write [{min(window[0], self._finest)}, {self._finest}]")
        for field in pixels if window else ():
            if self._side * field.shape[-1] % self._finest:
                reason = f"model.crop: {self._side} finest pixels are no whole number of pixels of {field.name}"
                raise UserError(reason, fix=f"use a multiple of {self._finest // field.shape[-1]}")
        if not mixup:
            return
        for field in self._loaded:
            if field.is_categorical:
                reason = f"view.mixup: {field.name} holds classes, which cannot be mixed"
                raise UserError(reason, fix="leave mixup out, or name tasks without classes")
        if batch % 2:
            raise UserError(
                f"view.mixup: {batch} samples at a time cannot be mixed in pairs", fix="choose an even batch_size"
            )

    def _seen(self, field: Field) -> Field:
        shape = field.shape
        if self.view.window and field.is_pixel and not self.still:
            side = self._side * shape[-1] // self._finest
            shape = (*shape[:-2], side, side)
        return replace(field, shape=shape)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch as the model sees it; the given one stays as it is."""
        seen = dict(batch)
        draws = self._draws(batch)
        if self.view.window and not self.still:
            self._resize(seen, self._windows(draws))
        if self.view.scaling == "satmae":
            self._rescale(seen)
        if self.view.mixup and not self.still:
            self._mix(seen, _betas(draws, self.view.mixup))
        return seen

    def _draws(self, batch: Mapping[str, Any]) -> np.ndarray:
        """(B, 8) uint64."""
        if self.still:
            return np.zeros((len(batch["id"]), 8), dtype=np.uint64)
        epoch = batch["epoch"]
        rows = [sample_draws(_PURPOSE, seed=self.seed, epoch=epoch, sample_id=one) for one in batch["id"]]
        return np.stack(rows) if rows else np.zeros((0, 8), dtype=np.uint64)

    def _windows(self, draws: np.ndarray) -> Window:
        assert self.view.window is not None
        low, high = self.view.window
        sides = low + (draws[:, 0] % np.uint64(high - low + 1)).astype(np.int64)
        room = (self._finest - sides + 1).astype(np.uint64)
        rows, cols = ((draws[:, k] % room).astype(np.float64) / self._finest for k in (1, 2))
        return Window(rows=rows, cols=cols, sides=sides / self._finest)

    def _resize(self, seen: dict[str, Any], window: Window) -> None:
        for loaded, field in zip(self._loaded, self.fields, strict=True):
            if not field.is_pixel:
                continue
            values, valid = seen[field.name], seen[f"{field.name}_mask"]
            change = resize_classes if field.is_categorical else resize
            seen[field.name], seen[f"{field.name}_mask"] = change(
                values, valid, window, loaded.shape[-1], field.shape[-1]
            )

    def _rescale(self, seen: dict[str, Any]) -> None:
        for field in self.fields:
            if field.is_categorical:
                continue
            scaled = ((seen[field.name] + SATMAE_STDS) / (2 * SATMAE_STDS)).clamp(0, 1)
            seen[field.name] = torch.where(seen[f"{field.name}_mask"], scaled, 0.0)

    def _mix(self, seen: dict[str, Any], shares: np.ndarray) -> None:
        """Each sample with its neighbour, a value valid where both are; neither where one lacks a modality."""
        pairs = len(shares) // 2
        partner = torch.arange(len(shares))
        partner[: 2 * pairs] ^= 1
        present = torch.stack([seen[f"{field.name}_mask"].flatten(1).any(dim=1) for field in self.fields]).all(dim=0)
        partner = partner.to(present.device)
        partner = torch.where(present & present[partner], partner, torch.arange(len(shares), device=present.device))
        for field in self.fields:
            values, valid = seen[field.name], seen[f"{field.name}_mask"]
            share = torch.from_numpy(shares).to(values).view(-1, *(1,) * (values.ndim - 1))
            both = valid & valid[partner]
            seen[field.name] = torch.where(both, share * values + (1 - share) * values[partner], 0.0)
            seen[f"{field.name}_mask"] = both


def _betas(draws: np.ndarray, alpha: float) -> np.ndarray:
    """(B,) draws of Beta(alpha, alpha), by its quantile function: whole-number keys, no random state."""
    from scipy.special import betaincinv

    shares: np.ndarray = betaincinv(alpha, alpha, (draws[:, 3].astype(np.float64) + 0.5) / _MAX_DRAW)
    return shares


# -- resampling


def resampling(starts: np.ndarray, sides: np.ndarray, source: int, target: int) -> Tensor:
    """(B, target, source) weights of a line of pixels: linear, and over all of a target pixel when it is larger.

    starts, sides: (B,) the window in source pixels. A row sums to 1; beyond the window the chip goes on, and at its
    edge the weights of what is missing go to the rest.
    """
    scale = (sides / target)[:, None, None]
    centres = starts[:, None, None] + (np.arange(target)[None, :, None] + 0.5) * scale
    distance = np.abs(np.arange(source)[None, None, :] + 0.5 - centres) / np.maximum(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    return torch.from_numpy((weights / weights.sum(axis=2, keepdims=True)).astype(np.float32))


def resize(values: Tensor, valid: Tensor, window: Window, source: int, target: int) -> tuple[Tensor, Tensor]:
    """Windows of (B, ..., y, x) in ``target`` x ``target`` pixels; valid where most of a pixel's weight is.

    Invalid values have no weight.
    """
    rows, cols = (
        resampling(start * source, window.sides * source, source, target).to(values.device)
        for start in (window.rows, window.cols)
    )
    shape = values.shape[:-2]
    known = valid.to(values.dtype).flatten(1, -3)
    amount = torch.where(valid, values, 0.0).flatten(1, -3)
    rows, across = rows[:, None].to(values.dtype), cols.transpose(1, 2)[:, None].to(values.dtype)
    amount, weight = ((rows @ x @ across).view(*shape, target, target) for x in (amount, known))
    enough = weight > 0.5
    return torch.where(enough, amount / weight.clamp(min=1e-6), 0.0), enough


def resize_classes(values: Tensor, valid: Tensor, window: Window, source: int, target: int) -> tuple[Tensor, Tensor]:
    """The same for class indexes: the pixel that holds the target pixel's centre."""

    def places(starts: np.ndarray) -> Tensor:
        at = starts[:, None] * source + (np.arange(target)[None] + 0.5) * (window.sides * source / target)[:, None]
        return torch.from_numpy(np.clip(at.astype(np.int64), 0, source - 1)).to(values.device)

    rows, cols = places(window.rows)[:, :, None], places(window.cols)[:, None, :]
    sample = torch.arange(len(values), device=values.device)[:, None, None]

    def pick(x: Tensor) -> Tensor:
        flat = x.flatten(1, -3)
        picked = flat.permute(0, 2, 3, 1)[sample, rows, cols].permute(0, 3, 1, 2)
        return picked.reshape(*x.shape[:-2], target, target)

    return pick(values), pick(valid)
