"""The settings of a run: a table of contents. Each section lives above the code that it sets."""

import re
from dataclasses import dataclass, field

from unetdist.data.augment import AugmentConfig
from unetdist.data.loader import DataConfig
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import ValidationConfig
from unetdist.model.losses import LossConfig
from unetdist.model.unet import UNetConfig
from unetdist.tracking import TrackingConfig
from unetdist.train.checkpoint import CheckpointConfig
from unetdist.train.optim import OptimConfig
from unetdist.train.performance import Performance
from unetdist.train.schedule import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that `launch/train.py` can be told."""

    data: DataConfig
    """Where the shards are and how they are read."""

    name: str = "run"
    """Of the run; its results lie in `runs_dir/name`."""

    runs_dir: str = "runs"
    """Folder of all runs."""

    seed: int = 0
    """Fixes weights, order, augmentation and dropout."""

    performance: Performance = "auto"
    """`auto`: what makes this run fast on this device, with results equal up to rounding; `"off"`: the plain path."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training images."""

    model: UNetConfig = field(default_factory=UNetConfig)
    """The network."""

    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it is minimised."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How long and in what portions."""

    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """How the validation set is scored."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is saved."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the curves go."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise ConfigError(
                f"name ({self.name}) becomes a folder; use letters, digits, '-', '_' and '.' only."
            )
        if self.seed < 0:
            raise ConfigError(f"seed ({self.seed}) must not be negative; use 0.")
        if self.seed >= 2**63:
            raise ConfigError(f"seed ({self.seed}) must be below 2^63; use 0.")
