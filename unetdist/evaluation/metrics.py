"""The confusion matrix, in integers, and everything computed from it, in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdist.data.keyed_random import Stream, keyed_hash
from unetdist.data.labels import IGNORE_INDEX
from unetdist.errors import ConfigError, DataError


def confusion_matrix(pred: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count pixels by target and prediction.

    On CUDA this neither waits for the device nor depends on the order of its additions.

    Args:
        pred: Integer classes 0..num_classes-1 of any shape, such as (B, H, W).
        mask: uint8 classes of the same shape; `IGNORE_INDEX` where a pixel does not count.
        num_classes: C.

    Returns:
        (C, C) int64, rows target, columns prediction.

    Raises:
        DataError: On CPU, if either holds another class. On CUDA, where looking would be waiting, such
            a pixel is not counted, and the caller's comparison with the manifest's pixels fails.
    """
    assert pred.shape == mask.shape, (pred.shape, mask.shape)
    if mask.device.type == "cpu":
        for name, values in (("mask", mask[mask != IGNORE_INDEX]), ("pred", pred)):
            unknown = values[(values < 0) | (values >= num_classes)]
            if len(unknown):
                raise DataError(
                    f"{name} holds class {int(unknown[0])}, but there are {num_classes} classes, from 0; "
                    "make the data and the model with the same Labels.txt"
                )
    target, pred = mask.long().flatten(), pred.long().flatten()
    counted = (target < num_classes) & (pred >= 0) & (pred < num_classes)
    # One more bin takes what does not count. Not bincount: on CUDA it reads back its range.
    cells = torch.where(counted, target * num_classes + pred, num_classes**2)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(0, cells, torch.ones_like(cells))
    return counts[:-1].view(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, all ratios 0..1 in float64; nan where there is nothing to divide by.

    With t the pixels of a class, p those predicted as it and h those of both: iou = h / (t + p - h),
    dice = 2h / (t + p), precision = h / p, recall = h / t.
    """

    class_names: tuple[str, ...]
    iou: NDArray[np.float64]
    """(C,); nan for a class that is absent from target and prediction."""
    dice: NDArray[np.float64]
    """(C,); nan likewise."""
    precision: NDArray[np.float64]
    """(C,); nan for a class that is never predicted."""
    recall: NDArray[np.float64]
    """(C,); nan for a class that is absent from the target."""
    miou: float
    """Mean of `iou` over the classes that are not `absent`; nan if all are."""
    pixel_accuracy: float
    """Share of the valid pixels that are right."""
    fw_iou: float
    """Mean of `iou` weighted by the pixels of each class (frequency-weighted IoU)."""
    absent: tuple[str, ...]
    """Names of the classes in neither target nor prediction, which `miou` leaves out."""

    @classmethod
    def from_confusion(cls, confusion: NDArray[np.int64], class_names: Sequence[str]) -> "Scores":
        """Score a (C, C) matrix with rows target and columns prediction."""
        assert confusion.shape == (len(class_names), len(class_names)), confusion.shape
        hits, targets, predictions = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        iou = _ratio(hits, targets + predictions - hits)
        has_class = ~np.isnan(iou)
        num_pixels = targets.sum()
        return cls(
            class_names=tuple(class_names),
            iou=iou,
            dice=_ratio(2 * hits, targets + predictions),
            precision=_ratio(hits, predictions),
            recall=_ratio(hits, targets),
            miou=float(mean_iou(hits, targets, predictions)),
            pixel_accuracy=float(_ratio(hits.sum(), num_pixels)),
            fw_iou=float(_ratio((targets * np.where(has_class, iou, 0)).sum(), num_pixels)),
            absent=tuple(name for name, has in zip(class_names, has_class, strict=True) if not has),
        )

    def to_record(self) -> dict[str, Any]:
        """The scores as JSON can hold them: per class under `classes`, nan as None."""
        ratios = ("iou", "dice", "precision", "recall")
        return {
            "miou": _json(self.miou),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "fw_iou": _json(self.fw_iou),
            "absent": list(self.absent),
            "classes": {
                name: {ratio: _json(getattr(self, ratio)[index]) for ratio in ratios}
                for index, name in enumerate(self.class_names)
            },
        }


class PoissonBootstrap:
    """An interval for the mIoU by resampling images, each drawn Poisson(1) times in each replicate.

    Independent Poisson counts stand in for the multinomial draw of Efron's bootstrap (Chamandy et al. 2012,
    "Estimating uncertainty for massive data streams"), so an image can be added when and where it is seen.
    Its counts are a hash of (seed, sample_id, replicate): the same on any rank, in any order, with any
    numpy.

    Attributes:
        sums: (replicates, 3, C) int64: right, target and predicted pixels of each class. Over several
            processes, add the `sums` of all, in place or by assignment, before `interval`.
    """

    def __init__(self, num_classes: int, replicates: int = 1000, seed: int = 0) -> None:
        self.sums: NDArray[np.int64] = np.zeros((replicates, 3, num_classes), dtype=np.int64)
        self._seed = seed

    def add(self, sample_id: int, confusion: NDArray[np.int64]) -> None:
        """Add the (C, C) confusion matrix of one image, whose number is `sample_id`; each image once."""
        columns = np.stack([np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)])
        hashes = keyed_hash(Stream.BOOTSTRAP, self._seed, sample_id, np.arange(len(self.sums)))
        draws = np.searchsorted(_POISSON, hashes, side="right")
        self.sums += draws[:, None, None] * columns

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds between which the mIoU lies in the share `level` of the replicates, as many below as above.

        Replicates without a pixel are left out; (nan, nan) if that is all of them.

        Raises:
            ConfigError: If `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level ({level}) must be between 0 and 1; use 0.95")
        mious = mean_iou(self.sums[:, 0], self.sums[:, 1], self.sums[:, 2])
        mious = mious[~np.isnan(mious)]
        if not mious.size:
            return math.nan, math.nan
        low, high = np.quantile(mious, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Divide in float64; nan where the denominator is 0."""
    ratio = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=np.asarray(denominator) != 0)
    return ratio


def mean_iou(hits: Any, targets: Any, predictions: Any) -> NDArray[np.float64]:
    """Mean over the last axis of the IoU of the classes that occur; nan where none does."""
    iou = _ratio(hits, targets + predictions - hits)
    has_class = ~np.isnan(iou)
    return _ratio(np.where(has_class, iou, 0).sum(axis=-1), has_class.sum(axis=-1))


def _json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _poisson_thresholds() -> NDArray[np.uint64]:
    """2^64 P(X <= k), k = 0..15, X ~ Poisson(1): a 64-bit number draws the count of thresholds up to it."""
    share_up_to = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)])
    return np.array([int(share * 2**64) for share in share_up_to], dtype=np.uint64)


_POISSON = _poisson_thresholds()
