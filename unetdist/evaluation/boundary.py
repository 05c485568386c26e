"""Boundary IoU: how well outlines match, which IoU hides where objects are large.

Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (arXiv 2103.16562), section 4:
the IoU of the pixels of a class that lie within a distance of its outline. Counted in integers, so that images and
ranks add up.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.labels import IGNORE_INDEX

DILATION_RATIO = 0.02
"""Width of the outline as a share of the image's diagonal; the paper's."""


def boundary_counts(pred: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Pixels of outlines of one image, by class.

    An ignored pixel is outside of every class, in target and prediction alike; so is what lies outside of the image.

    Args:
        pred: (H, W) integer classes.
        mask: (H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
        num_classes: C.

    Returns:
        (2, C) int64, for each class the intersection and the union of the outlines of target and prediction.
    """
    pred = torch.where(mask == IGNORE_INDEX, IGNORE_INDEX, pred).to(torch.uint8)
    distance = boundary_distance(*mask.shape)
    nothing = torch.full_like(mask, IGNORE_INDEX)
    target = torch.where(near_boundary(mask, distance), mask, nothing).long()
    found = torch.where(near_boundary(pred, distance), pred, nothing).long()
    both = torch.where(target == found, target, IGNORE_INDEX)
    counts = torch.zeros(3, 256, dtype=torch.int64, device=mask.device)
    classes = torch.stack([both, target, found]).flatten(1)
    counts.scatter_add_(1, classes, torch.ones_like(classes))
    intersection, targets, predictions = counts[:, :num_classes]
    return torch.stack([intersection, targets + predictions - intersection])


def boundary_distance(height: int, width: int) -> int:
    """Pixels by which a mask is eroded to find its outline."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def near_boundary(classes: Tensor, distance: int) -> Tensor:
    """Where the mask of a pixel's own class, eroded `distance` times by 3 x 3, holds the pixel no more.

    That is where the window of `distance` around the pixel leaves the image or holds two neighbours that differ. Their
    number comes from sums over the image, at a cost that depends on neither the distance nor the classes.

    Args:
        classes: (H, W) of any integer type.
        distance: at least 1.

    Returns:
        (H, W) bool.
    """
    height, width = classes.shape
    near = torch.ones_like(classes, dtype=torch.bool)
    side = 2 * distance + 1
    if height >= side and width >= side:
        across = _window_sums(classes[:, 1:] != classes[:, :-1], side, side - 1)
        along = _window_sums(classes[1:] != classes[:-1], side - 1, side)
        near[distance : height - distance, distance : width - distance] = (across + along) > 0
    return near


def _window_sums(flags: Tensor, height: int, width: int) -> Tensor:
    """Flags that are set in each window inside of the image: (H - height + 1, W - width + 1) int32."""
    sums = torch.nn.functional.pad(
        flags.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0)
    )
    columns = sums[:, width:] - sums[:, :-width]
    return columns[height:] - columns[:-height]


@dataclass(frozen=True)
class BoundaryScores:
    """What (2, C) counts of any number of images say; ratios 0..1."""

    class_names: tuple[str, ...]
    iou: NDArray[np.float64]
    """(C,) boundary IoU; nan for a class that is absent from target and prediction."""
    miou: float
    """Mean over the classes that are not; nan if all are."""

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], class_names: tuple[str, ...]) -> "BoundaryScores":
        """Of summed `boundary_counts`."""
        intersection, union = counts
        iou = np.where(union > 0, intersection / np.maximum(union, 1), np.nan)
        return cls(class_names, iou, float(np.nanmean(iou)) if union.any() else math.nan)

    def to_record(self) -> dict[str, Any]:
        """As JSON can hold it, nan as None."""
        by_class = zip(self.class_names, self.iou.tolist(), strict=True)
        return {
            "boundary_miou": None if math.isnan(self.miou) else self.miou,
            "classes": {name: None if math.isnan(iou) else iou for name, iou in by_class},
        }
