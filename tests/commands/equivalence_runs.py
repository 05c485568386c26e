"""Runs to compare, in connected processes of the fork server, on a tiny data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.commands.equivalence.runs import Record, read_record, record
from unetdist.train.config import Config

STEPS = 4


def write_data(folder: Path) -> None:
    """Write pictures with very unequal parts ignored: the mean of means over processes is far from the mean."""
    write_shards(folder / "train", 27, sizes=((24, 32), (30, 20)))


def values_of(folder: Path, **sections: Any) -> dict[str, Any]:
    """Settings of a run with all that once depended on processes: batch norm, dropout, averages, accumulation."""
    usual: dict[str, dict[str, Any]] = {
        "augment": {"crop_size": [16, 24], "scale_min": 0.7, "scale_max": 1.4, "flip_horizontal": 0.5},
        "model": {"widths": [4, 8], "norm": "batch", "dropout": 0.1},
        "optim": {"lr": 0.01},
        "trainer": {"global_batch_size": 12, "micro_batch_size": 1, "max_steps": 10, "log_every": 1, "ema_decay": 0.9},
    }
    merged = {name: {**usual.get(name, {}), **sections.get(name, {})} for name in {*usual, *sections}}
    return settings_of(folder / "train", None, folder / "runs", **merged)


def config_of(folder: Path, **sections: Any) -> Config:
    return settings.from_mapping(Config, values_of(folder, **sections))


def record_of(
    folder: Path, group: str, name: str, world_size: int, train: Callable[[Config, int], None] = record, **sections: Any
) -> Record:
    """Train some steps and read the record; the first run of a `group` is its reference."""
    runs = folder / group
    values = {**values_of(folder, **sections), "name": name, "runs_dir": str(runs)}
    run_ranks(train, world_size, settings.from_mapping(Config, values), STEPS)
    return read_record(runs / name)
