"""What a program runs on, in words."""

import os
import platform
from pathlib import Path

import torch

from unetdist.distributed.collectives import World


def cpu_model() -> str:
    """The processor's name, or its kind where the system keeps no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(world: World) -> str:
    """Processes and devices of a run, as this process knows its own: "2 processes on NVIDIA H200"."""
    if world.device.type == "cuda":
        where = torch.cuda.get_device_name(world.device)
    else:
        where = f"{num_cores()} cores of {cpu_model()}"
    return f"{world.world_size} process{'es' if world.world_size > 1 else ''} on {where}"
