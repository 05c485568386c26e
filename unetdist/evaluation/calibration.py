"""Calibration: is a network that is 80 % sure right 80 % of the time?

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 2: pixels are put in bins by the
probability of the predicted class. Counts are integers, so images and ranks add up. On a CPU the rounding of the logits
depends on the number of threads, which can change the tenth digit of the error.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unetdist.data.labels import IGNORE_INDEX
from unetdist.evaluation.metrics import none_if_nan, ratio

# Number of bins of equal width, from the paper.
NUM_BINS = 15

# Units in which confidence is counted: a probability of 1 is this many.
UNIT = 2**24


def reliability_counts(logits: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of one image by confidence, without ignored ones.

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
    """Calibration of any number of images; confidences and accuracies are ratios 0..1."""

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


def reliability_diagram(reliability: Reliability, title: str) -> NDArray[np.uint8]:
    """Draw each bin's accuracy (bar), confidence (mark) and fraction of pixels (below): (H, W, 3) uint8."""
    left, top, side, low, bar = 64, 56, 450, 96, 450 // NUM_BINS
    canvas = Image.new("RGB", (left + side + 24, top + side + low + 88), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    font, ink, frame = ImageFont.load_default(15), (25, 25, 25), (140, 140, 140)
    bottom, floor = top + side, top + side + low + 44
    fractions = reliability.pixels / max(1, reliability.pixels.sum())
    for index, fraction in enumerate(fractions.tolist()):
        x = left + index * bar
        draw.rectangle((x + 2, floor - round(fraction * low), x + bar - 2, floor), (170, 170, 170))
        if fraction > 0:
            accuracy, confidence = reliability.accuracy[index], reliability.confidence[index]
            draw.rectangle((x + 2, bottom - round(accuracy * side), x + bar - 2, bottom), (70, 120, 180))
            level = bottom - round(confidence * side)
            draw.rectangle((x + 2, level - 2, x + bar - 2, level + 2), (215, 90, 40))
    draw.line((left, bottom, left + side, top), frame, 1)
    draw.rectangle((left, top, left + side, bottom), outline=frame)
    draw.rectangle((left, floor - low, left + side, floor), outline=frame)
    for tick in range(6):
        at = round(tick / 5 * side)
        draw.text((left + at, floor + 6), f"{20 * tick}", ink, font, anchor="ma")
        draw.text((left - 8, bottom - at), f"{20 * tick}", ink, font, anchor="rm")
    draw.text((left - 8, floor - low), "100", ink, font, anchor="rm")
    draw.text((left - 8, floor), "0", ink, font, anchor="rm")
    error = "-" if math.isnan(reliability.error) else f"{100 * reliability.error:.2f} %"
    draw.text((left, 8), f"{title}: expected calibration error {error}", ink, font)
    draw.text((left, 30), "accuracy % by confidence: bars measured, marks claimed", ink, font)
    draw.text((left, bottom + 20), "pixels %", ink, font, anchor="lm")
    draw.text((left + side, floor + 24), "confidence %", ink, font, anchor="ra")
    return np.asarray(canvas)
