"""Which of the scored images are shown: the first ones, the same at each validation, and the worst of all ranks."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.drawing import shrink
from unetdist.distributed.collectives import broadcast, broadcast_tensor, gather_to
from unetdist.evaluation.metrics import mean_iou

LARGEST_PX = 512
"""Pictures are shrunk to this width and height: they are sent between ranks, and each validation keeps them."""


@dataclass(frozen=True)
class Example:
    """One scored image, for the eye, shrunk to `LARGEST_PX`."""

    id: int
    miou: float
    """Of this image alone, over the classes in it or in its prediction; nan where all is ignored."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""

    mask: NDArray[np.uint8]
    """(H, W) class indices."""

    pred: NDArray[np.uint8]
    """(H, W) class indices."""

    is_worst: bool = False
    """Whether it was chosen for its score."""


@dataclass(frozen=True)
class Picture:
    """One scored image, for the eye: image (H, W, 3) uint8, mask and pred (H, W) class indices."""

    key: str
    image: np.ndarray
    mask: np.ndarray
    pred: np.ndarray
    miou: float = math.nan
    """Of this image alone, 0..1; nan: no pixel of it counts."""

    is_worst: bool = False
    """Whether it is shown because it is among the worst."""

    @property
    def caption(self) -> str:
        """What stands below it."""
        score = "" if math.isnan(self.miou) else f", mIoU {100 * self.miou:.1f} %"
        return f"{'worst: ' if self.is_worst else ''}{self.key}{score}"


class Examples:
    """Chooses among the images of all ranks, whichever rank scores which: half of them first, half of them worst."""

    def __init__(self, num_examples: int) -> None:
        """Choose that many; of an odd number one more for its score."""
        self.num_first, self.num_worst = num_examples // 2, num_examples - num_examples // 2
        self._kept: list[Example] = []
        self._waiting: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, sample_id: int, confusion: Tensor, image: Tensor, mask: Tensor, pred: Tensor) -> None:
        """Consider an image; tensors may be on a device, which is not waited for.

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
        """Choose among what was added; called a batch later, there is nothing to wait for."""
        if not self._waiting:
            return
        counts = torch.stack([confusion for _, confusion, *_ in self._waiting]).cpu().numpy()
        mious = mean_iou(counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1))
        for (sample_id, _, *planes), miou in zip(self._waiting, mious, strict=True):
            self._offer(sample_id, float(miou), planes)
        self._waiting = []

    def _offer(self, sample_id: int, miou: float, planes: list[Tensor]) -> None:
        mious = {**{each.id: each.miou for each in self._kept}, sample_id: miou}
        # The first may be among the worst, and are shown once: so many more may be needed.
        chosen = {*sorted(mious)[: self.num_first], *_worst(mious)[: self.num_worst + self.num_first]}
        if sample_id in chosen:
            image, mask, pred = (plane.cpu().numpy() for plane in planes)
            image, mask, pred = shrink(LARGEST_PX, image.transpose(1, 2, 0), mask, pred)
            kept = [each for each in self._kept if each.id in chosen]
            self._kept = [*kept, Example(sample_id, miou, image, mask, pred)]

    def gather(self, device: torch.device) -> tuple[Example, ...]:
        """Collective. The chosen of all ranks, on each: the first by id, then the worst, from bad to better.

        `device` is where the backend computes.
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
            planes = _share(mine.get(sample_id), (height, width), owner, device)
            image, is_worst = planes[:3].transpose(1, 2, 0), place >= self.num_first
            gathered.append(Example(sample_id, miou, image, planes[3], planes[4], is_worst=is_worst))
        return tuple(gathered)

    def _choose(self, mious: dict[int, float]) -> list[int]:
        """Ids of the first, then of the worst of the others."""
        first = sorted(mious)[: self.num_first]
        others = {sample_id: miou for sample_id, miou in mious.items() if sample_id not in first}
        return first + _worst(others)[: self.num_worst]


def _share(
    mine: Example | None, size: tuple[int, int], owner: int, device: torch.device
) -> NDArray[np.uint8]:
    """Collective. (5, *size) on each rank: image, mask and prediction of an example, which only `owner` has."""
    planes = np.empty((5, *size), np.uint8)
    if mine is not None:
        planes[:3], planes[3], planes[4] = mine.image.transpose(2, 0, 1), mine.mask, mine.pred
    broadcast_tensor(torch.from_numpy(planes), owner, device)
    return planes


def _worst(mious: dict[int, float]) -> list[int]:
    """Ids from bad to better, ties by id; last those of which nothing counts."""
    return sorted(mious, key=lambda i: (math.isnan(mious[i]), mious[i], i))
