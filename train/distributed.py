"""One process or many: where the processes come from, how weights are spread over them, and whole states of both.

torchrun and SLURM say themselves how many there are; otherwise one process a device is started here. ``fsdp`` is
PyTorch's second version (``fully_shard``), through Fabric; it works on CPU too. A state is always that of the whole
model, so that another number of processes, or one, may continue from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from mmbuild.errors import UserError
from train.config import Settings

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def launch(config: Settings) -> Fabric:
    """Start, or join, the processes of a run."""
    devices, nodes = placement(config, os.environ)
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator: there is no CUDA device here", fix="write accelerator: auto")
    count = devices if devices is not None else (torch.cuda.device_count() if accelerator == "cuda" else 1)
    fabric = Fabric(
        accelerator=accelerator, devices=count, num_nodes=nodes, precision=config.precision,
        strategy=_strategy(config, count * nodes),
    )  # fmt: skip
    fabric.launch()
    return fabric


def placement(config: Settings, environment: Mapping[str, str]) -> tuple[int | None, int]:
    """(processes of a machine, machines): what torchrun or SLURM say, else the config."""
    if TorchElasticEnvironment.detect():
        local = int(environment["LOCAL_WORLD_SIZE"])
        return local, int(environment["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect():
        tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", "1"))
        each = "--ntasks-per-node, one for each device"
        if tasks % nodes:
            raise UserError(f"SLURM: {tasks} tasks do not spread evenly over {nodes} nodes", fix=f"ask for {each}")
        # Lightning would meet the first with a traceback, and the second by waiting for the others for ever.
        if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
            raise UserError(
                f"SLURM: {tasks} tasks, but not how many a node has", fix=f"instead of --ntasks ask for {each}"
            )
        if tasks > 1 and "SLURM_STEP_ID" not in environment:
            reason = f"SLURM: one process of a job of {tasks} tasks, the others of which were not started"
            raise UserError(reason, fix="start it with srun, in a batch script too")
        return tasks // nodes, nodes
    return config.devices, config.nodes


def _strategy(config: Settings, processes: int) -> Any:
    if config.strategy == "fsdp":
        if config.precision == "16-mixed":
            raise UserError("precision: fsdp does not scale gradients of 16-mixed", fix="write bf16-mixed or 32-true")
        return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)
    return DDPStrategy() if processes > 1 else "auto"


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Spread every block of a list over the processes, then what is left; features need the weights whole, too."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    along = mesh["data_parallel"]
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                if type(block).forward is not nn.Module.forward:
                    fully_shard(block, mesh=along)
    fully_shard(module, mesh=along)
    register_fsdp_forward_method(module, "features")
    return module


def rank_batch(config: Settings, world_size: int) -> int:
    """Samples that one process takes at a time; UserError when the batch does not divide."""
    parts = world_size * config.accumulate
    if config.batch_size % parts:
        reason = (
            f"batch_size: {config.batch_size} does not divide into {world_size} devices x {config.accumulate} parts"
        )
        raise UserError(reason, fix=f"use a multiple of {parts}, such as {-(-config.batch_size // parts) * parts}")
    return config.batch_size // parts


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in their order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


# -- whole states


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The way back: this process's share of a whole tensor."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Every weight, whole and on the CPU; every process has to ask, all but the first may get nothing."""
    return {name: value.detach().cpu() for name, value in get_model_state_dict(module, options=_WHOLE).items()}


def put_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True, strict=True))


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state by name of weight."""
    return dict(get_optimizer_state_dict(module, optimizer, options=_WHOLE))


def put_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    set_optimizer_state_dict(module, optimizer, dict(state), options=StateDictOptions(full_state_dict=True))
