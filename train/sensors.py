"""What a model of several sensors takes from a batch: named modalities, their bands by name, on one piece of ground.

Refuses times and masks of its own: a season is chosen before, and what is hidden comes from masking.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting
from torch import Tensor

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field
from train.alibi import Alibi, Grid, pick
from train.losses import patchify_by_band
from train.masking import removed_but
from train.transformer import Encoder, keep


class SensorConfig(BaseModel):
    """One sensor in a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    modality: str = Setting(min_length=1, description="modality or alias")
    bands: list[str] | None = Setting(None, min_length=1, description="bands in the model's order; all when left out")


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """One input of a model. name: of the batch entry. index: where its bands stand there. gsd: metres of a pixel."""

    name: str
    bands: Sequence[str]
    index: Sequence[int]
    patch: int
    gsd: float

    @property
    def values(self) -> int:
        """Values of a patch."""
        return len(self.bands) * self.patch**2

    def grid(self, image: Tensor) -> Grid:
        """The tokens of (B, C, y, x)."""
        height, width = (side // self.patch for side in image.shape[-2:])
        return Grid(height=height, width=width, token_m=self.patch * self.gsd)

    def read(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(image, valid), both (B, C, y, x); the image is 0 where it is not valid, whatever stood there."""
        image, valid = batch[self.name], batch[f"{self.name}_mask"]
        if list(self.index) != list(range(image.shape[1])):
            image, valid = image[:, self.index], valid[:, self.index]
        return torch.where(valid, image, 0.0), valid


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One sensor of a batch.

    patches: (B, L, C, P), 0 where not valid. pixels_valid: (B, C, y, x). grid: L tokens of side ``patch`` pixels.
    kept: (B, N) places of the tokens that are not hidden, None = all.
    """

    patches: Tensor
    pixels_valid: Tensor
    patch: int
    grid: Grid
    kept: Tensor | None

    @property
    def valid(self) -> Tensor:
        """(B, L, C, P) bool."""
        return patchify_by_band(self.pixels_valid, self.patch)

    @property
    def present(self) -> Tensor:
        """(B,) bool, False = no valid pixel at all."""
        return self.pixels_valid.flatten(1).any(dim=1)

    @property
    def removed(self) -> Tensor:
        """(B, L) bool, True = hidden."""
        if self.kept is None:
            return torch.zeros(self.patches.shape[:2], dtype=torch.bool, device=self.patches.device)
        return removed_but(self.kept, len(self.grid))

    def tokens(self, encoder: Encoder, alibi: Alibi) -> Tensor:
        """(B, N, D): what the encoder makes of the patches that are not hidden."""
        patches = self.patches.flatten(2)
        if self.kept is not None:
            patches = keep(patches, self.kept)
        return encoder(patches, self.bias_to(self, alibi, patches))

    def bias_to(self, keys: Seen, alibi: Alibi, like: Tensor) -> Tensor:
        """(B, heads, N, K) for attention of this sensor's tokens to another's, or its own; as ``like`` in type."""
        table = alibi.distances(self.grid, keys.grid, like.device)
        return alibi.bias(pick(table, self.kept, keys.kept), like.dtype)


def see(sensor: Sensor, batch: Mapping[str, Any], kept: Tensor | None = None) -> Seen:
    """Read a sensor and cut it into patches."""
    image, valid = sensor.read(batch)
    patches = patchify_by_band(image, sensor.patch)
    return Seen(patches=patches, pixels_valid=valid, patch=sensor.patch, grid=sensor.grid(image), kept=kept)


def refuse_tasks(tasks: Sequence[str] | None) -> None:
    """UserError for a list of tasks: a model of sensors reconstructs these and predicts nothing else."""
    if tasks is not None:
        reason = "tasks: this model reconstructs its own sensors and has no other tasks"
        raise UserError(reason, fix="remove tasks from the config, or use a model that predicts modalities")


def sensor_arguments(role: str, config: SensorConfig, fields: Mapping[str, Field], patch: int) -> dict[str, Any]:
    """A sensor as plain values; UserError when the corpus has no such modality or band, or patches do not fit."""
    where, field = f"model.{role}", fields.get(config.modality)
    if field is None:
        known = ", ".join(fields)
        raise UserError(f"{where}.modality: {config.modality!r} is not in this corpus", fix=f"choose from {known}")
    if not field.is_pixel or field.is_categorical:
        raise UserError(f"{where}.modality: {field.name} is not a raster of measurements", fix="name one that is")
    if field.shape[0] > 1:
        reason = f"{where}.modality: {field.name} has {field.shape[0]} times, a sensor is one image"
        raise UserError(reason, fix="use a corpus with one time a sample")
    bands = list(config.bands or field.bands)
    for band in bands:
        if band not in field.bands:
            reason = f"{where}.bands: {field.name} has no band {band!r}"
            raise UserError(reason, fix=f"choose from {', '.join(field.bands)}")
    if field.shape[-1] % patch:
        raise UserError(
            f"model.patch: {patch} does not divide the {field.shape[-1]} pixels of {field.name} after the crop",
            fix=f"set model.crop so that it gives a multiple of {patch} pixels",
        )
    if field.gsd is None:
        raise UserError(f"{where}.modality: {field.name} has no pixel size", fix="name a raster")
    index = [field.bands.index(band) for band in bands]
    return {"name": field.name, "bands": bands, "index": index, "patch": patch, "gsd": field.gsd}
