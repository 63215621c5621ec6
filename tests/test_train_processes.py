"""Two processes with the same global batch give the losses and gradients of one, for each method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.test_train_corrections import croma, croma_batch, mpmae, mpmae_batch
from tests.test_train_corrections_scale import batch as scale_batch
from tests.test_train_corrections_scale import model as scale_alibi
from train.losses import Losses, same_counts

COUNT = 5
MODELS: dict[str, Callable[[], nn.Module]] = {"mpmae": mpmae, "croma": croma, "scale_alibi": scale_alibi}


def whole_batch(method: str) -> dict[str, Any]:
    """Five samples; pixels are missing here and there, and the second sample has none at all of its first sensor."""
    if method == "mpmae":
        first = {**mpmae_batch(), "id": ["0", "1", "2", "3"]}
        batch = {k: [*v, "4"] if k == "id" else torch.cat([v, v[:1] + v[1:2]]) for k, v in first.items()}
        batch |= {k: v > 0 for k, v in batch.items() if k.endswith("_mask")}
    else:
        batch = croma_batch(COUNT) if method == "croma" else scale_batch(COUNT)
    draw = torch.Generator().manual_seed(7)
    names = [name.removesuffix("_mask") for name in batch if name.endswith("_mask")]
    for i, name in enumerate(names):
        batch[f"{name}_mask"] = torch.rand(batch[name].shape, generator=draw) > 0.3
        if i == 0:
            batch[f"{name}_mask"][1] = False
    return batch


def part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: value[rows] for name, value in batch.items()}


def scored(method: str, rows: slice, mean_counts: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The losses and every gradient, as this process has them."""
    model, batch = MODELS[method](), part(whole_batch(method), rows)
    losses: Losses = model(batch, model.masks(batch, seed=0, epoch=0), mean_counts)
    losses.total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**grads, "total": losses.total.detach(), **{f"loss {name}": v for name, v in losses.per_task.items()}}


def worker(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)

    def mean_counts(counts: Tensor) -> Tensor:
        dist.all_reduce(counts)
        return counts / 2

    rows = slice(0, 3) if rank == 0 else slice(3, COUNT)
    torch.save({method: scored(method, rows, mean_counts) for method in MODELS}, f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder / "rendezvous"), str(folder / "found")), nprocs=2)
    return [torch.load(folder / f"found.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", MODELS)
def test_two_processes_average_to_one(method: str, both: list[dict[str, dict[str, Tensor]]]) -> None:
    """With 3 and 2 samples, and unequal numbers of valid values."""
    one = scored(method, slice(0, COUNT), same_counts)
    first, second = (found[method] for found in both)
    assert first.keys() == second.keys() == one.keys()
    for name, expected in one.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=1e-4, atol=1e-5, msg=name)
