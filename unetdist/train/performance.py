"""Chooses how a run is made fast from facts about device, data and length, so that nobody has to know a flag."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import torch

from unetdist.distributed.collectives import MixedPrecision, World
from unetdist.distributed.hardware import keep_all_freed
from unetdist.model.limit import layers_of, seconds_of
from unetdist.model.unet import UNetConfig

Performance = Literal["auto", "off"]

COMPILER = "inductor"
# Compiling, which takes a minute or two, pays if training without it takes at least this many seconds.
COMPILES_FROM_S = 300.0
# Seconds of a forward and backward pass below which the host is the bottleneck: it launches some 500 kernels at
# about 10 us each, twice over. An estimate, not measured.
LAUNCH_BOUND_S = 0.010


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that the choice depends on; the same on every rank."""

    device_type: str
    has_compiler: bool
    """Triton is installed and supports the GPU."""
    is_one_graph: bool
    """The network contains no collective."""
    num_micro_batches: int = 1
    """Micro-batches per step on each process."""
    run_s: float
    """Least seconds of the whole training on an H200 without the compiler; other devices take longer."""
    step_s: float
    """Least seconds of a compiled step on an H200."""
    mixed_precision: MixedPrecision = "no"


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """Additions to the plain path; results stay equal up to rounding."""

    keeps_memory: bool = False
    """The C library keeps freed memory (CPU only)."""
    autotunes: bool = False
    """cuDNN tries its kernels and uses the fastest."""
    compiler: str | None = None
    """Backend of torch.compile for the network with its loss; None: not compiled."""
    cuda_graphs: bool = False
    """Compiled kernels are replayed as CUDA graphs."""
    reasons: tuple[str, ...] = ("off",)

    def __str__(self) -> str:
        return "; ".join(self.reasons)


# `performance: off`.
PLAIN = FastPath()


def choose(performance: Performance, facts: Facts) -> FastPath:
    """Choose the fast path for these facts, with a reason for each choice."""
    if performance == "off":
        return PLAIN
    if facts.device_type != "cuda":
        return FastPath(keeps_memory=True, reasons=("freed memory is kept", "no compiler on the CPU"))
    path = FastPath(autotunes=True, reasons=())
    if not facts.has_compiler:
        reasons = ["not compiled: needs Triton and a GPU that it supports"]
    elif not facts.is_one_graph:
        reasons = ["not compiled: sync_batch norm communicates inside the network"]
    elif facts.run_s < COMPILES_FROM_S:
        reasons = [f"not compiled: training takes only about {facts.run_s:.0f} s"]
    else:
        path, reasons = replace(path, compiler=COMPILER), ["compiled"]
        pass_s = facts.step_s / facts.num_micro_batches
        # With micro-batches a replay would overwrite the gradients that it should add to.
        if pass_s < LAUNCH_BOUND_S and facts.num_micro_batches > 1:
            reasons.append("no CUDA graphs because gradients are accumulated: trainer.micro_batch_size could be larger")
        elif pass_s < LAUNCH_BOUND_S:
            path = replace(path, cuda_graphs=True)
            reasons.append(f"CUDA graphs because a step takes about {1000 * pass_s:.1f} ms")
    if facts.mixed_precision == "no":
        reasons.append("trainer.mixed_precision: bf16 would be faster")
    return replace(path, reasons=tuple(reasons))


def gather(
    world: World,
    *,
    model_config: UNetConfig,
    num_classes: int,
    image_size: tuple[int, int],
    max_steps: int,
    global_batch_size: int,
    micro_batch_size: int,
    mixed_precision: MixedPrecision,
) -> Facts:
    """Gather the facts of a run on images of (height, width) pixels."""
    num_micro_batches = global_batch_size // (world.world_size * micro_batch_size)
    layers = layers_of(model_config, num_classes, image_size)
    plain_s = seconds_of(layers, "eager", batch_size=micro_batch_size)
    compiled_s = seconds_of(layers, "compiled", batch_size=micro_batch_size)
    return Facts(
        device_type=world.device.type,
        has_compiler=world.device.type == "cuda" and _has_compiler(world.device),
        is_one_graph=model_config.norm != "sync_batch",
        num_micro_batches=num_micro_batches,
        run_s=max(plain_s, LAUNCH_BOUND_S) * num_micro_batches * max_steps,
        step_s=compiled_s * num_micro_batches,
        mixed_precision=mixed_precision,
    )


def _has_compiler(device: torch.device) -> bool:
    """Whether Inductor can compile for this GPU with Triton, which needs compute capability 7.0."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def prepare(path: FastPath) -> None:
    """Apply the settings of the path that hold for the whole process."""
    if path.keeps_memory:
        keep_all_freed()
    torch.backends.cudnn.benchmark = path.autotunes
