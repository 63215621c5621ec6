"""Losses against values computed by hand, weighting, masks keyed by sample, and the learning rate's recorded values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from train import optim
from train.losses import (
    MultiTaskLoss,
    Task,
    cross_entropy,
    normalise_patches,
    patchify,
    squared_error,
    task_loss,
)
from train.masking import keep_count, removed_patches

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
NONE_REMOVED = torch.zeros(1, 4, dtype=torch.bool)


def pixel_task(**changes: object) -> Task:
    options = {"name": "height", "level": "pixel", "values": "continuous", "channels": 1, "patch": 2}
    return Task(**{**options, **changes})  # type: ignore[arg-type]


def test_patches_are_read_row_by_row_with_channels_last() -> None:
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    patches = patchify(image, 2)
    assert patches.shape == (1, 4, 4, 2)
    assert patches[0, 1].tolist() == [[2, 18], [3, 19], [6, 22], [7, 23]]


def test_only_removed_patches_are_scored() -> None:
    target, valid = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    prediction = torch.arange(1, 5.0)[None, :, None].expand(1, 4, 4)
    removed = torch.tensor([[False, True, False, True]])
    total, count = task_loss(pixel_task(), prediction, target, valid, removed)
    assert (total.item(), count.item()) == (4 * 2**2 + 4 * 4**2, 8)


def test_an_invalid_target_weighs_nothing_whatever_it_holds() -> None:
    target = torch.tensor([[1.0, torch.nan, torch.inf, 3.0]])
    valid = torch.tensor([[True, False, False, True]])
    total, count = squared_error(torch.zeros(1, 4, requires_grad=True), target, valid)
    assert (total.item(), count.item()) == (10.0, 2)


def test_an_invalid_target_gives_no_gradient() -> None:
    prediction = torch.ones(1, 3, requires_grad=True)
    target = torch.tensor([[torch.nan, 0.0, torch.inf]])
    squared_error(prediction, target, torch.isfinite(target))[0].backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[0.0, 2.0, 0.0]]


def test_cross_entropy_ignores_minus_one() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 7.0]])
    total, count = cross_entropy(logits, torch.tensor([1, -1]))
    assert total.item() == pytest.approx(-math.log(3 / 4))
    assert count.item() == 1


def test_a_class_map_is_scored_pixel_by_pixel() -> None:
    codes = torch.full((1, 1, 4, 4), -1)
    codes[0, 0, 0, 3] = 2  # the second pixel of the second patch
    logits = torch.zeros(1, 4, 4, 3)
    logits[0, 1, 1, 2] = 50.0
    task = pixel_task(values="categorical", classes=3)
    total, count = task_loss(task, logits.reshape(1, 4, 12), codes, codes >= 0, ~NONE_REMOVED)
    assert count.item() == 1
    assert total.item() == pytest.approx(0.0, abs=1e-6)


def test_normalised_patches_have_the_mean_and_deviation_of_their_valid_values() -> None:
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(2, 3, 16, 4, generator=draw) * 7 + 100
    valid = torch.rand(target.shape, generator=draw) < 0.6
    ours = normalise_patches(torch.where(valid, target, torch.nan), valid)
    for b in range(2):
        for patch in range(3):
            values = target[b, patch][valid[b, patch]].double().numpy()
            expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(ours[b, patch][valid[b, patch]], expected, atol=1e-4)


def test_a_patch_of_one_value_or_none_is_finite() -> None:
    valid = torch.zeros(1, 2, 4, 1, dtype=torch.bool)
    valid[0, 0, 0] = True
    assert torch.isfinite(normalise_patches(torch.full((1, 2, 4, 1), 3.0), valid)).all()


def two_tasks() -> tuple[Task, Task]:
    return (
        Task(name="a", level="image", values="continuous", channels=1),
        Task(name="b", level="image", values="continuous", channels=1),
    )


def two_targets(*, b_valid: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    ones = torch.ones(3, 1)
    return {"a": (2 * ones, ones.bool()), "b": (3 * ones, ones.bool() if b_valid else ~ones.bool())}


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_uncertainty_weighting_is_exp_minus_s_times_loss_plus_its_share_of_s(share: float) -> None:
    loss = MultiTaskLoss(two_tasks(), "uncertainty", log_sigma_share=share)
    loss.log_vars.data.copy_(torch.tensor([0.5, -1.0]))
    losses = loss({"a": torch.zeros(3, 1), "b": torch.zeros(3, 1)}, two_targets(), NONE_REMOVED)
    assert losses.total.item() == pytest.approx(math.exp(-0.5) * 4 + math.exp(1.0) * 9 + share * (0.5 - 1.0))
    assert {name: value.item() for name, value in losses.per_task.items()} == {"a": 4.0, "b": 9.0}


def test_equal_weighting_is_the_sum() -> None:
    losses = MultiTaskLoss(two_tasks(), "equal")(
        {"a": torch.zeros(3, 1), "b": torch.zeros(3, 1)}, two_targets(), NONE_REMOVED
    )
    assert losses.total.item() == 13.0


def test_a_task_without_a_valid_target_moves_nothing() -> None:
    loss = MultiTaskLoss(two_tasks(), "uncertainty")
    predictions = {"a": torch.zeros(3, 1), "b": torch.zeros(3, 1, requires_grad=True)}
    losses = loss(predictions, two_targets(b_valid=False), NONE_REMOVED)
    losses.total.backward()
    assert losses.total.item() == 4.0
    assert loss.log_vars.grad is not None
    assert loss.log_vars.grad.tolist() == [-3.5, 0.0]
    assert losses.counts["b"].item() == 0


def test_two_processes_with_shared_counts_average_to_one_process() -> None:
    """Gradients averaged over processes of unequal valid counts are those of the whole batch."""
    prediction = torch.zeros(4, 1, requires_grad=True)
    target = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    valid = torch.tensor([[True], [False], [True], [True]])
    task = two_tasks()[:1]

    def gradient(rows: slice, mean_counts: torch.Tensor | None) -> torch.Tensor:
        loss = MultiTaskLoss(task, "equal")
        reduce = (lambda counts: counts) if mean_counts is None else (lambda counts: mean_counts)
        total = loss({"a": prediction[rows]}, {"a": (target[rows], valid[rows])}, NONE_REMOVED, reduce).total
        return torch.autograd.grad(total, prediction)[0]

    whole = gradient(slice(0, 4), None)
    mean = torch.tensor([1.5])  # of 1 and 2 valid values
    parts = (gradient(slice(0, 2), mean) + gradient(slice(2, 4), mean)) / 2
    torch.testing.assert_close(parts, whole)


# -- masks


def test_a_mask_follows_from_seed_epoch_and_sample_id_alone() -> None:
    together = removed_patches(["a", "b", "c"], 49, 0.6, seed=3, epoch=5)
    alone = removed_patches(["c", "a"], 49, 0.6, seed=3, epoch=5)
    assert torch.equal(together[[2, 0]], alone)
    for other in ({"seed": 4, "epoch": 5}, {"seed": 3, "epoch": 6}):
        assert not torch.equal(together, removed_patches(["a", "b", "c"], 49, 0.6, **other))


def test_every_mask_keeps_the_same_number_and_every_patch_is_hidden_equally_often() -> None:
    removed = removed_patches([str(i) for i in range(4000)], 49, 0.6, seed=0, epoch=0)
    assert (removed.sum(dim=1) == 49 - 19).all()
    share = removed.float().mean(dim=0)
    assert (share - 30 / 49).abs().max() < 5 * math.sqrt(30 / 49 * 19 / 49 / 4000)


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(49, 0.6, 19), (225, 0.75, 56), (256, 0.4, 153), (4, 0.9, 1)])
def test_the_kept_number_is_rounded_as_the_references_do(patches: int, ratio: float, kept: int) -> None:
    assert keep_count(patches, ratio) == kept


# -- optimiser


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden, the reference's recorded outputs")
def test_golden_learning_rates_equal_the_reference() -> None:
    with np.load(GOLDEN / "mmearth_remap_lr.npz") as data:
        epochs, values = data["lr/epoch"], data["lr/value"]
    ours = [optim.learning_rate(epoch, peak=2.4e-3, warmup=40, total=200) for epoch in epochs]
    np.testing.assert_allclose(ours, values, rtol=1e-6, atol=1e-15)


def test_base_rate_grows_with_the_batch() -> None:
    assert optim.peak_rate(lr=None, base_lr=1.5e-4, batch=4096) == pytest.approx(2.4e-3)
    assert optim.peak_rate(lr=7.0, base_lr=None, batch=4096) == 7.0


def test_norms_biases_gates_tokens_and_loss_weights_are_not_decayed() -> None:
    from train.models.mpmae import MPMAE

    task = Task(name="a", level="image", values="continuous", channels=1)
    model = MPMAE(size="atto", input="a", bands=2, patch=8, tasks=[task], decoder_dim=16)
    decayed, exempt = optim.parameter_groups(model.named_parameters(), 0.05)
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in decayed["params"]} == expected  # type: ignore[attr-defined]
    assert exempt["weight_decay"] == 0
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(model.parameters()))  # type: ignore[arg-type]
