"""Our own data path as a contender: shards written by this program, or foreign tars that it only indexed."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.peers.protocol import Batches, Job, installed, serve
from tests.benchmarks.peers.tars import SAMPLES_PER_TAR, write_tars
from tests.benchmarks.split import split_time
from unetdist.data.augment import AugmentConfig
from unetdist.data.batch import Batch
from unetdist.data.loader import DataConfig, train_loader
from unetdist.data.manifest import Manifest
from unetdist.distributed.malloc import keep_all_freed

SCRIPT = Path(__file__).parents[2] / "launch" / "shard_dataset.py"

HANDOVER_CROP = 512
"""Side in pixels of the batches whose hand-over is timed."""

PACKAGES = ("torch", "opencv-python-headless", "simplejpeg", "isal")


def own_shards(job: Job, folder: str) -> None:
    """As the README says that a user does it."""
    pictures = Path(job.pictures)
    _shard_dataset(
        *("--images", pictures / "images", "--masks", pictures / "masks", "--mask-format", "ids"),
        *("--labels", pictures / "Labels.txt", "--samples-per-shard", SAMPLES_PER_TAR, "--out", folder),
    )


def foreign_shards(job: Job, folder: str) -> None:
    """Plain tars, indexed; no byte of the pictures is changed."""
    write_tars(folder, job.pairs())
    labels = Path(job.pictures) / "Labels.txt"
    _shard_dataset("index", folder, "--labels", labels, "--mask-format", "ids")


def _shard_dataset(*words: Any) -> None:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def open_loader(job: Job, folder: str) -> Iterator[Batch]:
    """Endless micro-batches from the training loader with its default settings."""
    manifest = Manifest.load(folder)
    steps = train_loader(
        DataConfig(train=folder, num_workers=job.num_workers),
        AugmentConfig(crop_size=(job.crop, job.crop), flip_horizontal=0.5),
        manifest,
        folder,
        seed=job.seed,
        channels=3,
        num_classes=manifest.num_classes,
        global_batch_size=job.batch_size,
        micro_batch_size=job.batch_size,
    )
    return (step[0] for step in steps)


def own_batches(job: Job) -> Batches:
    """Endless batches (B, 3, H, W) and (B, H, W) from our own shards."""
    folder = job.format_once("shards", lambda folder: own_shards(job, folder))
    return ((batch.image, batch.mask) for batch in open_loader(job, folder))


def foreign_batches(job: Job) -> Batches:
    """Endless batches (B, 3, H, W) and (B, H, W) from tars that others wrote."""
    folder = job.format_once("indexed_tars", lambda folder: foreign_shards(job, folder))
    return ((batch.image, batch.mask) for batch in open_loader(job, folder))


def split(job: Job, num_batches: int) -> dict[str, float]:
    """Microseconds per sample by part of the path, in the calling process, and of the copy to the device."""
    batches = own_batches(replace(job, num_workers=0))
    parts = split_time(lambda: next(batches), num_batches, job.batch_size)
    return {**parts, "transfer": transfer_time(next(batches), num_batches) / job.batch_size * 1e6}


def transfer_time(batch: tuple[torch.Tensor, torch.Tensor], count: int) -> float:
    """Seconds that a batch takes from page-locked memory to the GPU; without one, for a copy in memory."""
    has_gpu = torch.cuda.is_available()
    ready = [part.pin_memory() if has_gpu else part for part in batch]
    there = [torch.empty_like(part, device="cuda" if has_gpu else "cpu") for part in batch]
    began = time.perf_counter()
    for _ in range(count):
        for target, part in zip(there, ready, strict=True):
            target.copy_(part, non_blocking=True)
    if has_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def handover(job: Job, count: int) -> dict[str, list[float]]:
    """Milliseconds per batch that the trainer's process spends on batches which a worker has finished.

    `next`: until the batch is there; `next_and_copy`: until its pixels were copied once, as to a device; `copy`:
    the same copy between two tensors of this process.
    """
    job = replace(job, crop=HANDOVER_CROP, num_workers=1)
    folder = job.format_once("shards", lambda folder: own_shards(job, folder))
    batches = open_loader(job, folder)
    first = next(batches)
    image, mask = torch.empty_like(first.image), torch.empty_like(first.mask)
    began = time.perf_counter()
    num_warm = 2 * DataConfig(train="").prefetch
    for _ in islice(batches, num_warm):
        pass
    per_batch = (time.perf_counter() - began) / num_warm
    times: dict[str, list[float]] = {"next": [], "next_and_copy": [], "copy": []}
    for _ in range(count):
        time.sleep(2 * per_batch)  # The worker refills the place that was taken.
        began = time.perf_counter()
        batch = next(batches)
        times["next"].append(1000 * (time.perf_counter() - began))
        image.copy_(batch.image), mask.copy_(batch.mask)
        times["next_and_copy"].append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        image.copy_(batch.image), mask.copy_(batch.mask)
        times["copy"].append(1000 * (time.perf_counter() - began))
    return times


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_all_freed()  # as launch/train.py
    own = sys.argv[1:] != ["foreign"]
    serve(
        own_batches if own else foreign_batches,
        installed(*PACKAGES),
        {"split": split, "handover": handover},
    )
