"""What a model sees of a batch, against closed forms and PyTorch: windows, scaling, mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmbuild.errors import UserError
from mmbuild.stream.transforms import Field
from tests.shards import MODALITIES
from train.config import View
from train.views import Viewer, Window, resize, resize_classes

SIDE = 24


def field(name: str, *shape: int) -> Field:
    one = MODALITIES[name]
    return Field(
        name=name, members=(one,), bands=one.band_names[: shape[1]], shape=shape, gsd=one.gsd,
        n_classes=len(one.class_codes), statistics=(None,),
    )  # fmt: skip


FINE, COARSE, COVER = field("optic_a", 1, 2, SIDE, SIDE), field("radar", 1, 2, 12, 12), field("cover", 1, 1, 6, 6)
CLIMATE = field("climate", 1, 3)


def ramp(side: int, count: int) -> torch.Tensor:
    """(B, 2, y, x): metres east and north of the chip's corner, plus 10,000 a sample."""
    at = (torch.arange(side) + 0.5) * (SIDE / side)
    plane = torch.stack([at[None, :].expand(side, side), at[:, None].expand(side, side)])
    return plane + torch.arange(count)[:, None, None, None] * 10_000.0


def batch(count: int = 6) -> dict[str, Any]:
    made: dict[str, Any] = {"id": [f"{i:06d}" for i in range(count)], "epoch": 2}
    for one in (FINE, COARSE):
        made[one.name] = ramp(one.shape[-1], count)
        made[f"{one.name}_mask"] = torch.ones_like(made[one.name], dtype=torch.bool)
    return made


def test_a_window_is_the_same_ground_in_all_modalities() -> None:
    """Enlarged linear fields stay exact, so that both modalities tell one place and size of each sample."""
    view = Viewer(View(window=[8, 12]), (FINE, COARSE), side=16, seed=5)
    assert [one.shape for one in view.fields] == [(1, 2, 16, 16), (1, 2, 8, 8)]
    seen = view(batch())
    fine, coarse = seen["optic_a"], seen["radar"]
    assert (fine.shape, coarse.shape) == ((6, 2, 16, 16), (6, 2, 8, 8))
    inner = F.avg_pool2d(fine, 2)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, coarse[:, :, 2:-2, 2:-2], atol=0.02, rtol=0)
    sides = fine[:, 0, 8, 9] - fine[:, 0, 8, 8]
    assert ((sides * 16 > 7.9) & (sides * 16 < 12.1)).all()
    assert sides.unique().numel() > 1


def test_a_view_is_a_function_of_seed_epoch_and_sample_whatever_the_batch() -> None:
    view = Viewer(View(window=[8, 20]), (FINE, COARSE), side=16, seed=5)
    whole, part = view(batch()), batch()
    part = {k: v[2:4] if k != "epoch" else v for k, v in part.items()}
    torch.testing.assert_close(view(part)["optic_a"], whole["optic_a"][2:4])
    other = view(batch() | {"epoch": 3})["optic_a"]
    assert not torch.equal(other, whole["optic_a"])


@pytest.mark.parametrize("target", [6, 16, 30])
def test_resizing_a_whole_chip_is_pytorchs_antialiased_resize(target: int) -> None:
    values = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    window = Window(rows=np.zeros(2), cols=np.zeros(2), sides=np.ones(2))
    ours, valid = resize(values, torch.ones_like(values, dtype=torch.bool), window, SIDE, target)
    theirs = F.interpolate(values, (target, target), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert valid.all()


def test_a_missing_value_never_reaches_a_resized_one() -> None:
    values, valid = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., :4] = False
    values = torch.where(valid, values, torch.nan)
    window = Window(rows=np.array([0.0]), cols=np.array([0.0]), sides=np.array([1.0]))
    resized, known = resize(values, valid, window, 8, 16)
    assert known[..., 8:].all()
    assert not known[..., :8].any()
    assert (resized == known.float()).all()


def test_classes_are_picked_not_mixed() -> None:
    codes = torch.arange(36).view(1, 1, 6, 6) % 5 - 1
    window = Window(rows=np.array([1 / 6]), cols=np.array([2 / 6]), sides=np.array([0.5]))
    picked, valid = resize_classes(codes, codes >= 0, window, 6, 3)
    assert torch.equal(picked, codes[..., 1:4, 2:5])
    assert torch.equal(valid, picked >= 0)


def test_satmae_scaling_puts_two_deviations_at_the_ends_and_clips() -> None:
    values = torch.tensor([-9.0, -2, 0, 1, 2, 9, 0, 0]).view(1, 2, 2, 2)
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[0, 1, 1, 1] = False
    seen = Viewer(View(scaling="satmae"), (field("radar", 1, 2, 2, 2),), side=2, seed=0)(
        {"id": ["a"], "epoch": 0, "radar": values, "radar_mask": mask}
    )
    assert seen["radar"].flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1, 0.5, 0]


def test_mixup_mixes_neighbours_that_have_everything_alike_in_all_modalities() -> None:
    fields = (field("optic_a", 1, 1, 4, 4), field("radar", 1, 1, 2, 2))
    made: dict[str, Any] = {"id": [f"{i}" for i in range(4)], "epoch": 0}
    for one in fields:
        made[one.name] = torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1, 1).expand(4, *one.shape[1:]).clone()
        made[f"{one.name}_mask"] = torch.ones_like(made[one.name], dtype=torch.bool)
    made["radar_mask"][0, 0, 0, 0] = False
    made["radar_mask"][3] = False
    seen = Viewer(View(mixup=0.3), fields, side=4, seed=1)(made)
    shares = seen["optic_a"][:, 0, 0, 0]
    assert torch.equal(seen["radar"][:2, 0, 1, 1], shares[:2])
    assert ((shares[:2] > 0) & (shares[:2] < 1)).all()
    assert seen["radar_mask"][:2].sum(dim=(1, 2, 3)).tolist() == [3, 3]
    assert shares[2:].tolist() == [0, 1]  # one of them lacks radar: neither is mixed
    assert seen["radar_mask"].flatten(1).any(dim=1).tolist() == [True, True, True, False]
    first_two = {k: v[:2] if k != "epoch" else v for k, v in made.items()}
    assert torch.equal(Viewer(View(mixup=0.3), fields, side=4, seed=1)(first_two)["optic_a"], seen["optic_a"][:2])


def test_mixtures_follow_the_beta_distribution() -> None:
    one = field("radar", 1, 1, 1, 1)
    count = 4000
    values = (torch.arange(count) % 2).float().view(count, 1, 1, 1)
    made = {"id": [f"{i}" for i in range(count)], "epoch": 0, "radar": values, "radar_mask": values >= 0}
    shares = Viewer(View(mixup=0.3), (one,), side=1, seed=1)(made)["radar"].flatten()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), abs=0.01)  # a^2 / (4 a^2 (2 a + 1))


def test_a_still_view_draws_nothing() -> None:
    still = Viewer(View(window=[8, 20], mixup=0.3), (FINE, COARSE), side=16, seed=5, still=True)
    seen = still(batch())
    assert torch.equal(seen["optic_a"], batch()["optic_a"])


def test_a_still_view_asks_nothing_of_windows_and_mixtures_that_it_does_not_draw() -> None:
    """Chips that are cut to the model's side are smaller than the windows of training."""
    view = View(window=[8, 30], mixup=0.3)
    assert Viewer(view, (FINE, COVER), side=10, seed=0, batch=5, still=True).fields == (FINE, COVER)


@pytest.mark.parametrize(
    ("view", "options", "message"),
    [
        (View(window=[8, 30]), {}, r"view\.window: 30 is more than the 24 pixels of a chip; write \[8, 24\]"),
        (View(window=[8, 20]), {"side": 10}, r"model\.crop: 10 finest pixels are no whole number of pixels of cover"),
        (View(mixup=0.3), {}, r"view\.mixup: cover holds classes, which cannot be mixed; leave mixup out"),
        (View(mixup=0.3), {"fields": (FINE,), "batch": 5}, r"view\.mixup: 5 samples at a time .* choose an even"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(view: View, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Viewer(view, **{"fields": (FINE, COVER), "side": 16, "seed": 0, **options})
