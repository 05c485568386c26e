"""The training loop: what happens, in order, and who takes part."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdist.checkpoint import Checkpoints, RunState
from unetdist.data.batch import Batch
from unetdist.distributed import StopSignal, World, all_reduce_sum, barrier
from unetdist.ema import Ema
from unetdist.errors import TrainingError
from unetdist.evaluate import Report
from unetdist.logs import logger
from unetdist.losses import Loss
from unetdist.meter import Meter
from unetdist.optim import OptimConfig, lr_factor
from unetdist.schedule import Schedule, TrainState
from unetdist.tracking import Picture, Tracker


class Scorer(Protocol):
    """The validation set, ready to score a model: see `unetdist.validation`."""

    def score(self, model: nn.Module) -> Report:
        """Collective. Score an unwrapped model in evaluation mode."""

    def rehearse(self, model: nn.Module) -> None:
        """Predict one image."""

    def pictures(self, report: Report) -> list[Picture]:
        """What the tracker may show."""


@dataclass(kw_only=True)
class Trainer:
    """Trains what it is handed: parts are built in `unetdist.build`, or by a test."""

    accelerator: Accelerator
    world: World
    model: nn.Module
    """On the device, not wrapped."""

    optimizer: torch.optim.Optimizer
    """Over the parameters of `model`."""

    ema: Ema | None
    """Averaged copy that is validated and saved in place of `model`."""

    loss: Loss
    """Returns its share of the global loss."""

    optim_cfg: OptimConfig
    """Schedule of the learning rate, clipping."""

    schedule: Schedule
    global_batch_size: int
    """Samples per step over all processes."""

    num_samples: int
    """Of the training set; for the epoch that is logged."""

    seed: int
    """Of dropout."""

    train_batches: Callable[[int], Iterable[list[Batch]]]
    """From a sample number: endless micro-batches of each step, this rank's part."""

    validator: Scorer | None
    save_model: Callable[[nn.Module, TrainState, str, Report | None], None]
    """Writes weights to predict with under a name."""

    checkpoints: Checkpoints
    tracker: Tracker
    stop: StopSignal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None = None, *_: object) -> None:
        self.tracker.close()
        self.stop.close()
        if error is None:  # else this rank would wait for ranks that wait for it
            self.accelerator.end_training()

    def __post_init__(self) -> None:
        self.state = TrainState()
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.run_state = RunState(self.model, self.optimizer, self.ema, self.accelerator.scaler)
        self.meter = Meter(self.world)

    def fit(self) -> bool:
        """Collective. Train to the end, or to a signal to stop; True if the end was reached."""
        self.restore()
        if self.state.step >= self.schedule.max_steps:
            logger.info("step %d of %d: nothing left to train", self.state.step, self.schedule.max_steps)
            return True
        report = None
        steps = self.rehearsed(self.train_batches(self.state.samples_seen))
        self.tracker.start(step=self.state.step, max_steps=self.schedule.max_steps)
        self.meter.restart()
        for micro_batches in self.meter.timed(steps):
            grad_norm = self.train_step(micro_batches)
            self.state.advance(self.global_batch_size)
            finished = self.state.step >= self.schedule.max_steps
            logging = self.every(self.schedule.log_every) or finished
            validating = self.every(self.schedule.eval_every) or finished
            if logging:
                self.log(grad_norm)  # waits for the device, as does all that follows
            if validating:
                report = self.validate()
            if finished and self.world.is_main:
                self.save_model(self.evaluated_model, self.state, "last", report)
            agreeing = logging or validating or self.every(StopSignal.AGREE_EVERY)
            stopping = agreeing and self.stop.agreed(self.world)  # Collective: a signal on one rank stops all
            if self.every(self.schedule.save_every) or finished or stopping:
                self.checkpoint()
            if finished or stopping:
                return finished
        raise TrainingError("the training data ended before the training did; give an endless loader.")

    def train_step(self, micro_batches: list[Batch]) -> Tensor:
        """Collective. One optimizer step on the global batch; returns the norm of its gradient."""
        self.wrapped.train()
        self.set_lr()
        self.seed_dropout()
        batches = [batch.to(self.world.device, non_blocking=True) for batch in micro_batches]
        units = self.global_units(batches)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                share = self.loss(self.wrapped(batch.image), batch.mask, units)
                self.accelerator.backward(share * self.world.world_size)  # DDP averages; we want the sum
            self.meter.add(share, batch.num_bad)
        grad_norm = self.clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)
        self.meter.count_step()
        return grad_norm

    def global_units(self, batches: list[Batch]) -> Tensor:
        """Collective. The denominators of the loss over the whole global batch."""
        return all_reduce_sum(self.loss.units(torch.cat([batch.class_pixels for batch in batches])))

    def clip_gradients(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; returns its norm before."""
        limit = self.optim_cfg.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        return torch.as_tensor(norm)

    def set_lr(self) -> None:
        """The schedule is a function of the step: a prepared scheduler would move `world_size` steps per call."""
        factor = lr_factor(self.state.step, self.schedule.max_steps, self.optim_cfg)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def seed_dropout(self) -> None:
        """Dropout draws from (seed, step, rank), so that no generator state has to be saved."""
        torch.manual_seed(((self.seed * 1_000_003 + self.state.step) * 65_536 + self.world.rank) % 2**63)

    def rehearsed(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Collective. Try one step and one validation image, undone: too little memory or a bad label shows now."""
        iterator = iter(steps)
        first = next(iterator)
        before = {name: value.clone() for name, value in self.model.named_buffers()}
        self.wrapped.train()
        batch = first[0].to(self.world.device)
        self.accelerator.backward(
            self.loss(self.wrapped(batch.image), batch.mask, self.global_units([batch]))
        )
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in self.model.named_buffers():
            value.copy_(before[name])
        if self.validator is not None:
            self.validator.rehearse(self.model.eval())
        return chain([first], iterator)

    def every(self, interval: int) -> bool:
        """Whether `interval` divides the number of steps done."""
        return self.state.step % interval == 0

    def log(self, grad_norm: Tensor) -> None:
        """Collective. Read what was measured since the last log line, check the loss, hand it to the tracker."""
        stats = self.meter.read(
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm,
            global_batch_size=self.global_batch_size,
            epoch=self.state.samples_seen / self.num_samples,
        )
        if not math.isfinite(stats.loss):
            raise self.checkpoints.diverged(f"the loss is {stats.loss} at step {self.state.step}")
        self.tracker.log_train(stats, step=self.state.step, samples_seen=self.state.samples_seen)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged weights if there are any, else the trained ones; never wrapped: DDP would broadcast buffers."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def validate(self) -> Report | None:
        """Collective. Score the weights, keep them if they are the best so far."""
        self.settle()
        if self.validator is None:
            return None
        report = self.validator.score(self.evaluated_model)
        is_best = report.scores.miou > self.state.best_miou
        if is_best:
            self.state.best_miou, self.state.best_step = report.scores.miou, self.state.step
            if self.world.is_main:
                self.save_model(self.evaluated_model, self.state, "best", report)
        self.tracker.log_validation(
            report.scores,
            report.confusion,
            report.loss,
            report.interval,
            step=self.state.step,
            pictures=self.validator.pictures(report),
            is_best=is_best,
        )
        self.meter.restart()  # the time of a validation is no step time
        return report

    def settle(self) -> None:
        """Collective. Batch norm's running statistics become the mean over ranks, each of which saw its own part."""
        for module in (self.model, *([self.ema.module] if self.ema is not None else [])):
            for name, buffer in module.named_buffers():
                if "running_" in name:
                    all_reduce_sum(buffer).div_(self.world.world_size)
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise self.checkpoints.diverged(f"{name} is not finite at step {self.state.step}")

    def checkpoint(self) -> None:
        """Collective. Save all that is needed to continue."""
        self.settle()
        if self.world.is_main:
            tensors, facts = self.run_state.pack()
            self.checkpoints.save(self.state.step, tensors, {**facts, "train_state": asdict(self.state)})
        barrier()

    def restore(self) -> None:
        """Collective. Continue from the latest checkpoint, if there is one."""
        found = self.checkpoints.load_latest(self.world.device)
        if found is None:
            return
        tensors, facts = found
        self.run_state.unpack(tensors, facts, source=self.checkpoints.folder)
        self.state = TrainState(**facts["train_state"])
        logger.info("continuing at step %d of %d", self.state.step, self.schedule.max_steps)
