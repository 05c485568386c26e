"""What is examined: settings, this process among the others, and what was found out on the way."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unetdist.apps.doctor.board import Board
from unetdist.data.batch import Batch
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import World
from unetdist.storage.folders import Folder
from unetdist.train.config import Config
from unetdist.train.trainer import Trainer


@dataclass
class Measured:
    """What was measured, and predictions are made from; None: not measured."""

    read_bytes_s: float | None = None
    """From the shards of the training set, of the slowest rank."""
    reduce: list[tuple[int, float]] = field(default_factory=list)
    """(bytes, seconds) of an all-reduce, by size."""
    first_s: float | None = None
    """From the beginning of the loader to the end of the first step, compiling included."""
    step_s: float | None = None
    """Of a training step."""
    data_wait_s: float | None = None
    """Of it, waiting for data."""
    loader_samples_s: float | None = None
    """What the loader gives by itself, all ranks together."""
    validation_s: float | None = None
    """Of scoring the whole validation set."""
    parameters: int | None = None
    checkpoint_bytes: int | None = None
    weights_bytes: int | None = None
    """Of the network as it is kept to predict with."""
    write_bytes_s: float | None = None
    """Into the folder of the checkpoints."""
    run_s: float | None = None
    """Prediction for the whole run."""
    disk_bytes: int | None = None
    """Prediction of what the run writes."""

    def to_mapping(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass
class Case:
    """One process's view of the examination."""

    config: Config | None
    """None where the settings are refused."""
    world: World
    board: Board
    scratch: Path
    """A folder of this process, removed afterwards."""
    full: bool = False
    """Read all shards, not a part of them."""
    launch_refused: bool = False
    budget_s: float = 8.0
    """Seconds that each thing is measured for, about."""
    data: dict[str, tuple[Folder, Manifest]] = field(default_factory=dict)
    """By "train" and "val", those that could be opened."""
    trainer: Trainer | None = None
    """Of a run that is begun for a try, once it is wired."""
    batches: Iterator[list[Batch]] = field(default_factory=lambda: iter(()))
    """Of its training, from those on that nobody has taken yet."""
    measured: Measured = field(default_factory=Measured)
    levels: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many findings of each (group, level) rank 0 has made so far."""
    undo: ExitStack = field(default_factory=ExitStack)
    """What has to be put back after a check."""

    @property
    def settings(self) -> Config:
        """The settings, in checks that are not made without."""
        assert self.config is not None
        return self.config

    @property
    def run_dir(self) -> Path:
        """Folder of the run that is to be begun."""
        return Path(self.settings.runs_dir) / self.settings.name
