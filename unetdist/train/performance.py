"""How a run is made fast: chosen from facts about device, data and length, so that nobody has to know a flag."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import MixedPrecision, World
from unetdist.distributed.malloc import keep_all_freed
from unetdist.model.limit import layers_of, seconds_of
from unetdist.model.unet import UNetConfig
from unetdist.train.schedule import Schedule

Performance = Literal["auto", "off"]

COMPILER = "inductor"
COMPILES_FROM_S = 300.0
"""Least seconds of training without the compiler from which its minute or two pay."""
LAUNCH_BOUND_S = 0.010
"""A forward and backward pass that is shorter is bound by the host, which launches some 500 kernels at about 10 us
each, twice over: a guess, to be measured."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts that the choice depends on; the same on every rank."""

    device_type: str
    has_compiler: bool
    """Triton is there, and the GPU is one that it compiles for."""
    is_one_graph: bool
    """The network has no collective inside."""
    num_micro_batches: int = 1
    """Of a step, on each process."""
    run_s: float
    """Least seconds of the whole training without the compiler, on an H200; others take longer."""
    step_s: float
    """Least seconds that the device computes in a step that is compiled, likewise."""
    mixed_precision: MixedPrecision = "no"


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """What a run does beside the plain path. Nothing of it changes results beyond rounding."""

    keeps_memory: bool = False
    """The C library keeps freed memory (CPU)."""
    autotunes: bool = False
    """cuDNN tries its kernels and takes the fastest."""
    compiler: str | None = None
    """Backend of torch.compile for the network with its loss."""
    cuda_graphs: bool = False
    """The compiled kernels are replayed as CUDA graphs."""
    reasons: tuple[str, ...] = ("off",)

    def __str__(self) -> str:
        return "; ".join(self.reasons)


PLAIN = FastPath()
"""`performance: off`."""


def choose(performance: Performance, facts: Facts) -> FastPath:
    """The fast path for these facts; each choice, for or against, with its reason."""
    if performance == "off":
        return PLAIN
    if facts.device_type != "cuda":
        return FastPath(keeps_memory=True, reasons=("freed memory is kept", "no compiler on the CPU"))
    compiler, why_compiler = _compiler(facts)
    cuda_graphs, why_graphs = _cuda_graphs(facts, compiler)
    reasons = [why_compiler, why_graphs]
    if facts.mixed_precision == "no":
        reasons.append("trainer.mixed_precision: bf16 would be faster")
    return FastPath(
        autotunes=True,
        compiler=compiler,
        cuda_graphs=cuda_graphs,
        reasons=tuple(filter(None, reasons)),
    )


def _compiler(facts: Facts) -> tuple[str | None, str]:
    if not facts.has_compiler:
        return None, "not compiled, for Triton or a GPU that it supports is missing"
    if not facts.is_one_graph:
        return None, "not compiled, for sync_batch norm communicates inside the network"
    if facts.run_s < COMPILES_FROM_S:
        return None, f"not compiled, for training takes but about {facts.run_s:.0f} s"
    return COMPILER, "compiled"


def _cuda_graphs(facts: Facts, compiler: str | None) -> tuple[bool, str]:
    pass_s = facts.step_s / facts.num_micro_batches
    if compiler is None or pass_s >= LAUNCH_BOUND_S:
        return False, ""
    if facts.num_micro_batches > 1:
        # A replay would overwrite the gradients that the one before left to be added to.
        return (
            False,
            "no CUDA graphs because gradients are accumulated: trainer.micro_batch_size could be larger",
        )
    return True, f"CUDA graphs because a step takes about {1000 * pass_s:.1f} ms"


def gather(
    world: World,
    *,
    model_config: UNetConfig,
    num_classes: int,
    manifest: Manifest,
    crop_size: tuple[int, int] | None,
    schedule: Schedule,
    batch_sizes: tuple[int, int],
    mixed_precision: MixedPrecision,
) -> Facts:
    """The facts of a run; `batch_sizes`: of the whole step, and of a forward pass."""
    global_batch_size, micro_batch_size = batch_sizes
    num_micro_batches = global_batch_size // (world.world_size * micro_batch_size)
    is_gpu = world.device.type == "cuda"
    layers = layers_of(model_config, num_classes, crop_size or manifest.max_size)
    plain_s, compiled_s = (
        seconds_of(layers, execution, batch_size=micro_batch_size) for execution in ("eager", "compiled")
    )
    return Facts(
        device_type=world.device.type,
        has_compiler=is_gpu and _has_compiler(world.device),
        is_one_graph=model_config.norm != "sync_batch",
        num_micro_batches=num_micro_batches,
        run_s=max(plain_s, LAUNCH_BOUND_S) * num_micro_batches * schedule.max_steps,
        step_s=compiled_s * num_micro_batches,
        mixed_precision=mixed_precision,
    )


def _has_compiler(device: torch.device) -> bool:
    """Whether Inductor can compile for this GPU: by Triton, which asks for compute capability 7.0."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def prepare(path: FastPath) -> None:
    """Set what holds for the whole process."""
    if path.keeps_memory:
        keep_all_freed()
    torch.backends.cudnn.benchmark = path.autotunes
