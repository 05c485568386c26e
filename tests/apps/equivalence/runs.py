"""Runs of a comparison in connected processes of the fork server, on a tiny data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of, write_shards
from unetdist.apps.equivalence import record, worlds
from unetdist.apps.equivalence.compare import Record
from unetdist.apps.equivalence.record import RecordTask
from unetdist.tracking.metrics_file import METRICS_FILE

STEPS = 4


def write_data(folder: Path) -> None:
    """Pictures with very unequal parts ignored: the mean of means over processes is far from the mean."""
    write_shards(folder / "train", 27, sizes=((24, 32), (30, 20)))


def values_of(folder: Path, **sections: Any) -> dict[str, Any]:
    """Settings of a run that promises equal weights, but for what `sections` change."""
    promising: dict[str, dict[str, Any]] = {
        "augment": {"crop_size": [16, 24], "scale_min": 0.7, "scale_max": 1.4, "flip_horizontal": 0.5},
        "model": {"widths": [4, 8], "norm": "group"},
        "optim": {"lr": 0.01},
        "trainer": {"global_batch_size": 8, "max_steps": 10, "log_every": 1},
    }
    merged = {name: {**promising.get(name, {}), **sections.get(name, {})} for name in {*promising, *sections}}
    return settings_of(folder / "train", None, folder / "runs", **merged)


def record_of(
    folder: Path,
    name: str,
    world_size: int,
    *,
    reference: str | None = None,
    is_nudged: bool = False,
    float64: bool = True,
    train: Callable[[RecordTask], None] = record.run,
    **sections: Any,
) -> Record:
    """Train some steps and read the record; beside the weights of the run called `reference`, if that is another."""
    weights = folder / f"{reference or name}_weights"
    weights.mkdir(exist_ok=True)
    task = RecordTask(
        settings={**values_of(folder, **sections), "name": name},
        steps=STEPS,
        float64=float64,
        is_nudged=is_nudged,
        record=str(folder / f"{name}.jsonl"),
        weights=str(weights),
        is_reference=reference is None,
    )
    run_ranks(train, world_size, task)
    return worlds.joined(Path(task.record), folder / "runs" / name / METRICS_FILE)
