"""The settings of a run: a table of contents. Each section is defined above the code that it sets."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

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
from unetdist.train.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    data: DataConfig
    """Shards, and how they are read."""

    name: str = "run"
    """Run name; results go to `runs_dir/name`."""

    runs_dir: str = "runs"
    """Folder of all runs."""

    seed: int = 0
    """Seed for weights, order, augmentation and dropout."""

    performance: Performance = "auto"
    """`auto`: everything that makes this run fast on this device, with results equal up to rounding; `"off"`: the plain
    path."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training images."""

    model: UNetConfig = field(default_factory=UNetConfig)
    """The network."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Loss that is minimised."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length, batch sizes and intervals of the training."""

    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Scoring of the validation set."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Dashboards."""

    FIRST: ClassVar = (
        "data.train",
        "data.val",
        "name",
        "trainer.max_epochs",
        "trainer.global_batch_size",
        "trainer.mixed_precision",
        "optim.lr",
        "model.preset",
        "augment.crop_size",
        "loss.class_weights",
    )
    """Settings that --help shows; `--help all` shows every one."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise ConfigError(f"name ({self.name}) becomes a folder; use letters, digits, '-', '_' and '.' only.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed ({self.seed}) must be at least 0 and below 2^63; use 0.")
