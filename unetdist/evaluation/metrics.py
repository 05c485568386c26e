"""Confusion matrices in integers, and the scores computed from them in float64."""

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
from unetdist.evaluation.boundary import boundary_counts
from unetdist.evaluation.calibration import NUM_BINS, reliability_counts


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
        """Return JSON types: scores by class in `classes`, None for nan."""
        ratios = ("iou", "dice", "precision", "recall")
        return {
            "miou": none_if_nan(self.miou),
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "fw_iou": none_if_nan(self.fw_iou),
            "absent": list(self.absent),
            "classes": {
                name: {ratio: none_if_nan(getattr(self, ratio)[index]) for ratio in ratios}
                for index, name in enumerate(self.class_names)
            },
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

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the central interval that holds the fraction `level` of the replicates' mIoU.

        Replicates without a pixel are left out; (nan, nan) if no others remain.

        Raises:
            ConfigError: `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level ({level}) must be between 0 and 1; use 0.95")
        return quantiles(mean_iou(self.sums[:, 0], self.sums[:, 1], self.sums[:, 2]), level)


class ImageCounts:
    """Sums of what is counted in each image.

    Attributes:
        confusion: (C, C) int64, summed over images.
        boundary: (2, C) int64 `boundary_counts`, summed; zeros unless requested.
        reliability: (3, NUM_BINS) int64 `reliability_counts`, summed; zeros unless requested.
        bootstrap: sums over resampled images.
        per_image: (num_kept, C, C) int64, the confusion matrix of each image by id; zeros for images of other ranks.
    """

    # Counts stay on the device until there are several, because reading them waits for the device.
    READ_EVERY = 64

    def __init__(
        self, num_classes: int, *, replicates: int, boundary: bool = False, calibration: bool = False, num_kept: int = 0
    ) -> None:
        self._with_boundary, self._with_calibration = boundary, calibration
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.boundary = torch.zeros(2, num_classes, dtype=torch.int64)
        self.reliability = torch.zeros(3, NUM_BINS, dtype=torch.int64)
        self.per_image = torch.zeros(num_kept, num_classes, num_classes, dtype=torch.int64)
        self.bootstrap = PoissonBootstrap(num_classes, replicates=replicates)
        self._unread: list[tuple[int, Tensor, Tensor]] = []

    def add(self, sample_id: int, logits: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Count an image and return its confusion matrix, on the device.

        Args:
            sample_id: id of the sample.
            logits: (C, H, W).
            pred: (H, W) classes.
            mask: (H, W) classes.
        """
        others = []
        if self._with_boundary:
            others.append(boundary_counts(pred, mask, len(self.confusion)).flatten())
        if self._with_calibration:
            others.append(reliability_counts(logits, mask).flatten())
        confusion = confusion_matrix(pred, mask, len(self.confusion))
        self._unread.append((sample_id, confusion, torch.cat(others) if others else confusion.new_zeros(0)))
        if len(self._unread) == self.READ_EVERY:
            self.read()
        return confusion

    def read(self) -> None:
        """Add the counts that are still on the device to the sums."""
        if not self._unread:
            return
        ids, confusions, others = zip(*self._unread, strict=True)
        self._unread = []
        for sample_id, confusion in zip(ids, torch.stack(confusions).cpu(), strict=True):
            self.confusion += confusion
            self.bootstrap.add(sample_id, confusion.numpy())
            if len(self.per_image):
                self.per_image[sample_id] += confusion
        other = torch.stack(others).sum(0).cpu()
        if self._with_boundary:
            self.boundary += other[: self.boundary.numel()].view_as(self.boundary)
        if self._with_calibration:
            self.reliability += other[-self.reliability.numel() :].view_as(self.reliability)

    def to_vector(self) -> Tensor:
        """Return all sums as one int64 vector, to be added over ranks."""
        self.read()
        return torch.cat([part.flatten() for part in self._parts()])

    def load_vector(self, vector: Tensor) -> None:
        """Replace this rank's sums by those of all ranks."""
        parts = self._parts()
        for part, values in zip(parts, torch.split(vector, [part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))

    def _parts(self) -> tuple[Tensor, ...]:
        draws = torch.from_numpy(self.bootstrap.sums)  # shares its memory
        return self.confusion, draws, self.boundary, self.reliability, self.per_image


def mean_iou(hits: Any, targets: Any, predictions: Any) -> NDArray[np.float64]:
    """Average the IoU of the classes that occur over the last axis; nan where none occurs."""
    iou = _ratio(hits, targets + predictions - hits)
    has_class = ~np.isnan(iou)
    return _ratio(np.where(has_class, iou, 0).sum(axis=-1), has_class.sum(axis=-1))


def quantiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the bounds of the central fraction `level` of the values that are not nan; nan if all are nan."""
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def none_if_nan(value: float) -> float | None:
    """Return the value as JSON can hold it."""
    return None if math.isnan(value) else float(value)


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Divide in float64; nan where the denominator is 0."""
    ratio = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=np.asarray(denominator) != 0)
    return ratio


def _poisson_thresholds() -> NDArray[np.uint64]:
    """Return 2^64 P(X <= k), k = 0..15, for X ~ Poisson(1): a 64-bit number draws the count of thresholds below it."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(16)])
    return np.array([int(probability * 2**64) for probability in cumulative], dtype=np.uint64)


_POISSON = _poisson_thresholds()
