"""Chooses how a run is made fast from facts about device, data and length, so that nobody has to know a flag."""

import math
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, all_reduce_min, any_rank
from unetdist.distributed.hardware import MixedPrecision, keep_all_freed
from unetdist.model.config import UNetConfig
from unetdist.train.config import Performance

COMPILER = "inductor"

# Work is counted in values of the network's first level, pixels times channels, because time is proportional to them:
# without the compiler an H200 makes 9.3e9 of them per second in bf16 for `student` (480x352), and 6.4e9 for `classic`
# (512x512), estimated by tests/benchmarks/roofline.py. Trainings of fewer values than this take less than 270 to 400 s
# there, and compiling takes a minute or two.
COMPILES_FROM = 2.5e12
# A pass over fewer values is bound by the host, which launches some 500 kernels at about 10 us each, forward and
# backward. In these 10 ms an H200 makes 143e6 compiled values for `student`, 80e6 for `classic`, 65e6 for `residual`.
LAUNCH_BOUND = 80e6


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
    is_deterministic: bool = False
    """Kernels give the same bits each time, and none is chosen by its measured time (CUDA only)."""
    reason: str = "off"


# `performance: off`.
PLAIN = FastPath()


def choose(
    performance: Performance,
    world: World,
    model_config: UNetConfig,
    *,
    image_size: tuple[int, int],
    max_steps: int,
    global_batch_size: int,
    micro_batch_size: int,
    mixed_precision: MixedPrecision | None,
    reproducible: bool,
) -> FastPath:
    """Choose the fast path of a run on images of (height, width) pixels and say why; every rank chooses the same."""
    if performance == "off":
        return replace(PLAIN, is_deterministic=reproducible)
    if world.device.type != "cuda":
        return FastPath(keeps_memory=True, reason="freed memory is kept; no compiler on the CPU")
    num_micro_batches = global_batch_size // (world.world_size * micro_batch_size)
    num_passes = max_steps * num_micro_batches
    pixels = micro_batch_size * math.prod(image_size)
    values = pixels * model_config.level_widths[0]
    compiler, has_graphs = None, False
    # Inductor compiles for a GPU with Triton, which supports this compute capability and later ones.
    if find_spec("triton") is None or torch.cuda.get_device_capability(world.device) < (7, 0):
        reasons = ["not compiled: needs Triton and a GPU that it supports"]
    elif model_config.norm == "sync_batch":
        reasons = ["not compiled: sync_batch norm communicates inside the network"]
    elif num_passes * max(values, LAUNCH_BOUND) < COMPILES_FROM:
        reasons = [f"not compiled: training makes only {num_passes} passes over {pixels / 1e6:.1f} megapixels"]
    else:
        compiler, reasons = COMPILER, ["compiled"]
        # With micro-batches a replay would overwrite the gradients that it should add to.
        has_graphs = values < LAUNCH_BOUND and num_micro_batches == 1
        if has_graphs:
            reasons.append(f"CUDA graphs because a step has only {pixels / 1e6:.1f} megapixels")
        elif values < LAUNCH_BOUND:
            reasons.append("no CUDA graphs because gradients are accumulated: trainer.micro_batch_size could be larger")
    if mixed_precision == "no":
        reasons.append("trainer.mixed_precision: bf16 would be faster")
    if reproducible:
        reasons.append("deterministic kernels for trainer.reproducible, which are slower")
    return FastPath(
        autotunes=not reproducible,
        compiler=compiler,
        cuda_graphs=has_graphs,
        is_deterministic=reproducible,
        reason="; ".join(reasons),
    )


def agree_on_threads(kept: int | None) -> int:
    """Collective. Give each process the threads that the run `kept` so far, or the fewest that any process has."""
    own = torch.get_num_threads()
    number = kept or all_reduce_min(own)
    if any_rank(own != number):
        why = "the fewest of any process" if kept is None else "as when the run began"
        logger.info("%d threads per process, %s", number, why)
        torch.set_num_threads(number)
    return number


def prepare(path: FastPath) -> None:
    """Apply the settings of the path that hold for the whole process."""
    if path.keeps_memory:
        keep_all_freed()
    torch.backends.cudnn.benchmark = path.autotunes
    if path.is_deterministic:
        # cuBLAS reads it when it is first used, and adds in a varying order without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
