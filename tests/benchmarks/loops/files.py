"""Image and mask files, read and cropped by the workers of a DataLoader, as most training code does it."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tests.benchmarks.loops.protocol import TrainJob, waited

MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
"""Of the channels, 0..255: ImageNet's, as most training code has them."""

ENDLESS = 1 << 40
"""Samples of an epoch: nobody has to start its workers anew."""

DEVICE_BATCHES = 8
"""That are repeated where data lies on the device already."""

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W), float32 normalised or uint8, and masks (B, H, W), int64 or uint8."""


class Files(Dataset[Batch]):
    """Random crops and flips of a folder's pictures."""

    def __init__(self, job: TrainJob, *, reader: Literal["pil", "opencv"], as_bytes: bool) -> None:
        """`as_bytes`: uint8, to be normalised on the device; else float32 and int64."""
        self.job, self.reader, self.as_bytes = job, reader, as_bytes
        self.images = sorted(Path(job.pictures, "images").glob("*.jpg"))
        self.masks = Path(job.pictures, "masks")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        path = self.images[index]
        image, mask = (self._pil if self.reader == "pil" else self._opencv)(
            path, self.masks / f"{path.stem}.png"
        )
        height, width = mask.shape
        top = int(torch.randint(height - self.job.height + 1, ()))
        left = int(torch.randint(width - self.job.width + 1, ()))
        rows, columns = slice(top, top + self.job.height), slice(left, left + self.job.width)
        image, mask = image[rows, columns], mask[rows, columns]
        if torch.rand(()) < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        mask = np.ascontiguousarray(mask)
        if self.as_bytes:
            return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), torch.from_numpy(mask)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (pixels - mean) / std, torch.from_numpy(mask).long()

    def _pil(self, image: Path, mask: Path) -> tuple[Any, Any]:
        from PIL import Image

        return np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask))

    def _opencv(self, image: Path, mask: Path) -> tuple[Any, Any]:
        import cv2

        cv2.setNumThreads(0)
        pixels: Any = cv2.imread(str(image), cv2.IMREAD_COLOR_RGB)
        return pixels, cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)


def open_files(
    job: TrainJob, *, reader: Literal["pil", "opencv"] = "pil", as_bytes: bool = False, pin: bool = True
) -> "DataLoader[Batch]":
    """Endless batches. All loops have the job's number of workers, so that this is not what is compared."""
    dataset = Files(job, reader=reader, as_bytes=as_bytes)
    return DataLoader(
        dataset,
        batch_size=job.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=ENDLESS),
        num_workers=job.num_workers,
        pin_memory=pin and job.device.type == "cuda",
        drop_last=True,
    )


def on_device(loader: Iterable[Batch], job: TrainJob) -> Iterator[Batch]:
    """The same few batches of the device's memory again and again."""
    kept = [(image.to(job.device), mask.to(job.device)) for image, mask in islice(loader, DEVICE_BATCHES)]
    return cycle(kept)


def fed(loader: Iterable[Batch], job: TrainJob, *, non_blocking: bool = False) -> Iterator[Batch]:
    """Batches on the device, copied when they are needed; the wait and the copy are ranges of the profile."""
    if job.on_device:
        yield from on_device(loader, job)
    for image, mask in waited(loader):
        with record_function("step: copy"):
            batch = (
                image.to(job.device, non_blocking=non_blocking),
                mask.to(job.device, non_blocking=non_blocking),
            )
        yield batch
