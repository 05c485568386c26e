"""What the workers hand to the trainer: pixels as bytes, and the counts that the loss needs of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange

from unetdist.data.ignore_index import IGNORE_INDEX

Pixels = npt.NDArray[np.uint8]
Record = npt.NDArray[np.void]
"""(1,) of a `batch_dtype`: the memory of one batch."""


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

    @classmethod
    def of(cls, record: Record, num_bad: int) -> "Batch":
        """The batch that lies in a record, without a copy."""
        image, mask, ids, class_pixels = (
            torch.from_numpy(record[name][0]) for name in record.dtype.names or ()
        )
        return cls(rearrange(image, "b h w c -> b c h w"), mask, ids, class_pixels, num_bad)

    def __len__(self) -> int:
        """Samples."""
        return len(self.ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on `device`, but for its ids, which only the host reads."""
        there = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(there, ids=self.ids)

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Hold the memory of a batch that was made on another CUDA stream until `stream` is done with it."""
        for tensor in (self.image, self.mask, self.class_pixels):
            tensor.record_stream(stream)

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


def batch_dtype(batch_size: int, size: tuple[int, int], channels: int, num_classes: int) -> np.dtype[np.void]:
    """How a batch of pictures of `size` (height, width) lies in memory: images channels last."""
    return np.dtype(
        [
            ("image", np.uint8, (batch_size, *size, channels)),
            ("mask", np.uint8, (batch_size, *size)),
            ("ids", np.int64, (batch_size,)),
            ("class_pixels", np.int64, (batch_size, num_classes)),
        ],
        align=True,
    )


def collate(samples: Sequence[Sample], num_classes: int, *, into: Record | None = None) -> Batch:
    """Samples of equal size as one batch: each is copied once, into the memory `into` or new memory."""
    height, width, channels = samples[0].image.shape
    if into is None:
        into = np.empty(1, batch_dtype(len(samples), (height, width), channels, num_classes))
    images, masks, ids, class_pixels = (into[name][0] for name in into.dtype.names or ())
    for number, sample in enumerate(samples):
        images[number] = sample.image
        masks[number] = sample.mask
        ids[number] = sample.sample_id
        class_pixels[number] = sample.counts[:num_classes]
    return Batch.of(into, sum(sample.is_bad for sample in samples))


def blank_sample(sample_id: int, size: tuple[int, int], channels: int) -> Sample:
    """A black picture that adds nothing to loss or metric, for its whole mask is ignored."""
    mask = np.full(size, IGNORE_INDEX, np.uint8)
    return Sample(sample_id, np.zeros((*size, channels), np.uint8), mask, count_values(mask), is_bad=True)


def count_values(mask: Pixels) -> npt.NDArray[np.int64]:
    """(256,) pixels of a uint8 (H, W) array by value."""
    if mask.size < 2**24:  # Up to here the float32 counts of calcHist are exact; it is twice as fast.
        return cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(mask.ravel(), minlength=256)
