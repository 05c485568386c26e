"""An exact score of a data set: each sample once, counted in integers, summed over ranks, proven complete."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdist.data.batch import Batch
from unetdist.distributed import all_reduce_sum
from unetdist.errors import ConfigError, DataError
from unetdist.keyed_random import Stream, keyed_hash
from unetdist.losses import Loss
from unetdist.metrics import PoissonBootstrap, Scores, confusion_matrix

FINGERPRINT_BLOCK = 2**20
"""Sample ids that are hashed together."""

Predict = Callable[[Tensor], Tensor]
"""Image (B, C, H, W) uint8 -> logits (B, num_classes, H, W) at the same height and width."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the validation set is scored."""

    batch_size: int = 1
    """Images per forward pass and rank. A partial batch is filled up, so that every image meets the same kernels."""

    bootstrap_replicates: int = 1000
    """Replicates of the bootstrap over images behind the 95 % interval of mIoU."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "bootstrap_replicates"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"validation.{name} ({getattr(self, name)}) must be at least 1; use the default."
                )


@dataclass(frozen=True)
class Expected:
    """What the manifest says the data set holds; the score is refused unless exactly this was counted."""

    source: str
    num_samples: int
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
    examples: tuple["Example", ...] = field(default=(), compare=False)
    """This rank's first images with their prediction."""

    def to_mapping(self) -> dict[str, Any]:
        """The report as JSON types; NaN, the score of an absent class, becomes None."""
        low, high = self.interval
        return {
            **self.scores.to_record(),
            "miou_interval_95": None if np.isnan(low) else [low, high],
            "loss": self.loss if np.isfinite(self.loss) else None,
            "num_samples": self.num_samples,
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class Example:
    """One scored image, for the eye: image (C, H, W) uint8, mask and pred (H, W) class indices."""

    id: int
    image: Tensor
    mask: Tensor
    pred: Tensor


class LeftEarlyError(Exception):
    """The data set was not scored to its end, because somebody asked to stop."""


def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    *,
    expected: Expected,
    class_names: tuple[str, ...],
    loss: Loss,
    cfg: ValidationConfig,
    device: torch.device,
    num_examples: int = 0,
    on_batch: Callable[[int], None] = lambda _: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Report:
    """Collective. Score `batches`, this rank's part of the data set, and sum over ranks.

    Args:
        predict: the network, unwrapped, in evaluation mode.
        batches: every sample of the data set once, spread over the ranks in any way.
        expected: counts of the manifest.
        class_names: by class index.
        loss: criterion to report beside the scores; its share form is summed over the whole data set.
        cfg: settings.
        device: where `predict` runs.
        num_examples: how many of this rank's first images to keep in the report.
        on_batch: called with the number of images after each batch.
        is_over: asked before each batch: whether to leave.

    Raises:
        DataError: samples or pixels that were counted differ from `expected`.
        LeftEarlyError: on every rank, where `is_over` said so on any.
    """
    num_classes = len(class_names)
    images = _ImageCounts(num_classes, replicates=cfg.bootstrap_replicates)
    loss_parts = torch.zeros(4, dtype=torch.float64, device=device)  # two sums, two units
    seen = torch.zeros(2, dtype=torch.int64)
    was_left = torch.zeros(1, dtype=torch.int64)
    examples: list[Example] = []
    for batch in batches:
        if is_over():
            was_left += 1
            break
        there = batch.to(device, non_blocking=True)
        mask, class_pixels = there.mask, there.class_pixels
        logits = predict_fixed(predict, there.image, cfg.batch_size)
        preds = logits.argmax(1)
        for index, sample_id in enumerate(batch.ids.tolist()):
            one = slice(index, index + 1)  # image by image: the sums of a batch round by its company
            loss_parts += torch.cat(
                [loss.sums(logits[one], mask[one]).double(), loss.units(class_pixels[one])]
            )
            images.add(sample_id, confusion_matrix(preds[index], mask[index], num_classes))
            if len(examples) < num_examples:
                examples.append(Example(sample_id, batch.image[index], batch.mask[index], preds[index].cpu()))
        seen += torch.tensor([len(batch.ids), _fingerprint(batch.ids.numpy())])
        on_batch(len(batch.ids))

    images.read()
    bootstrap = images.bootstrap
    sums = torch.as_tensor(bootstrap.sums)
    counts = torch.cat([was_left, images.confusion.flatten(), sums.flatten(), seen]).to(device)
    counts, loss_parts = all_reduce_sum(counts).cpu(), all_reduce_sum(loss_parts).cpu()
    was_left, counts = counts[:1], counts[1:]
    if was_left:
        raise LeftEarlyError
    confusion_size = num_classes * num_classes
    total = counts[:confusion_size].reshape(num_classes, num_classes).numpy()
    bootstrap.sums = counts[confusion_size:-2].reshape(sums.shape).numpy()
    _prove_complete(total, counts[-2:].tolist(), expected, class_names)
    per_unit = torch.where(loss_parts[2:] > 0, loss_parts[:2] / loss_parts[2:], 0.0)
    return Report(
        confusion=total,
        scores=Scores.from_confusion(total, class_names),
        interval=bootstrap.interval(0.95),
        loss=float(per_unit.sum()),
        num_samples=int(counts[-2]),
        examples=tuple(examples),
    )


class _ImageCounts:
    """Confusion matrices of images, which stay on the device until there are some: to read is to wait for it."""

    READ_EVERY = 64

    def __init__(self, num_classes: int, *, replicates: int) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.bootstrap = PoissonBootstrap(num_classes, replicates=replicates)
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, sample_id: int, confusion: Tensor) -> None:
        """The (C, C) matrix of one image; to be counted."""
        self._unread.append((sample_id, confusion))
        if len(self._unread) == self.READ_EVERY:
            self.read()

    def read(self) -> None:
        """Count all that is on the device."""
        if not self._unread:
            return
        ids, confusions = zip(*self._unread, strict=True)
        self._unread = []
        for sample_id, confusion in zip(ids, torch.stack(confusions).cpu(), strict=True):
            self.confusion += confusion
            self.bootstrap.add(sample_id, confusion.numpy())


@torch.inference_mode()
def predict_fixed(predict: Predict, image: Tensor, batch_size: int) -> Tensor:
    """Logits of `image`, computed in a batch of exactly `batch_size`.

    Kernels are chosen by shape, and another kernel rounds differently: with a batch that is partly empty on one
    count of ranks and full on another, pixels near a tie would flip. So the batch is filled with its last image.
    """
    missing = batch_size - len(image)
    if missing > 0:
        image = torch.cat([image, image[-1:].expand(missing, -1, -1, -1)])
    return predict(image)[: batch_size - missing]


def _prove_complete(
    confusion: np.ndarray, seen: list[int], expected: Expected, class_names: tuple[str, ...]
) -> None:
    num_samples, fingerprint = seen
    remedy = "the score would be wrong, so it is refused; run launch/shard_dataset.py again on this folder"
    if num_samples != expected.num_samples:
        raise DataError(
            f"{num_samples} samples were scored, the manifest lists {expected.num_samples}; {remedy}",
            source=expected.source,
        )
    if fingerprint != _fingerprint_of_all(expected.num_samples):
        raise DataError(
            f"{num_samples} samples were scored, but some of them twice and others never; {remedy}",
            source=expected.source,
        )
    counted = confusion.sum(1)
    for name, pixels, listed in zip(class_names, counted, expected.class_pixels, strict=True):
        if pixels != listed:
            raise DataError(
                f"{pixels} pixels of class {name} were scored, the manifest lists {listed}; {remedy}",
                source=expected.source,
            )


def _fingerprint(sample_ids: np.ndarray) -> int:
    """A sum of hashes that tells sets of samples apart; it wraps at 64 bits, as the sum over ranks does."""
    return int(keyed_hash(Stream.SCORED, sample_ids).view(np.int64).sum())


def _fingerprint_of_all(num_samples: int) -> int:
    """Of the samples 0..num_samples - 1, block by block, for there may be a billion."""
    starts = range(0, num_samples, FINGERPRINT_BLOCK)
    blocks = [_fingerprint(np.arange(at, min(at + FINGERPRINT_BLOCK, num_samples))) for at in starts]
    return int(np.array(blocks, np.int64).sum())
