"""Boundary IoU: how well outlines match. Plain IoU hardly shows it when objects are large.

Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (arXiv 2103.16562), section 4:
the IoU of the pixels of a class within a distance of its outline. Counts are integers, so images and ranks add up.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.labels import IGNORE_INDEX
from unetdist.evaluation.metrics import none_if_nan, ratio

# Width of the outline as a fraction of the image's diagonal, from the paper.
DILATION_RATIO = 0.02


def boundary_counts(pred: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count the outline pixels of one image by class.

    An ignored pixel belongs to no class, in target and prediction alike. Nor does the area around the image.

    Args:
        pred: (H, W) integer classes.
        mask: (H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
        num_classes: C.

    Returns:
        (2, C) int64: intersection and union of the outlines of target and prediction by class.
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
    """Return the width of the outline in pixels."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def near_boundary(classes: Tensor, distance: int) -> Tensor:
    """Find the pixels that vanish when the mask of their own class is eroded `distance` times by 3 x 3.

    Args:
        classes: (H, W) of any integer type.
        distance: at least 1.

    Returns:
        (H, W) bool.
    """
    # A pixel vanishes if the window of `distance` around it leaves the image or holds two neighbours that differ.
    # Prefix sums count these pairs at a cost that depends on neither the distance nor the number of classes.
    height, width = classes.shape
    near = torch.ones_like(classes, dtype=torch.bool)
    side = 2 * distance + 1
    if height >= side and width >= side:
        across = _window_sums(classes[:, 1:] != classes[:, :-1], side, side - 1)
        along = _window_sums(classes[1:] != classes[:-1], side - 1, side)
        near[distance : height - distance, distance : width - distance] = (across + along) > 0
    return near


def _window_sums(flags: Tensor, height: int, width: int) -> Tensor:
    """Count the set flags in each window inside the image: (H - height + 1, W - width + 1) int32."""
    sums = torch.nn.functional.pad(flags.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    columns = sums[:, width:] - sums[:, :-width]
    return columns[height:] - columns[:-height]


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary IoU of any number of images; ratios 0..1."""

    class_names: tuple[str, ...]
    iou: NDArray[np.float64]
    """(C,) boundary IoU; nan for a class that is in neither target nor prediction."""
    miou: float
    """Mean over the other classes; nan if there are none."""

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], class_names: tuple[str, ...]) -> "BoundaryScores":
        """Score the sum of `boundary_counts` over images."""
        intersection, union = counts
        iou = ratio(intersection, union)
        return cls(class_names, iou, float(ratio(np.nansum(iou), (union > 0).sum())))

    def to_record(self) -> dict[str, Any]:
        """Return JSON types, with None for nan."""
        classes = dict(zip(self.class_names, map(none_if_nan, self.iou), strict=True))
        return {"boundary_miou": none_if_nan(self.miou), "classes": classes}
