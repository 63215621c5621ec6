"""Where papers and their published code differ, or the code is wrong: what the reference does, and what ours does.

One test a row of the list of defects; the letter is the method (M: MP-MAE, C: CROMA, S: Scale-ALiBi).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from train.convnext import ConvNeXtV2
from train.losses import MultiTaskLoss, Task
from train.models.croma import CROMA
from train.models.mpmae import MPMAE
from train.sensors import Sensor
from train.transformer import draw_weights as draw_transformer

TASKS = (
    Task(name="optic", level="pixel", values="continuous", channels=3, patch=8),
    Task(name="climate", level="image", values="continuous", channels=4),
)


def mpmae(**changes: object) -> MPMAE:
    options = {"size": "atto", "input": "optic", "bands": 3, "patch": 8, "tasks": TASKS, "decoder_dim": 16}
    model = MPMAE(**{**options, **changes})  # type: ignore[arg-type]
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def mpmae_batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    batch = {"optic": torch.randn(4, 3, 32, 32, generator=draw), "climate": torch.randn(4, 4, generator=draw)}
    return batch | {f"{name}_mask": torch.ones_like(value, dtype=torch.bool) for name, value in batch.items()}


def some_removed() -> Tensor:
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(3))
    return noise.argsort(dim=1).argsort(dim=1) >= 6


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_m1_separate_decoders_are_separate_and_the_references_are_one_evaluated_again() -> None:
    shared, separate = mpmae(), mpmae(decoder="separate")
    again = mpmae(decoder="separate", compat="reference_sparse")
    one = parameters(shared.decoder)
    assert parameters(separate) == parameters(shared) + (len(TASKS) - 1) * one
    assert parameters(again) == parameters(shared)
    state = shared.state_dict()
    for task in TASKS:
        state |= {f"decoders.{task.name}.{k}": v for k, v in shared.decoder.state_dict().items()}
    separate.load_state_dict({k: v for k, v in state.items() if not k.startswith("decoder.")})
    image, removed = mpmae_batch()["optic"], some_removed()
    with torch.no_grad():
        for name, prediction in separate.predict(image, removed).items():
            torch.testing.assert_close(prediction, shared.predict(image, removed)[name], rtol=0, atol=0)


def test_m2_the_weight_of_a_task_adds_log_sigma_and_the_references_twice_that() -> None:
    task = Task(name="a", level="image", values="continuous", channels=1)
    target = {"a": (torch.full((3, 1), 2.0), torch.ones(3, 1, dtype=torch.bool))}
    totals = []
    for share in (mpmae().loss.log_sigma_share, mpmae(compat="reference_sparse").loss.log_sigma_share):
        loss = MultiTaskLoss((task,), "uncertainty", log_sigma_share=share)
        loss.log_vars.data.fill_(0.8)
        totals.append(loss({"a": torch.zeros(3, 1)}, target, torch.zeros(3, 4, dtype=torch.bool)).total.item())
    sigma = math.exp(0.8 / 2)
    assert totals[0] == pytest.approx(4 / sigma**2 + math.log(sigma))
    assert totals[1] == pytest.approx(4 / sigma**2 + 2 * math.log(sigma))


def test_m3_image_level_heads_see_hidden_places_and_the_references_see_all() -> None:
    z = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(4))
    removed = some_removed()
    model, reference = mpmae(), mpmae(compat="reference_sparse")
    hidden = torch.stack([model.image_norm(z)[b, removed[b]].mean(dim=0) for b in range(4)])
    torch.testing.assert_close(model._pool(z, removed), hidden)
    torch.testing.assert_close(reference._pool(z, removed), model.image_norm(z).mean(dim=1))
    nothing = torch.zeros_like(removed)
    torch.testing.assert_close(model._pool(z, nothing), reference._pool(z, nothing))


def test_m4_a_missing_input_pixel_is_the_mean_and_poisons_the_reference() -> None:
    batch, removed = mpmae_batch(), some_removed()
    batch["optic_mask"][0, :, 3, 5] = False
    batch["optic"][0, :, 3, 5] = torch.nan
    removed[0, 0] = False
    losses, poisoned = mpmae()(batch, removed), mpmae(compat="reference_sparse")(batch, removed)
    assert torch.isfinite(losses.total)
    assert torch.isnan(poisoned.total)


def test_m5_a_missing_target_is_not_scored_and_scored_as_the_mean_by_the_reference() -> None:
    batch, removed = mpmae_batch(), some_removed()
    batch["optic_mask"][:, 2] = False
    batch["optic"][:, 2] = 0.0
    model, reference = mpmae(compat=None), mpmae(compat="reference_sparse")
    # The rows of a head are (pixel, channel); a prediction of 5 for the missing band and 0 for the others.
    for one in (model, reference):
        one.heads["optic"].weight.data.zero_()
        one.heads["optic"].bias.data.copy_(torch.tensor([0.0, 0.0, 5.0]).repeat(64))
    target = batch["optic"].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(4, 16, 3, 64)
    error = target[removed][:, :2].square()
    assert model(batch, removed).per_task["optic"].item() == pytest.approx(error.mean().item(), rel=1e-5)
    theirs = (error.mean() * 2 + 25) / 3
    assert reference(batch, removed).per_task["optic"].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_m6_masking_leaves_the_callers_tensor_as_it_is() -> None:
    batch, removed = mpmae_batch(), some_removed()
    before = batch["optic"].clone()
    mpmae()(batch, removed)
    assert torch.equal(batch["optic"], before)
    # What the reference does: x *= 1 - mask.
    mask = removed.reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    given = batch["optic"]
    given *= 1 - mask.float()
    assert not torch.equal(batch["optic"], before)


def test_m11_the_trainer_starts_from_any_folder_and_asks_for_no_sparse_convolutions(tmp_path: Path) -> None:
    """The reference imports MinkowskiEngine for its dense model too, and its script cannot be started as it is told."""
    blocked = (
        "import sys; sys.modules['MinkowskiEngine'] = None; from train.pretrain import main; sys.exit(main(['c']))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: c")
    assert len(done.stderr.splitlines()) == 1


def test_m10_first_convolutions_keep_the_spread_of_their_input_and_the_references_have_weights_near_one() -> None:
    ours, dense, sparse = (mpmae(compat=compat, patch=16).encoder for compat in (None, "reference", "reference_sparse"))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert ours.first_convolution(noise).std().item() == pytest.approx(1, rel=0.1)
    assert ours.stages[2][0].dwconv.weight.std().item() == pytest.approx(1 / 7, rel=0.05)
    # A unit normal that is cut at -2 and 2 has a standard deviation of 0.88.
    assert dense.stages[2][0].dwconv.weight.std().item() == pytest.approx(0.88, rel=0.05)
    spreads = [one.stages[2][0].pwconv1.weight.std().item() for one in (ours, dense, sparse)]
    assert spreads == pytest.approx([0.02, 0.02, 0.88], rel=0.05)


def test_m10_the_epsilon_of_grn_is_convnexts_and_a_hundred_times_larger_in_the_dense_reference() -> None:
    x = torch.full((1, 4, 8), 1e-4)
    shares = []
    for compat in (None, "reference"):
        norm = ConvNeXtV2(size="atto", bands=3, patch=16, compat=compat).stages[0][0].grn
        small = type(norm)(8, norm.eps)
        small.gamma.data.fill_(1.0)
        shares.append((small(x) / x - 1).mean().item())
    response = 2e-4  # sqrt(4) x 1e-4
    assert shares == pytest.approx([response / (response + 1e-6), response / (response + 1e-4)], rel=1e-4)


def test_m10_sparse_pretraining_couples_the_samples_of_a_batch_and_ours_does_not() -> None:
    image, removed = mpmae_batch()["optic"], some_removed()
    draw = torch.Generator().manual_seed(5)
    for compat, coupled in ((None, False), ("reference_sparse", True)):
        model = mpmae(compat=compat)
        for stage in model.encoder.stages:
            for block in stage:
                block.grn.gamma.data.normal_(generator=draw)
        with torch.no_grad():
            together, alone = model.encoder(image, removed)[:1], model.encoder(image[:1], removed[:1])
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4) is not coupled


def test_m10_the_border_differs_from_the_dense_reference_and_nothing_else_does() -> None:
    """The stem sees 3x3 pixels, so its output differs in one row and column where the padding differs."""
    ours = ConvNeXtV2(size="atto", bands=3, patch=16)
    theirs = ConvNeXtV2(size="atto", bands=3, patch=16, compat="reference")
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stems = []
    for encoder in (ours, theirs):
        seen: list[Tensor] = []
        hook = encoder.stages[0][0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            encoder(image)
        hook.remove()
        stems.append(seen[0].reshape(32, 32, -1))
    difference = (stems[0] - stems[1]).abs().amax(dim=2)
    assert difference[1:-1, 1:-1].max() < 1e-6
    assert difference.max() > 1e-3


# -- CROMA

SENSORS = {
    "radar": Sensor(name="s1", bands=("VV", "VH"), index=(0, 1), patch=4, gsd=10.0),
    "optical": Sensor(name="s2", bands=("B4", "B8"), index=(0, 1), patch=4, gsd=10.0),
}


def croma(**changes: object) -> CROMA:
    options = {"dim": 32, "depth": 2, "heads": 4, "decoder_dim": 32, **SENSORS}
    model = CROMA(**{**options, **changes})  # type: ignore[arg-type]
    draw_transformer(model, torch.Generator().manual_seed(1))
    return model


def croma_batch(count: int = 4, side: int = 24) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    batch = {name: torch.randn(count, 2, side, side, generator=draw) for name in ("s1", "s2")}
    masks = {f"{name}_mask": torch.ones_like(x, dtype=torch.bool) for name, x in batch.items()}
    return {**batch, **masks, "id": [f"{i:06d}" for i in range(count)]}


def recorded_calls(model: CROMA, batch: dict[str, Any], kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The biases that the fusion gets for self- and for cross-attention."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.fusion.register_forward_pre_hook(lambda _, given: seen.append(given[2:4]))
    with torch.no_grad():
        model(batch, kept)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("masks", "equal"), [("shared", True), ("independent", False)])
def test_c1_self_attention_in_the_fusion_gets_distances_between_its_own_tokens(masks: str, equal: bool) -> None:
    batch, ours, theirs = croma_batch(), croma(masks=masks), croma(masks=masks, compat="reference")
    kept = ours.masks(batch, seed=0, epoch=0)
    assert torch.equal(kept["radar"], kept["optical"]) is equal
    own, cross = recorded_calls(ours, batch, kept)
    assert (own.diagonal(dim1=2, dim2=3) == 0).all(), "a token is at no distance from itself"
    theirs_own, theirs_cross = recorded_calls(theirs, batch, kept)
    assert torch.equal(cross, theirs_cross)
    assert torch.equal(theirs_own, theirs_cross)
    assert torch.equal(own, theirs_own) is equal


def test_c2_keys_of_the_contrast_carry_gradients_and_not_in_the_reference() -> None:
    pooled = {name: torch.randn(4, 32, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(SENSORS)}
    present = {name: torch.ones(4, dtype=torch.bool) for name in SENSORS}
    for compat, carries in ((None, True), ("reference", False)):
        leaves = {name: x.clone().requires_grad_() for name, x in pooled.items()}
        (total, _), _ = croma(compat=compat).contrast(leaves, present)  # optical looks for radar
        total.backward()
        given = {name: leaf.grad.any().item() for name, leaf in leaves.items()}
        assert given == {"optical": True, "radar": carries}


def test_c3_independent_masks_place_tokens_at_radars_places_alone() -> None:
    batch, model = croma_batch(), croma(masks="independent")
    kept = model.masks(batch, seed=0, epoch=0)
    seen: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    with torch.no_grad():
        model(batch, kept)
    hook.remove()
    assert torch.equal(seen[0], kept["radar"])
    assert not torch.equal(seen[0].sort().values, kept["optical"].sort().values)


def test_c4_target_patches_are_standardised_over_both_sensors_or_each_for_itself() -> None:
    batch = croma_batch()
    batch["s1"] = 100 * batch["s1"]
    kept = croma().masks(batch, seed=0, epoch=0)
    small = {}
    for norm_pix in ("joint", "sensor", "none"):
        model = croma(norm_pix=norm_pix)
        model.decoder.out.weight.data.zero_()
        model.decoder.out.bias.data.zero_()
        with torch.no_grad():
            small[norm_pix] = {name: value.item() for name, value in model(batch, kept).per_task.items()}
    # A prediction of 0 errs by the target's mean square: 1 for what is standardised by itself (n - 1 of n values).
    assert small["sensor"]["radar"] == pytest.approx(31 / 32, rel=1e-4)
    assert small["sensor"]["optical"] == pytest.approx(31 / 32, rel=1e-4)
    assert small["joint"]["radar"] > 1.9
    assert small["joint"]["optical"] < 0.1
    assert small["none"]["radar"] > 1e3
    assert croma().norm_pix == croma(compat="reference").norm_pix == "joint"


def test_c5_features_of_a_sample_do_not_depend_on_its_batch() -> None:
    """The reference's usage notes normalise each batch by its own statistics; here those of the corpus come first."""
    batch, model = croma_batch(), croma()
    alone = {name: x[:1] for name, x in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(model.features(batch)[:1], model.features(alone), rtol=1e-4, atol=1e-5)


def test_missing_pixels_never_reach_cromas_loss_nor_a_gradient() -> None:
    batch, model = croma_batch(), croma()
    kept = model.masks(batch, seed=0, epoch=0)
    for name in ("s1", "s2"):
        gone = torch.rand(batch[name].shape, generator=torch.Generator().manual_seed(3)) < 0.3
        gone[0] = name == "s1"
        batch[f"{name}_mask"] = ~gone
        batch[name][gone] = 0.0
    clean = model(batch, kept)
    for name in ("s1", "s2"):
        batch[name][~batch[f"{name}_mask"]] = torch.nan
    losses = model(batch, kept)
    losses.total.backward()
    assert losses.total.item() == clean.total.item()
    assert losses.counts["contrastive"].item() == 3, "the first sample has no radar"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_another_image_size_needs_another_table_of_distances_and_no_other_weights() -> None:
    model = croma()
    with torch.no_grad():
        assert model.encode(croma_batch(side=24))["joint"].shape == (4, 36, 32)
        assert model.encode(croma_batch(side=40))["joint"].shape == (4, 100, 32)
