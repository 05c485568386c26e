"""Chooses the scored images to show: the first ones, which are the same at each validation, and the worst."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.drawing import shrink
from unetdist.distributed.collectives import broadcast, broadcast_tensor, gather_to
from unetdist.evaluation.metrics import mean_iou

# Largest width and height of a kept image.
LARGEST_PX = 512


@dataclass(frozen=True)
class ScoredImage:
    """An image with its mask and prediction, no larger than `LARGEST_PX`."""

    id: int
    """Sample id."""

    miou: float
    """mIoU of this image, 0..1, over the classes in its mask or prediction; nan if every pixel is ignored."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""

    mask: NDArray[np.uint8]
    """(H, W) class indices."""

    pred: NDArray[np.uint8]
    """(H, W) class indices."""

    is_worst: bool = False
    """Whether it was chosen for its low score."""

    key: str = ""
    """Name of the sample in its shard."""

    @property
    def caption(self) -> str:
        """Text to show below the image."""
        score = "" if math.isnan(self.miou) else f", mIoU {100 * self.miou:.1f} %"
        return f"{'worst: ' if self.is_worst else ''}{self.key}{score}"


class Examples:
    """Chooses among the images of all ranks, whichever rank scores them: half are the first, half the worst."""

    def __init__(self, num_examples: int) -> None:
        """Choose `num_examples` images; an odd one is chosen for its score."""
        self.num_first, self.num_worst = num_examples // 2, num_examples - num_examples // 2
        self._kept: list[ScoredImage] = []
        self._waiting: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, sample_id: int, confusion: Tensor, image: Tensor, mask: Tensor, pred: Tensor) -> None:
        """Consider an image. The tensors may be on a device, which is not waited for.

        Args:
            sample_id: id of the sample.
            confusion: (C, C) of the image, rows target.
            image: (C, H, W) uint8.
            mask: (H, W) class indices.
            pred: (H, W) class indices.
        """
        if self.num_first + self.num_worst:
            self._waiting.append((sample_id, confusion, image, mask, pred.to(torch.uint8)))

    def read(self) -> None:
        """Choose among the added images. One batch later the device has finished them, so this does not wait."""
        if not self._waiting:
            return
        counts = torch.stack([confusion for _, confusion, *_ in self._waiting]).cpu().numpy()
        mious = mean_iou(counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1))
        for (sample_id, _, *planes), miou in zip(self._waiting, mious, strict=True):
            self._offer(sample_id, float(miou), planes)
        self._waiting = []

    def _offer(self, sample_id: int, miou: float, planes: list[Tensor]) -> None:
        mious = {**{each.id: each.miou for each in self._kept}, sample_id: miou}
        # An image that is among the first and the worst is shown once, so the next worst may be needed.
        chosen = {*sorted(mious)[: self.num_first], *_worst_first(mious)[: self.num_worst + self.num_first]}
        if sample_id in chosen:
            image, mask, pred = (plane.cpu().numpy() for plane in planes)
            # Kept images are sent between ranks and stay in memory, so they are small.
            image, mask, pred = shrink(LARGEST_PX, image.transpose(1, 2, 0), mask, pred)
            kept = [each for each in self._kept if each.id in chosen]
            self._kept = [*kept, ScoredImage(sample_id, miou, image, mask, pred)]

    def gather(self, device: torch.device) -> tuple[ScoredImage, ...]:
        """Collective. Return the chosen images of all ranks on each rank: the first by id, then the worst.

        `device` is the one on which the backend communicates.
        """
        if not self.num_first + self.num_worst:
            return ()
        self.read()
        facts = torch.full((2 * self.num_first + self.num_worst, 4), -1.0, dtype=torch.float64)
        for row, each in enumerate(self._kept):
            facts[row] = torch.tensor([each.id, each.miou, *each.mask.shape], dtype=torch.float64)
        offers = {
            int(sample_id): (miou, int(height), int(width), rank)
            for rank, part in enumerate(gather_to(0, facts.to(device)))
            for sample_id, miou, height, width in part.tolist()
            if sample_id >= 0
        }
        ids = self._choose({sample_id: miou for sample_id, (miou, *_) in offers.items()})
        mine = {each.id: each for each in self._kept}
        gathered = []
        for place, offer in enumerate(broadcast([[i, *offers[i]] for i in ids], device)):
            sample_id, miou, height, width, owner = offer
            planes = np.empty((5, height, width), np.uint8)
            if (own := mine.get(sample_id)) is not None:
                planes[:3], planes[3], planes[4] = own.image.transpose(2, 0, 1), own.mask, own.pred
            broadcast_tensor(torch.from_numpy(planes), owner, device)
            image, is_worst = planes[:3].transpose(1, 2, 0), place >= self.num_first
            gathered.append(ScoredImage(sample_id, miou, image, planes[3], planes[4], is_worst=is_worst))
        return tuple(gathered)

    def _choose(self, mious: dict[int, float]) -> list[int]:
        first = sorted(mious)[: self.num_first]
        others = {sample_id: miou for sample_id, miou in mious.items() if sample_id not in first}
        return first + _worst_first(others)[: self.num_worst]


def _worst_first(mious: dict[int, float]) -> list[int]:
    """Sort ids by mIoU, ties by id; images with only ignored pixels come last."""
    return sorted(mious, key=lambda i: (math.isnan(mious[i]), mious[i], i))
