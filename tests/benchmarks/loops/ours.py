"""The loop of `launch/train.py` itself, without log lines, validation and checkpoints, which others do not have here.

Arguments: `auto` or `off`, the setting `performance`; `graphs` or `no-graphs`: compiled with CUDA graphs or without,
whatever the facts say; `all-kernels`: cuDNN tries every kernel, not the first ten.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from tests.benchmarks.loops.files import DEVICE_BATCHES
from tests.benchmarks.loops.protocol import AfterStep, TrainJob, serve, waited
from unetdist.data.augment import AugmentConfig
from unetdist.data.batch import Batch
from unetdist.data.loader import DataConfig
from unetdist.distributed.collectives import MixedPrecision
from unetdist.errors import TrainingError
from unetdist.model.unet import UNetConfig
from unetdist.tracking import TrackingConfig
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.optim import OptimConfig
from unetdist.train.performance import COMPILER, FastPath
from unetdist.train.schedule import TrainerConfig
from unetdist.train.trainer import Trainer

ENDLESS = 10_000_000
"""Steps of the run: so long that the compiler pays."""

PRECISIONS: dict[str, MixedPrecision] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def settings_of(job: TrainJob, performance: Literal["auto", "off"], runs_dir: str) -> Config:
    """What a user would set for this job."""
    return Config(
        data=DataConfig(train=job.shards, num_workers=job.num_workers),
        name="benchmark",
        runs_dir=runs_dir,
        seed=job.seed,
        performance=performance,
        augment=AugmentConfig(crop_size=(job.height, job.width), flip_horizontal=0.5),
        model=UNetConfig(widths=tuple(job.widths)),
        optim=OptimConfig(kind="adamw", lr=job.lr, weight_decay=0.01, schedule="constant"),
        trainer=TrainerConfig(
            global_batch_size=job.batch_size, max_steps=ENDLESS, mixed_precision=PRECISIONS[job.precision]
        ),
        tracking=TrackingConfig(tracker="none"),
    )


def train(job: TrainJob, after_step: AfterStep) -> None:
    """Without an end."""
    performance: Literal["auto", "off"] = "off" if "off" in sys.argv else "auto"
    Path(job.work).mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=job.work) as runs_dir,
        build_trainer(settings_of(job, performance, runs_dir), change=changed) as trainer,
    ):
        if "all-kernels" in sys.argv:
            torch.backends.cudnn.benchmark_limit = 0
        trainer.attempt.begin(0)
        steps = trainer.rehearsed(trainer.train_batches(0))
        if trainer.share.problem is not None:
            raise TrainingError(f"it would not be measured as chosen: not compiled: {trainer.share.problem}")
        if "graphs" in sys.argv and not trainer.share.has_cuda_graphs:
            raise TrainingError("it would not be measured as asked: torch.compile skipped the CUDA graphs")
        if job.on_device:
            steps = kept_on(trainer.world.device, steps)
        trainer.meter.restart()
        for micro_batches in waited(steps):
            grad_norm = trainer.train_step(micro_batches)
            trainer.state.advance(trainer.global_batch_size)
            after_step(partial(mean_loss, trainer, grad_norm))


def changed(path: FastPath) -> FastPath:
    """The fast path that the arguments ask for."""
    if not {"graphs", "no-graphs"} & set(sys.argv):
        return path
    has_graphs = "graphs" in sys.argv
    reason = f"compiled, CUDA graphs: {'yes' if has_graphs else 'no'}, as the benchmark asks"
    return replace(path, compiler=COMPILER, cuda_graphs=has_graphs, reasons=(reason,))


def mean_loss(trainer: Trainer, grad_norm: torch.Tensor) -> float:
    """Of the steps since it was last asked for, as the log line gives it."""
    stats = trainer.meter.read(
        lr=0.0, grad_norm=grad_norm, global_batch_size=trainer.global_batch_size, epoch=0.0, bad_steps=0
    )
    return stats.loss


def kept_on(device: torch.device, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """The same few steps from the memory of `device` again and again."""
    return cycle([[batch.to(device) for batch in step] for step in islice(steps, DEVICE_BATCHES)])


if __name__ == "__main__":
    serve(train, "torch", "accelerate")
