"""Scale-ALiBi: three encoders, of radar, low- and high-resolution optics, contrasted in pairs, fused twice, decoded.

Every token has its centre in metres, so that a bias between sensors of different pixel size is the true distance, in
units of a low-resolution token. ``compat="reference"`` is the published code: one fusion used twice, keys of the
contrast without gradient, the high-resolution sensor contrasted with itself and pooled by the other optical sensor's
layers, a scrambled table of distances to it, and self-attention in the fusion with the bias between radar and optics.
Source: the Scale-ALiBi paper; where paper and code differ the default is the paper's.

Shapes: B samples, L tokens of a grid, N kept tokens, D width. kept: (B, N) places of the tokens that are not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field as DataField
from train import fused
from train.alibi import Alibi, pick
from train.contrastive import Contrast
from train.fused import RADAR
from train.losses import Losses, NormPix, patchify_by_band, same_counts
from train.masking import kept_patches
from train.sensors import Seen, Sensor, SensorConfig, refuse_tasks, sensor_arguments
from train.transformer import MLP, Decoder, Fusion, draw_weights

LORES, HIRES = "lores", "hires"
ROLES = (RADAR, LORES, HIRES)
# The order of channels in a predicted patch.
DECODED = (LORES, RADAR, HIRES)
DECODER_HEADS = 8

Compat = Literal["reference"]
Masks = Literal["shared", "independent"]


class ScaleALiBi(nn.Module):
    """Three encoders, two fusions, decoder and losses: train/fused.py says what they give.

    ratio: low-resolution pixels are this many high-resolution pixels wide; so many tokens of a side, too.
    """

    def __init__(
        self,
        *,
        radar: Sensor,
        lores: Sensor,
        hires: Sensor,
        dim: int,
        depth: int,
        heads: int,
        mask_ratio: float = 0.4,
        masks: Masks = "independent",
        norm_pix: NormPix = "joint",
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        self.sensors, self.decoded = {RADAR: radar, LORES: lores, HIRES: hires}, DECODED
        self.ratio = round(lores.gsd / hires.gsd)
        self.mask_ratio, self.mask_kind, self.norm_pix, self.compat = mask_ratio, masks, norm_pix, compat
        self.alibi = Alibi(heads=heads, unit_m=lores.patch * lores.gsd)
        layers = {"dim": dim, "heads": heads}
        self.encoders = fused.make_encoders(self.sensors, depth=depth, **layers)
        reference = compat == "reference"
        self.pools = nn.ModuleDict({role: MLP(dim) for role in ((RADAR, LORES) if reference else ROLES)})
        self.fusions = nn.ModuleDict(
            {role: Fusion(depth=depth // 2, **layers) for role in ((LORES,) if reference else (LORES, HIRES))}
        )
        values = sum(sensor.values for sensor in self.sensors.values())
        self.decoder = Decoder(dim=dim, width=decoder_dim, depth=decoder_depth, heads=DECODER_HEADS, values=values)
        pairs = [(LORES, RADAR), (RADAR, LORES), (HIRES, HIRES)] if reference else list(permutations(ROLES, 2))
        self.contrast = Contrast(dim, pairs, detach_keys=reference, clamps=not reference)

    @property
    def inputs(self) -> dict[str, int]:
        return fused.inputs(self)

    @property
    def loss_names(self) -> tuple[str, ...]:
        return fused.loss_names(self)

    def masks(self, batch: Mapping[str, Any], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """Which patches of each sample stay visible, by sensor, (B, N), keyed by sample id.

        With shared masks the same ground is hidden in all sensors.
        """
        drawn = {}
        for role, sensor in self.sensors.items():
            image, purpose = batch[sensor.name], f"mask of {role}"
            grid = sensor.grid(image)
            if self.mask_kind == "shared":
                grid, purpose = self.sensors[LORES].grid(batch[self.sensors[LORES].name]), "mask"
            kept = kept_patches(batch["id"], len(grid), self.mask_ratio, seed=seed, epoch=epoch, purpose=purpose)
            if self.mask_kind == "shared" and role == HIRES:
                kept = children(kept, grid.width, self.ratio)
            drawn[role] = kept.to(image.device, non_blocking=True)
        return drawn

    def forward(
        self,
        batch: Mapping[str, Any],
        kept: Mapping[str, Tensor],
        mean_counts: Callable[[Tensor], Tensor] = same_counts,
    ) -> Losses:
        return fused.losses(self, batch, kept, mean_counts)

    def pool(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, D) by sensor."""
        layers = {role: self.pools[role if role in self.pools else LORES] for role in tokens}
        return {role: layers[role](x.mean(dim=1)) for role, x in tokens.items()}

    def fuse(self, tokens: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Tensor:
        """(B, N, D): radar's tokens after they looked at the low-, then at the high-resolution ones."""
        x, radar = tokens[RADAR], seen[RADAR]
        reference = self.compat == "reference"
        own = radar.bias_to(seen[LORES] if reference else radar, self.alibi, x)
        for role in (LORES, HIRES):
            if reference and role == HIRES:
                cross = self._scrambled_bias(seen[LORES], seen[HIRES], x)
            else:
                cross = radar.bias_to(seen[role], self.alibi, x)
            x = self.fusions[role if role in self.fusions else LORES](x, tokens[role], own, cross)
        return x

    def _scrambled_bias(self, queries: Seen, keys: Seen, like: Tensor) -> Tensor:
        """The published bias to the fine sensor; its rows are those of the tokens that lores kept, not radar."""
        table = scrambled(self.alibi.distances(keys.grid, keys.grid, like.device), len(queries.grid))
        return self.alibi.bias(pick(table, queries.kept, keys.kept), like.dtype)

    def target(self, role: str, seen: Seen, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(target, valid, removed) on the low-resolution grid; of high resolution every ``ratio``-th pixel."""
        if role != HIRES:
            return seen.patches, seen.valid, seen.removed
        image, valid = (x[:, :, :: self.ratio, :: self.ratio] for x in self.sensors[HIRES].read(batch))
        patch, shape = self.sensors[LORES].patch, (seen.grid.height, seen.grid.width)
        removed = removed_children(seen.removed, shape, self.ratio)
        return patchify_by_band(image, patch), patchify_by_band(valid, patch), removed

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return fused.encode(self, batch)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, D) features of whole samples, all sensors together."""
        return self.encode(batch)["pooled_joint"]


def children(kept: Tensor, width: int, ratio: int) -> Tensor:
    """(B, N) places on a grid ``width`` wide -> (B, N x ratio^2) places on the grid that divides each token."""
    side = torch.arange(ratio, device=kept.device)
    inside = (side[:, None] * width * ratio + side).flatten()
    corner = (kept // width) * ratio * width * ratio + (kept % width) * ratio
    return (corner[:, :, None] + inside).flatten(1)


def removed_children(removed: Tensor, grid: tuple[int, int], ratio: int) -> Tensor:
    """(B, L) on a fine grid -> (B, L / ratio^2): removed where any of a token's children is."""
    blocks = removed.unflatten(1, (grid[0] // ratio, ratio, grid[1] // ratio, ratio))
    return blocks.any(dim=4).any(dim=2).flatten(1)


def scrambled(distances: Tensor, queries: int) -> Tensor:
    """(queries, keys): what the published code looks up as the distance from a coarse to a fine token.

    It takes every fourth column of the (keys, keys) table and indexes the rest as if it had ``keys`` columns.
    """
    keys = len(distances)
    strided = distances[:, :: keys // queries].flatten()
    place = torch.arange(queries, device=distances.device)[:, None] * queries
    return strided[place + torch.arange(keys, device=distances.device)]


# -- what a config says, and a model from it


class Config(BaseModel):
    """What stands under ``model`` in a config with ``name: scale_alibi``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    name: Literal["scale_alibi"] = Field(description="the model")
    radar: SensorConfig = Field(description="the sensor whose tokens look at the others'")
    lores: SensorConfig = Field(description="the optical sensor on radar's grid")
    hires: SensorConfig = Field(description="the optical sensor of finer pixels")
    dim: int = Field(768, ge=8, le=8192, multiple_of=4, description="width")
    depth: int = Field(12, ge=2, le=128, multiple_of=2, description="layers of an optical encoder; radar, fusion: half")
    heads: int = Field(16, ge=1, le=128, description="attention heads")
    crop: int = Field(512, ge=8, le=4096, description="side of the square window in pixels of the finest modality")
    patch: int = Field(16, ge=1, le=256, description="side of a patch in pixels of each sensor")
    mask_ratio: float = Field(0.4, ge=0, lt=1, description="share of the patches that is hidden, not of those kept")
    masks: Masks = Field("independent", description="one mask for each sensor, or the same ground hidden in all")
    norm_pix: NormPix = Field("joint", description="target patches standardised over all sensors, each, or not")
    decoder_dim: int = Field(512, ge=8, le=8192, multiple_of=8, description="width of the decoder")
    decoder_depth: int = Field(1, ge=1, le=24, description="blocks of the decoder")
    compat: Compat | None = Field(None, description="reference: behave as the published code does")


_PLAIN = {
    "dim", "depth", "heads", "mask_ratio", "masks", "norm_pix", "decoder_dim", "decoder_depth", "compat",
}  # fmt: skip


def modalities(config: Config, *, anchor: str, tasks: Sequence[str] | None) -> list[str]:
    """The three sensors, whatever the corpus's anchor is."""
    refuse_tasks(tasks)
    return [getattr(config, role).modality for role in ROLES]


def arguments(
    config: Config, fields: Mapping[str, DataField], *, anchor: str, tasks: Sequence[str] | None
) -> dict[str, Any]:
    """What ``build`` needs, as plain JSON values. Raises UserError when sensors, crop and patch do not fit together."""
    found = {role: sensor_arguments(role, getattr(config, role), fields, config.patch) for role in ROLES}
    sides = {role: fields[found[role]["name"]].shape[-1] for role in ROLES}
    if sides[RADAR] != sides[LORES]:
        told = f"radar has {sides[RADAR]} pixels and lores {sides[LORES]}"
        raise UserError(f"model: radar and lores need one grid, {told}", fix="choose modalities of one pixel size")
    if sides[HIRES] % sides[LORES]:
        told = f"hires has {sides[HIRES]} pixels, lores {sides[LORES]}"
        raise UserError(f"model: hires needs a whole multiple of the pixels of lores, {told}", fix="choose another")
    if config.compat == "reference" and sides[HIRES] != 2 * sides[LORES]:
        reason = "model.compat: the published code knows a high resolution of twice the low one and no other"
        raise UserError(reason, fix="leave compat out")
    if config.dim % config.heads:
        raise UserError(f"model.heads: {config.heads} does not divide the width {config.dim}", fix="choose a divisor")
    return config.model_dump(include=_PLAIN) | found


def build(arguments: Mapping[str, Any], generator: torch.Generator) -> ScaleALiBi:
    """The model with fresh weights from ``generator``."""
    sensors = {role: Sensor(**arguments[role]) for role in ROLES}
    model = ScaleALiBi(**{**arguments, **sensors})
    draw_weights(model, generator)
    return model
