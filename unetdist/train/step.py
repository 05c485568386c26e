"""One optimizer step on a global batch: the same for any number of processes."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World, all_reduce_sum, any_rank
from unetdist.distributed.gradient_tree import GradientTree
from unetdist.distributed.watchdog import Watchdog
from unetdist.tracking.meter import Meter
from unetdist.train.config import OptimConfig
from unetdist.train.model_with_loss import ModelWithLoss
from unetdist.train.nonfinite import NonFiniteGuard, SkippedSteps, finite_or_nan
from unetdist.train.norm_statistics import NormStatistics
from unetdist.train.optim import Ema, lr_factor


@dataclass(kw_only=True)
class TrainStep:
    """Makes optimizer steps. Callers pass the number of the step, so that nothing here has to be saved."""

    accelerator: Accelerator
    world: World
    model_with_loss: ModelWithLoss
    """Not wrapped."""

    optimizer: torch.optim.Optimizer
    """Optimizer of the model's parameters, not yet prepared by Accelerate."""

    ema: Ema | None
    optim_cfg: OptimConfig
    max_steps: int
    seed: int
    """Seed for dropout."""

    num_micro_batches: int
    """Micro-batches of a step over all ranks."""

    meter: Meter
    watchdog: Watchdog
    source_of: Callable[[int], str]
    """From the id of a sample to its place in the shards."""

    def __post_init__(self) -> None:
        self.model: nn.Module = self.model_with_loss.model
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model_with_loss, self.optimizer)
        is_scaled = self.accelerator.scaler is not None
        self.guard = NonFiniteGuard(self.optimizer, self.world, is_scaled=is_scaled, source_of=self.source_of)
        self.num_mine = self.num_micro_batches // self.world.world_size
        self.gradients = GradientTree(self.wrapped, self.num_mine)
        self.statistics = NormStatistics(
            self.model, self.ema, num_micro_batches=self.num_micro_batches, world=self.world
        )
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]

    def __call__(self, micro_batches: list[Batch], step: int) -> Tensor:
        """Collective. Make the step that follows `step` others; returns the norm of its gradient."""
        self.watchdog.at(f"step {step + 1}: forward and backward")
        self.wrapped.train()
        self.set_lr(step)
        batches = [batch.to(self.world.device, non_blocking=True) for batch in micro_batches]
        denominators = self.global_denominators(batches)
        losses = []
        for index, batch in enumerate(batches):
            self.seed_dropout(step, index)
            self.statistics.load(index)
            with self.gradients.add(is_last=index == len(batches) - 1):
                with record_function("step: forward"):
                    loss = self.wrapped(batch.image, batch.mask, denominators)
                with record_function("step: backward"):
                    self.accelerator.backward(loss * finite_or_nan(loss))
            self.statistics.store(index)
            losses.append(loss.detach())
        with record_function("step: optimizer"):
            grad_norm = self.clip_gradients()
            is_skipped = self.guard.step(step, grad_norm, losses, [batch.ids for batch in micro_batches])
            self.optimizer.zero_grad(set_to_none=True)
            ema_decay = 0.0 if self.ema is None else self.ema.update(self.model)
            self.statistics.step(is_skipped, ema_decay)
        self.meter.add(losses, is_skipped, sum(batch.num_bad for batch in micro_batches))
        self.watchdog.at(f"after step {step + 1}")
        return grad_norm

    def global_denominators(self, batches: list[Batch]) -> Tensor:
        """Collective. The denominators of the loss over the whole global batch."""
        loss = self.model_with_loss.loss
        counts = loss.counts(torch.cat([batch.class_pixels for batch in batches]))
        return loss.denominators(all_reduce_sum(counts))

    def clip_gradients(self) -> Tensor:
        """Scale the gradient down to `clip_norm`; returns its norm before."""
        self.accelerator.unscale_gradients()
        parameters = [parameter for parameter in self.wrapped.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        if self.world.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
            # CUDA adds in an order that depends on the alignment of the memory, which is another one in DDP's buckets.
            gradients = [gradient.clone() for gradient in gradients]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(parameters, self.optim_cfg.clip_norm or math.inf, norm)
        return norm

    def set_lr(self, step: int) -> None:
        """Set the learning rate of a step."""
        # A scheduler that Accelerate prepared would move `world_size` steps per call.
        factor = lr_factor(step, self.max_steps, self.optim_cfg)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    @property
    def lr(self) -> float:
        """Learning rate of the latest step, of the first parameter group (the head)."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def is_compiled(self) -> bool | None:
        """Whether steps run a compiled graph; None if they were not meant to."""
        return self.model_with_loss.is_compiled if self.model_with_loss.wants_compiler else None

    def seed_dropout(self, step: int, index: int) -> None:
        """Seed dropout by (seed, step, micro-batch), so that no state of a generator has to be saved."""
        micro_batch = self.world.rank * self.num_mine + index
        torch.manual_seed(((self.seed * 1_000_003 + step) * 65_536 + micro_batch) % 2**63)

    def report_skipped(self) -> SkippedSteps:
        """Collective. Log and count the steps that were skipped since the last call; waits for the device."""
        return self.guard.report()

    def rehearse(self, batch: Batch) -> str | None:
        """Collective. Try forward and backward on a batch and undo them: their errors show before training.

        Returns why the compiler that was chosen is not used; None if it is used, or was not chosen.
        """
        before = {name: value.clone() for name, value in self.model.named_buffers()}
        self.wrapped.train()
        batch = batch.to(self.world.device)
        denominators = self.global_denominators([batch])
        if self.model_with_loss.is_compiled:
            self.watchdog.at("rehearsal: compiling")
            scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0
            problem = self.model_with_loss.prove(batch.image, batch.mask, denominators, scale=scale)
            if problem is not None:
                logger.warning("training without the compiler, and slower: %s", problem)
            # Ranks whose graphs differ would no longer hold the same weights.
            if any_rank(problem is not None, self.world.device):
                self.model_with_loss.use_plain(problem or "it failed on another process, whose log says why")
        self.accelerator.backward(self.wrapped(batch.image, batch.mask, denominators))
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in self.model.named_buffers():
            value.copy_(before[name])
        return self.model_with_loss.problem


def prefetch_to_device(steps: Iterable[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Copy the micro-batches of each step to `device`; their ids stay on the host.

    On CUDA the copies have a stream of their own. As the host runs steps ahead of the device, they are done long before
    the device needs them; for that the batches must be in page-locked memory.
    """
    if device.type != "cuda":
        yield from ([batch.to(device) for batch in step] for step in steps)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for step in steps:
        with record_function("step: copy"), torch.cuda.stream(stream):
            copies = [batch.to(device, non_blocking=True) for batch in step]
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for batch in copies:
            batch.keep_for(computing)
        yield copies
