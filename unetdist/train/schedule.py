"""How long to train and in what portions, as settings and as steps; and where a run stands."""

from dataclasses import dataclass
from typing import Self

from unetdist.distributed.collectives import MixedPrecision
from unetdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and in what portions to train."""

    global_batch_size: int = 16
    """Samples per optimizer step, over all processes."""

    micro_batch_size: int | None = None
    """Samples per forward pass and process; smaller ones need less memory. None: the whole share of a process."""

    max_epochs: float = 50.0
    """Length of the training in passes over the data."""

    max_steps: int | None = None
    """Length of the training in optimizer steps, in place of `max_epochs`; None: `max_epochs` counts."""

    eval_every: int | None = None
    """Steps between validations; None: once per epoch."""

    log_every: int = 10
    """Steps between log lines; only here does the host wait for the device."""

    ema_decay: float = 0.0
    """Decay per step of the averaged weights that are validated and saved, 0..1; 0: no averaging."""

    mixed_precision: MixedPrecision = "no"
    """Number format of the forward pass."""

    max_bad_steps: int = 20
    """Steps in a row whose loss or gradient is not finite, and which are skipped; one more ends the run."""

    heartbeat_s: float = 600.0
    """Seconds without progress after which a process counts as hung: all processes leave their stacks in RUN/stacks and
    exit; 0: never. Use more than data.retry_s, the time that a process may wait for a server."""

    timeout_s: int = 1800
    """Seconds after which a collective that a process does not join is an error."""

    def __post_init__(self) -> None:
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "max_epochs",
            "max_steps",
            "eval_every",
            "log_every",
            "timeout_s",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"trainer.{name} ({value}) must be above 0 and finite.")
        for name, default in (("max_bad_steps", 20), ("heartbeat_s", 600)):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"trainer.{name} ({getattr(self, name)}) must be at least 0 and finite; use {default}."
                )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(
                f"trainer.ema_decay ({self.ema_decay}) must be at least 0 and below 1; use 0.999."
            )


@dataclass(frozen=True)
class Schedule:
    """A run in optimizer steps."""

    max_steps: int
    eval_every: int
    save_every: int
    log_every: int

    @classmethod
    def of(cls, cfg: TrainerConfig, *, num_samples: int, save_every: int | None) -> Self:
        """Epochs as steps; an epoch's last step may hold the next epoch's first samples.

        Args:
            cfg: settings.
            num_samples: in the training set.
            save_every: steps between checkpoints; None: at each validation.
        """
        steps_per_epoch = num_samples / cfg.global_batch_size
        max_steps = cfg.max_steps or max(1, round(cfg.max_epochs * steps_per_epoch))
        eval_every = cfg.eval_every or max(1, round(steps_per_epoch))
        return cls(max_steps, eval_every, save_every or eval_every, cfg.log_every)


def first_native_epoch(
    native_epochs: int, schedule: Schedule, *, global_batch_size: int, num_samples: int
) -> int | None:
    """The epoch that begins `native_epochs` before the end of the run, in whole epochs, or None for 0.

    Raises:
        ConfigError: The run has fewer epochs.
    """
    if native_epochs == 0:
        return None
    epochs = round(schedule.max_steps * global_batch_size / num_samples)
    if native_epochs > epochs:
        raise ConfigError(
            f"augment.native_epochs ({native_epochs}) must be at most the {epochs} epochs of the run; use "
            f"{epochs // 10}."
        )
    return epochs - native_epochs


@dataclass
class TrainState:
    """Where a run stands: with the weights, all that is needed to continue it."""

    step: int = 0
    samples_seen: int = 0
    best_miou: float = -1.0
    """Below 0 before the first validation."""

    best_step: int = 0

    validated_step: int = 0
    """The last step whose weights were scored."""

    bad_steps: int = 0
    """Steps that were skipped because their loss or gradient was not finite."""

    def advance(self, samples: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.samples_seen += samples
