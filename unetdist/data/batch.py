"""Batches as the workers hand them to the trainer: uint8 pixels, and the counts that the loss needs."""

import mmap
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange

from unetdist.data.decode import Pixels
from unetdist.data.labels.palette import IGNORE_INDEX

# (1,) of a `batch_dtype`: the memory of one batch.
Record = npt.NDArray[np.void]


class Sample(NamedTuple):
    """One image with its mask, ready for a batch."""

    sample_id: int
    image: Pixels
    """(H, W, C)"""
    mask: Pixels
    """(H, W) class indices, 255 = ignored."""
    counts: npt.NDArray[np.int64]
    """(256,) pixels of the mask by value."""
    is_bad: bool = False
    """Whether it could not be read, so that image and mask are blank."""


@dataclass(frozen=True)
class Batch:
    """Samples of equal size, on the CPU until `to` moves them to a device."""

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
        """The batch in a record, without a copy."""
        image, mask, ids, class_pixels = (torch.from_numpy(record[name][0]) for name in record.dtype.names or ())
        return cls(rearrange(image, "b h w c -> b c h w"), mask, ids, class_pixels, num_bad)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on `device`, except its ids, which only the host reads."""
        there = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(there, ids=self.ids)

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Hold the memory of a batch that was made on another CUDA stream until `stream` has used it."""
        for tensor in (self.image, self.mask, self.class_pixels):
            tensor.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies without waiting; DataLoader calls it."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        image, mask, ids, class_pixels = map(change, (self.image, self.mask, self.ids, self.class_pixels))
        return Batch(image, mask, ids, class_pixels, self.num_bad)


def batch_dtype(batch_size: int, size: tuple[int, int], channels: int, num_classes: int) -> np.dtype[np.void]:
    """Memory layout of a batch of images of `size` (height, width), channels last."""
    fields = [
        ("image", np.uint8, (batch_size, *size, channels)),
        ("mask", np.uint8, (batch_size, *size)),
        ("ids", np.int64, (batch_size,)),
        ("class_pixels", np.int64, (batch_size, num_classes)),
    ]
    return np.dtype(fields, align=True)


def collate(samples: Sequence[Sample], num_classes: int, *, into: Record | None = None) -> Batch:
    """Samples of equal size as one batch; each is copied once, into the memory `into` or into new memory."""
    if into is None:
        height, width, channels = samples[0].image.shape
        into = np.empty(1, batch_dtype(len(samples), (height, width), channels, num_classes))
    images, masks, ids, class_pixels = (into[name][0] for name in into.dtype.names or ())
    for number, sample in enumerate(samples):
        images[number] = sample.image
        masks[number] = sample.mask
        ids[number] = sample.sample_id
        class_pixels[number] = sample.counts[:num_classes]
    return Batch.of(into, sum(sample.is_bad for sample in samples))


def blank_sample(sample_id: int, size: tuple[int, int], channels: int) -> Sample:
    """A black image whose mask is ignored everywhere, so that it adds nothing to loss or metric."""
    mask = np.full(size, IGNORE_INDEX, np.uint8)
    return Sample(sample_id, np.zeros((*size, channels), np.uint8), mask, count_values(mask), is_bad=True)


def count_values(mask: Pixels) -> npt.NDArray[np.int64]:
    """(256,) pixels of a uint8 (H, W) array by value."""
    # Up to 2**24 the float32 counts of calcHist are exact, and it is twice as fast.
    if mask.size < 2**24:
        return cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(mask.ravel(), minlength=256)


class BatchPool:
    """Slots for batches of one layout in anonymous shared memory, made before the workers are forked.

    A slot handed out as a batch is free again when nothing refers to the batch's tensors any more.
    """

    # Workers write into a slot and send only its number. Sent as tensors, every batch would be new files in /dev/shm,
    # whose pages both sides touch for the first time (30 ms for 16 images of 512x512), and which containers limit to
    # 64 MB by default.

    def __init__(self, num_slots: int, dtype: np.dtype[np.void]) -> None:
        """`dtype` is that of one batch, from `batch_dtype`."""
        self.number = next(_numbers)
        self._dtype = dtype
        self._memory = mmap.mmap(-1, num_slots * dtype.itemsize)
        self._free = deque(range(num_slots))
        _pools[self.number] = self

    def take(self) -> int | None:
        """A free slot; None while the trainer holds the batches of all of them."""
        return self._free.popleft() if self._free else None

    def record(self, slot: int) -> Record:
        """The memory of a slot, (1,)."""
        return np.frombuffer(self._memory, self._dtype, count=1, offset=slot * self._dtype.itemsize)

    def batch(self, slot: int, num_bad: int) -> Batch:
        """The batch that a worker wrote into a slot, in place."""
        record = self.record(slot)
        # The batch's tensors refer to this very array, so it goes when the last of them does.
        weakref.finalize(record, self._free.append, slot).atexit = False
        return Batch.of(record, num_bad)


@dataclass(frozen=True)
class BatchSlot:
    """Message from a worker: the batch is in this slot of this pool."""

    pool: int
    slot: int
    num_bad: int

    def batch(self) -> Batch:
        """The batch, in place; call it once."""
        return _pools[self.pool].batch(self.slot, self.num_bad)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies without waiting; DataLoader calls it in a thread."""
        return self.batch().pin_memory()


# The key is a number, because a message from a worker cannot refer to an object of this process.
_pools: weakref.WeakValueDictionary[int, BatchPool] = weakref.WeakValueDictionary()
_numbers = count()
