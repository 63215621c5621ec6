"""MP-MAE: a masked ConvNeXt V2 looks at some patches of one modality and predicts what is hidden of all modalities.

Tasks come from the corpus, no modality is named here. Hidden places are zero before every layer that mixes pixels; that
equals sparse convolution for masks made of whole patches. They cost nothing in the layers that do not mix.
``compat="reference"`` is MMEarth-train's dense model: its borders, its GRN epsilon, its scoring of missing targets.
Sources: MMEarth (Nedungadi et al. 2024), ConvNeXt V2 (Woo et al. 2023).

Shapes: B samples, C channels, y x pixels, L = grid x grid patches row by row. removed: (B, L) bool, True = hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field as DataField
from train.losses import Losses, MultiTaskLoss, Task, Weighting, same_counts
from train.masking import Places, removed_patches, visible_places

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
GRN_EPS = 1e-6  # ConvNeXt V2
GRN_EPS_REFERENCE = 1e-4  # MMEarth's dense model

Compat = Literal["reference"]


class GlobalResponseNorm(nn.Module):
    """Rescale each channel by its share of the response over a sample's pixels; (B, V, C)."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        share = response / (response.mean(dim=-1, keepdim=True) + self.eps)
        return torch.addcmul(self.beta.flatten(), x, 1 + self.gamma.flatten() * share)


class Block(nn.Module):
    """ConvNeXt V2 block: depthwise 7x7, LayerNorm, 4x MLP with GRN, residual; (B, V, C) at ``places``."""

    def __init__(self, channels: int, grn_eps: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels, grn_eps)
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
        self, *, size: str, bands: int, patch: int, compat: Compat | None = None, classes: int | None = None
    ) -> None:
        super().__init__()
        depths, widths = SIZES[size]
        self.widths, self.patch, self.compat = widths, patch, compat
        reference = compat == "reference"
        grn_eps = GRN_EPS_REFERENCE if reference else GRN_EPS
        stride = patch // STAGE_STRIDE
        # The reference pads the second convolution instead of the first: equal inside, different along the border.
        first, second = (0, stride // 2) if reference else (1, 0)
        # Each pair is a convolution and its norm; the names are those of published weights.
        self.initial_conv = nn.ModuleList(
            (nn.Conv2d(bands, widths[0], kernel_size=3, padding=first), nn.LayerNorm(widths[0], eps=NORM_EPS))
        )
        depthwise = nn.Conv2d(widths[0], widths[0], stride, stride=stride, padding=second, groups=widths[0])
        self.stem = nn.ModuleList((depthwise, nn.LayerNorm(widths[0], eps=NORM_EPS)))
        self.downsample_layers = nn.ModuleList(
            nn.ModuleList((nn.LayerNorm(a, eps=NORM_EPS), nn.Conv2d(a, b, kernel_size=2, stride=2)))
            for a, b in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, grn_eps) for _ in range(depth))
            for depth, width in zip(depths, widths, strict=True)
        )
        if classes is not None:
            self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
            self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor, removed: Tensor | None = None) -> Tensor:
        """removed: patches to hide, or None to show everything. Hidden places come out as 0 (not in compat)."""
        x = x.contiguous(memory_format=torch.channels_last)
        grid = x.shape[2] // self.patch, x.shape[3] // self.patch
        if removed is not None:
            whole = visible_places(removed, grid, self.patch)
            x = whole.put(whole.take(x))
        if self.compat == "reference":
            removed = None  # its dense encoder masks the input and nothing after it

        def places(scale: int) -> Places:
            if removed is None:
                return Places(height=grid[0] * scale, width=grid[1] * scale)
            return visible_places(removed, grid, scale)

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
        convolution, norm = self.initial_conv
        x = convolution(x)
        # In compat the first convolution loses its border, so that the grid is not a multiple of the patch.
        full = Places(height=x.shape[2], width=x.shape[3]) if self.compat == "reference" else places(self.patch)
        x = full.put(F.gelu(norm(full.take(x))))
        depthwise, norm = self.stem
        return norm(places(STAGE_STRIDE).take(depthwise(x)))

    def features(self, x: Tensor) -> Tensor:
        """Mean over all positions, normalised where there is a final norm; (B, widths[-1])."""
        pooled = self.forward(x).mean(dim=(2, 3))
        return self.norm(pooled) if hasattr(self, "norm") else pooled


class MPMAE(nn.Module):
    """Encoder, one shared decoder, one linear head per task, and the multi-task loss.

    input: name of the batch entry the encoder sees; times are folded into bands. The decoder is evaluated once: the
    reference evaluates the same block once per task on the same tensor, with the same result.
    """

    def __init__(
        self,
        *,
        size: str,
        input: str,
        bands: int,
        patch: int,
        tasks: Sequence[Task],
        mask_ratio: float = 0.6,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        weighting: Weighting = "uncertainty",
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        self.input, self.patch, self.mask_ratio, self.compat = input, patch, mask_ratio, compat
        self.tasks = tuple(tasks)
        self.encoder = ConvNeXtV2(size=size, bands=bands, patch=patch, compat=compat)
        self.proj = nn.Conv2d(self.encoder.widths[-1], decoder_dim, kernel_size=1)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim, 1, 1))
        grn_eps = GRN_EPS_REFERENCE if compat == "reference" else GRN_EPS
        self.decoder = nn.ModuleList(Block(decoder_dim, grn_eps) for _ in range(decoder_depth))
        if any(task.level == "image" for task in self.tasks):
            self.image_norm = nn.LayerNorm(decoder_dim, eps=NORM_EPS)
        self.heads = nn.ModuleDict({task.name: nn.Linear(decoder_dim, task.outputs) for task in self.tasks})
        self.loss = MultiTaskLoss(self.tasks, weighting)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw every weight from ``generator``: truncated normal 0.02 for maps, 0 for biases and GRN, 1 for norms.

        The reference draws convolutions with std 1 by an oversight of ConvNeXt V2's initialiser (facts 3.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def masks(self, batch: Mapping[str, Any], *, seed: int, epoch: int) -> Tensor:
        """Which patches of each sample are removed, (B, L) bool, keyed by sample id."""
        height, width = batch[self.input].shape[-2:]
        patches = (height // self.patch) * (width // self.patch)
        removed = removed_patches(batch["id"], patches, self.mask_ratio, seed=seed, epoch=epoch)
        return removed.to(batch[self.input].device, non_blocking=True)

    def predict(self, image: Tensor, removed: Tensor) -> dict[str, Tensor]:
        """One prediction per task: (B, L, outputs) at pixel level, (B, outputs) at image level."""
        z = self.proj(self.encoder(image, removed))
        grid = Places(height=z.shape[2], width=z.shape[3])
        z = torch.where(removed[:, :, None], self.mask_token.flatten().to(z.dtype), grid.take(z))
        for block in self.decoder:
            z = block(z, grid)
        pooled = self.image_norm(z).mean(dim=1) if hasattr(self, "image_norm") else None
        return {t.name: self.heads[t.name](z if t.level == "pixel" else pooled) for t in self.tasks}

    def forward(
        self, batch: Mapping[str, Any], removed: Tensor, mean_counts: Callable[[Tensor], Tensor] = same_counts
    ) -> Losses:
        """Losses of a loader batch; see MultiTaskLoss for ``mean_counts``."""
        predictions = self.predict(clean_input(batch, self.input), removed)
        targets = {t.name: _target(batch, t, scores_missing=self.compat == "reference") for t in self.tasks}
        return self.loss(predictions, targets, removed, mean_counts)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, width) features of whole, unmasked samples."""
        return self.encoder.features(clean_input(batch, self.input))


def fold_time(x: Tensor, level: str) -> Tensor:
    """(B, time, C, ...) -> (B, time x C, ...); anything without a time axis as it is."""
    return x.flatten(1, 2) if x.ndim == (5 if level == "pixel" else 3) else x


def clean_input(batch: Mapping[str, Any], name: str) -> Tensor:
    """The encoder's input with every invalid pixel 0, which after normalisation is the mean; NaN cannot pass."""
    image, valid = fold_time(batch[name], "pixel"), fold_time(batch[f"{name}_mask"], "pixel")
    return torch.where(valid, image, 0.0)


def _target(batch: Mapping[str, Any], task: Task, *, scores_missing: bool) -> tuple[Tensor, Tensor]:
    """(target, valid) of a task; scores_missing: missing continuous values become 0 and count, as in the reference."""
    target, valid = (fold_time(batch[key], task.level) for key in (task.name, f"{task.name}_mask"))
    if scores_missing and task.values == "continuous" and task.level == "pixel":
        return torch.where(valid, target, 0.0), torch.ones_like(valid)
    return target, valid


# -- what a config says, and a model from it


class Config(BaseModel):
    """What stands under ``model`` in a config with ``name: mpmae``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    name: Literal["mpmae"] = Field(description="the model")
    size: Literal["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"] = Field(
        "atto", description="size of the ConvNeXt V2 encoder"
    )
    input: str | None = Field(None, description="modality or alias the encoder sees; the corpus's anchor when left out")
    crop: int = Field(112, ge=8, le=4096, description="side of the square window in pixels of the finest modality")
    patch: int = Field(16, ge=8, le=256, multiple_of=8, description="side of a patch in pixels of the input, 8 x n")
    mask_ratio: float = Field(0.6, ge=0, lt=1, description="share of the patches that is hidden")
    norm_pix: list[str] | None = Field(
        None, description="modalities whose target patches are standardised; the input when left out, [] for none"
    )
    decoder_dim: int = Field(512, ge=8, le=8192, description="width of the decoder")
    decoder_depth: int = Field(1, ge=1, le=24, description="blocks of the decoder")
    weighting: Weighting = Field("uncertainty", description="how task losses are combined")
    compat: Compat | None = Field(None, description="reference: behave as MMEarth-train's dense model does")


_PLAIN = {"size", "patch", "mask_ratio", "decoder_dim", "decoder_depth", "weighting", "compat"}


def arguments(config: Config, fields: Mapping[str, DataField], *, input: str, tasks: Collection[str]) -> dict[str, Any]:
    """What ``build`` needs, as plain JSON values, so that a checkpoint can be opened without its corpus.

    fields: what the loader gives, by name, as large as after the crop. tasks: names of those to predict.
    Raises UserError when input, crop, patch and modalities do not fit together.
    """
    grid = _grid(config, fields[input])
    norm_pix = [input] if config.norm_pix is None else config.norm_pix
    chosen = [_task(field, grid, norm_pix) for name, field in fields.items() if name in tasks]
    _check_norm_pix(config.norm_pix or (), chosen)
    plain = config.model_dump(include=_PLAIN)
    return plain | {"input": input, "bands": _folded(fields[input]), "tasks": [asdict(task) for task in chosen]}


def build(arguments: Mapping[str, Any], generator: torch.Generator) -> MPMAE:
    """The model with fresh weights from ``generator``."""
    model = MPMAE(**{**arguments, "tasks": [Task(**task) for task in arguments["tasks"]]})
    model.init_weights(generator)
    return model


def _folded(field: DataField) -> int:
    """Channels of a field once its times are folded into its bands."""
    return field.shape[0] * field.shape[1]


def _grid(config: Config, field: DataField) -> int:
    """Patches along a side."""
    if not field.is_pixel or field.is_categorical:
        raise UserError(f"model.input: {field.name} is not a raster of measurements", fix="name one that is")
    side = field.shape[-1]
    if side % config.patch:
        raise UserError(
            f"model.patch: {config.patch} does not divide the {side} pixels of {field.name} after the crop",
            fix=f"set model.crop so that it gives a multiple of {config.patch} pixels",
        )
    return side // config.patch


def _check_norm_pix(named: Sequence[str], tasks: Sequence[Task]) -> None:
    fitting = [task.name for task in tasks if task.norm_pix]
    for name in named:
        if name not in fitting:
            reason = f"model.norm_pix: {name} is not a pixel-level task of measurements"
            raise UserError(reason, fix="name such tasks only, or [] for none")


def _task(field: DataField, grid: int, norm_pix: Collection[str]) -> Task:
    side = field.shape[-1] if field.is_pixel else 0
    if side % grid:
        raise UserError(
            f"tasks: the {side} pixels of {field.name} do not divide into {grid} patches along a side",
            fix="change model.crop or model.patch, or leave it out of tasks",
        )
    return Task(
        name=field.name,
        level="pixel" if field.is_pixel else "image",
        values="categorical" if field.is_categorical else "continuous",
        channels=_folded(field),
        classes=field.n_classes,
        patch=side // grid,
        norm_pix=field.name in norm_pix and field.is_pixel and not field.is_categorical,
    )
