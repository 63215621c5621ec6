"""Where the Scale-ALiBi paper and its published code differ, or the code is wrong: what it does, and what ours does.

One test a row of the list of defects (S1 to S11); the recorded numbers are compared in test_train_scale_alibi.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbuild.errors import UserError
from tests.golden import field_of
from train import optim
from train.alibi import Alibi, Grid, distances
from train.losses import reconstruction
from train.models.scale_alibi import Config, ScaleALiBi, arguments, removed_children, scrambled
from train.sensors import Sensor
from train.transformer import Attention, draw_weights

CPU = torch.device("cpu")


def sensors(ratio: int = 2) -> dict[str, Sensor]:
    gsd = {"radar": 10.0, "lores": 10.0, "hires": 10.0 / ratio}
    return {role: Sensor(name=role, bands=("a", "b"), index=(0, 1), patch=4, gsd=gsd[role]) for role in gsd}


def model(*, ratio: int = 2, **changes: object) -> ScaleALiBi:
    options = {"dim": 32, "depth": 2, "heads": 4, "decoder_dim": 32, "mask_ratio": 0.5, **sensors(ratio)}
    made = ScaleALiBi(**{**options, **changes})  # type: ignore[arg-type]
    draw_weights(made, torch.Generator().manual_seed(1))
    return made


def batch(count: int = 3, side: int = 16, ratio: int = 2) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    sides = {"radar": side, "lores": side, "hires": side * ratio}
    images = {role: torch.randn(count, 2, n, n, generator=draw) for role, n in sides.items()}
    masks = {f"{role}_mask": torch.ones_like(x, dtype=torch.bool) for role, x in images.items()}
    return {**images, **masks, "id": [f"{i:06d}" for i in range(count)]}


def test_s1_scores_are_divided_by_the_root_of_the_heads_width() -> None:
    attention, x = Attention(8, 2), torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, v = attention.qkv(attention.norm(x)).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(4) + bias).softmax(dim=-1)
        expected = attention.out((weights @ v).transpose(1, 2).reshape(1, 5, 8))
        torch.testing.assert_close(attention(x, bias), expected)


def test_s2_every_pair_of_sensors_is_contrasted_in_both_directions() -> None:
    ours, theirs = set(model().contrast.pairs), set(model(compat="reference").contrast.pairs)
    names = ("radar", "lores", "hires")
    assert ours == {(a, b) for a in names for b in names if a != b}
    assert theirs == {("lores", "radar"), ("radar", "lores"), ("hires", "hires")}


@pytest.mark.parametrize(("compat", "calls"), [(None, [1, 1]), ("reference", [2])])
def test_s3_each_context_has_its_own_fusion_and_one_is_used_twice_in_the_reference(
    compat: str | None, calls: list[int]
) -> None:
    one, given = model(compat=compat), batch()
    seen = dict.fromkeys(one.fusions, 0)
    for name, fusion in one.fusions.items():
        fusion.register_forward_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    with torch.no_grad():
        one(given, one.masks(given, seed=0, epoch=0))
    assert list(seen.values()) == calls


@pytest.mark.parametrize(("compat", "own"), [(None, True), ("reference", False)])
def test_s4_the_fine_sensor_has_its_own_pool(compat: str | None, own: bool) -> None:
    one = model(compat=compat)
    tokens = {role: torch.ones(1, 2, 32) * i for i, role in enumerate(sensors(), start=1)}
    with torch.no_grad():
        before = one.pool(tokens)
        for parameter in one.pools["lores"].parameters():
            parameter.data.add_(1.0)
        after = one.pool(tokens)
    assert torch.equal(before["hires"], after["hires"]) is own


def brute_force(rows: int, columns: int, ratio: int) -> Tensor:
    """Distances in coarse tokens between the centres of coarse and fine tokens, one by one."""
    found = [
        [math.dist((r + 0.5, c + 0.5), ((i + 0.5) / ratio, (j + 0.5) / ratio))
         for i in range(rows * ratio) for j in range(columns * ratio)]
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip
    return torch.tensor(found)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_s5_the_bias_between_resolutions_is_the_true_distance_and_scrambled_in_the_reference(ratio: int) -> None:
    coarse = Grid(height=3, width=5, token_m=40.0)
    fine = Grid(height=3 * ratio, width=5 * ratio, token_m=40.0 / ratio)
    truth = brute_force(3, 5, ratio)
    torch.testing.assert_close(distances(coarse, fine, 40.0, CPU), truth)
    if ratio == 2:
        wrong = scrambled(distances(fine, fine, 40.0, CPU), len(coarse))
        assert abs(np.corrcoef(truth.flatten(), wrong.flatten())[0, 1]) < 0.3


def test_s6_a_bias_is_minus_slope_times_metres_over_the_metres_of_a_coarse_token() -> None:
    one, given = model(ratio=4), batch(ratio=4)
    seen: list[Tensor] = []
    one.fusions["hires"].register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    with torch.no_grad():
        one.encode(given)
    assert seen[0].shape == (1, 4, 16, 256)
    # Token (0, 0) of radar has its centre at 20 m, the fine token (0, 15) at 155 m; slopes of 4 heads start at 1/4.
    metres = math.dist((20.0, 20.0), (5.0, 155.0))
    assert seen[0][0, 0, 0, 15].item() == pytest.approx(-0.25 * metres / 40.0)
    assert Alibi(heads=4, unit_m=40.0) == one.alibi


def test_s8_the_optimiser_is_adamw_and_spares_what_is_no_linear_map() -> None:
    made = optim.adamw(model(), weight_decay=0.05, betas=(0.9, 0.95))
    assert isinstance(made, torch.optim.AdamW)
    assert [group["weight_decay"] for group in made.param_groups] == [0.05, 0.0]


@pytest.mark.parametrize(("side", "patch", "tokens"), [(512, 8, 4096), (256, 8, 1024), (512, 16, 1024), (256, 16, 256)])
def test_s9_tokens_of_an_image(side: int, patch: int, tokens: int) -> None:
    sensor = Sensor(name="x", bands=("a",), index=(0,), patch=patch, gsd=1.0)
    assert len(sensor.grid(torch.empty(1, 1, side, side, device="meta"))) == tokens


def test_s10_errors_are_squared_and_do_not_cancel() -> None:
    target = torch.zeros(1, 2, 1, 2)
    prediction = torch.tensor([[[[3.0, -3.0]], [[0.0, 0.0]]]])
    everything = torch.ones(1, 2, 1, 2, dtype=torch.bool)
    removed = torch.tensor([[True, False]])
    ((total, count),) = reconstruction(prediction, [(target, everything, removed)], "none")
    assert (prediction.sum().item(), total.item(), count.item()) == (0.0, 18.0, 2)


def test_s11_the_mask_ratio_is_the_share_that_is_hidden() -> None:
    one, given = model(mask_ratio=0.25), batch()
    kept = one.masks(given, seed=0, epoch=0)
    assert {role: x.shape[1] for role, x in kept.items()} == {"radar": 12, "lores": 12, "hires": 48}
    assert "hidden" in (Config.model_fields["mask_ratio"].description or "")


def test_shared_masks_hide_the_same_ground_in_every_sensor() -> None:
    one, given = model(masks="shared"), batch()
    kept = one.masks(given, seed=0, epoch=0)
    removed = {role: torch.ones(3, n, dtype=torch.bool).scatter(1, kept[role], False) for role, n in
               {"radar": 16, "lores": 16, "hires": 64}.items()}  # fmt: skip
    assert torch.equal(removed["radar"], removed["lores"])
    assert torch.equal(removed_children(removed["hires"], (8, 8), 2), removed["lores"])
    independent = model().masks(given, seed=0, epoch=0)
    assert not torch.equal(independent["radar"], independent["lores"])


def test_missing_pixels_never_reach_the_loss_nor_a_gradient() -> None:
    one, given = model(), batch()
    kept = one.masks(given, seed=0, epoch=0)
    for role in sensors():
        gone = torch.rand(given[role].shape, generator=torch.Generator().manual_seed(3)) < 0.3
        gone[0] = role == "hires"
        given[f"{role}_mask"] = ~gone
        given[role][gone] = 0.0
    clean = one(given, kept)
    for role in sensors():
        given[role][~given[f"{role}_mask"]] = torch.nan
    losses = one(given, kept)
    losses.total.backward()
    assert losses.total.item() == clean.total.item()
    # Of six ordered pairs the two without hires have 3 samples each, the others 2.
    assert losses.counts["contrastive"].item() == pytest.approx((2 * 3 + 4 * 2) / 6)
    assert all(torch.isfinite(p.grad).all() for p in one.parameters())


def config(**changes: object) -> Config:
    roles = {"radar": {"modality": "sentinel1_asc", "bands": ["VV", "VH"]}, "lores": {"modality": "sentinel2_l2a"},
             "hires": {"modality": "naip"}}  # fmt: skip
    return Config.model_validate({"name": "scale_alibi", **roles, **changes})


FIELDS = {name: field_of(name, side) for name, side in (("sentinel1_asc", 64), ("sentinel2_l2a", 64), ("naip", 128))}


def test_a_config_names_sensors_and_bands_and_the_corpus_gives_places_and_pixel_sizes() -> None:
    found = arguments(config(), FIELDS, anchor="naip", tasks=None)
    assert found["radar"]["index"] == [0, 1]
    assert (found["radar"]["gsd"], found["lores"]["gsd"]) == (10.0, 10.0)
    assert len(found["lores"]["bands"]) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hires": {"modality": "planet"}}, r"model.hires.modality: 'planet' is not in this corpus"),
        ({"lores": {"modality": "sentinel2_l2a", "bands": ["B99"]}}, r"model.lores.bands: sentinel2_l2a has no band"),
        ({"patch": 24}, r"model.patch: 24 does not divide the 64 pixels of sentinel1_asc"),
        ({"heads": 7}, r"model.heads: 7 does not divide the width 768"),
        ({"radar": {"modality": "naip"}}, r"model: radar and lores need one grid, radar has 128 pixels and lores 64"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments(config(**changes), FIELDS, anchor="naip", tasks=None)


def test_bands_are_taken_by_name_whatever_their_order_in_the_corpus() -> None:
    """Defect M8: two bands exchanged between pretraining and use."""
    changed = config(lores={"modality": "sentinel2_l2a", "bands": ["B8A", "B8"]})
    found = Sensor(**arguments(changed, FIELDS, anchor="naip", tasks=None)["lores"])
    bands = FIELDS["sentinel2_l2a"].bands
    image = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 16, 16)
    given = {"sentinel2_l2a": image, "sentinel2_l2a_mask": torch.ones(1, 12, 16, 16, dtype=torch.bool)}
    assert found.read(given)[0][0, :, 0, 0].tolist() == [bands.index("B8A"), bands.index("B8")]
