"""Scores a data set exactly: each sample once, counted in integers, summed over ranks, checked against the manifest."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdist.cli.commands import typed
from unetdist.data.batch import Batch
from unetdist.data.keyed_random import Stream, keyed_hash
from unetdist.distributed.collectives import all_reduce_sum
from unetdist.errors import DataError
from unetdist.evaluation.boundary import BoundaryScores, boundary_counts
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.examples import Examples, ScoredImage
from unetdist.evaluation.metrics import (
    NUM_BINS,
    PoissonBootstrap,
    Reliability,
    Scores,
    bounds_or_none,
    confusion_matrix,
    reliability_counts,
)
from unetdist.model.losses import Loss

# Image (B, C, H, W) uint8 -> logits (B, num_classes, H, W) of the same height and width. Where ranks predict an
# image together, one of them gets the logits and the others get None.
PredictForRank = Callable[[Tensor], Tensor | None]

# Counts stay on the device until there are this many, because reading them waits for the device.
READ_EVERY = 64


@dataclass(frozen=True)
class ExpectedCounts:
    """The contents of a data set according to its manifest."""

    source: str
    """Path or URL of the shards, for messages."""

    num_samples: int
    class_names: tuple[str, ...]
    class_pixels: np.ndarray
    """(num_classes,) int64: pixels of each class over all masks."""


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`: equal on every rank, and for every number of ranks."""

    confusion: np.ndarray
    """(num_classes, num_classes) int64; rows target, columns prediction."""

    scores: Scores
    interval: tuple[float, float]
    """95 % bootstrap interval of mIoU over images."""

    loss: float
    num_samples: int
    boundary: BoundaryScores | None = None
    reliability: Reliability | None = None
    per_image: np.ndarray | None = None
    """(num_samples, C, C) int64: the confusion matrix of each image, by its id."""

    examples: tuple[ScoredImage, ...] = field(default=(), compare=False)
    """The first images and the worst, with their prediction, on each rank."""

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as JSON types; nan, the score of an absent class, becomes None."""
        return {
            **self.scores.to_record(),
            "miou_interval_95": bounds_or_none(self.interval),
            "loss": self.loss if np.isfinite(self.loss) else None,
            "num_samples": self.num_samples,
            "confusion": self.confusion.tolist(),
            **({} if self.boundary is None else {"boundary": self.boundary.to_record()}),
            **({} if self.reliability is None else {"calibration": self.reliability.to_record()}),
        }


class LeftEarlyError(Exception):
    """Validation ended before all samples were scored, because a stop was requested."""


def evaluate(
    predict: PredictForRank,
    batches: Iterable[Batch],
    *,
    expected: ExpectedCounts,
    loss: Loss,
    cfg: ValidationConfig,
    device: torch.device,
    num_examples: int = 0,
    per_image: bool = False,
    on_batch: Callable[[int], None] = lambda _: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Report:
    """Collective. Score `batches`, this rank's part of the data set, and sum over ranks.

    Args:
        predict: the unwrapped network in evaluation mode, on `device`.
        batches: every sample once, divided among the ranks in any way; or all samples on each rank, if `predict`
            returns the logits of each image on one rank only.
        expected: counts of the manifest.
        loss: criterion to report; summed over the whole data set.
        cfg: settings.
        device: where `predict` runs.
        num_examples: number of images to keep in the report, half of them the first and half the worst.
        per_image: whether to keep the confusion matrix of every image.
        on_batch: called with the number of images after each batch.
        is_over: called before each batch; True ends the validation.

    Raises:
        DataError: the counted samples or pixels differ from `expected`.
        LeftEarlyError: on every rank, if `is_over` returned True on any.
    """
    tally = _Tally(expected, loss, cfg, device, num_kept=expected.num_samples if per_image else 0)
    examples = Examples(num_examples)
    for batch in batches:
        if is_over():
            tally.seen[0] += 1
            break
        there = batch.to(device, non_blocking=True)
        examples.read()
        logits = predict_fixed(predict, there.image, cfg.batch_size)
        if logits is not None:
            tally.add(batch.ids, there, logits, examples)
        on_batch(len(batch.ids))
    tally.reduce()
    return tally.report(examples.gather(device))


class _Tally:
    """The counts of this rank, and after `reduce` those of all ranks."""

    def __init__(
        self, expected: ExpectedCounts, loss: Loss, cfg: ValidationConfig, device: torch.device, num_kept: int
    ) -> None:
        self.expected, self.loss, self.cfg, self.device = expected, loss, cfg, device
        self.num_classes = len(expected.class_names)
        # One row per image: a running sum would depend on the order, and so on the ranks.
        self.loss_sums = torch.zeros(expected.num_samples, 2, dtype=torch.float64, device=device)
        # Whether the rank left early, its number of samples, and their fingerprint.
        self.seen = torch.zeros(3, dtype=torch.int64)
        # The confusion matrix, the counts that divide the loss, and if requested those of outlines and of confidence.
        self.sizes = [self.num_classes**2, self.num_classes + 1]
        self.sizes += [cfg.boundary * 2 * self.num_classes, cfg.calibration * 3 * NUM_BINS]
        self.sums = torch.zeros(sum(self.sizes), dtype=torch.int64)
        self.per_image = torch.zeros(num_kept, self.num_classes, self.num_classes, dtype=torch.int64)
        self.bootstrap = PoissonBootstrap(self.num_classes, cfg.bootstrap_replicates)
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, ids: Tensor, batch: Batch, logits: Tensor, examples: Examples) -> None:
        """Count a batch that is on the device; `ids` are on the CPU."""
        for index, (sample_id, mask, pred) in enumerate(zip(ids.tolist(), batch.mask, logits.argmax(1), strict=True)):
            # Image by image, because the rounding of a batch's sum depends on which images are in it.
            one = slice(index, index + 1)
            self.loss_sums[sample_id] = self.loss.sums(logits[one], mask[None]).double()
            counts = [confusion_matrix(pred, mask, self.num_classes), self.loss.counts(batch.class_pixels[one])]
            if self.cfg.boundary:
                counts.append(boundary_counts(pred, mask, self.num_classes))
            if self.cfg.calibration:
                counts.append(reliability_counts(logits[index], mask))
            self._unread.append((sample_id, torch.cat([each.flatten() for each in counts])))
            examples.add(sample_id, counts[0], batch.image[index], mask, pred)
        self.seen += torch.tensor([0, len(ids), fingerprint(ids.numpy())])
        if len(self._unread) >= READ_EVERY:
            self._read()

    def _read(self) -> None:
        """Add the counts that are still on the device to the sums."""
        if not self._unread:
            return
        ids, counts = zip(*self._unread, strict=True)
        self._unread = []
        for sample_id, row in zip(ids, torch.stack(counts).cpu(), strict=True):
            self.sums += row
            confusion = row[: self.sizes[0]].view(self.num_classes, self.num_classes)
            self.bootstrap.add(sample_id, confusion.numpy())
            if len(self.per_image):
                self.per_image[sample_id] += confusion

    def reduce(self) -> None:
        """Collective. Sum over ranks, and check the sums against the manifest."""
        self._read()
        # `from_numpy` shares the memory of the bootstrap.
        parts = [self.seen, self.sums, self.per_image, torch.from_numpy(self.bootstrap.sums)]
        total = all_reduce_sum(torch.cat([part.flatten() for part in parts]).to(self.device)).cpu()
        # Each image has one rank, so the others add zeros.
        all_reduce_sum(self.loss_sums)
        for part, values in zip(parts, torch.split(total, [part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))
        if self.seen[0]:
            raise LeftEarlyError
        confusion = self.sums[: self.sizes[0]].view(self.num_classes, self.num_classes)
        prove_complete(confusion.numpy(), self.seen[1:].tolist(), self.expected)

    def report(self, examples: tuple[ScoredImage, ...]) -> Report:
        """Score the sums over all ranks."""
        names = self.expected.class_names
        confusion, loss_counts, boundary, reliability = (part.numpy() for part in torch.split(self.sums, self.sizes))
        confusion = confusion.reshape(self.num_classes, self.num_classes)
        numerators = torch.tensor([math.fsum(column) for column in self.loss_sums.T.tolist()], dtype=torch.float64)
        denominators = self.loss.denominators(torch.from_numpy(loss_counts))
        return Report(
            confusion=confusion,
            scores=Scores.from_confusion(confusion, names),
            interval=self.bootstrap.interval(),
            loss=float(torch.where(denominators > 0, numerators / denominators, 0.0).sum()),
            num_samples=int(self.seen[1]),
            boundary=BoundaryScores.from_counts(boundary.reshape(2, -1), names) if self.cfg.boundary else None,
            reliability=Reliability.from_counts(reliability.reshape(3, -1)) if self.cfg.calibration else None,
            per_image=self.per_image.numpy() if len(self.per_image) else None,
            examples=examples,
        )


@torch.inference_mode()
def predict_fixed(predict: PredictForRank, image: Tensor, batch_size: int) -> Tensor | None:
    """Compute the logits of `image` in a batch of exactly `batch_size`."""
    # Kernels are chosen by shape, and another kernel rounds differently. If a batch were partly empty with one number
    # of ranks and full with another, pixels near a tie would flip. So it is filled up with copies of its last image.
    missing = batch_size - len(image)
    if missing > 0:
        image = torch.cat([image, image[-1:].expand(missing, -1, -1, -1)])
    logits = predict(image)
    return None if logits is None else logits[: batch_size - missing]


def prove_complete(confusion: np.ndarray, seen: list[int], expected: ExpectedCounts) -> None:
    """Check that each sample and each pixel of the data set was counted exactly once.

    Args:
        confusion: (C, C) int64 over the whole data set; rows target.
        seen: number of samples, and the sum of the `fingerprint`s of their ids.
        expected: counts of the manifest.

    Raises:
        DataError: the counts differ.
    """
    num_samples, counted_fingerprint = seen
    problem = ""
    if num_samples != expected.num_samples:
        problem = f"{num_samples} samples were scored, the manifest lists {expected.num_samples}"
    elif counted_fingerprint != fingerprint(np.arange(num_samples)):
        problem = f"{num_samples} samples were scored, but some of them twice and others never"
    else:
        counted = zip(expected.class_names, confusion.sum(1), expected.class_pixels, strict=True)
        for name, pixels, listed in counted:
            if pixels != listed:
                problem = f"{pixels} pixels of class {name} were scored, the manifest lists {listed}"
    if problem:
        raise DataError(
            f"{problem}; the score would be wrong, so it is refused; run `{typed('shard')}` again on this folder",
            source=expected.source,
        )


def fingerprint(sample_ids: np.ndarray) -> int:
    """Sum the hashes of sample ids; wraps at 64 bits, as the sum over ranks does."""
    return int(keyed_hash(Stream.SCORED, sample_ids).view(np.int64).sum())
