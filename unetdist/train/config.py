"""The settings of a run: the sections of this room, and the table of contents of all sections (`Config`)."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from unetdist.cli.credentials import mask
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.distributed.hardware import MixedPrecision
from unetdist.errors import ConfigError
from unetdist.evaluation.config import ValidationConfig
from unetdist.model.config import LossConfig, UNetConfig
from unetdist.storage import remote
from unetdist.storage.folders import Folder, open_folder
from unetdist.tracking.config import TrackingConfig

Performance = Literal["auto", "off"]

# In the folder of a run.
SETTINGS_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"

# The `name` that stands for one of its own for each run.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning rate."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD with momentum."""

    lr: float = 1e-3
    """Highest learning rate, above 0; for sgd 0.01 to 0.1 is usual."""

    weight_decay: float = 0.0
    """Decay of weights, at least 0; biases and norms do not decay. adamw keeps it out of the gradient."""

    layer_decay: float = 1.0
    """Factor of the learning rate from each level of the network to the level before it, above 0 to 1: with 0.8 the
    head has `lr`, the last level of the decoder 0.8 lr, and the first level of the encoder the lowest."""

    momentum: float = 0.9
    """Momentum of sgd, 0 to below 1."""

    nesterov: bool = False
    """Nesterov's momentum for sgd; needs a momentum above 0."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient in adam and adamw, each 0 to below 1."""

    schedule: Literal["constant", "poly", "cosine"] = "cosine"
    """Fall of the learning rate after the warm-up: none; (1 - t)^poly_power; half a cosine wave."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to `lr`."""

    poly_power: float = 0.9
    """Exponent of `poly`, above 0."""

    min_lr_factor: float = 0.0
    """Fraction of `lr`, 0..1, that poly and cosine fall to. The step after the last would reach it, as in torch's
    CosineAnnealingLR and PolynomialLR: with 0, the last of 100 steps has 0.0002 (cosine) or 0.016 (poly)."""

    clip_norm: float = 0.0
    """Largest L2 norm of the gradient over all parameters; longer gradients are scaled down. 0: no clipping."""

    def __post_init__(self) -> None:
        for name, holds, demand in (
            ("lr", 0 < self.lr < math.inf, "above 0; use 0.001"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0; use 0 for none"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1; use 0.9, or 1 for none"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1; use 0.9"),
            ("nesterov", self.momentum > 0 or not self.nesterov, "false without momentum; use momentum: 0.9"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1; use [0.9, 0.999]"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0; use 0 for none"),
            ("poly_power", 0 < self.poly_power < math.inf, "above 0; use 0.9"),
            ("min_lr_factor", 0 <= self.min_lr_factor <= 1, "between 0 and 1; use 0"),
            ("clip_norm", 0 <= self.clip_norm < math.inf, "at least 0; use 0 for no clipping"),
        ):
            if not holds:
                raise ConfigError(f"optim.{name} ({getattr(self, name)}) must be {demand}.")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length of the training, batch sizes, and what happens every few steps."""

    global_batch_size: int = 16
    """Samples per optimizer step, over all processes."""

    micro_batch_size: int | None = None
    """Samples per forward pass and process; fewer need less memory. A run keeps it, because results depend on it. None:
    all samples of a process when the run begins."""

    max_epochs: float = 50.0
    """Length of the training in passes over the data."""

    max_steps: int | None = None
    """Length of the training in optimizer steps; None: `max_epochs` sets it."""

    eval_every: int | None = None
    """Steps between validations; None: once per epoch."""

    log_every: int = 10
    """Steps between log lines; only here does the host wait for the device."""

    ema_decay: float = 0.0
    """Decay per step of the averaged weights that are validated and saved, 0 to below 1; 0: no averaging."""

    mixed_precision: MixedPrecision | None = None
    """Number format of the forward pass; null: that of the launcher (`accelerate config`), or else `no`."""

    reproducible: bool = False
    """Whether GPUs of one kind give the same bits every time, and on any number of them; their deterministic kernels
    are slower. The CPU always does."""

    max_bad_steps: int = 20
    """Skipped steps in a row (loss or gradient not finite) that are allowed; one more ends the run."""

    heartbeat_s: float = 600.0
    """Seconds without progress after which a process counts as hung: all processes leave their stacks in RUN/stacks and
    exit; 0: never. Use more than data.retry_s, the time that a process may wait for a server."""

    timeout_s: int = 1800
    """Seconds after which a collective that a process does not join fails."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"trainer.ema_decay ({self.ema_decay}) must be at least 0 and below 1; use 0.999.")
        for name, value in vars(self).items():
            may_be_zero = name in ("ema_decay", "max_bad_steps", "heartbeat_s")
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not (0 < value < math.inf or (may_be_zero and value == 0))
            ):
                lowest = "at least" if may_be_zero else "above"
                raise ConfigError(f"trainer.{name} ({value}) must be {lowest} 0 and finite.")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When and where the state of a run is saved, and whether it is continued."""

    save_every: int | None = None
    """Steps between checkpoints; None: one at each validation. The end of a run and a signal to stop also save one."""

    keep_last: int = 2
    """Number of checkpoints to keep."""

    folder: str | None = None
    """Path or URL (s3://, gs://, ...) that all nodes see; the checkpoints go into its subfolder of the run's name.
    None: RUNS_DIR/NAME/checkpoints."""

    resume: Literal["auto", "never"] = "auto"
    """`auto` continues the run of this name if it has a checkpoint; `never` refuses to touch it."""

    allow_changes: tuple[str, ...] = ()
    """Settings (optim.lr, ...) that may differ from those at the start of the run although they change its result."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last ({self.keep_last}) must be at least 1; use 2.")
        if self.save_every is not None and self.save_every < 1:
            raise ConfigError(f"checkpoint.save_every ({self.save_every}) must be at least 1 step, or null.")
        if self.folder is not None and self.folder.startswith(("http:", "https:")):
            place = mask(self.folder)
            raise ConfigError(
                f"checkpoint.folder ({place}) cannot be written to; give a path, or a URL such as s3://bucket/runs."
            )

    def folder_of(self, run_dir: Path) -> Folder:
        """Folder of the checkpoints of the run in `run_dir`."""
        if self.folder is None:
            return open_folder(run_dir / CHECKPOINTS_FOLDER)
        is_url = remote.is_url(self.folder)
        return open_folder(remote.join(self.folder, run_dir.name) if is_url else Path(self.folder, run_dir.name))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    data: DataConfig
    """Shards, and how they are read."""

    name: str = "run"
    """Run name; results go to `runs_dir/name`. `auto`: a new one each time, for sweeps; in a sweep of wandb or a SLURM
    array it is that of the trial, so that a trial that is started again continues."""

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

    WITHOUT: ClassVar = {"trainer.max_epochs": "trainer.max_steps", "model.preset": "model.widths"}
    """Settings that have no effect unless another one is null."""

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
