"""Checks that an exported model gives what the trained one gives, at several sizes, and how fast each is."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from unetdist.evaluation.metrics import Scores, confusion_matrix
from unetdist.model.inference import Predict
from unetdist.predict.export.check_images import CheckImage, nearest
from unetdist.predict.export.graph import Precision

# Largest difference of fp32 logits, as a fraction of an image's largest logit (at least 1).
TOLERANCE = 1e-4

# Largest loss of mIoU in the other formats; without masks, largest fraction of pixels of another class. Their rounding
# grows with the values inside a network, not with its logits, so bounds on logits would refuse barely trained networks.
MIOU_LOSS: dict[Precision, float] = {"fp16": 0.002, "int8": 0.01}
OTHER_CLASS: dict[Precision, float] = {"fp16": 0.005, "int8": 0.02}

SPEED_ROUNDS = 15


@dataclass
class Agreement:
    """The comparison on images of one kind of size."""

    label: str
    num_images: int = 0
    num_pixels: int = 0
    num_other: int = 0
    """Pixels whose class differs, except ties: both logits are equal in the trained model within the tolerance."""
    largest: float | None = None
    """Largest difference of two logits; None if the exported model gives classes."""
    is_near: bool = True
    """Whether all differences of logits are within the tolerance."""
    trained: Tensor | None = None
    """Confusion matrix of the trained model, if there are masks; likewise `exported`."""
    exported: Tensor | None = None

    def mious(self) -> tuple[float, float] | None:
        """MIoU of the trained and of the exported model; None without masks."""
        if self.trained is None or self.exported is None:
            return None
        names = [str(index) for index in range(len(self.trained))]
        trained, exported = (Scores.from_confusion(each.numpy(), names).miou for each in (self.trained, self.exported))
        return trained, exported

    def holds(self, precision: Precision) -> bool:
        """Whether the differences are as small as that precision allows."""
        if precision == "fp32":
            return self.is_near and not self.num_other
        mious = self.mious()
        if mious is None or any(map(np.isnan, mious)):
            return self.num_other <= OTHER_CLASS[precision] * self.num_pixels
        return mious[0] - mious[1] <= MIOU_LOSS[precision]


@torch.inference_mode()
def compare(trained: Predict, exported: Predict, images: Sequence[CheckImage]) -> list[Agreement]:
    """Compare both models on the images at their own size, cropped in pairs, and enlarged.

    `trained` gives logits, `exported` logits or class indices (B, H, W).
    """
    found: dict[str, Agreement] = {}
    for check_image in images:
        for label, (image, mask) in _sizes_of(check_image):
            agreement = found.setdefault(label, Agreement(label))
            _count(agreement, trained(image), exported(image), mask)
    return list(found.values())


def _sizes_of(check_image: CheckImage) -> Iterator[tuple[str, CheckImage]]:
    image, mask = check_image
    height, width = image.shape[-2:]
    yield "own size", check_image
    # Odd sides cannot be halved evenly, and two images show that the batch is free too.
    part = (..., slice(0, (height // 2) | 1), slice(0, (2 * width // 3) | 1))
    images = torch.cat([image[part], image.flip(-1)[part]])
    yield "odd parts", CheckImage(images, None if mask is None else torch.cat([mask[part], mask.flip(-1)[part]]))
    size = (3 * height // 2, 3 * width // 2)
    yield "1.5 times", CheckImage(nearest(image, size), None if mask is None else nearest(mask, size))


def _count(agreement: Agreement, logits: Tensor, result: Tensor, mask: Tensor | None) -> None:
    allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
    pred = logits.argmax(1)
    other = result.long() if result.ndim == 3 else result.argmax(1)
    if result.ndim == 4:
        difference = float((logits - result).abs().max())
        agreement.is_near &= difference <= allowed  # false for NaN
        agreement.largest = max(agreement.largest or 0.0, difference)
    gap = logits.gather(1, pred[:, None]) - logits.gather(1, other[:, None])
    agreement.num_images += len(logits)
    agreement.num_pixels += pred.numel()
    # Rounding decides ties, so either class is right. A gap that is not a number is no tie.
    agreement.num_other += int(((pred != other) & ~(gap[:, 0] <= 2 * allowed)).sum())
    if mask is not None:
        trained, exported = (confusion_matrix(classes, mask, logits.shape[1]) for classes in (pred, other))
        agreement.trained = trained if agreement.trained is None else agreement.trained + trained
        agreement.exported = exported if agreement.exported is None else agreement.exported + exported


@torch.inference_mode()
def milliseconds(models: Sequence[Predict], image: Tensor) -> list[float]:
    """Measure each model's median time for `image`, in turns, so that a slow moment is slow for all."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(-2, SPEED_ROUNDS):  # the first two warm up
        for model, taken in zip(models, times, strict=True):
            began = time.perf_counter()
            model(image)
            if turn >= 0:
                taken.append(1000 * (time.perf_counter() - began))
    return [statistics.median(taken) for taken in times]


def agreement_table(agreements: Sequence[Agreement], *, precision: Precision, origin: str) -> Table:
    """Show the comparison, one row per size; `origin` describes where the images come from."""
    if precision == "fp32":
        bound = f"no logits further apart than {TOLERANCE:g} of the largest, and no other pixels"
    else:
        bound = (
            f"mIoU lower by {MIOU_LOSS[precision]:g} at most, or, without masks, {100 * OTHER_CLASS[precision]:g} % of "
            "pixels other"
        )
    table = Table(
        "images",
        title=f"exported ({precision}) and trained model, {agreements[0].num_images} images: {escape(origin)}",
        caption="apart: largest difference of two logits; other: pixels of another class, except ties within "
        f"{2 * TOLERANCE:g} of the largest logit; agrees: {bound}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for heading in ("pixels", "apart", "other", "mIoU", "exported"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in agreements:
        mious = row.mious()
        table.add_row(
            row.label,
            f"{row.num_pixels:,}",
            "" if row.largest is None else f"{row.largest:.1e}",
            f"{row.num_other:,}",
            *(("", "") if mious is None else (f"{miou:.4f}" for miou in mious)),
            "[green]agrees[/green]" if row.holds(precision) else "[red]DIFFERS[/red]",
        )
    return table
