"""CROMA against the reference's own numbers and parameter counts, and against what its biases promise."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden import close, detfill, fill_weights, needs_golden, recorded, same_gradients
from train.alibi import Grid, distances, pick, slopes
from train.layouts import CROMA_PRETRAINING, renamer
from train.masking import removed_but
from train.models.croma import CROMA, SIZES, Compat
from train.sensors import Sensor
from train.transformer import sine_positions

CPU = torch.device("cpu")
SENSORS = {
    "radar": Sensor(name="s1", bands=("VV", "VH"), index=(0, 1), patch=8, gsd=10.0),
    "optical": Sensor(name="s2", bands=tuple(f"B{i}" for i in range(12)), index=tuple(range(12)), patch=8, gsd=10.0),
}


def small(compat: Compat | None, **changes: object) -> CROMA:
    options = {"dim": 64, "depth": 4, "heads": 4, "decoder_dim": 32, **SENSORS}
    return CROMA(**{**options, **changes}, compat=compat)  # type: ignore[arg-type]


pretraining_name = renamer(CROMA_PRETRAINING)


def croma_batch(count: int, side: int = 120) -> dict[str, Tensor]:
    images = torch.from_numpy(detfill().image("croma/imgs", count, 14, side, side))
    batch = {"s1": images[:, 12:], "s2": images[:, :12]}
    return batch | {f"{name}_mask": torch.ones_like(x, dtype=torch.bool) for name, x in batch.items()}


# -- biases and positions


@needs_golden
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16])
def test_golden_slopes(heads: int) -> None:
    close(slopes(heads), recorded("alibi")[f"slopes/{heads}"])


def bias(heads: int, picked: Tensor) -> Tensor:
    return -slopes(heads)[:, None, None] * picked[:, None]


@needs_golden
def test_golden_biases_of_a_whole_grid() -> None:
    four, fifteen = (Grid(height=n, width=n, token_m=80.0) for n in (4, 15))
    close(bias(4, distances(four, four, 80.0, CPU)[None]), recorded("alibi")["croma_2dalibi/h4_L16"])
    rows = distances(fifteen, fifteen, 80.0, CPU)[[0, 112, 224]]
    close(bias(16, rows[None])[0].transpose(0, 1), recorded("alibi")["croma_2dalibi/h16_L225_rows_0_112_224"])


@needs_golden
def test_golden_biases_of_kept_tokens_are_indexed_out_of_the_whole() -> None:
    golden = recorded("alibi")
    four = Grid(height=4, width=4, token_m=80.0)
    radar, optical = (torch.from_numpy(golden[f"croma_masked/ids_{one}"]) for one in "ro")
    for name, draw in (("r", radar), ("o", optical)):
        mask = detfill().mask_from_noise(detfill().arr(f"alibi/noise_{name}", (2, 16)), 0.75)
        assert torch.equal(mask["ids_keep"], draw)
    table = distances(four, four, 80.0, CPU)
    close(bias(4, pick(table, radar, radar)), golden["croma_masked/self_radar"])
    close(bias(4, pick(table, radar, optical)), golden["croma_masked/cross_radar_optical"])


@needs_golden
def test_golden_sine_positions() -> None:
    golden = recorded("alibi")
    close(sine_positions(64, 15, 15, CPU), golden["sincos/d64_g15"])
    close(sine_positions(32, 15, 15, CPU)[None], recorded("croma_pretrain_small")["decoder_pos_embed"])
    rows = golden["sincos/d512_g16_rows"]
    ours = sine_positions(512, 16, 16, CPU).numpy()
    for row in rows:
        assert np.abs(ours - row).max(axis=1).min() < 2e-5, "each recorded row is one of ours"


# -- the model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return recorded("croma_pretrain_small")


@pytest.fixture(scope="module")
def reference() -> CROMA:
    model = small("reference")
    fill_weights(model, pretraining_name)
    return model


def recorded_masks(golden: dict[str, np.ndarray], kind: str) -> dict[str, Tensor]:
    return {role: torch.from_numpy(golden[f"{kind}/ids_keep_{role}"]).long() for role in SENSORS}


@needs_golden
def test_golden_masks_follow_from_the_recorded_noise(golden: dict) -> None:
    for role in SENSORS:
        noise = detfill().arr(f"croma/noise_{role}", (3, 225))
        mask = detfill().mask_from_noise(noise, 0.75)
        kept = recorded_masks(golden, "independent")[role]
        assert torch.equal(mask["ids_keep"], kept)
        assert torch.equal(removed_but(kept, 225), mask["mask_for_mae"].bool())


@needs_golden
@pytest.mark.parametrize("kind", ["shared", "independent"])
def test_golden_encodings_and_predictions(reference: CROMA, golden: dict, kind: str) -> None:
    kept, seen = recorded_masks(golden, kind), {}

    def note(name: str, module: nn.Module) -> None:
        seen[name] = None
        module.register_forward_hook(functools.partial(lambda name, _m, _i, out: seen.update({name: out}), name))

    hooks = reference.encoders["radar"], reference.encoders["optical"], reference.fusion, reference.decoder
    for name, module in zip(("radar", "optical", "joint", "decoder"), hooks, strict=True):
        note(name, module)
    with torch.no_grad():
        reference(croma_batch(3), kept)
        pooled = {role: reference.pools[role](seen[role].mean(dim=1)) for role in SENSORS}
    for module in hooks:
        module._forward_hooks.clear()
    for role in SENSORS:
        close(seen[role], golden[f"{kind}/{role}_enc"])
        close(pooled[role], golden[f"{kind}/{role}_gap"])
    close(seen["joint"], golden[f"{kind}/joint_enc"])
    close(seen["decoder"][:, :3], golden[f"{kind}/decoder_pred"])


@needs_golden
@pytest.mark.parametrize("kind", ["shared", "independent"])
def test_golden_losses_and_gradients(reference: CROMA, golden: dict, kind: str) -> None:
    reference.zero_grad()
    losses = reference(croma_batch(3), recorded_masks(golden, kind))
    losses.total.backward()
    close(losses.per_task["contrastive"], golden[f"{kind}/contrastive_loss"])
    close(losses.per_task["radar"] + losses.per_task["optical"], golden[f"{kind}/mae_loss"])
    same_gradients(reference, golden[f"{kind}/grad_names"], golden[f"{kind}/grad_l2"], pretraining_name)


@needs_golden
def test_golden_unmasked_encodings(reference: CROMA, golden: dict) -> None:
    with torch.no_grad():
        found = reference.encode(croma_batch(3))
    for role in SENSORS:
        close(found[role][:, [0, 7, 112, 224]], golden[f"nomask/{role}_enc_tok"])


@needs_golden
def test_golden_parameter_count_of_the_small_model(reference: CROMA, golden: dict) -> None:
    trainable = sum(p.numel() for p in reference.parameters())
    assert trainable == int(golden["n_trainable"])
    assert trainable + sine_positions(32, 15, 15, CPU).numel() == int(golden["n_params"])


# radar encoder, optical encoder, fusion, pool (each), decoder with its position table, contrast, trainable in all.
COUNTS = {
    "base": (42_614_016, 85_618_944, 56_684_544, 4_723_968, 4_120_960, 1_181_185, 199_552_385),
    "large": (151_251_968, 303_025_152, 201_488_384, 8_395_776, 4_252_032, 2_099_201, 678_793_089),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", COUNTS)
def test_golden_every_size_has_the_published_number_of_parameters(size: str) -> None:
    dim, depth, heads = SIZES[size]
    with torch.device("meta"):
        model = CROMA(**SENSORS, dim=dim, depth=depth, heads=heads)
    parts = model.encoders["radar"], model.encoders["optical"], model.fusion, model.pools["radar"]
    table = 225 * 512
    assert (*map(count, parts), count(model.decoder) + table, count(model.contrast), count(model)) == COUNTS[size]
    assert count(model.pools["optical"]) == count(model.pools["radar"])


@needs_golden
def test_golden_released_inference_weights_have_the_published_number(golden: dict) -> None:
    del golden
    expected = json.loads(str(recorded("croma_base_use")["n_params"]).replace("'", '"'))
    dim, depth, heads = SIZES["base"]
    with torch.device("meta"):
        model = CROMA(**SENSORS, dim=dim, depth=depth, heads=heads)
    ours = {
        "s1_encoder": count(model.encoders["radar"]), "s2_encoder": count(model.encoders["optical"]),
        "s1_GAP_FFN": count(model.pools["radar"]), "s2_GAP_FFN": count(model.pools["optical"]),
        "joint_encoder": count(model.fusion),
    }  # fmt: skip
    assert ours == expected
    assert sum(ours.values()) == 194_365_440
