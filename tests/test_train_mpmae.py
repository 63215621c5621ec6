"""MP-MAE against the reference's own numbers and parameter counts, and against what masking promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbuild.errors import UserError
from tests.golden import close, detfill, field_of, fill_weights, needs_golden, recorded, same_gradients
from train.convnext import Compat, ConvNeXtV2
from train.losses import Task
from train.models.mpmae import MPMAE, Config, arguments

# The twelve tasks of MMEarth in the reference's order: name, level, values, channels, classes.
MMEARTH = [
    ("sentinel2", "pixel", "continuous", 12, 0),
    ("sentinel1", "pixel", "continuous", 8, 0),
    ("aster", "pixel", "continuous", 2, 0),
    ("era5", "image", "continuous", 12, 0),
    ("dynamic_world", "pixel", "categorical", 1, 9),
    ("canopy_height_eth", "pixel", "continuous", 2, 0),
    ("lat", "image", "continuous", 2, 0),
    ("lon", "image", "continuous", 2, 0),
    ("biome", "image", "categorical", 1, 14),
    ("eco_region", "image", "categorical", 1, 846),
    ("month", "image", "continuous", 2, 0),
    ("esa_worldcover", "pixel", "categorical", 1, 11),
]


def mmearth_tasks(patch: int) -> list[Task]:
    return [
        Task(
            name=name, level=level, values=values, channels=channels, classes=classes,
            patch=patch if level == "pixel" else 0, norm_pix=name == "sentinel2",
        )
        for name, level, values, channels, classes in MMEARTH
    ]  # fmt: skip


def mmearth_model(compat: Compat | None, patch: int = 16, **changes: object) -> MPMAE:
    options = {"size": "atto", "input": "sentinel2", "bands": 12, "patch": patch, "tasks": mmearth_tasks(patch)}
    return MPMAE(**{**options, **changes}, compat=compat)  # type: ignore[arg-type]


def reference_name(name: str) -> str:
    """Our parameter names in the reference's words; heads are 1x1 convolutions there."""
    for ours, theirs in (
        ("decoder.", "decoder_dict.sentinel2."), ("heads.", "pred_dict."), ("image_norm.", "layer_norm_tmp."),
        ("loss.", "loss_fn."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def filled(model: MPMAE) -> MPMAE:
    fill_weights(model, reference_name)
    model.loss.log_vars.data.copy_(torch.from_numpy(detfill().sym("mp/logvars", (12,))))
    return model


def mmearth_batch(side: int) -> dict[str, Tensor]:
    """Inputs as ../shared/golden/README.md defines them."""
    fill = detfill()
    seeds = {"sentinel2": "s2", "sentinel1": "s1", "aster": "aster", "canopy_height_eth": "ch"}
    arrays: dict[str, np.ndarray] = {}
    for name, level, values, channels, _ in MMEARTH:
        if level == "pixel" and values == "continuous":
            arrays[name] = 4 * (fill.image(f"mp/{seeds[name]}", 2, channels, side, side) - np.float32(0.5))
    for name, seed, codes in (("dynamic_world", "dw", 10), ("esa_worldcover", "wc", 12)):
        arrays[name] = np.floor(fill.arr(f"mp/{seed}", (2, 1, side, side)) * codes).astype(np.int64) - 1
    arrays["era5"] = 2 * fill.sym("mp/era5", (2, 12))
    arrays |= {name: fill.sym(f"mp/{name}", (2, 2)) for name in ("lat", "lon", "month")}
    arrays["biome"] = np.array([[(3 * b + 1) % 14] for b in range(2)])
    arrays["eco_region"] = np.array([[(101 * b + 7) % 846] for b in range(2)])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    masks = {f"{n}_mask": (v >= 0) if v.dtype == torch.int64 else torch.isfinite(v) for n, v in batch.items()}
    return batch | masks


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return recorded("mpmae_atto_dense")


@pytest.fixture(scope="module")
def reference() -> MPMAE:
    return filled(mmearth_model("reference"))


@pytest.fixture(scope="module")
def removed() -> Tensor:
    return torch.from_numpy(recorded("mpmae_atto_dense")["p16/mask"]).bool()


@needs_golden
def test_golden_the_encoder_and_its_projection_equal_the_reference(
    reference: MPMAE, golden: dict, removed: Tensor
) -> None:
    with torch.no_grad():
        encoded = reference.encoder(mmearth_batch(112)["sentinel2"], removed)
        close(encoded, golden["p16/enc"])
        close(reference.proj(encoded)[:, :, 0, 0], golden["p16/proj00"])


@needs_golden
def test_golden_every_prediction_equals_the_reference(reference: MPMAE, golden: dict, removed: Tensor) -> None:
    with torch.no_grad():
        predictions = reference.predict(mmearth_batch(112)["sentinel2"], removed)
    for task in reference.tasks:
        ours = predictions[task.name]
        close(ours[:, 3 * 7 + 3, :64] if task.level == "pixel" else ours, golden[f"p16/pred/{task.name}"])


@needs_golden
def test_golden_every_loss_and_gradient_equals_the_reference(reference: MPMAE, golden: dict, removed: Tensor) -> None:
    reference.zero_grad()
    losses = reference(mmearth_batch(112), removed)
    losses.total.backward()
    ours = [losses.per_task[str(name)].item() for name in golden["p16/task_names"]]
    close(ours, golden["p16/task_losses"])
    close(reference.loss.log_vars, golden["p16/log_vars"])
    close(np.exp(-golden["p16/log_vars"]) * ours + golden["p16/log_vars"], golden["p16/weighted"])
    close(losses.total, golden["p16/loss"], atol=1e-4)  # twelve terms
    # The reference carries the unused norm and head of its encoder through pretraining.
    same_gradients(reference, golden["p16/grad_names"], golden["p16/grad_l2"], reference_name, absent=4)


@needs_golden
def test_golden_missing_targets_count_as_mean_in_the_reference_and_not_in_ours(
    reference: MPMAE, golden: dict, removed: Tensor
) -> None:
    batch = mmearth_batch(112)
    batch["sentinel1"][:, 2:4] = torch.nan
    batch["sentinel1_mask"] = torch.isfinite(batch["sentinel1"])
    corrected = mmearth_model(None)
    corrected.load_state_dict(reference.state_dict())
    with torch.no_grad():
        losses = reference(batch, removed)
        close([losses.per_task[str(name)].item() for name in golden["nan_s1/task_names"]], golden["nan_s1/task_losses"])
        close(losses.total, golden["nan_s1/loss"], atol=1e-4)
        predictions = corrected.predict(batch["sentinel2"], removed)["sentinel1"].reshape(2, 7, 7, 16, 16, 8)
        ours = corrected(batch, removed).per_task["sentinel1"].item()
    target = batch["sentinel1"].reshape(2, 8, 7, 16, 7, 16).permute(0, 2, 4, 3, 5, 1)
    kept = [0, 1, 4, 5, 6, 7]
    error = (predictions - target)[removed.reshape(2, 7, 7)][..., kept].square().mean().item()
    assert ours == pytest.approx(error, rel=1e-5)


@needs_golden
def test_golden_fine_tuning_features_equal_the_reference(golden: dict) -> None:
    encoder = ConvNeXtV2(size="atto", bands=12, patch=16, compat="reference", classes=1000)
    fill_weights(encoder, lambda name: f"encoder.{name}")
    with torch.no_grad():
        close(encoder.features(mmearth_batch(112)["sentinel2"]), golden["nomask/forward_features"])


@needs_golden
@pytest.mark.parametrize(("patch", "side"), [(16, 112), (8, 56)])
def test_golden_sparse_pretraining_equals_its_emulation(patch: int, side: int) -> None:
    golden = recorded("mpmae_atto_sparse_emulated")
    model = filled(mmearth_model("reference_sparse", patch))
    batch, removed = mmearth_batch(side), torch.from_numpy(golden[f"p{patch}/mask"]).bool()
    with torch.no_grad():
        close(model.encoder(batch["sentinel2"], removed), golden[f"p{patch}/enc_DERIVED"])
        losses = model(batch, removed)
    names = golden[f"p{patch}/task_names"]
    close([losses.per_task[str(name)].item() for name in names], golden[f"p{patch}/task_losses_DERIVED"])
    close(losses.total, golden[f"p{patch}/loss_DERIVED"], atol=1e-4)


@needs_golden
def test_golden_twelve_evaluations_of_the_decoder_equal_one(reference: MPMAE, removed: Tensor) -> None:
    """What the reference calls separate decoders is one block under twelve names."""
    twelve = mmearth_model("reference", decoder="separate")
    twelve.load_state_dict(reference.state_dict())
    image = mmearth_batch(112)["sentinel2"]
    with torch.no_grad():
        ours, theirs = reference.predict(image, removed), twelve.predict(image, removed)
    for name, prediction in theirs.items():
        torch.testing.assert_close(ours[name], prediction, rtol=0, atol=0)


# Encoder without norm and head, with both, and the whole model with twelve tasks (facts/training.md 3.1, patch 16).
COUNTS = {
    "atto": (3_389_440, 3_711_080, 12_236_258),
    "femto": (4_850_688, 5_236_456, 13_794_402),
    "pico": (8_556_544, 9_070_568, 17_694_050),
    "nano": (14_986_880, 15_629_160, 24_318_178),
    "tiny": (27_871_392, 28_641_928, 37_396_482),
    "base": (87_699_328, 88_726_376, 97_612_002),
    "large": (196_429_632, 197_969_704, 207_117_474),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", COUNTS)
def test_golden_every_size_has_the_published_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        encoder = ConvNeXtV2(size=size, bands=12, patch=16)
        with_head = ConvNeXtV2(size=size, bands=12, patch=16, classes=1000)
        whole = mmearth_model(None, size=size)
    bare, full, model = count(encoder), count(with_head), count(whole)
    # The reference carries the unused norm and head of its encoder through pretraining; ours does not.
    assert (bare, full, model + full - bare) == COUNTS[size]


@pytest.mark.parametrize(("size", "expected"), [("atto", 3_386_760), ("tiny", 27_864_960)])
def test_golden_the_original_stem_has_the_published_number_of_parameters(size: str, expected: int) -> None:
    with torch.device("meta"):
        assert count(ConvNeXtV2(size=size, bands=12, patch=16, stem="original")) == expected


def test_the_parts_of_the_pretraining_model_have_the_published_numbers() -> None:
    with torch.device("meta"):
        model = mmearth_model(None)
    assert count(model.decoder) == 2_130_432
    assert count(model.heads) == 6_228_846
    assert count(model.image_norm) == 1_024
    assert count(model.proj) == 320 * 512 + 512
    assert count(model.loss) == 12


def test_huge_keeps_the_layers_of_base_with_its_own_widths() -> None:
    with torch.device("meta"):
        encoder = ConvNeXtV2(size="huge", bands=12, patch=16)
    assert [len(stage) for stage in encoder.stages] == [3, 3, 27, 3]
    assert [stage[0].norm.weight.shape[0] for stage in encoder.stages] == [352, 704, 1408, 2816]


SMALL = (
    Task(name="optic", level="pixel", values="continuous", channels=3, patch=8, norm_pix=True),
    Task(name="radar", level="pixel", values="continuous", channels=2, patch=4),
    Task(name="cover", level="pixel", values="categorical", channels=1, classes=5, patch=8),
    Task(name="climate", level="image", values="continuous", channels=4),
)


def small_model(**changes: object) -> MPMAE:
    options = {"size": "atto", "input": "optic", "bands": 3, "patch": 8, "tasks": SMALL, "decoder_dim": 32}
    model = MPMAE(**{**options, **changes})  # type: ignore[arg-type]
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def small_batch() -> dict[str, object]:
    draw = torch.Generator().manual_seed(2)
    batch = {
        "optic": torch.randn(4, 3, 32, 32, generator=draw),
        "radar": torch.randn(4, 2, 16, 16, generator=draw),
        "cover": torch.randint(0, 5, (4, 1, 32, 32), generator=draw),
        "climate": torch.randn(4, 4, generator=draw),
    }
    masks = {f"{name}_mask": torch.ones_like(value, dtype=torch.bool) for name, value in batch.items()}
    return {**batch, **masks, "id": [f"{i:06d}" for i in range(4)]}


def test_hidden_pixels_do_not_reach_the_encoder_nor_leave_it() -> None:
    model, batch = small_model(), small_batch()
    removed = model.masks(batch, seed=0, epoch=0)
    image = batch["optic"]
    assert isinstance(image, Tensor)
    hidden = removed.reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        features = model.encoder(image, removed)
        changed = model.encoder(torch.where(hidden, 1e6, image), removed)
    torch.testing.assert_close(features, changed, rtol=0, atol=0)
    assert (features.flatten(2).transpose(1, 2)[removed] == 0).all()


def test_missing_values_never_reach_the_loss_or_a_gradient() -> None:
    model, batch = small_model(), small_batch()
    removed = model.masks(batch, seed=0, epoch=0)
    for name in ("optic", "radar", "climate"):
        value, mask = batch[name], batch[f"{name}_mask"]
        assert isinstance(value, Tensor)
        assert isinstance(mask, Tensor)
        gone = torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) < 0.4
        gone[0] = True
        mask[gone] = False
        value[gone] = 0.0
    clean = model(batch, removed)
    for name in ("optic", "radar", "climate"):
        value, mask = batch[name], batch[f"{name}_mask"]
        assert isinstance(value, Tensor)
        value[~mask] = torch.nan
    losses = model(batch, removed)
    losses.total.backward()
    assert losses.total.item() == clean.total.item()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_decoder_evaluated_once_equals_one_evaluation_per_task() -> None:
    model, batch = small_model(), small_batch()
    removed = model.masks(batch, seed=0, epoch=0)
    together = model.predict(batch["optic"], removed)
    for task in SMALL:
        alone = small_model(tasks=(task,))
        alone.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k in alone.state_dict() and "loss" not in k}, strict=False
        )
        torch.testing.assert_close(
            alone.predict(batch["optic"], removed)[task.name], together[task.name], rtol=0, atol=0
        )


def test_weights_are_a_function_of_the_generator_alone() -> None:
    torch.manual_seed(5)
    first = small_model().state_dict()
    torch.manual_seed(6)
    second = small_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_of_a_whole_image_need_no_mask_and_keep_their_size() -> None:
    assert small_model().features(small_batch()).shape == (4, 320)


def test_patch_8_is_refused_for_the_dense_reference_in_words() -> None:
    config = Config(name="mpmae", compat="reference", patch=8)
    with pytest.raises(UserError, match="at patch 8 the reference's dense model loses its border") as refused:
        arguments(config, {"naip": field_of("naip", 56)}, anchor="naip", tasks=["naip"])
    assert "use compat: reference_sparse" in str(refused.value)


def test_ground_without_a_valid_pixel_does_not_drown_the_gradients_of_all_else() -> None:
    norms = []
    for missing in (False, True):
        model, batch = small_model(), small_batch()
        mask, image = batch["optic_mask"], batch["optic"]
        assert isinstance(mask, Tensor)
        assert isinstance(image, Tensor)
        if missing:
            mask[1], image[1] = False, torch.nan
        model(batch, model.masks(batch, seed=0, epoch=0)).total.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
    assert norms[1] < 5 * norms[0]
