"""ConvNeXt V2 for masked pretraining: hidden pixels are zero before every layer that mixes pixels.

That equals sparse convolution for masks made of whole patches, and hidden pixels cost nothing in the layers that do not
mix. What the two encoders of MMEarth-train do differently stands in ``TRAITS``, nowhere else.
Sources: ConvNeXt V2 (Woo et al. 2023), MMEarth (Nedungadi et al. 2024).

Shapes: B samples, C channels, y x pixels, V visible pixels of a sample. removed: (B, patches) bool, True = hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.masking import Places, visible_places

# Depths and widths of the four stages (ConvNeXt V2, table 9; MMEarth uses atto and tiny).
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}
# Three 2x2 downsamplings lie between the first stage and the patch grid.
STAGE_STRIDE = 8
NORM_EPS = 1e-6

Compat = Literal["reference", "reference_sparse"]
# overlapping: a 3x3 convolution at full resolution, then a depthwise one; original: one convolution with its stride.
Stem = Literal["overlapping", "original"]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an encoder does where the reference's two and ours differ.

    grn_eps: added to the mean response. grn_over_batch: responses are those of the whole batch, not of each sample.
    masks_inside: hidden pixels are zero in every layer, not in the input alone. border_lost: the first convolution
    is not padded, the second is instead. conv_std, linear_std: spread of the first weights in the encoder's layers;
    conv_std None: 1 / sqrt(inputs of a filter), which keeps the spread of what comes in.
    """

    grn_eps: float
    grn_over_batch: bool
    masks_inside: bool
    border_lost: bool
    conv_std: float | None
    linear_std: float


# Ours takes ConvNeXt V2's published epsilon, and its 0.02 for linear layers. Norms follow the convolutions and undo
# the size of their weights, but not that of a step relative to it: from 0.02 a step of 1e-3 turns a filter by 5 %,
# and the first layers do not come to rest. The initialiser that MMEarth-train inherited means 0.02 too, but overrides
# it with 1.0 for convolutions, and for the linear layers of the sparse encoder, which are of another class.
TRAITS: dict[Compat | None, Traits] = {
    None: Traits(
        grn_eps=1e-6, grn_over_batch=False, masks_inside=True, border_lost=False, conv_std=None, linear_std=0.02
    ),
    "reference": Traits(
        grn_eps=1e-4, grn_over_batch=False, masks_inside=False, border_lost=True, conv_std=1.0, linear_std=0.02
    ),
    "reference_sparse": Traits(
        grn_eps=1e-6, grn_over_batch=True, masks_inside=True, border_lost=False, conv_std=1.0, linear_std=1.0
    ),
}


class GlobalResponseNorm(nn.Module):
    """Rescale each channel by its share of the response over the visible pixels; (B, V, C)."""

    def __init__(self, channels: int, eps: float, *, over_batch: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.eps = eps
        self.dims: tuple[int, ...] = (0, 1) if over_batch else (1,)

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=self.dims, keepdim=True)
        share = response / (response.mean(dim=-1, keepdim=True) + self.eps)
        return torch.addcmul(self.beta.flatten(), x, 1 + self.gamma.flatten() * share)


class Block(nn.Module):
    """ConvNeXt V2 block: depthwise 7x7, LayerNorm, 4x MLP with GRN, residual; (B, V, C) at ``places``."""

    def __init__(self, channels: int, grn_eps: float, *, grn_over_batch: bool = False) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels, grn_eps, over_batch=grn_over_batch)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        hidden = self.norm(places.take(self.dwconv(places.put(x))))
        hidden = self.grn(F.gelu(self.pwconv1(hidden)))
        return x + self.pwconv2(hidden)


class ConvNeXtV2(nn.Module):
    """The encoder: (B, bands, y, x) -> (B, widths[-1], y / patch, x / patch).

    classes: adds the final norm and a linear head for fine-tuning; pretraining has neither.
    """

    def __init__(
        self,
        *,
        size: str,
        bands: int,
        patch: int,
        stem: Stem = "overlapping",
        compat: Compat | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        depths, widths = SIZES[size]
        self.widths, self.patch, self.traits = widths, patch, TRAITS[compat]
        _make_stem(self, bands, stem)
        self.downsample_layers = nn.ModuleList(
            nn.ModuleList((nn.LayerNorm(a, eps=NORM_EPS), nn.Conv2d(a, b, kernel_size=2, stride=2)))
            for a, b in pairwise(widths)
        )
        grn = {"grn_eps": self.traits.grn_eps, "grn_over_batch": self.traits.grn_over_batch}
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, **grn) for _ in range(depth))
            for depth, width in zip(depths, widths, strict=True)
        )
        if classes is not None:
            self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
            self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, removed: Tensor | None = None) -> Tensor:
        """removed: patches to hide, or None to show everything. Where masks act inside, hidden places come out as 0."""
        x = x.contiguous(memory_format=torch.channels_last)
        grid = x.shape[2] // self.patch, x.shape[3] // self.patch
        if removed is not None:
            whole = visible_places(removed, grid, self.patch)
            x = whole.put(whole.take(x))
        inside = removed if self.traits.masks_inside else None

        def places(scale: int) -> Places:
            if inside is None:
                return Places(height=grid[0] * scale, width=grid[1] * scale)
            return visible_places(inside, grid, scale)

        x, here = self._stem(x, places), places(STAGE_STRIDE)
        for i, stage in enumerate(self.stages):
            if i:
                norm, convolution = self.downsample_layers[i - 1]
                before, here = here, places(STAGE_STRIDE >> i)
                x = here.take(convolution(before.put(norm(x))))
            for block in stage:
                x = block(x, here)
        return here.put(x)

    def _stem(self, x: Tensor, places: Callable[[int], Places]) -> Tensor:
        """From the masked image to the pixels of the first stage, (B, V, widths[0])."""
        if hasattr(self, "stem_orig"):
            convolution, norm = self.stem_orig
            return norm(places(STAGE_STRIDE).take(convolution(x)))
        convolution, norm = self.initial_conv
        x = convolution(x)
        # A lost border leaves a grid that is not a multiple of the patch; there is no mask inside then.
        lost = self.traits.border_lost
        full = Places(height=x.shape[2], width=x.shape[3]) if lost else places(self.patch)
        x = full.put(F.gelu(norm(full.take(x))))
        depthwise, norm = self.stem
        return norm(places(STAGE_STRIDE).take(depthwise(x)))

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The layer that sees the image."""
        return self.stem_orig[0] if hasattr(self, "stem_orig") else self.initial_conv[0]

    def features(self, x: Tensor) -> Tensor:
        """Mean over all positions, normalised where there is a final norm; (B, widths[-1])."""
        pooled = self.forward(x).mean(dim=(2, 3))
        return self.norm(pooled) if hasattr(self, "norm") else pooled


def _make_stem(encoder: ConvNeXtV2, bands: int, stem: Stem) -> None:
    """Give the encoder its first layers, pairs of a convolution and its norm, named as in published weights."""
    width, stride = encoder.widths[0], encoder.patch // STAGE_STRIDE

    def pair(convolution: nn.Conv2d) -> nn.ModuleList:
        return nn.ModuleList((convolution, nn.LayerNorm(width, eps=NORM_EPS)))

    if stem == "original":
        encoder.stem_orig = pair(nn.Conv2d(bands, width, kernel_size=stride, stride=stride))
        return
    # Padding the second convolution instead of the first is equal inside and different along the border.
    first, second = (0, stride // 2) if encoder.traits.border_lost else (1, 0)
    encoder.initial_conv = pair(nn.Conv2d(bands, width, kernel_size=3, padding=first))
    depthwise = nn.Conv2d(width, width, stride, stride=stride, padding=second, groups=width)
    encoder.stem = pair(depthwise)


def draw_weights(module: nn.Module, generator: torch.Generator, *, conv_std: float | None, linear_std: float) -> None:
    """Draw every map of ``module`` from a normal cut at -2 and 2 and zero its bias; norms and GRN stay as they are."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            std = (conv_std or filter_std(one)) if isinstance(one, nn.Conv2d) else linear_std
            nn.init.trunc_normal_(one.weight, std=std, generator=generator)
            if one.bias is not None:
                nn.init.zeros_(one.bias)


def filter_std(convolution: nn.Conv2d) -> float:
    """1 / sqrt(inputs of a filter): what comes out is as spread as what comes in."""
    return float(convolution.weight[0].numel() ** -0.5)
