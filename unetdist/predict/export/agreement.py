"""Whether an exported model gives what the trained one gives, at several sizes, and how fast each is."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unetdist.evaluation.metrics import Scores, confusion_matrix
from unetdist.model.inference import Predict
from unetdist.predict.export.pictures import Picture, nearest
from unetdist.predict.export.trace import Precision

# How far logits of fp32 may be apart, as a share of an image's largest one (at least 1).
TOLERANCE = 1e-4

MIOU_LOSS: dict[Precision, float] = {"fp16": 0.002, "int8": 0.01}
# How much of mIoU the others may lose; and of pixels, where there are no masks. Their rounding grows with the
# values inside a network, not with its logits, so a bound on these would refuse networks that were hardly trained.
OTHER_CLASS: dict[Precision, float] = {"fp16": 0.005, "int8": 0.02}

SPEED_ROUNDS = 15


@dataclass
class Agreement:
    """Pictures of one size, or of several as they came, counted; pixels and confusions are sums over them."""

    label: str
    num_images: int = 0
    num_pixels: int = 0
    num_other: int = 0
    """Pixels whose class differs."""
    num_ties: int = 0
    """Of these, pixels whose two classes the trained model holds for equal but for `TOLERANCE`."""
    largest: float | None = None
    """Difference of two logits; None where there are none to compare."""
    is_near: bool = True
    """Whether logits are no further apart than the tolerance."""
    trained: Tensor | None = None
    exported: Tensor | None = None
    """Confusion matrices, where there are masks."""

    def mious(self) -> tuple[float, float] | None:
        """Of the trained and the exported model; None without masks."""
        if self.trained is None or self.exported is None:
            return None
        both = [matrix.numpy() for matrix in (self.trained, self.exported)]
        names = [str(index) for index in range(len(both[0]))]
        trained, exported = (Scores.from_confusion(matrix, names).miou for matrix in both)
        return trained, exported

    def holds(self, precision: Precision) -> bool:
        """Whether this is what a format of that precision may do."""
        if precision == "fp32":
            return self.is_near and self.num_other == self.num_ties
        mious = self.mious()
        if mious is None or any(map(np.isnan, mious)):
            return self.num_other <= OTHER_CLASS[precision] * self.num_pixels
        return mious[0] - mious[1] <= MIOU_LOSS[precision]


@torch.inference_mode()
def compare(trained: Predict, exported: Predict, pictures: Sequence[Picture]) -> list[Agreement]:
    """Hold both models against each other: pictures as they are, cropped in pairs, and enlarged.

    Args:
        trained: Image to logits.
        exported: Image to logits, or to class indices (B, H, W).
        pictures: One or more.
    """
    found: dict[str, Agreement] = {}
    for picture in pictures:
        for label, (image, mask) in sizes_of(picture):
            agreement = found.setdefault(label, Agreement(label))
            _count(agreement, trained(image), exported(image), mask)
    return list(found.values())


def sizes_of(picture: Picture) -> Iterator[tuple[str, Picture]]:
    """Its own size; an odd part of it and of its mirror image, as a batch; and one and a half times the size."""
    image, mask = picture
    height, width = image.shape[-2:]
    yield "own size", picture
    part = (..., slice(0, (height // 2) | 1), slice(0, (2 * width // 3) | 1))
    pair = Picture(
        torch.cat([image[part], image.flip(-1)[part]]),
        None if mask is None else torch.cat([mask[part], mask.flip(-1)[part]]),
    )
    yield "odd parts", pair
    size = (3 * height // 2, 3 * width // 2)
    yield "1.5 times", Picture(nearest(image, size), None if mask is None else nearest(mask, size))


def _count(agreement: Agreement, logits: Tensor, result: Tensor, mask: Tensor | None) -> None:
    allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
    pred = logits.argmax(1)
    other = result.long() if result.ndim == 3 else result.argmax(1)
    if result.ndim == 4:
        difference = float((logits - result).abs().max())
        agreement.is_near &= difference <= allowed  # false where it is not a number
        agreement.largest = max(agreement.largest or 0.0, difference)
    gap = logits.gather(1, pred[:, None]) - logits.gather(1, other[:, None])
    differs = pred != other
    agreement.num_images += len(logits)
    agreement.num_pixels += differs.numel()
    agreement.num_other += int(differs.sum())
    agreement.num_ties += int((differs & (gap[:, 0] <= 2 * allowed)).sum())
    if mask is not None:
        num_classes = logits.shape[1]
        trained, exported = (confusion_matrix(classes, mask, num_classes) for classes in (pred, other))
        agreement.trained = trained if agreement.trained is None else agreement.trained + trained
        agreement.exported = exported if agreement.exported is None else agreement.exported + exported


@torch.inference_mode()
def milliseconds(models: Sequence[Predict], image: Tensor) -> list[float]:
    """Median time of each model for `image`, taken in turns so that a slow moment is slow for all."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(-2, SPEED_ROUNDS):  # the first two warm up
        for model, taken in zip(models, times, strict=True):
            began = time.perf_counter()
            model(image)
            if turn >= 0:
                taken.append(1000 * (time.perf_counter() - began))
    return [statistics.median(taken) for taken in times]
