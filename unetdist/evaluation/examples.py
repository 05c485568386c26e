"""Chooses the scored images to show: the first ones, which are the same at each validation, and the worst."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.drawing import shrink
from unetdist.distributed.collectives import all_reduce_sum, broadcast, gather_to
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
        self.num_examples = num_examples
        self._kept: dict[tuple[bool, bool, float, int], ScoredImage] = {}
        self._waiting: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, sample_id: int, confusion: Tensor, image: Tensor, mask: Tensor, pred: Tensor) -> None:
        """Consider an image. The tensors may be on a device, which is not waited for.

        Args:
            sample_id: id of the sample, from 0.
            confusion: (C, C) of the image, rows target.
            image: (C, H, W) uint8.
            mask: (H, W) class indices.
            pred: (H, W) class indices.
        """
        if self.num_examples:
            self._waiting.append((sample_id, confusion, image, mask, pred.to(torch.uint8)))

    def read(self) -> None:
        """Choose among the added images. One batch later the device has finished them, so this does not wait."""
        if not self._waiting:
            return
        counts = torch.stack([confusion for _, confusion, *_ in self._waiting]).cpu().numpy()
        mious = mean_iou(counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)).tolist()
        for (sample_id, _, *planes), miou in zip(self._waiting, mious, strict=True):
            place = self._place(sample_id, miou)
            chosen = sorted([*self._kept, place])[: self.num_examples]
            if place in chosen:
                image, mask, pred = (plane.cpu().numpy() for plane in planes)
                # Kept images are sent between ranks and stay in memory, so they are small.
                image, mask, pred = shrink(LARGEST_PX, image.transpose(1, 2, 0), mask, pred)
                self._kept[place] = ScoredImage(sample_id, miou, image, mask, pred)
                self._kept = {each: self._kept[each] for each in chosen}
        self._waiting = []

    def _place(self, sample_id: int, miou: float) -> tuple[bool, bool, float, int]:
        """Return the sort key: the first images by id, then the others by mIoU, those with only ignored pixels last."""
        if sample_id < self.num_examples // 2:
            return False, False, 0.0, sample_id
        is_ignored = math.isnan(miou)
        return True, is_ignored, 0.0 if is_ignored else miou, sample_id

    def gather(self, device: torch.device) -> tuple[ScoredImage, ...]:
        """Collective. Return the chosen images of all ranks on each rank: the first by id, then the worst.

        `device` is the one on which the backend communicates.
        """
        if not self.num_examples:
            return ()
        self.read()
        facts = torch.full((self.num_examples, 4), -1.0, dtype=torch.float64)
        for row, each in enumerate(self._kept.values()):
            facts[row] = torch.tensor([each.id, each.miou, *each.mask.shape], dtype=torch.float64)
        offers = [offer for part in gather_to(0, facts.to(device)) for offer in part.tolist() if offer[0] >= 0]
        offers.sort(key=lambda offer: self._place(int(offer[0]), offer[1]))
        gathered = []
        for sample_id, miou, height, width in broadcast(offers[: self.num_examples], device):
            place = self._place(int(sample_id), miou)
            planes = np.zeros((5, int(height), int(width)), np.uint8)
            if (own := self._kept.get(place)) is not None:
                planes[:3], planes[3], planes[4] = own.image.transpose(2, 0, 1), own.mask, own.pred
            # One rank has the image; the zeros of all others change nothing.
            planes = all_reduce_sum(torch.from_numpy(planes).to(device)).cpu().numpy()
            image = planes[:3].transpose(1, 2, 0)
            gathered.append(ScoredImage(int(sample_id), miou, image, planes[3], planes[4], is_worst=place[0]))
        return tuple(gathered)
