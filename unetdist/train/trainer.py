"""The training loop, and the state that it moves forward."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Self

from accelerate import Accelerator
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World, any_rank, barrier
from unetdist.distributed.signals import StopSignal
from unetdist.distributed.watchdog import Watchdog
from unetdist.errors import ConfigError, TrainingError
from unetdist.evaluation.evaluate import LeftEarlyError, Report
from unetdist.evaluation.validator import Validator
from unetdist.tracking.meter import Meter
from unetdist.tracking.tracker import Tracker
from unetdist.train.checkpoint import Checkpoints, RunState
from unetdist.train.config import TrainerConfig
from unetdist.train.optim import Ema
from unetdist.train.run_status import RunStatus
from unetdist.train.step import TrainStep

# Steps between two agreements to stop. To agree after each step would be to wait for the device each time.
AGREE_EVERY = 10


@dataclass(frozen=True)
class Schedule:
    """A run in optimizer steps."""

    max_steps: int
    eval_every: int
    save_every: int
    log_every: int

    @classmethod
    def of(cls, cfg: TrainerConfig, *, num_samples: int, save_every: int | None) -> Self:
        """Convert epochs of `num_samples` to steps; without `save_every` each validation saves a checkpoint."""
        # The last step of an epoch may hold the first samples of the next.
        steps_per_epoch = num_samples / cfg.global_batch_size
        max_steps = cfg.max_steps or max(1, round(cfg.max_epochs * steps_per_epoch))
        eval_every = cfg.eval_every or max(1, round(steps_per_epoch))
        return cls(max_steps, eval_every, save_every or eval_every, cfg.log_every)


@dataclass
class TrainState:
    """Position of a run; with the weights it is all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""

    samples_seen: int = 0

    best_miou: float = -1.0
    """Highest validation mIoU; below 0 before the first validation."""

    best_step: int = 0

    validated_step: int = 0
    """Last step whose weights were scored."""

    bad_steps: int = 0
    """Skipped steps, whose loss or gradient was not finite."""


@dataclass(kw_only=True)
class Trainer:
    """Trains with the parts that it is given by `unetdist.train.build`, or by a test."""

    accelerator: Accelerator
    world: World
    model: nn.Module
    """Network that is scored and saved: on the device, not wrapped."""
    ema: Ema | None
    """Averaged copy that is scored and saved in place of `model`."""
    step: TrainStep
    run_state: RunState
    schedule: Schedule
    global_batch_size: int
    """Samples per step over all processes."""
    num_samples: int
    """Size of the training set; the log counts epochs by it."""
    max_bad_steps: int
    """Skipped steps in a row that are allowed."""
    train_batches: Callable[[int], Iterable[list[Batch]]]
    """From a sample number: endless steps, each the micro-batches of this rank."""
    validator: Validator | None
    save_model: Callable[[nn.Module, TrainState, str, Report | None], None]
    """Writes weights for prediction to a folder of this name."""
    checkpoints: Checkpoints
    tracker: Tracker
    meter: Meter
    stop: StopSignal
    watchdog: Watchdog
    status: RunStatus
    claim: ExitStack
    """Keeps other runs out of the folder until it is closed."""
    fixed: dict[str, Any]
    """Numbers on which the last digits of the weights depend, and which the run keeps when it is continued."""

    def __post_init__(self) -> None:
        self.state = TrainState()
        self.saved_state: TrainState | None = None
        """State in the latest checkpoint."""
        self.last_report: Report | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: object = None, *_: object) -> None:
        if error is not None:
            self.status.fail(str(error), is_final=isinstance(error, (ConfigError, TrainingError)))
        self.watchdog.close()  # writing the rest may take long
        self.checkpoints.wait()
        self.tracker.close(in_hurry=lambda: self.stop.requested)
        self.stop.close()
        self.claim.close()
        if kind is None:  # after an error it would wait for ranks that wait for this one
            self.accelerator.end_training()

    def fit(self) -> bool:
        """Collective. Train to the end, or until a signal asks to stop; True if the end was reached."""
        self.restore()
        self.status.begin(self.state.step)
        self.tracker.start(
            step=self.state.step, max_steps=self.schedule.max_steps, owes_validation=self.is_validation_due
        )
        if self.is_finished and not self.is_validation_due:
            logger.info("step %d of %d: nothing left to train", self.state.step, self.schedule.max_steps)
            return self.finish()
        batches = self.meter.timed(self.rehearsed(self.train_batches(self.state.samples_seen)))
        self.meter.restart()
        # Validation comes first, so that resuming, a validation that a signal interrupted, the last step and a stop
        # all take the same path.
        while True:
            if self.is_validation_due:
                self.validate()
            stopping = self.is_finished or self.stop_agreed()
            if stopping or self.is_checkpoint_due:
                self.save_checkpoint(final=stopping)
            if stopping:
                return self.finish()
            grad_norm = self.train_step(next(batches))
            self.state.step += 1
            self.state.samples_seen += self.global_batch_size
            self.tracker.show_step(self.state.step)
            if self.every(self.schedule.log_every) or self.is_finished:
                self.log(grad_norm)  # waits for the device

    def finish(self) -> bool:
        """Collective. Record how the run ended; True if nothing is left to do."""
        is_complete = self.is_finished and not self.is_validation_due
        if not is_complete and any_rank(self.stop.is_orphan, self.world.device):
            self.status.fail("a launcher ended before its processes, so all of them saved a checkpoint and stopped")
        else:
            self.status.end("finished" if is_complete else "stopped", self.state.step)
        return is_complete

    def every(self, interval: int) -> bool:
        """Whether `interval` divides the number of steps done."""
        return self.state.step % interval == 0

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.schedule.max_steps

    @property
    def is_validation_due(self) -> bool:
        """Whether the weights of this step still have to be scored."""
        is_scheduled = self.state.step > 0 and (self.every(self.schedule.eval_every) or self.is_finished)
        return is_scheduled and self.validator is not None and self.state.validated_step < self.state.step

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether a checkpoint is scheduled for this step, and none holds this state yet."""
        is_scheduled = self.state.step > 0 and self.every(self.schedule.save_every)
        return is_scheduled and self.state != self.saved_state

    def stop_agreed(self) -> bool:
        """Collective. Whether any rank was asked to stop; ranks only agree every few steps, because it waits."""
        agree_at = (self.schedule.log_every, self.schedule.eval_every, AGREE_EVERY)
        return any(map(self.every, agree_at)) and any_rank(self.stop.requested, self.world.device)

    def train_step(self, micro_batches: list[Batch]) -> Tensor:
        """Collective. Make one optimizer step on the global batch; returns the norm of its gradient."""
        return self.step(micro_batches, self.state.step)

    def rehearsed(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Collective. Try one step and one validation image and undo them: their errors show before training."""
        self.watchdog.at("rehearsal")
        iterator = iter(steps)
        first = next(iterator)
        if (problem := self.step.rehearse(first[0])) is not None:
            self.status.fell_back(f"not compiled: {problem}")
        if self.validator is not None:
            self.validator.rehearse(self.model.eval())
        return chain([first], iterator)

    def log(self, grad_norm: Tensor) -> None:
        """Collective. Read what was measured since the last log line, and pass it to the tracker."""
        self.check_skipped()
        stats = self.meter.read(
            lr=self.step.lr,
            grad_norm=grad_norm,
            global_batch_size=self.global_batch_size,
            epoch=self.state.samples_seen / self.num_samples,
            bad_steps=self.state.bad_steps,
            is_compiled=self.step.is_compiled,
        )
        self.tracker.log_train(
            stats, step=self.state.step, samples_seen=self.state.samples_seen, validation_follows=self.is_validation_due
        )

    def check_skipped(self) -> None:
        """Collective. Count skipped steps, and end the run if too many of them follow one another."""
        skipped = self.step.report_skipped()
        self.state.bad_steps += skipped.total
        if skipped.longest_row > self.max_bad_steps:
            raise self.checkpoints.diverged(
                f"skipped {skipped.longest_row} steps in a row up to step {self.state.step}, because their loss or "
                f"gradient was not finite; trainer.max_bad_steps is {self.max_bad_steps}"
            )

    @property
    def evaluated_model(self) -> nn.Module:
        """Averaged weights, or the trained ones without averaging; not wrapped, because DDP would sync buffers."""
        return (self.model if self.ema is None else self.ema.module).eval()

    def validate(self) -> None:
        """Collective. Score the weights, and keep them if they are the best so far.

        A signal leaves the validation early; it is then still due, and the next start makes up for it.
        """
        assert self.validator is not None
        self.settle()
        try:
            self.watchdog.at(f"step {self.state.step}: validation")
            report = self.validator.score(self.evaluated_model, is_over=self.leaves_validation)
        except LeftEarlyError:
            logger.info("left the validation of step %d early; it will be repeated", self.state.step)
            return
        self.state.validated_step = self.state.step
        self.last_report = report
        is_best = report.scores.miou > self.state.best_miou
        if is_best:
            self.state.best_miou, self.state.best_step = report.scores.miou, self.state.step
            self.save_weights("best", report)
        self.tracker.log_validation(report, step=self.state.step, is_best=is_best)
        self.meter.restart()  # a validation does not count as step time

    def leaves_validation(self) -> bool:
        """Note progress between two batches of a validation; True if any rank was asked to stop."""
        self.watchdog.at(f"step {self.state.step}: validation")
        return self.stop.requested_anywhere

    def save_weights(self, name: str, report: Report | None) -> None:
        """Write weights for prediction, on rank 0."""
        if self.world.is_main:
            self.save_model(self.evaluated_model, self.state, name, report)

    def settle(self) -> None:
        """Collective. Give the models the statistics of all ranks, and refuse weights that are not finite."""
        self.step.statistics.settle(self.state.step)
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise self.checkpoints.diverged(f"{name} is not finite at step {self.state.step}")

    def save_checkpoint(self, *, final: bool) -> None:
        """Collective. Save all that resuming needs; the final checkpoint is written when this returns."""
        self.watchdog.at(f"step {self.state.step}: checkpoint")
        self.check_skipped()
        self.settle()
        if self.is_finished and not self.is_validation_due:
            # Before the checkpoint: a run killed in between would resume with no steps left and never write them.
            self.save_weights("last", self.last_report)
        if self.world.is_main:
            tensors, facts = self.run_state.pack()
            facts |= {"train_state": asdict(self.state), "fixed": self.fixed}
            self.checkpoints.save(self.state.step, tensors, facts, final=final)
        self.saved_state = replace(self.state)
        barrier()

    def restore(self) -> None:
        """Collective. Continue from the latest checkpoint, if there is one."""
        if (found := self.checkpoints.load_latest(self.world)) is None:
            return
        tensors, facts = found
        self.run_state.unpack(tensors, facts, source=self.checkpoints.folder)
        self.state = TrainState(**facts["train_state"])
        self.saved_state = replace(self.state)
        logger.info("continuing at step %d of %d", self.state.step, self.schedule.max_steps)
