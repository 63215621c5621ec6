"""The floors of benchmarks/learning.py: the best constants of a train split, scored on another, against NumPy."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch

from benchmarks.floors import Constants, forests, interval
from benchmarks.learning import TaskScore, as_text
from tests.test_train_corrections import croma, croma_batch, mpmae, mpmae_batch
from train.losses import IGNORE
from train.validate import mean_losses, summed_losses

SPLITS = ("train", "looked", "val", "test")


def noted_then_scored(name: str, train: tuple[torch.Tensor, ...], val: tuple[torch.Tensor, ...]) -> float:
    """The mean loss of the constant of ``train`` on ``val``; the model's own answer is far off and must not matter."""
    constants = Constants()
    for noting, arguments in ((True, train), (False, val)):
        constants.noting = noting
        for _ in constants.each([{}]):
            total, count = getattr(constants, name)(*arguments)
    return float(total / count)


def test_the_floor_of_a_squared_error_is_the_mean_of_each_number() -> None:
    draw = torch.Generator().manual_seed(0)
    train, val = torch.randn(40, 3, generator=draw) + 5, torch.randn(9, 3, generator=draw) + 5
    valid = torch.rand(40, 3, generator=draw) > 0.3
    mean = np.nanmean(torch.where(valid, train, torch.nan).double().numpy(), axis=0)
    every = torch.ones(9, 3, dtype=torch.bool)
    found = noted_then_scored("squared_error", (train * 0, train, valid), (val + 100, val, every))
    assert found == pytest.approx(((val.numpy() - mean) ** 2).mean(), rel=1e-5)


def test_each_place_in_a_patch_has_a_constant_of_its_own() -> None:
    """(B, L, P, C): what is the same in every patch costs nothing."""
    pattern = torch.arange(12.0).reshape(4, 3).expand(2, 5, 4, 3)
    every = torch.ones(pattern.shape, dtype=torch.bool)
    assert noted_then_scored("squared_error", (pattern, pattern, every), (pattern * 0, pattern, every)) == 0


def test_the_floor_of_classes_is_their_frequency() -> None:
    codes = torch.tensor([0, 0, 0, 1, IGNORE])
    chances = (np.array([3, 1, 0]) + 1 / 3) / 5
    found = noted_then_scored("cross_entropy", (torch.zeros(5, 3), codes), (torch.ones(2, 3), torch.tensor([0, 2])))
    assert found == pytest.approx(-np.log(chances[[0, 2]]).mean(), rel=1e-5)


def test_the_floors_of_a_model_are_those_of_its_own_losses_and_masks() -> None:
    constants = Constants()
    model, batch = mpmae(), {**mpmae_batch(), "id": list("abcd")}
    with constants.standing_in():
        noted = mean_losses(model, constants.each([batch]))
        constants.noting = False
        floor = mean_losses(model, constants.each([batch]))
    assert noted == mean_losses(model, [batch])
    climate = batch["climate"]
    assert floor["climate"] == pytest.approx(float((climate - climate.mean(dim=0)).square().mean()), rel=1e-5)


def test_the_floor_of_a_contrast_is_the_logarithm_of_the_candidates() -> None:
    constants = Constants()
    with constants.standing_in():
        mean_losses(croma(), constants.each([croma_batch(5)]))
        constants.noting = False
        floor = mean_losses(croma(), constants.each([croma_batch(5)]))
    assert floor["contrastive"] == pytest.approx(np.log(5))


def test_sums_of_samples_one_at_a_time_are_those_of_their_batch() -> None:
    model, batch = mpmae(), {**mpmae_batch(), "id": list("abcd")}
    alone = [{key: value[at : at + 1] for key, value in batch.items()} for at in range(4)]
    together = next(summed_losses(model, [batch]))
    torch.testing.assert_close(sum(summed_losses(model, alone)), together, rtol=1e-5, atol=1e-5)
    assert model.training


def test_an_interval_is_that_of_the_share_over_samples() -> None:
    """Against the normal approximation of a ratio of two means."""
    draw = np.random.default_rng(0)
    errors = np.stack([draw.gamma(4, 0.2, 400), draw.gamma(4, 0.25, 400)])
    share = errors[0].sum() / errors[1].sum()
    spread = np.std(errors[0] - share * errors[1]) / errors[1].mean() / 20
    assert interval(errors) == pytest.approx((share - 1.96 * spread, share + 1.96 * spread), abs=0.2 * spread)
    assert interval(np.ones((2, 5))) == (1, 1)
    assert np.isnan(interval(np.zeros((2, 5)))).all()


def test_a_forest_finds_what_statistics_tell_and_leaves_what_they_do_not() -> None:
    def batch(samples: int, seed: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        bright = torch.randn(samples, 1, generator=draw)
        told = {"optic": bright[:, :, None, None] + torch.randn(samples, 3, 16, 16, generator=draw)}
        told["climate"] = torch.cat([3 * bright, torch.randn(samples, 3, generator=draw)], dim=1)
        masks = {f"{name}_mask": torch.ones_like(value, dtype=torch.bool) for name, value in told.items()}
        masks["climate_mask"][::3, 0] = False
        return {**told, **masks, "climate": torch.where(masks["climate_mask"], told["climate"], 1e6)}

    found = forests(mpmae(), {"train": [batch(80, 1), batch(40, 2)], "val": [batch(60, 3), batch(20, 4)]})
    # Three channels of noise with variance 1 stay; one of variance 9, a third of it missing, is found out.
    assert found.keys() == {"optic", "climate"}
    climate = found["climate"]
    assert 3 / (3 + 6) < climate.val < 0.5
    assert climate.low < climate.val < climate.high < 0.55
    assert forests(croma(), {"train": [], "val": []}) == {}


def test_a_forest_leaves_all_of_what_an_image_does_not_tell() -> None:
    """Noise: nothing is gained, and the interval says so."""
    draw = torch.Generator().manual_seed(0)
    told = {"optic": torch.randn(150, 3, 16, 16, generator=draw), "climate": torch.randn(150, 4, generator=draw)}
    batch = told | {f"{name}_mask": torch.ones_like(value, dtype=torch.bool) for name, value in told.items()}
    found = forests(
        mpmae(), {"train": [{k: v[:90] for k, v in batch.items()}], "val": [{k: v[90:] for k, v in batch.items()}]}
    )
    assert 0.9 < found["climate"].low < found["climate"].val < found["climate"].high < 1.2


def test_a_report_says_what_was_not_scored() -> None:
    lacking = dict.fromkeys(SPLITS, nan)
    score = TaskScore(task="radar", model=lacking, constant=lacking, interval=(nan, nan), forest=None)
    task = score.plain() | {"lowest": None}
    probe = {"label": "x", "about": "y", "counts": {"test": 0}, "majority": None, "scores": [], "differences": []}
    told = {"method": "croma", "samples": 3, "recipe": "r", "source": {}, "synthetic": False, "steps": 1}
    told["counts"] = {"train": 2, "val": 0, "test": 1}
    text = as_text(told | {"tasks": [task], "probe": probe | {"notes": ["not scored"]}})
    assert "3 real samples of r, 1 steps; train 2, val 0, test 1" in text
    assert [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]] == ["radar", *"---------"]
    assert "note: not scored" in text
