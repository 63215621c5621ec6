"""MP-MAE against the reference's own numbers and parameter counts, and against what masking promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from train.losses import Task
from train.models.mpmae import MPMAE, Compat, ConvNeXtV2

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs ../shared/golden, the reference's recorded outputs, which is not here"
)
ATOL = 2e-5

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


def mmearth_model(compat: Compat | None, patch: int = 16) -> MPMAE:
    return MPMAE(size="atto", input="sentinel2", bands=12, patch=patch, tasks=mmearth_tasks(patch), compat=compat)


def reference_name(name: str) -> str:
    """Our parameter names in the reference's words; heads are 1x1 convolutions there."""
    for ours, theirs in (
        ("decoder.", "decoder_dict.sentinel2."), ("heads.", "pred_dict."), ("image_norm.", "layer_norm_tmp."),
        ("loss.", "loss_fn."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    """The golden data's own generator of inputs and weights."""
    spec = importlib.util.spec_from_file_location("detfill", GOLDEN / "detfill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def fill_weights(model: torch.nn.Module, fill: ModuleType, prefix: str = "") -> None:
    for name, value in model.state_dict().items():
        theirs = reference_name(prefix + name)
        shape = tuple(value.shape)
        role = fill.role_of(theirs, shape)
        value.copy_(torch.from_numpy(fill.fill_value(theirs, shape, role)))
    if isinstance(model, MPMAE):
        model.loss.log_vars.copy_(torch.from_numpy(fill.sym("mp/logvars", (12,))))


def mmearth_batch(fill: ModuleType, side: int) -> dict[str, Tensor]:
    """Inputs as ../shared/golden/README.md defines them."""
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
    with np.load(GOLDEN / "mpmae_atto_dense.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def reference(fill: ModuleType) -> MPMAE:
    model = mmearth_model("reference")
    fill_weights(model, fill)
    return model


def close(ours: Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=ATOL)


@needs_golden
def test_golden_the_encoder_equals_the_reference(reference: MPMAE, golden: dict, fill: ModuleType) -> None:
    removed = torch.from_numpy(golden["p16/mask"]).bool()
    with torch.no_grad():
        close(reference.encoder(mmearth_batch(fill, 112)["sentinel2"], removed), golden["p16/enc"])


@needs_golden
def test_golden_every_prediction_equals_the_reference(reference: MPMAE, golden: dict, fill: ModuleType) -> None:
    removed = torch.from_numpy(golden["p16/mask"]).bool()
    with torch.no_grad():
        predictions = reference.predict(mmearth_batch(fill, 112)["sentinel2"], removed)
    for task in reference.tasks:
        ours = predictions[task.name]
        close(ours[:, 3 * 7 + 3, :64] if task.level == "pixel" else ours, golden[f"p16/pred/{task.name}"])


@needs_golden
def test_golden_every_loss_and_gradient_equals_the_reference(reference: MPMAE, golden: dict, fill: ModuleType) -> None:
    reference.zero_grad()
    losses = reference(mmearth_batch(fill, 112), torch.from_numpy(golden["p16/mask"]).bool())
    losses.total.backward()
    ours = [losses.per_task[str(name)].item() for name in golden["p16/task_names"]]
    np.testing.assert_allclose(ours, golden["p16/task_losses"], rtol=0, atol=ATOL)
    weighted = np.exp(-golden["p16/log_vars"]) * ours + golden["p16/log_vars"]
    np.testing.assert_allclose(weighted, golden["p16/weighted"], rtol=0, atol=ATOL)
    assert losses.total.item() == pytest.approx(float(golden["p16/loss"]), abs=1e-4)  # twelve terms
    theirs = dict(zip(golden["p16/grad_names"].tolist(), golden["p16/grad_l2"].tolist(), strict=True))
    norms = {reference_name(n): p.grad.norm().item() for n, p in reference.named_parameters()}
    unused = {name for name, norm in theirs.items() if norm < 0}
    assert norms.keys() == theirs.keys() - unused, "the reference's parameters without gradient are left out"
    for name, norm in norms.items():
        assert norm == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@needs_golden
def test_golden_missing_targets_count_as_mean_in_the_reference_and_not_in_ours(
    reference: MPMAE, golden: dict, fill: ModuleType
) -> None:
    batch = mmearth_batch(fill, 112)
    removed = torch.from_numpy(golden["p16/mask"]).bool()
    batch["sentinel1"][:, 2:4] = torch.nan
    batch["sentinel1_mask"] = torch.isfinite(batch["sentinel1"])
    corrected = mmearth_model(None)
    corrected.load_state_dict(reference.state_dict())
    with torch.no_grad():
        losses = reference(batch, removed)
        theirs = dict(zip(golden["nan_s1/task_names"], golden["nan_s1/task_losses"], strict=True))
        for name, loss in theirs.items():
            assert losses.per_task[str(name)].item() == pytest.approx(loss, abs=ATOL)
        predictions = corrected.predict(batch["sentinel2"], removed)["sentinel1"].reshape(2, 7, 7, 16, 16, 8)
        ours = corrected(batch, removed).per_task["sentinel1"].item()
    target = batch["sentinel1"].reshape(2, 8, 7, 16, 7, 16).permute(0, 2, 4, 3, 5, 1)
    kept = [0, 1, 4, 5, 6, 7]
    error = (predictions - target)[removed.reshape(2, 7, 7)][..., kept].square().mean().item()
    assert ours == pytest.approx(error, rel=1e-5)


@needs_golden
def test_golden_fine_tuning_features_equal_the_reference(golden: dict, fill: ModuleType) -> None:
    encoder = ConvNeXtV2(size="atto", bands=12, patch=16, compat="reference", classes=1000)
    fill_weights(encoder, fill, prefix="encoder.")
    with torch.no_grad():
        close(encoder.features(mmearth_batch(fill, 112)["sentinel2"]), golden["nomask/forward_features"])


@needs_golden
@pytest.mark.parametrize(("patch", "side"), [(16, 112), (8, 56)])
def test_golden_masked_dense_equals_sparse_convolution(
    patch: int, side: int, fill: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The derived sparse encoder couples the samples of a batch in GRN; without that coupling it is ours."""
    with np.load(GOLDEN / "mpmae_atto_sparse_emulated.npz") as data:
        theirs, mask = data[f"p{patch}/enc_DERIVED"], data[f"p{patch}/mask"]
    model = mmearth_model(None, patch)
    fill_weights(model, fill)
    norm = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda x, dim, keepdim: norm(x, dim=(0, dim), keepdim=keepdim))
    with torch.no_grad():
        ours = model.encoder(mmearth_batch(fill, side)["sentinel2"], torch.from_numpy(mask).bool())
    close(ours, theirs)


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


@pytest.mark.parametrize("size", COUNTS)
def test_every_size_has_the_published_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        encoder = ConvNeXtV2(size=size, bands=12, patch=16)
        with_head = ConvNeXtV2(size=size, bands=12, patch=16, classes=1000)
        whole = MPMAE(size=size, input="sentinel2", bands=12, patch=16, tasks=mmearth_tasks(16))
    bare, full, model = (sum(p.numel() for p in m.parameters()) for m in (encoder, with_head, whole))
    # The reference carries the unused norm and head of its encoder through pretraining; ours does not.
    assert (bare, full, model + full - bare) == COUNTS[size]


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


def test_the_encoder_leaves_its_input_as_it_is() -> None:
    model, batch = small_model(), small_batch()
    image = batch["optic"]
    assert isinstance(image, Tensor)
    before = image.clone()
    model.encoder(image, model.masks(batch, seed=0, epoch=0))
    assert torch.equal(image, before)


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


def test_the_corrected_border_differs_from_the_reference_only_at_the_border() -> None:
    """The stem sees 3x3 pixels, so its output differs in one row and column where the padding differs."""
    ours, theirs = (
        ConvNeXtV2(size="atto", bands=3, patch=16),
        ConvNeXtV2(size="atto", bands=3, patch=16, compat="reference"),
    )
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stems = []
    for encoder in (ours, theirs):
        for stage in (*encoder.stages, *encoder.downsample_layers):
            for parameter in stage.parameters():
                parameter.data.zero_()
        seen: list[Tensor] = []
        hook = encoder.stages[0][0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            encoder(image)
        hook.remove()
        stems.append(seen[0].reshape(32, 32, -1))
    difference = (stems[0] - stems[1]).abs().amax(dim=2)
    assert difference[1:-1, 1:-1].max() < 1e-6
    assert difference.max() > 1e-3


def test_weights_are_a_function_of_the_generator_alone() -> None:
    torch.manual_seed(5)
    first = small_model().state_dict()
    torch.manual_seed(6)
    second = small_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_of_a_whole_image_need_no_mask_and_keep_their_size() -> None:
    assert small_model().features(small_batch()).shape == (4, 320)
