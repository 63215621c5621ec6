"""What models of several sensors do alike: encoders, contrast of what they pool, fusion, and a decoder to all sensors.

Which sensors there are, how tokens are pooled and fused and what is predicted of a sensor is the model's business.

Shapes: B samples, L tokens of a grid, N kept tokens, D width. kept: (B, N) places of the tokens that are not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from train.alibi import Alibi
from train.contrastive import Contrast
from train.losses import CONTRASTIVE, Losses, NormPix, contrast_and_reconstruct, reconstruction
from train.sensors import Seen, Sensor, see
from train.transformer import Decoder, Encoder

# Its tokens look at those of the other sensors, and lie where the decoder puts them.
RADAR = "radar"


class Fused(Protocol):
    """A model of several sensors. decoded: their roles in the order of channels in a predicted patch."""

    sensors: dict[str, Sensor]
    decoded: tuple[str, ...]
    alibi: Alibi
    encoders: nn.ModuleDict
    decoder: Decoder
    contrast: Contrast
    norm_pix: NormPix

    def pool(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, N, D) -> (B, D) by role."""

    def fuse(self, tokens: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Tensor:
        """(B, N, D): radar's tokens after they looked at the others."""

    def target(self, role: str, seen: Seen, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(target, valid, removed) of a sensor on radar's grid."""


def make_encoders(sensors: Mapping[str, Sensor], *, dim: int, depth: int, heads: int) -> nn.ModuleDict:
    """One encoder a sensor; radar's has half the layers."""
    depths = {role: depth // 2 if role == RADAR else depth for role in sensors}
    return nn.ModuleDict(
        {role: Encoder(values=s.values, dim=dim, depth=depths[role], heads=heads) for role, s in sensors.items()}
    )


def inputs(model: Fused) -> dict[str, int]:
    """What the encoders see, and the side of their patches."""
    return {sensor.name: sensor.patch for sensor in model.sensors.values()}


def loss_names(model: Fused) -> tuple[str, ...]:
    """What ``losses`` reports, in its order."""
    return CONTRASTIVE, *model.decoded


def losses(
    model: Fused, batch: Mapping[str, Any], kept: Mapping[str, Tensor], mean_counts: Callable[[Tensor], Tensor]
) -> Losses:
    """Losses of a loader batch: contrastive + squared errors of each sensor, all weighing 1."""
    seen = {role: see(sensor, batch, kept[role]) for role, sensor in model.sensors.items()}
    tokens = {role: one.tokens(model.encoders[role], model.alibi) for role, one in seen.items()}
    contrasts = model.contrast(model.pool(tokens), {role: one.present for role, one in seen.items()})
    predicted = model.decoder(model.fuse(tokens, seen), kept[RADAR], seen[RADAR].grid)
    predicted = predicted.unflatten(-1, (-1, model.sensors[RADAR].patch ** 2))
    targets = [model.target(role, seen[role], batch) for role in model.decoded]
    errors = reconstruction(predicted, targets, model.norm_pix)
    return contrast_and_reconstruct(contrasts, dict(zip(model.decoded, errors, strict=True)), mean_counts)


def encode(model: Fused, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Features of whole samples: tokens (B, L, D) by role and ``joint``; each with ``pooled_`` (B, D)."""
    seen = {role: see(sensor, batch) for role, sensor in model.sensors.items()}
    tokens = {role: one.tokens(model.encoders[role], model.alibi) for role, one in seen.items()}
    joint = model.fuse(tokens, seen)
    pooled = {f"pooled_{role}": x for role, x in model.pool(tokens).items()}
    return {**tokens, "joint": joint, **pooled, "pooled_joint": joint.mean(dim=1)}
