"""MP-MAE: a masked ConvNeXt V2 looks at some patches of one modality and predicts what is hidden of all modalities.

Tasks come from the corpus, no modality is named here. ``compat="reference"`` is MMEarth-train's dense model and
``"reference_sparse"`` the one its published weights come from: their layers (see convnext.py), their pooling over all
positions, their scoring of missing targets, their s in the weighted loss, and a NaN in the input spreads.
Sources: MMEarth (Nedungadi et al. 2024), ConvNeXt V2 (Woo et al. 2023).

Shapes: B samples, C channels, y x pixels, L = grid x grid patches row by row. removed: (B, L) bool, True = hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field as DataField
from train.convnext import NORM_EPS, STAGE_STRIDE, Block, Compat, ConvNeXtV2, Stem, draw_weights, filter_std
from train.losses import Losses, MultiTaskLoss, Task, Weighting, same_counts
from train.masking import Places, removed_patches

# The reference's decoder is dense in both of its modes.
DECODER_GRN_EPS: dict[Compat | None, float] = {None: 1e-6, "reference": 1e-4, "reference_sparse": 1e-4}
# What stands beside exp(-s) L in a task's weighted loss: log sigma = s / 2 (the paper's equation 1), in the code s.
LOG_SIGMA_SHARE, LOG_SIGMA_SHARE_REFERENCE = 0.5, 1.0

DecoderKind = Literal["shared", "separate"]


class MPMAE(nn.Module):
    """Encoder, decoder, one linear head per task, and the multi-task loss.

    input: name of the batch entry the encoder sees; times are folded into bands.
    decoder: ``shared`` is one decoder evaluated once for all tasks; ``separate`` gives each task its own, as the paper
    says. In compat ``separate`` does what the reference's code does under that name: it evaluates one and the same
    decoder again for every task, with the result of ``shared``.
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
        decoder: DecoderKind = "shared",
        stem: Stem = "overlapping",
        weighting: Weighting = "uncertainty",
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        self.input, self.patch, self.mask_ratio, self.compat = input, patch, mask_ratio, compat
        self.tasks = tuple(tasks)
        self.encoder = ConvNeXtV2(size=size, bands=bands, patch=patch, stem=stem, compat=compat)
        self.proj = nn.Conv2d(self.encoder.widths[-1], decoder_dim, kernel_size=1)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_dim, 1, 1))
        eps = DECODER_GRN_EPS[compat]

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(Block(decoder_dim, eps) for _ in range(decoder_depth))

        self.one_each = decoder == "separate"
        if self.one_each and compat is None:
            self.decoders = nn.ModuleDict({task.name: blocks() for task in self.tasks})
        else:
            self.decoder = blocks()
        if any(task.level == "image" for task in self.tasks):
            self.image_norm = nn.LayerNorm(decoder_dim, eps=NORM_EPS)
        self.heads = nn.ModuleDict({task.name: nn.Linear(decoder_dim, task.outputs) for task in self.tasks})
        share = LOG_SIGMA_SHARE_REFERENCE if compat else LOG_SIGMA_SHARE
        self.loss = MultiTaskLoss(self.tasks, weighting, log_sigma_share=share)

    @property
    def inputs(self) -> dict[str, int]:
        """What the encoder sees, and the side of its patches."""
        return {self.input: self.patch}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What ``forward`` reports, in its order."""
        return tuple(task.name for task in self.tasks)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw every weight from ``generator``: truncated normals for maps, 0 for biases and GRN, 1 for norms.

        Linear layers have a spread of 0.02, convolutions one that keeps the spread of their inputs; in compat the
        reference's 1.0 where it has convolutions, pixel-level heads among them.
        """
        traits = self.encoder.traits
        draw_weights(self.encoder, generator, conv_std=traits.conv_std, linear_std=traits.linear_std)
        if self.compat is None:
            # Ground without a valid pixel is 0 in all channels; without a bias the norms after it would divide by the
            # root of their epsilon, one after the other, and its gradient would be 10^13 times that of all else.
            first = self.encoder.first_convolution
            assert first.bias is not None, "the first convolution has a bias"
            nn.init.trunc_normal_(first.bias, std=filter_std(first), generator=generator)
        for name, module in self.named_children():
            if name not in ("encoder", "heads"):
                draw_weights(module, generator, conv_std=traits.conv_std, linear_std=0.02)
        for task in self.tasks:
            std = (traits.conv_std if task.level == "pixel" else None) or 0.02
            draw_weights(self.heads[task.name], generator, conv_std=std, linear_std=std)
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
        predictions: dict[str, Tensor] = {}
        for tasks, decoded in self._decode(z, grid):
            pooled = self._pool(decoded, removed) if any(t.level == "image" for t in tasks) else None
            predictions |= {t.name: self.heads[t.name](decoded if t.level == "pixel" else pooled) for t in tasks}
        return predictions

    def _decode(self, z: Tensor, grid: Places) -> Iterator[tuple[Sequence[Task], Tensor]]:
        """The decoder's outputs, (B, L, decoder_dim), and the tasks that each is for."""

        def run(blocks: nn.Module) -> Tensor:
            decoded = z
            for block in blocks.children():
                decoded = block(decoded, grid)
            return decoded

        if not self.one_each:
            yield self.tasks, run(self.decoder)
            return
        for task in self.tasks:
            yield (task,), run(self.decoders[task.name] if hasattr(self, "decoders") else self.decoder)

    def _pool(self, z: Tensor, removed: Tensor) -> Tensor:
        """(B, decoder_dim) mean over hidden patches, as the paper says; over all in compat, or where none is hidden."""
        z = self.image_norm(z)
        if self.compat is not None:
            return z.mean(dim=1)
        counted = removed | ~removed.any(dim=1, keepdim=True)
        weight = counted.to(z.dtype) / counted.sum(dim=1, keepdim=True)
        return (weight[:, None] @ z)[:, 0]

    def forward(
        self, batch: Mapping[str, Any], removed: Tensor, mean_counts: Callable[[Tensor], Tensor] = same_counts
    ) -> Losses:
        """Losses of a loader batch; see MultiTaskLoss for ``mean_counts``."""
        predictions = self.predict(self._image(batch), removed)
        targets = {t.name: _target(batch, t, scores_missing=self.compat is not None) for t in self.tasks}
        return self.loss(predictions, targets, removed, mean_counts)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, width) features of whole, unmasked samples."""
        return self.encoder.features(self._image(batch))

    def _image(self, batch: Mapping[str, Any]) -> Tensor:
        """What the encoder sees; in compat whatever stands at invalid pixels, NaN included."""
        return clean_input(batch, self.input) if self.compat is None else fold_time(batch[self.input], "pixel")


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
    decoder: DecoderKind = Field("shared", description="one decoder for all tasks, or one for each")
    stem: Stem = Field("overlapping", description="the encoder's first layers: MMEarth's, or ConvNeXt V2's original")
    weighting: Weighting = Field("uncertainty", description="how task losses are combined")
    compat: Compat | None = Field(None, description="reference, reference_sparse: behave as MMEarth-train's models do")


_PLAIN = {"size", "patch", "mask_ratio", "decoder_dim", "decoder_depth", "decoder", "stem", "weighting", "compat"}


def modalities(config: Config, *, anchor: str, tasks: Sequence[str] | None) -> list[str] | None:
    """What to load: the input and the tasks, or everything where tasks are left out."""
    return None if tasks is None else list(dict.fromkeys([config.input or anchor, *tasks]))


def arguments(
    config: Config, fields: Mapping[str, DataField], *, anchor: str, tasks: Sequence[str] | None
) -> dict[str, Any]:
    """What ``build`` needs, as plain JSON values, so that a checkpoint can be opened without its corpus.

    fields: what the loader gives, by name, as large as after the crop. anchor: the input where the config names none.
    tasks: names of those to predict, None for all. Raises UserError when input, crop, patch and modalities do not fit.
    """
    input = config.input or anchor
    if input not in fields:
        fix = f"choose from {', '.join(fields)}"
        raise UserError(f"model.input: {input!r} is not among what the loader gives", fix=fix)
    grid = _grid(config, fields[input])
    norm_pix = [input] if config.norm_pix is None else config.norm_pix
    chosen = [_task(field, grid, norm_pix) for name, field in fields.items() if tasks is None or name in tasks]
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
    if config.compat == "reference" and config.patch == STAGE_STRIDE:
        raise UserError(
            f"model.compat: at patch {STAGE_STRIDE} the reference's dense model loses its border, no mask fits",
            fix="use compat: reference_sparse, or leave it out",
        )
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
