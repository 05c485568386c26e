"""Whether one model is better than another: both scored on the same images, compared image by image.

The images are resampled alike for both models (paired bootstrap; Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapter 8), so that what makes an image hard for both cancels in the difference. The test is approximate
randomization (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses", chapter 2): if the models are alike,
the two matrices of an image may change sides without anybody noticing.

Both ask about other images of the same kind; neither knows how far another seed of the training would lie. They take
images as independent, which frames of one film are not: there the interval is too narrow.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.data.keyed_random import Stream, keyed_hash
from unetdist.errors import ConfigError
from unetdist.evaluation.metrics import PoissonBootstrap, mean_iou

SWAPS = 9999
"""Random assignments of the test; with the observed one 10000."""

BLOCK = 2**22
"""Random numbers that are drawn together."""


@dataclass(frozen=True)
class Comparison:
    """mIoU of two models, ratios 0..1; intervals hold 95 %."""

    miou_a: float
    interval_a: tuple[float, float]
    miou_b: float
    interval_b: tuple[float, float]
    interval_difference: tuple[float, float]
    """Of B - A, over images drawn alike for both."""
    p_value: float
    """Share of swaps of images that part the models at least as far, either way; nan without a valid pixel."""
    num_samples: int

    @property
    def difference(self) -> float:
        """By how much the mIoU of B is above that of A."""
        return self.miou_b - self.miou_a

    def to_mapping(self) -> dict[str, Any]:
        """As JSON types, nan as None."""
        return {
            "a": {"miou": _json(self.miou_a), "miou_interval_95": _bounds(self.interval_a)},
            "b": {"miou": _json(self.miou_b), "miou_interval_95": _bounds(self.interval_b)},
            "difference": _json(self.difference),
            "difference_interval_95": _bounds(self.interval_difference),
            "p_value": _json(self.p_value),
            "test": f"randomization of images, two-sided, {SWAPS} swaps",
            "num_samples": self.num_samples,
        }


def compare(
    a: NDArray[np.int64], b: NDArray[np.int64], *, replicates: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two models by the confusion matrices of the same images.

    Args:
        a: (N, C, C), by image; rows target, columns prediction.
        b: likewise of the other model.
        replicates: of the bootstrap.
        seed: of all draws.

    Raises:
        ConfigError: they are not of the same images.
    """
    if a.shape != b.shape or not np.array_equal(a.sum(2), b.sum(2)):
        raise ConfigError(
            "the two models were not scored on the same masks, so no image can be compared with itself; "
            "score both on the same shards."
        )
    draws = [PoissonBootstrap(a.shape[1], replicates, seed) for _ in range(2)]
    for sample_id, pair in enumerate(zip(a, b, strict=True)):
        for bootstrap, confusion in zip(draws, pair, strict=True):
            bootstrap.add(sample_id, confusion)
    miou_a, miou_b = (float(_miou(_columns(each).sum(0))) for each in (a, b))
    differences = _miou(draws[1].sums) - _miou(draws[0].sums)
    return Comparison(
        miou_a,
        draws[0].interval(0.95),
        miou_b,
        draws[1].interval(0.95),
        _quantiles(differences),
        _randomization_test(_columns(a), _columns(b), seed),
        len(a),
    )


def _randomization_test(a: NDArray[np.int64], b: NDArray[np.int64], seed: int) -> float:
    """Two-sided p-value, never 0: the observed assignment counts as one (Phipson and Smyth 2010)."""
    sum_a, sum_b = a.sum(0), b.sum(0)
    observed = abs(float(_miou(sum_b) - _miou(sum_a)))
    if math.isnan(observed):
        return math.nan
    # Products of float64 are fast and, below 2^53 pixels, exact.
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
    """(N, 3, C): right, target and predicted pixels of each class."""
    return np.stack([confusions.diagonal(axis1=1, axis2=2), confusions.sum(2), confusions.sum(1)], 1)


def _miou(columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of (..., 3, C); nan without a pixel."""
    return mean_iou(columns[..., 0, :], columns[..., 1, :], columns[..., 2, :])


def _quantiles(values: NDArray[np.float64]) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _bounds(interval: tuple[float, float]) -> list[float] | None:
    return None if math.isnan(interval[0]) else list(interval)
