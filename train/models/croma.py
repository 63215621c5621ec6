"""CROMA: two masked encoders, radar and optical, are contrasted, fused, and decoded to what was hidden of both.

Positions are 2D-ALiBi and X-ALiBi biases in units of a token, so that any image size works at inference.
``compat="reference"`` is CROMA's pretraining code: keys of the contrast carry no gradient, and self-attention in the
fusion gets the bias between the sensors, which is right where both share one mask, as here by default and in the
paper's tables. With ``masks: independent`` the decoder still places tokens at radar's visible places only: patches that
only the optical sensor showed are mask tokens there.
Source: CROMA (Fuller et al. 2023).

Shapes: B samples, L tokens of a grid, N kept tokens, D width. kept: (B, N) places of the tokens that are not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field as DataField
from train import fused
from train.alibi import Alibi
from train.contrastive import Contrast
from train.fused import RADAR
from train.losses import Losses, NormPix, same_counts
from train.masking import kept_patches
from train.sensors import Seen, Sensor, SensorConfig, refuse_tasks, sensor_arguments
from train.transformer import MLP, Decoder, Fusion, draw_weights

# Width, layers of the optical encoder, heads; the radar encoder and the fusion have half the layers.
SIZES = {"tiny": (192, 4, 4), "small": (384, 12, 8), "base": (768, 12, 16), "large": (1024, 24, 16)}
DECODER_HEADS = 8
OPTICAL = "optical"
# The order of channels in a predicted patch.
DECODED = (OPTICAL, RADAR)

Compat = Literal["reference"]
Masks = Literal["shared", "independent"]


class CROMA(nn.Module):
    """Encoders, fusion, decoder and losses: train/fused.py says what they give.

    fusion_self_bias: ``query`` gives self-attention in the fusion the distances between radar tokens, ``cross`` those
    between radar and optical tokens, as the reference does.
    """

    def __init__(
        self,
        *,
        radar: Sensor,
        optical: Sensor,
        dim: int,
        depth: int,
        heads: int,
        mask_ratio: float = 0.75,
        masks: Masks = "shared",
        norm_pix: NormPix = "joint",
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        self.sensors, self.decoded = {RADAR: radar, OPTICAL: optical}, DECODED
        self.mask_ratio, self.mask_kind, self.norm_pix = mask_ratio, masks, norm_pix
        self.fusion_self_bias = "cross" if compat == "reference" else "query"
        self.alibi = Alibi(heads=heads, unit_m=radar.patch * radar.gsd)
        self.encoders = fused.make_encoders(self.sensors, dim=dim, depth=depth, heads=heads)
        self.pools = nn.ModuleDict({role: MLP(dim) for role in self.sensors})
        self.fusion = Fusion(dim=dim, depth=depth // 2, heads=heads)
        values = radar.values + optical.values
        self.decoder = Decoder(dim=dim, width=decoder_dim, depth=decoder_depth, heads=DECODER_HEADS, values=values)
        reference = compat == "reference"
        pairs = [(OPTICAL, RADAR), (RADAR, OPTICAL)]
        self.contrast = Contrast(dim, pairs, detach_keys=reference, clamps=not reference)

    @property
    def inputs(self) -> dict[str, int]:
        return fused.inputs(self)

    @property
    def loss_names(self) -> tuple[str, ...]:
        return fused.loss_names(self)

    def masks(self, batch: Mapping[str, Any], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """Which patches of each sample stay visible, by sensor, (B, N), keyed by sample id."""
        kept = {}
        for role, sensor in self.sensors.items():
            image = batch[sensor.name]
            purpose = "mask" if self.mask_kind == "shared" else f"mask of {role}"
            patches = len(sensor.grid(image))
            drawn = kept_patches(batch["id"], patches, self.mask_ratio, seed=seed, epoch=epoch, purpose=purpose)
            kept[role] = drawn.to(image.device, non_blocking=True)
        return kept

    def forward(
        self,
        batch: Mapping[str, Any],
        kept: Mapping[str, Tensor],
        mean_counts: Callable[[Tensor], Tensor] = same_counts,
    ) -> Losses:
        return fused.losses(self, batch, kept, mean_counts)

    def target(self, role: str, seen: Seen, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return seen.patches, seen.valid, seen.removed

    def pool(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {role: self.pools[role](x.mean(dim=1)) for role, x in tokens.items()}

    def fuse(self, tokens: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Tensor:
        """(B, N, D): radar's tokens after they looked at the optical ones."""
        radar, optical = tokens[RADAR], tokens[OPTICAL]
        cross = seen[RADAR].bias_to(seen[OPTICAL], self.alibi, radar)
        own = cross if self.fusion_self_bias == "cross" else seen[RADAR].bias_to(seen[RADAR], self.alibi, radar)
        return self.fusion(radar, optical, own, cross)

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return fused.encode(self, batch)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, D) features of whole samples, both sensors together."""
        return self.encode(batch)["pooled_joint"]


# -- what a config says, and a model from it


class Config(BaseModel):
    """What stands under ``model`` in a config with ``name: croma``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    name: Literal["croma"] = Field(description="the model")
    radar: SensorConfig = Field(description="the sensor whose tokens look at the other's")
    optical: SensorConfig = Field(description="the other sensor")
    size: Literal["tiny", "small", "base", "large"] = Field("base", description="width, layers and heads by name")
    dim: int | None = Field(None, ge=8, le=8192, multiple_of=4, description="width, instead of the size's")
    depth: int | None = Field(None, ge=2, le=128, multiple_of=2, description="layers of the optical encoder")
    heads: int | None = Field(None, ge=1, le=128, description="attention heads")
    crop: int = Field(120, ge=8, le=4096, description="side of the square window in pixels of the finest modality")
    patch: int = Field(8, ge=1, le=256, description="side of a patch in pixels")
    mask_ratio: float = Field(0.75, ge=0, lt=1, description="share of the patches that is hidden")
    masks: Masks = Field("shared", description="one mask for both sensors, or one for each")
    norm_pix: NormPix = Field("joint", description="target patches standardised over both sensors, each, or not")
    decoder_dim: int = Field(512, ge=8, le=8192, multiple_of=8, description="width of the decoder")
    decoder_depth: int = Field(1, ge=1, le=24, description="blocks of the decoder")
    compat: Compat | None = Field(None, description="reference: behave as CROMA's pretraining code does")


_PLAIN = {"mask_ratio", "masks", "norm_pix", "decoder_dim", "decoder_depth", "compat"}


def modalities(config: Config, *, anchor: str, tasks: Sequence[str] | None) -> list[str]:
    """Both sensors, whatever the corpus's anchor is."""
    refuse_tasks(tasks)
    return [config.radar.modality, config.optical.modality]


def arguments(
    config: Config, fields: Mapping[str, DataField], *, anchor: str, tasks: Sequence[str] | None
) -> dict[str, Any]:
    """What ``build`` needs, as plain JSON values. Raises UserError when sensors, crop and patch do not fit together."""
    radar, optical = (sensor_arguments(role, getattr(config, role), fields, config.patch) for role in (RADAR, OPTICAL))
    a, b = fields[radar["name"]], fields[optical["name"]]
    if a.shape[-2:] != b.shape[-2:]:
        sides = f"{a.name} has {a.shape[-1]} pixels and {b.name} {b.shape[-1]}"
        raise UserError(f"model: both sensors need one grid, {sides}", fix="choose modalities of one pixel size")
    dim, depth, heads = (given or usual for given, usual in zip(
        (config.dim, config.depth, config.heads), SIZES[config.size], strict=True
    ))  # fmt: skip
    if dim % heads:
        raise UserError(f"model.heads: {heads} does not divide the width {dim}", fix="choose a divisor")
    plain = config.model_dump(include=_PLAIN)
    return plain | {"radar": radar, "optical": optical, "dim": dim, "depth": depth, "heads": heads}


def build(arguments: Mapping[str, Any], generator: torch.Generator) -> CROMA:
    """The model with fresh weights from ``generator``."""
    sensors = {role: Sensor(**arguments[role]) for role in (RADAR, OPTICAL)}
    model = CROMA(**{**arguments, **sensors})
    draw_weights(model, generator)
    return model
