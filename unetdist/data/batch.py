"""What the workers hand to the trainer: pixels as bytes, and the counts that the loss needs of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange

from unetdist.ignore_index import IGNORE_INDEX

Pixels = npt.NDArray[np.uint8]


class Sample(NamedTuple):
    """One picture with its mask, ready for a batch."""

    sample_id: int
    image: Pixels
    """(H, W, C)"""
    mask: Pixels
    """(H, W) class indices, 255 = ignored."""
    counts: npt.NDArray[np.int64]
    """(256,) pixels of the mask by value."""
    is_bad: bool = False
    """It could not be read; image and mask are blank."""


@dataclass(frozen=True)
class Batch:
    """Samples of equal size, on the CPU until `to` takes them to a device."""

    image: torch.Tensor
    """(B, C, H, W) uint8 in 0..255, with channels_last strides."""
    mask: torch.Tensor
    """(B, H, W) uint8 class indices, 255 = ignored."""
    ids: torch.Tensor
    """(B,) int64 sample ids."""
    class_pixels: torch.Tensor
    """(B, num_classes) int64 valid pixels of each class in each mask."""
    num_bad: int = 0
    """Samples that could not be read and were left blank."""

    def __len__(self) -> int:
        """Samples."""
        return len(self.ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies without waiting (DataLoader calls it)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(
            image=change(self.image),
            mask=change(self.mask),
            ids=change(self.ids),
            class_pixels=change(self.class_pixels),
            num_bad=self.num_bad,
        )


def collate(samples: Sequence[Sample], num_classes: int) -> Batch:
    """Samples of equal size as one batch: each is copied once, into memory that the trainer can share."""
    height, width, channels = samples[0].image.shape
    images = torch.empty((len(samples), height, width, channels), dtype=torch.uint8)
    masks = torch.empty((len(samples), height, width), dtype=torch.uint8)
    for number, sample in enumerate(samples):
        images.numpy()[number] = sample.image
        masks.numpy()[number] = sample.mask
    return Batch(
        image=rearrange(images, "b h w c -> b c h w"),
        mask=masks,
        ids=torch.tensor([sample.sample_id for sample in samples], dtype=torch.int64),
        class_pixels=torch.from_numpy(np.stack([sample.counts[:num_classes] for sample in samples])),
        num_bad=sum(sample.is_bad for sample in samples),
    )


def blank_sample(sample_id: int, size: tuple[int, int], channels: int) -> Sample:
    """A black picture that adds nothing to loss or metric, for its whole mask is ignored."""
    mask = np.full(size, IGNORE_INDEX, np.uint8)
    return Sample(sample_id, np.zeros((*size, channels), np.uint8), mask, count_values(mask), is_bad=True)


def count_values(mask: Pixels) -> npt.NDArray[np.int64]:
    """(256,) pixels of a uint8 (H, W) array by value."""
    if mask.size < 2**24:  # Up to here the float32 counts of calcHist are exact; it is twice as fast.
        return cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(mask.ravel(), minlength=256)
