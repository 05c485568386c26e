"""The training loop: what happens, in order, and who takes part."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import StopSignal, World, barrier
from unetdist.distributed.watchdog import Watchdog
from unetdist.errors import ConfigError, TrainingError
from unetdist.evaluation.evaluate import LeftEarlyError, Report
from unetdist.evaluation.validation import Validator
from unetdist.tracking import Tracker
from unetdist.tracking.meter import Meter
from unetdist.train.checkpoint import Checkpoints
from unetdist.train.ema import Ema
from unetdist.train.optim import OptimConfig
from unetdist.train.run_state import RunState
from unetdist.train.run_status import Attempt
from unetdist.train.schedule import Schedule, TrainState
from unetdist.train.share import LossShare
from unetdist.train.step import TrainStep


@dataclass(kw_only=True)
class Trainer:
    """Trains what it is handed: parts are built in `unetdist.train.build`, or by a test."""

    accelerator: Accelerator
    world: World
    model: nn.Module
    """On the device, not wrapped."""
    optimizer: torch.optim.Optimizer
    """Over the parameters of `model`."""
    ema: Ema | None
    """Averaged copy that is validated and saved in place of `model`."""
    share: LossShare
    """`model` with its loss, which returns its share of the global loss."""
    optim_cfg: OptimConfig
    """Schedule of the learning rate, clipping."""
    schedule: Schedule
    global_batch_size: int
    """Samples per step over all processes."""
    num_samples: int
    """Of the training set; for the epoch that is logged."""
    seed: int
    """Of dropout."""
    max_bad_steps: int
    """In a row: one more ends the run."""
    source_of: Callable[[int], str]
    """Where a sample of the training set comes from, by its id."""
    train_batches: Callable[[int], Iterable[list[Batch]]]
    """From a sample number: endless micro-batches of each step, this rank's part."""
    validator: Validator | None
    save_model: Callable[[nn.Module, TrainState, str, Report | None], None]
    """Writes weights to predict with under a name."""
    checkpoints: Checkpoints
    tracker: Tracker
    stop: StopSignal
    watchdog: Watchdog
    attempt: Attempt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: object = None, *_: object) -> None:
        if error is not None:
            self.attempt.fail(str(error), is_final=isinstance(error, (ConfigError, TrainingError)))
        self.watchdog.close()  # what is left to write may take long
        self.checkpoints.close()
        self.tracker.close(in_hurry=lambda: self.stop.requested)
        self.stop.close()
        self.attempt.close()
        if kind is None:  # else it would wait for ranks that wait for it
            self.accelerator.end_training()

    def __post_init__(self) -> None:
        self.state = TrainState()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.share, self.optimizer)
        self.run_state = RunState(self.model, self.optimizer, self.ema, self.accelerator.scaler)
        self.meter = Meter(self.world)
        self.step = TrainStep(
            accelerator=self.accelerator,
            world=self.world,
            model=self.model,
            share=self.share,
            wrapped=self.wrapped,
            optimizer=self.optimizer,
            ema=self.ema,
            optim_cfg=self.optim_cfg,
            max_steps=self.schedule.max_steps,
            seed=self.seed,
            meter=self.meter,
            watchdog=self.watchdog,
            source_of=self.source_of,
        )

    def fit(self) -> bool:
        """Collective. Train to the end, or to a signal to stop; True if the end was reached."""
        self.restore()
        self.attempt.begin(self.state.step)
        self.tracker.start(
            step=self.state.step, max_steps=self.schedule.max_steps, owes_validation=self.owes_validation
        )
        if self.is_finished and not self.owes_validation:
            logger.info("step %d of %d: nothing left to train", self.state.step, self.schedule.max_steps)
            return self.ended()
        steps = self.rehearsed(self.train_batches(self.state.samples_seen))
        if self.owes_validation and self.end_step(self.validate()):
            return self.ended()
        self.meter.restart()
        for micro_batches in self.meter.timed(steps):
            grad_norm = self.train_step(micro_batches)
            self.state.advance(self.global_batch_size)
            if self.every(self.schedule.log_every) or self.is_finished:
                self.log(grad_norm)  # waits for the device, as does all that follows
            report = self.validate() if self.owes_validation else None
            if self.end_step(report):
                return self.ended()
        raise TrainingError("the training data ended before the training did; give an endless loader.")

    def end_step(self, report: Report | None) -> bool:
        """Collective. Save what is due after a step; whether training ends here."""
        if self.is_finished and not self.owes_validation and self.world.is_main:
            self.save_model(self.evaluated_model, self.state, "last", report)
        agree_at = (self.schedule.log_every, self.schedule.eval_every, StopSignal.AGREE_EVERY)
        stopping = (any(map(self.every, agree_at)) or self.is_finished) and self.stop.agreed(self.world)
        if self.every(self.schedule.save_every) or self.is_finished or stopping:
            self.checkpoint(final=self.is_finished or stopping)
        return self.is_finished or stopping

    def ended(self) -> bool:
        """Collective. Note how training ended; True if nothing is left to do."""
        finished = self.is_finished and not self.owes_validation
        if not finished and self.stop.orphaned(self.world):
            self.attempt.fail("a launcher ended before its processes, so all stopped with a checkpoint")
        else:
            self.attempt.end("finished" if finished else "stopped", self.state.step)
        return finished

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.schedule.max_steps

    @property
    def owes_validation(self) -> bool:
        """Whether the weights of this step are to be scored and were not yet: a signal may have interrupted it."""
        is_due = self.state.step > 0 and (self.every(self.schedule.eval_every) or self.is_finished)
        return is_due and self.validator is not None and self.state.validated_step < self.state.step

    def train_step(self, micro_batches: list[Batch]) -> Tensor:
        """Collective. One optimizer step on the global batch; returns the norm of its gradient."""
        return self.step(micro_batches, self.state.step)

    def rehearsed(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Collective. Try one step and one validation image, undone: what is wrong with them shows now."""
        self.watchdog.at("rehearsal")
        iterator = iter(steps)
        first = next(iterator)
        self.step.rehearse(first[0])
        if self.share.problem is not None:
            self.attempt.fell_back(f"not compiled: {self.share.problem}")
        if self.validator is not None:
            self.validator.rehearse(self.model.eval())
        return chain([first], iterator)

    def every(self, interval: int) -> bool:
        """Whether `interval` divides the number of steps done."""
        return self.state.step % interval == 0

    def log(self, grad_norm: Tensor) -> None:
        """Collective. Read what was measured since the last log line, and hand it to the tracker."""
        self.check_steps()
        state = self.state
        stats = self.meter.read(
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm,
            global_batch_size=self.global_batch_size,
            epoch=state.samples_seen / self.num_samples,
            bad_steps=state.bad_steps,
            is_compiled=self.share.is_compiled if self.share.wants_compiler else None,
        )
        follows = self.owes_validation
        self.tracker.log_train(
            stats, step=state.step, samples_seen=state.samples_seen, validation_follows=follows
        )

    def check_steps(self) -> None:
        """Collective. Count the steps that were skipped, and end the run where they are too many in a row."""
        bad = self.step.guard.report()
        self.state.bad_steps += bad.total
        if bad.longest_row > self.max_bad_steps:
            raise self.checkpoints.diverged(
                f"{bad.longest_row} steps in a row, up to step {self.state.step}, had a loss or a gradient that is not "
                f"finite, and were skipped; trainer.max_bad_steps is {self.max_bad_steps}"
            )

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged weights if there are any, else the trained ones; never wrapped: DDP would broadcast buffers."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def validate(self) -> Report | None:
        """Collective. Score the weights, keep them if they are the best so far; None where a signal came between."""
        self.settle()
        if self.validator is None:
            return None
        try:
            self.watchdog.at(f"step {self.state.step}: validation")
            report = self.validator.score(self.evaluated_model, is_over=self.leaves_validation)
        except LeftEarlyError:
            logger.warning("left the validation of step %d, to be made up for", self.state.step)
            return None
        self.state.validated_step = self.state.step
        is_best = report.scores.miou > self.state.best_miou
        if is_best:
            self.state.best_miou, self.state.best_step = report.scores.miou, self.state.step
            if self.world.is_main:
                self.save_model(self.evaluated_model, self.state, "best", report)
        pictures = self.validator.pictures(report)
        self.tracker.log_validation(report, step=self.state.step, pictures=pictures, is_best=is_best)
        self.meter.restart()  # the time of a validation is no step time
        return report

    def leaves_validation(self) -> bool:
        """Between two of its batches: show that this rank moves on, and look whether any was asked to stop."""
        self.watchdog.at(f"step {self.state.step}: validation")
        return self.stop.requested_anywhere

    def settle(self) -> None:
        """Collective. Make the weights what they are on every rank, and refuse those that are not finite."""
        self.step.average_statistics()
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise self.checkpoints.diverged(f"{name} is not finite at step {self.state.step}")

    def checkpoint(self, *, final: bool) -> None:
        """Collective. Save all that is needed to continue; the final one is written when this returns."""
        self.watchdog.at(f"step {self.state.step}: checkpoint")
        self.check_steps()
        self.settle()
        if self.world.is_main:
            tensors, facts = self.run_state.pack()
            facts["train_state"] = asdict(self.state)
            self.checkpoints.save(self.state.step, tensors, facts, final=final)
        barrier()

    def restore(self) -> None:
        """Collective. Continue from the latest checkpoint, if there is one."""
        if (found := self.checkpoints.load_latest(self.world)) is None:
            return
        tensors, facts = found
        self.run_state.unpack(tensors, facts, source=self.checkpoints.folder)
        self.state = TrainState(**facts["train_state"])
        logger.info("continuing at step %d of %d", self.state.step, self.schedule.max_steps)
