"""The one place that configures Accelerate and torch.distributed.

Collective functions are called by every process of a run, in the same order; with one process they are free.
"""

import inspect
import json
import logging
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator as Accelerator  # passed on to build.py
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn.parallel import DistributedDataParallel

from unetdist.cli.logs import logger
from unetdist.distributed.hardware import MixedPrecision, cpu_model, num_cores
from unetdist.distributed.launch_check import agreed_precision, check_launch
from unetdist.distributed.rendezvous import connect, keep_group
from unetdist.distributed.signals import follow_launcher
from unetdist.errors import ConfigError, LaunchError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of the run, and its device."""

    rank: int = 0
    """0 .. world_size - 1 over all machines."""
    world_size: int = 1
    """Number of processes of the run."""
    local_world_size: int = 1
    """Number of its processes on this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the model of this process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def describe(self) -> str:
        """Processes and devices, such as "2 processes on NVIDIA H200"; the device is that of this process."""
        is_cuda = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if is_cuda else f"{num_cores()} cores of {cpu_model()}"
        return f"{self.world_size} process{'es' if self.world_size > 1 else ''} on {where}"


def world_of(accelerator: Accelerator) -> World:
    """The `World` that an accelerator found."""
    device = accelerator.device
    return World(
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
        # Accelerate numbers the CPU by rank ("cpu:1"), which equals no tensor's device
        device=torch.device("cpu") if device.type == "cpu" else device,
    )


def make_accelerator(*, mixed_precision: MixedPrecision | None = None, timeout_s: float = 1800.0) -> Accelerator:
    """Collective. Check the launch, connect the processes, and return an `Accelerator` that changes nothing itself.

    A `mixed_precision` of None is that of the launcher. A collective that some rank does not join fails after
    `timeout_s` seconds.

    Raises:
        LaunchError: the launch started other processes than requested, or some did not come.
        ConfigError: fp16 without a GPU.
    """
    follow_launcher()
    has_gpu = torch.cuda.is_available()
    mixed_precision = agreed_precision(mixed_precision)
    check_launch(num_gpus=torch.cuda.device_count() if has_gpu else 0)
    if not has_gpu:
        _check_cpu_precision(mixed_precision)
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if expected > 1 and not dist.is_initialized() and not PartialState._shared_state:
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        connect("nccl" if has_gpu else "gloo", timeout_s=timeout_s)  # Accelerate keeps the group that it finds
    # No accumulation and no scheduler of Accelerate: the loss is a part of the global batch's, and the learning rate a
    # function of the step.
    accelerator = Accelerator(
        # without this, processes on a machine without a GPU stay unconnected and each is rank 0
        cpu=not has_gpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=1,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s)), _ddp_options()],
    )
    if accelerator.num_processes != expected:
        raise LaunchError(
            f"WORLD_SIZE is {expected}, but Accelerate connected {accelerator.num_processes} process(es); "
            "call make_accelerator() before anything else creates an Accelerator or a PartialState."
        )
    keep_group()
    return accelerator


@contextmanager
def fresh_accelerator_state() -> Iterator[None]:
    """Set Accelerate's state of this process aside, and restore it afterwards.

    Without this, a run would need the precision and the processes of whatever used Accelerate before it.
    """
    is_first, former = not PartialState._shared_state, dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=is_first)
        AcceleratorState._shared_state.update(former)
        if is_first:
            GradientState._reset_state()


def log_ranks(world: World) -> None:
    """Log rank, node, process and device on every rank: the first thing to look at when a launch went wrong."""
    backend = dist.get_backend() if dist.is_initialized() else "no"
    text = (
        f"rank {world.rank} of {world.world_size}: node {platform.node()}, process {os.getpid()}, "
        f"{world.device}, {backend} backend"
    )
    # other ranks than 0 log only warnings; this line bypasses that level
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None))


def _ddp_options() -> DistributedDataParallelKwargs:
    """Options that keep DDP from broadcasting buffers in every forward pass."""
    # That would be another collective, and it would replace the running statistics of all ranks by those of rank 0.
    # The name of the option depends on the version of torch.
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    handler = DistributedDataParallelKwargs()
    # Accelerate knows only the older name, finds handlers by exact class, and passes on what this returns
    handler.to_kwargs = lambda: {switch: False, "gradient_as_bucket_view": True}
    return handler


def _check_cpu_precision(mixed_precision: MixedPrecision) -> None:
    if mixed_precision == "fp16":
        raise ConfigError(
            "mixed_precision (fp16) must be no or bf16 on a CPU: Accelerate would silently train in float32; "
            "use mixed_precision: no."
        )
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if mixed_precision == "bf16" and is_x86 and not torch.cpu._is_avx512_bf16_supported():
        logger.warning(
            "mixed_precision: bf16 on a CPU without bf16 units (avx512_bf16) is 2 to 7 times slower than "
            "float32; use mixed_precision: no"
        )


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Collective. Sum `tensor` over all ranks in place, in its own dtype."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Collective. Whether `flag` is true on at least one rank; `device` is where the backend computes."""
    return not all_reduce_min(int(not flag), device)


def all_reduce_min(value: int, device: torch.device | str = "cpu") -> int:
    """Collective. The smallest `value` of all ranks, within int64; `device` is where the backend computes."""
    if not dist.is_initialized():
        return value
    smallest = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest.item())


def broadcast(value: Any, device: torch.device | str = "cpu") -> Any:
    """Collective. Return rank 0's `value` on every rank; the values of the others are ignored.

    It travels as JSON: a tuple becomes a list, keys of dictionaries are strings, and floats keep every digit. `device`
    is where the backend computes.
    """
    text = [json.dumps(value)]
    if dist.is_initialized():
        dist.broadcast_object_list(text, src=0, device=torch.device(device))
    return json.loads(text[0])


def gather_to(owner: int, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Collective. On rank `owner`, the tensors of all ranks by rank, all of one shape; elsewhere []."""
    if not dist.is_initialized():
        return [tensor]
    mine = tensor.contiguous()
    is_owner = dist.get_rank() == owner
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())] if is_owner else []
    dist.gather(mine, parts if is_owner else None, dst=owner)
    return parts


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Collective. The tensors (n, ...) of all ranks, of one shape, as one (ranks * n, ...)."""
    if not dist.is_initialized():
        return tensor
    found = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
    # The older of the two names is deprecated since torch 2.13.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(found, tensor)
    return found


def barrier() -> None:
    """Collective. Wait until every rank has called this."""
    if dist.is_initialized():
        on_gpu = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch raised this error because the memory of a device, or of the machine, is full."""
    return bool(should_reduce_batch_size(error))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, equally on every rank; the initial weights depend on it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
