"""InfoNCE: the recorded losses and gradients, and two processes that equal one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.golden import close, detfill, needs_golden, recorded
from train.contrastive import Contrast, gather_rows
from train.losses import global_means, same_counts

PAIRS = [("optical", "radar"), ("radar", "optical")]


def recorded_inputs() -> dict[str, Tensor]:
    fill = detfill()
    radar = fill.sym("nce/radar", (6, 16))
    optical = np.float32(0.7) * radar + np.float32(0.5) * fill.sym("nce/optical", (6, 16))
    return {"radar": torch.from_numpy(radar), "optical": torch.from_numpy(optical)}


def recorded_contrast(*, detach_keys: bool) -> Contrast:
    """The recorded model's projections, named as in the reference's own class."""
    fill = detfill()
    contrast = Contrast(16, PAIRS, detach_keys=detach_keys, clamps=not detach_keys)
    with torch.no_grad():
        for role, layer in contrast.projections.items():
            for kind, value in layer.named_parameters():
                name = f"{role}_proj.{kind}"
                role_of = fill.role_of(name, tuple(value.shape))
                value.copy_(torch.from_numpy(fill.fill_value(name, tuple(value.shape), role_of)))
    return contrast


def everyone(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones(len(x), dtype=torch.bool) for name, x in features.items()}


def scored(
    contrast: Contrast, features: dict[str, Tensor], mean_counts: Callable[[Tensor], Tensor] = same_counts
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients by sensor and of the temperature); gradients as one process gets them."""
    leaves = {name: x.clone().requires_grad_() for name, x in features.items()}
    loss = global_means(contrast(leaves, everyone(leaves)), mean_counts)[0].mean()
    contrast.zero_grad()
    loss.backward()
    grads = {name: x.grad for name, x in leaves.items()} | {"logit_scale": contrast.logit_scale.grad}
    return loss.detach(), grads  # type: ignore[return-value]


@needs_golden
def test_golden_inputs_and_temperature() -> None:
    golden = recorded("infonce")
    for name, value in recorded_inputs().items():
        close(value, golden[name])
    assert recorded_contrast(detach_keys=True).logit_scale.item() == pytest.approx(float(golden["logit_scale_init"]))


@needs_golden
def test_golden_one_process_without_gradients_through_keys() -> None:
    golden = recorded("infonce")
    loss, grads = scored(recorded_contrast(detach_keys=True), recorded_inputs())
    close(loss, golden["ws1/loss"][0])
    close(grads["logit_scale"], golden["ws1/grad_logit_scale"][0])
    for name in ("radar", "optical"):
        close(grads[name], golden[f"ws1/grad_{name}"])


@needs_golden
def test_golden_the_full_gradient_is_ours_and_half_of_it_is_missing_in_the_reference() -> None:
    """Defect C2: keys that carry no gradient."""
    golden = recorded("infonce")
    loss, grads = scored(recorded_contrast(detach_keys=False), recorded_inputs())
    close(loss, golden["full_differentiable/loss_DERIVED"])
    full, theirs = [], []
    for name in ("radar", "optical"):
        close(grads[name], golden[f"full_differentiable/grad_{name}_DERIVED"])
        full.append(golden[f"full_differentiable/grad_{name}_DERIVED"])
        theirs.append(golden[f"ws1/grad_{name}"])
    a, b = np.concatenate(full), np.concatenate(theirs)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) > 0.5


def worker(rank: int, port_file: str, out: str) -> None:
    """One of two processes; what it finds goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    features = recorded_inputs()

    def mean_counts(counts: Tensor) -> Tensor:
        dist.all_reduce(counts)
        return counts / 2

    found = {}
    for name, detach, split in (("reference", True, 3), ("even", False, 3), ("uneven", False, 4)):
        rows = slice(0, split) if rank == 0 else slice(split, 6)
        mine = {key: x[rows] for key, x in features.items()}
        loss, grads = scored(recorded_contrast(detach_keys=detach), mine, mean_counts)
        found |= {f"{name}/loss": loss, **{f"{name}/{key}": value for key, value in grads.items()}}
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder / "rendezvous"), str(folder / "found")), nprocs=2)
    return [torch.load(folder / f"found.{rank}", weights_only=True) for rank in range(2)]


@needs_golden
def test_golden_two_processes_without_gradients_through_keys(two_processes: list[dict[str, Tensor]]) -> None:
    golden = recorded("infonce")
    for rank, found in enumerate(two_processes):
        close(found["reference/loss"], golden["ws2/loss"][rank])
        close(found["reference/logit_scale"], golden["ws2/grad_logit_scale"][rank])
        for name in ("radar", "optical"):
            close(found[f"reference/{name}"], golden[f"ws2/grad_{name}"][3 * rank : 3 * rank + 3])


@needs_golden
@pytest.mark.parametrize("split", ["even", "uneven"])
def test_two_processes_give_the_loss_and_gradients_of_one(split: str, two_processes: list[dict[str, Tensor]]) -> None:
    """Averaged over processes, as wrappers that spread a model do; with 3 and 3 samples, and with 4 and 2."""
    loss, grads = scored(recorded_contrast(detach_keys=False), recorded_inputs())
    losses = [found[f"{split}/loss"] for found in two_processes]
    torch.testing.assert_close(sum(losses) / 2, loss)
    for name in ("radar", "optical"):
        both = torch.cat([found[f"{split}/{name}"] for found in two_processes]) / 2
        torch.testing.assert_close(both, grads[name])
    scales = [found[f"{split}/logit_scale"] for found in two_processes]
    torch.testing.assert_close(sum(scales) / 2, grads["logit_scale"])


def test_one_process_gathers_nothing() -> None:
    rows = torch.ones(3, 2)
    assert gather_rows(rows) == (rows, 0)


def unit_features(count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(count, 8, generator=draw) for name in ("optical", "radar")}


def test_a_sample_that_lacks_a_sensor_is_neither_row_nor_column() -> None:
    features, contrast = unit_features(5), Contrast(8, PAIRS)
    present = everyone(features)
    present["radar"][2] = False
    features["radar"][2] = 1e3
    left = [0, 1, 3, 4]
    fewer = {name: x[left] for name, x in features.items()}
    for (total, count), (expected, _) in zip(
        contrast(features, present), contrast(fewer, everyone(fewer)), strict=True
    ):
        assert count.item() == 4
        torch.testing.assert_close(total, expected)
    losses = contrast(features, {name: torch.zeros(5, dtype=torch.bool) for name in features})
    mean, counts = global_means(losses, same_counts)
    mean.sum().backward()
    assert mean.tolist() == [0, 0]
    assert counts.tolist() == [0, 0]
    assert all(torch.isfinite(p.grad).all() for p in contrast.parameters() if p.grad is not None)


def test_the_temperature_is_kept_above_a_hundredth_and_not_in_the_reference() -> None:
    features = unit_features(4)
    losses = []
    for clamps in (True, False):
        torch.manual_seed(0)
        contrast = Contrast(8, PAIRS, clamps=clamps)
        contrast.logit_scale.data.fill_(math.log(400))
        losses.append(contrast(features, everyone(features))[0][0].item())
        contrast.logit_scale.data.fill_(math.log(100))
        losses.append(contrast(features, everyone(features))[0][0].item())
    assert losses[0] == pytest.approx(losses[1])
    assert losses[2] != pytest.approx(losses[3])
    assert losses[1] == pytest.approx(losses[3])
