"""Counts of pixels in integers, so that images and ranks add up, and the scores computed from them in float64."""

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
from unetdist.errors import DataError

# Number of bins of confidence, from the paper on calibration.
NUM_BINS = 15

# Units in which confidence is counted: a probability of 1 is this many.
UNIT = 2**24


def confusion_matrix(pred: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count pixels by target and prediction.

    On CUDA this does not wait for the device, and the result does not depend on the order of additions.

    Args:
        pred: integer classes 0..num_classes-1 of any shape, such as (B, H, W).
        mask: uint8 classes of the same shape; `IGNORE_INDEX` where a pixel does not count.
        num_classes: C.

    Returns:
        (C, C) int64, rows target, columns prediction.

    Raises:
        DataError: on CPU, if either holds another class. On CUDA such a pixel is not counted, because a check would
            wait for the device; the caller's comparison with the manifest then fails.
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
    # The last bin takes the pixels that do not count. Not bincount, which on CUDA waits to read the range of its input.
    cells = torch.where(counted, target * num_classes + pred, num_classes**2)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(0, cells, torch.ones_like(cells))
    return counts[:-1].view(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, all ratios 0..1 in float64; nan where there is nothing to divide by.

    For a class with t target pixels, p predicted pixels and h pixels that are both: iou = h / (t + p - h),
    dice = 2h / (t + p), precision = h / p, recall = h / t.
    """

    class_names: tuple[str, ...]
    iou: NDArray[np.float64]
    """(C,); nan for a class that is in neither target nor prediction."""
    dice: NDArray[np.float64]
    """(C,); nan for the same classes."""
    precision: NDArray[np.float64]
    """(C,); nan for a class that is never predicted."""
    recall: NDArray[np.float64]
    """(C,); nan for a class that is absent from the target."""
    miou: float
    """Mean of `iou` over the classes that are not `absent`; nan if all are absent."""
    pixel_accuracy: float
    """Fraction of correct pixels among the valid ones."""
    fw_iou: float
    """Mean of `iou` weighted by the pixels of each class (frequency-weighted IoU)."""
    absent: tuple[str, ...]
    """Names of the classes in neither target nor prediction, which `miou` leaves out."""

    @classmethod
    def from_confusion(cls, confusion: NDArray[np.int64], class_names: Sequence[str]) -> "Scores":
        """Score a (C, C) matrix with rows target and columns prediction."""
        assert confusion.shape == (len(class_names), len(class_names)), confusion.shape
        hits, targets, predictions = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        iou = ratio(hits, targets + predictions - hits)
        num_pixels = targets.sum()
        return cls(
            class_names=tuple(class_names),
            iou=iou,
            dice=ratio(2 * hits, targets + predictions),
            precision=ratio(hits, predictions),
            recall=ratio(hits, targets),
            miou=float(mean_iou(hits, targets, predictions)),
            pixel_accuracy=float(ratio(hits.sum(), num_pixels)),
            fw_iou=float(ratio(np.nansum(targets * iou), num_pixels)),
            absent=tuple(name for name, value in zip(class_names, iou, strict=True) if np.isnan(value)),
        )

    def to_record(self) -> dict[str, Any]:
        """Return JSON types: scores by class in `classes`, None for nan."""
        kinds = ("iou", "dice", "precision", "recall")
        return {
            "miou": none_if_nan(self.miou),
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "fw_iou": none_if_nan(self.fw_iou),
            "absent": list(self.absent),
            "classes": {
                name: {kind: none_if_nan(getattr(self, kind)[index]) for kind in kinds}
                for index, name in enumerate(self.class_names)
            },
        }


def reliability_counts(logits: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of one image by confidence, without ignored ones.

    On a CPU the rounding of the logits depends on the number of threads, which can change the tenth digit of the error.

    Args:
        logits: (C, H, W) floating point.
        mask: (H, W) uint8 classes.

    Returns:
        (3, NUM_BINS) int64: pixels, correct pixels, and the sum of confidences in units of 1 / `UNIT`. Bin b holds
        confidences above b / NUM_BINS up to (b + 1) / NUM_BINS.
    """
    # float64, because in float32 the last bit of exp depends on how threads and vectors divide the image.
    highest, pred = logits.max(0)
    confidence = 1 / (logits.double() - highest).exp_().sum(0)
    parts = (confidence * UNIT).round().long()
    bins = ((parts * NUM_BINS - 1) // UNIT).clamp_(0, NUM_BINS - 1)
    bins = torch.where(mask == IGNORE_INDEX, NUM_BINS, bins).flatten()
    values = torch.stack([torch.ones_like(parts), (pred == mask).long(), parts]).flatten(1)
    counts = torch.zeros(3, NUM_BINS + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(1, bins.expand(3, -1), values)
    return counts[:, :-1]


@dataclass(frozen=True)
class Reliability:
    """Calibration of any number of images: is a network that is 80 % sure right 80 % of the time? All ratios 0..1.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 2: pixels are put in bins by
    the probability of the predicted class.
    """

    pixels: NDArray[np.int64]
    """(NUM_BINS,) number of pixels in each bin."""
    accuracy: NDArray[np.float64]
    """(NUM_BINS,) fraction of correct pixels; nan in an empty bin."""
    confidence: NDArray[np.float64]
    """(NUM_BINS,) mean probability of the predicted class; nan in an empty bin."""
    error: float
    """Expected calibration error: the mean of |accuracy - confidence|, weighted by pixels; nan without pixels."""

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64]) -> "Reliability":
        """Score the sum of `reliability_counts` over images."""
        pixels, right, parts = counts
        error = ratio(np.abs(right - parts / UNIT).sum(), pixels.sum())
        return cls(pixels, ratio(right, pixels), ratio(parts / UNIT, pixels), float(error))

    def to_record(self) -> dict[str, Any]:
        """Return JSON types, with None for nan."""
        return {
            "expected_calibration_error": none_if_nan(self.error),
            "pixels": self.pixels.tolist(),
            "accuracy": [none_if_nan(value) for value in self.accuracy],
            "confidence": [none_if_nan(value) for value in self.confidence],
        }


class PoissonBootstrap:
    """Interval of the mIoU from resampled images: each replicate draws each image Poisson(1) times.

    Independent Poisson counts replace the multinomial draw of Efron's bootstrap (Chamandy et al. 2012, "Estimating
    uncertainty for massive data streams"), so images can be added one by one, on any rank.

    Attributes:
        sums: (replicates, 3, C) int64: correct, target and predicted pixels of each class. With several processes, add
            the `sums` of all, in place or by assignment, before `interval`.
    """

    def __init__(self, num_classes: int, replicates: int = 1000, seed: int = 0) -> None:
        self.sums: NDArray[np.int64] = np.zeros((replicates, 3, num_classes), dtype=np.int64)
        self._seed = seed

    def add(self, sample_id: int, confusion: NDArray[np.int64]) -> None:
        """Add the (C, C) confusion matrix of an image; each image once."""
        columns = np.stack([np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)])
        # A hash of the key, not a generator: the same draws on any rank, in any order, with any version of numpy.
        hashes = keyed_hash(Stream.BOOTSTRAP, self._seed, sample_id, np.arange(len(self.sums)))
        draws = np.searchsorted(_POISSON, hashes, side="right")
        self.sums += draws[:, None, None] * columns

    def interval(self) -> tuple[float, float]:
        """Return the central interval that holds 95 % of the replicates' mIoU; those without a pixel are left out."""
        return central_95(mean_iou(self.sums[:, 0], self.sums[:, 1], self.sums[:, 2]))


def mean_iou(hits: Any, targets: Any, predictions: Any) -> NDArray[np.float64]:
    """Average the IoU of the classes that occur over the last axis; nan where none occurs."""
    iou = ratio(hits, targets + predictions - hits)
    return ratio(np.nansum(iou, axis=-1), (~np.isnan(iou)).sum(axis=-1))


def central_95(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bounds of the central 95 % of the values that are not nan; nan if all are nan."""
    values = values[~np.isnan(values)]
    # Not 0.025: the quotient differs in the last digit, and so would the intervals of older reports.
    low, high = np.quantile(values, [(1 - 0.95) / 2, 0.975]) if values.size else (math.nan, math.nan)
    return float(low), float(high)


def none_if_nan(value: float) -> float | None:
    """Return the value as JSON can hold it."""
    return None if math.isnan(value) else float(value)


def bounds_or_none(interval: tuple[float, float]) -> list[float] | None:
    """Return an interval as JSON can hold it; None if its bounds are nan."""
    return None if math.isnan(interval[0]) else list(interval)


def ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Divide in float64; nan where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


# 2^64 P(X <= k), k = 0..15, for X ~ Poisson(1): a 64-bit number draws the count of thresholds below it.
_POISSON = np.array(
    [int(p * 2**64) for p in np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)])], dtype=np.uint64
)
