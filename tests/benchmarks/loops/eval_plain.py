"""Validation as most training code has it: files, a DataLoader, argmax, counts; each "batch" is a whole pass.

Arguments: precision, number of workers, images per forward pass, preset of the network, number of classes; `best`:
channels last, cuDNN's autotuning, bytes to the device, counts kept there.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.loops.files import MEAN, STD
from tests.benchmarks.loops.network import NchwUNet
from tests.benchmarks.peers.protocol import Batches, Job, installed, serve
from unetdist.model.unet import UNet, UNetConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Whole(Dataset[tuple[Tensor, Tensor]]):
    """Whole pictures and their masks."""

    def __init__(self, job: Job, *, as_bytes: bool) -> None:
        self.pairs, self.as_bytes = job.pairs(), as_bytes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image, mask = (np.array(Image.open(path)) for path in self.pairs[index])
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return pixels if self.as_bytes else pixels.float().contiguous(), torch.from_numpy(mask).long()


def passes(job: Job) -> Batches:
    """Endless passes over the files in `job.pictures`; each gives (num_classes, num_classes) pixel counts."""
    precision, num_workers, batch_size, preset, classes = sys.argv[1:6]
    best, num_classes = "best" in sys.argv, int(classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = best
    torch.manual_seed(job.seed)
    config: Any = UNetConfig(preset=preset)  # type: ignore[arg-type]
    layout = torch.channels_last if best else torch.contiguous_format
    kind = UNet if best else NchwUNet
    model: Any = kind(config, num_classes=num_classes, mean=MEAN, std=STD).to(device).eval()
    model = model.to(memory_format=layout)
    loader = DataLoader(
        Whole(job, as_bytes=best),
        batch_size=int(batch_size),
        num_workers=int(num_workers),
        persistent_workers=best and int(num_workers) > 0,
        pin_memory=device.type == "cuda",
    )
    while True:
        with torch.inference_mode():
            yield count(model, loader, num_classes, device, DTYPES[precision], on_device=best), np.zeros(1)


def count(
    model: Any,
    loader: "DataLoader[tuple[Tensor, Tensor]]",
    num_classes: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    on_device: bool,
) -> np.ndarray:
    """Pixels by target and prediction: (num_classes, num_classes)."""
    total = torch.zeros(num_classes**2, dtype=torch.int64, device=device if on_device else "cpu")
    for image, mask in loader:
        image, mask = image.to(device, non_blocking=on_device), mask.to(device, non_blocking=on_device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = model(image).argmax(1)
        if not on_device:
            predicted, mask = predicted.cpu(), mask.cpu()
        counts = mask < num_classes
        total += torch.bincount(mask[counts] * num_classes + predicted[counts], minlength=num_classes**2)
    return total.view(num_classes, num_classes).cpu().numpy()


if __name__ == "__main__":
    serve(passes, installed("torch", "pillow"))
