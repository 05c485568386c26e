"""A loop run for a few steps in this process."""

import math
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.loops.protocol import EndedError, TrainJob
from tests.benchmarks.ours import own_shards
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.source import Case, Pictures, write_pictures

NUM_CLASSES = 4


def small_job(folder: Path, *, shards: bool = False, **changes) -> TrainJob:
    """Crops of 24x16 pixels, batches of 2, on the CPU, for a network of 2 levels."""
    write_pictures(folder / "pictures", Pictures(None, None, None), Case(32, 24, 16), num_samples=6)
    if shards:
        own_shards(Job(str(folder / "pictures"), "", 16, 2), str(folder / "shards"))
    given = {
        "pictures": str(folder / "pictures"),
        "shards": str(folder / "shards"),
        "work": str(folder / "work"),
        "height": 16,
        "width": 24,
        "batch_size": 2,
        "num_classes": NUM_CLASSES,
        "widths": [4, 8],
        "precision": "fp32",
        "num_workers": 0,
        "lr": 0.01,
    }
    return TrainJob(**{**given, **changes})


def losses_of(train, job: TrainJob, *words: str, steps: int = 15) -> list[float]:
    """The losses of the first steps of a loop, whose arguments are `words`."""
    losses = []

    def after_step(read_loss):
        losses.append(read_loss())
        if len(losses) == steps:
            raise EndedError

    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    with pytest.MonkeyPatch.context() as patched, pytest.raises(EndedError):
        patched.setattr(sys, "argv", ["loop", *words])
        train(job, after_step)
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before
    return losses


def check_learning(train, folder: Path, *words: str, **changes) -> None:
    """It begins as a network does that knows nothing, and becomes better."""
    losses = losses_of(train, small_job(folder, **changes), *words)
    assert abs(losses[0] - math.log(NUM_CLASSES)) < 0.8
    assert sum(losses[-3:]) < sum(losses[:3])
