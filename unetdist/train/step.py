"""One optimizer step on a global batch: the same for any number of processes."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World, all_reduce_sum, any_rank
from unetdist.distributed.watchdog import Watchdog
from unetdist.tracking.meter import Meter
from unetdist.train.ema import Ema
from unetdist.train.nonfinite import StepGuard, finite_or_nan
from unetdist.train.optim import OptimConfig, lr_factor
from unetdist.train.share import LossShare


@dataclass(kw_only=True)
class TrainStep:
    """Makes steps; their number is told to it, so that nothing of its own has to be saved."""

    accelerator: Accelerator
    world: World
    model: nn.Module
    """Not wrapped."""

    share: LossShare
    """The model with its loss, not wrapped."""

    wrapped: nn.Module
    """`share` as Accelerate prepared it."""

    optimizer: torch.optim.Optimizer
    ema: Ema | None
    optim_cfg: OptimConfig
    max_steps: int
    seed: int
    """Of dropout."""

    meter: Meter
    watchdog: Watchdog
    source_of: Callable[[int], str]
    """Where a sample comes from, by its id."""

    def __post_init__(self) -> None:
        self.guard = StepGuard(
            self.model,
            self.optimizer,
            self.world,
            is_scaled=self.accelerator.scaler is not None,
            source_of=self.source_of,
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]

    def __call__(self, micro_batches: list[Batch], step: int) -> Tensor:
        """Collective. The step after `step` others; returns the norm of its gradient."""
        self.watchdog.at(f"step {step + 1}: forward and backward")
        self.wrapped.train()
        self.set_lr(step)
        self.seed_dropout(step)
        self.guard.before_forward()
        batches = [batch.to(self.world.device, non_blocking=True) for batch in micro_batches]
        units = self.global_units(batches)
        shares = []
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                with record_function("step: forward"):
                    share = self.wrapped(batch.image, batch.mask, units)
                with record_function("step: backward"):
                    # DDP averages; we want the sum.
                    self.accelerator.backward(share * (self.world.world_size * finite_or_nan(share)))
            shares.append(share.detach())
        with record_function("step: optimizer"):
            grad_norm = self.clip_gradients()
            is_bad = self.guard.step(step, grad_norm, shares, [batch.ids for batch in micro_batches])
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update(self.model)
        self.meter.add(shares, is_bad, sum(batch.num_bad for batch in micro_batches))
        self.watchdog.at(f"after step {step + 1}")
        return grad_norm

    def global_units(self, batches: list[Batch]) -> Tensor:
        """Collective. The denominators of the loss over the whole global batch."""
        class_pixels = torch.cat([batch.class_pixels for batch in batches])
        return all_reduce_sum(self.share.loss.denominators(class_pixels))

    def clip_gradients(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; returns its norm before."""
        limit = self.optim_cfg.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        return torch.as_tensor(norm)

    def set_lr(self, step: int) -> None:
        """The schedule is a function of the step: a prepared scheduler would move `world_size` steps per call."""
        factor = lr_factor(step, self.max_steps, self.optim_cfg)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def seed_dropout(self, step: int) -> None:
        """Dropout draws from (seed, step, rank), so that no generator state has to be saved."""
        torch.manual_seed(((self.seed * 1_000_003 + step) * 65_536 + self.world.rank) % 2**63)

    def rehearse(self, batch: Batch) -> None:
        """Collective. Try forward and backward, undone: too little memory or a bad label shows now."""
        before = {name: value.clone() for name, value in self.model.named_buffers()}
        self.wrapped.train()
        batch = batch.to(self.world.device)
        units = self.global_units([batch])
        if self.share.is_compiled:
            self.prove_compiled(batch, units)
        self.accelerator.backward(self.wrapped(batch.image, batch.mask, units))
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in self.model.named_buffers():
            value.copy_(before[name])

    def prove_compiled(self, batch: Batch, units: Tensor) -> None:
        """Collective. Use the compiled graph only if it does on every rank what the plain path does."""
        self.watchdog.at("rehearsal: compiling")
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        problem = self.share.prove(batch.image, batch.mask, units, scale=scale)
        if problem is not None:
            logger.warning("trains without the compiler, and slower: %s", problem)
        if any_rank(problem is not None, self.world.device):
            self.share.use_plain(problem or "it failed on another process, which tells why")

    def average_statistics(self) -> None:
        """Collective. Batch norm's running statistics become the mean over ranks, each of which saw its own part."""
        for module in (self.model, *([self.ema.module] if self.ema is not None else [])):
            for name, buffer in module.named_buffers():
                if "running_" in name:
                    all_reduce_sum(buffer).div_(self.world.world_size)
