"""Is one model better than another? Compares two models image by image on the same images.

Interval: a paired bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8) draws the same
images for both models, so the difficulty that they share cancels in the difference. Test: approximate randomization
(Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses", chapter 2) swaps the two models' matrices of random
images; if the models are equally good, that changes nothing systematic.

Both answer for new images of the same kind, and not for another seed of the training. They treat images as independent,
which frames of one film are not: there the interval is too narrow.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.data.keyed_random import Stream, keyed_hash
from unetdist.errors import ConfigError
from unetdist.evaluation.metrics import PoissonBootstrap, bounds_or_none, central_95, mean_iou, none_if_nan

# Number of random swaps in the test; with the observed assignment 10000.
SWAPS = 9999

# Random numbers that are drawn at once.
BLOCK = 2**22


@dataclass(frozen=True)
class Comparison:
    """mIoU of two models, ratios 0..1; intervals hold 95 %."""

    miou_a: float
    interval_a: tuple[float, float]
    miou_b: float
    interval_b: tuple[float, float]
    interval_difference: tuple[float, float]
    """Interval of B - A, with the same images drawn for both."""
    p_value: float
    """Fraction of swaps with a difference at least as large, in either direction; nan without a valid pixel."""
    num_samples: int

    @property
    def difference(self) -> float:
        """The mIoU of B minus that of A."""
        return self.miou_b - self.miou_a

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON types, with None for nan."""
        return {
            "a": {"miou": none_if_nan(self.miou_a), "miou_interval_95": bounds_or_none(self.interval_a)},
            "b": {"miou": none_if_nan(self.miou_b), "miou_interval_95": bounds_or_none(self.interval_b)},
            "difference": none_if_nan(self.difference),
            "difference_interval_95": bounds_or_none(self.interval_difference),
            "p_value": none_if_nan(self.p_value),
            "test": f"randomization of images, two-sided, {SWAPS} swaps",
            "num_samples": self.num_samples,
        }


def compare(a: NDArray[np.int64], b: NDArray[np.int64], *, replicates: int = 1000, seed: int = 0) -> Comparison:
    """Compare two models by the confusion matrices of the same images.

    Args:
        a: (N, C, C) matrices of the first model, by image; rows target, columns prediction.
        b: (N, C, C) matrices of the second model.
        replicates: number of bootstrap replicates.
        seed: seed for all random draws.

    Raises:
        ConfigError: the matrices are not of the same images.
    """
    if a.shape != b.shape or not np.array_equal(a.sum(2), b.sum(2)):
        raise ConfigError(
            "the two models were not scored on the same masks, so their images cannot be compared; score both on the "
            "same shards."
        )
    draws = [PoissonBootstrap(a.shape[1], replicates, seed) for _ in range(2)]
    for sample_id, pair in enumerate(zip(a, b, strict=True)):
        for bootstrap, confusion in zip(draws, pair, strict=True):
            bootstrap.add(sample_id, confusion)
    miou_a, miou_b = (float(_miou(_columns(each).sum(0))) for each in (a, b))
    return Comparison(
        miou_a,
        draws[0].interval(),
        miou_b,
        draws[1].interval(),
        central_95(_miou(draws[1].sums) - _miou(draws[0].sums)),
        _randomization_test(_columns(a), _columns(b), seed),
        len(a),
    )


def _randomization_test(a: NDArray[np.int64], b: NDArray[np.int64], seed: int) -> float:
    """Return the two-sided p-value; never 0, because the observed assignment counts too (Phipson and Smyth 2010)."""
    sum_a, sum_b = a.sum(0), b.sum(0)
    observed = abs(float(_miou(sum_b) - _miou(sum_a)))
    if math.isnan(observed):
        return math.nan
    # A matrix product in float64 is fast, and exact below 2^53 pixels.
    change = (b - a).reshape(len(a), -1).astype(np.float64)
    as_far = 1
    rows = max(1, BLOCK // len(a))
    for start in range(0, SWAPS, rows):
        swaps = np.arange(start, min(start + rows, SWAPS))[:, None]
        swapped = (keyed_hash(Stream.SWAPS, seed, swaps, np.arange(len(a))) >> np.uint64(63)).astype(float)
        moved = (swapped @ change).reshape(len(swaps), *sum_a.shape).astype(np.int64)
        differences = _miou(sum_b - moved) - _miou(sum_a + moved)
        as_far += int((np.abs(differences) >= observed).sum())
    return as_far / (SWAPS + 1)


def _columns(confusions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N, 3, C): correct, target and predicted pixels of each class."""
    return np.stack([confusions.diagonal(axis1=1, axis2=2), confusions.sum(2), confusions.sum(1)], 1)


def _miou(columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the mIoU of (..., 3, C) columns; nan without a pixel."""
    return mean_iou(columns[..., 0, :], columns[..., 1, :], columns[..., 2, :])
