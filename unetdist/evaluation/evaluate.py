"""An exact score of a data set: each sample once, counted in integers, summed over ranks, proven complete."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdist.data.batch import Batch
from unetdist.distributed.collectives import all_reduce_sum
from unetdist.errors import ConfigError
from unetdist.evaluation.boundary import BoundaryScores
from unetdist.evaluation.calibration import Reliability
from unetdist.evaluation.completeness import Expected, fingerprint, prove_complete
from unetdist.evaluation.examples import Example, Examples
from unetdist.evaluation.image_counts import ImageCounts
from unetdist.evaluation.metrics import Scores
from unetdist.model.inference import InferenceConfig
from unetdist.model.losses import Loss

Predict = Callable[[Tensor], Tensor | None]
"""Image (B, C, H, W) uint8 -> logits (B, num_classes, H, W) at the same height and width; None on a rank that only
helped with them, while another one counts them."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the validation set is scored."""

    batch_size: int = 1
    """Images per forward pass and rank. A partial batch is filled up, so that every image meets the same kernels."""

    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How each image is predicted: whole or in windows, once or as the mean of several views."""

    bootstrap_replicates: int = 1000
    """Replicates of the bootstrap over images behind the 95 % interval of mIoU."""

    boundary: bool = False
    """Score outlines too (boundary IoU, Cheng et al. 2021)."""

    calibration: bool = False
    """Compare confidence and accuracy too (expected calibration error, Guo et al. 2017)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "bootstrap_replicates"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"validation.{name} ({getattr(self, name)}) must be at least 1; use the default."
                )


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

    examples: tuple[Example, ...] = field(default=(), compare=False)
    """The first images and the worst, with their prediction, on each rank."""

    def to_mapping(self) -> dict[str, Any]:
        """The report as JSON types; NaN, the score of an absent class, becomes None."""
        low, high = self.interval
        return {
            **self.scores.to_record(),
            "miou_interval_95": None if np.isnan(low) else [low, high],
            "loss": self.loss if np.isfinite(self.loss) else None,
            "num_samples": self.num_samples,
            "confusion": self.confusion.tolist(),
            **({} if self.boundary is None else {"boundary": self.boundary.to_record()}),
            **({} if self.reliability is None else {"calibration": self.reliability.to_record()}),
        }


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
    per_image: bool = False,
    on_batch: Callable[[int], None] = lambda _: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Report:
    """Collective. Score `batches`, this rank's part of the data set, and sum over ranks.

    Args:
        predict: the network, unwrapped, in evaluation mode.
        batches: every sample of the data set once, spread over the ranks in any way; or all on each rank, where
            `predict` gives the logits of each to one.
        expected: counts of the manifest.
        class_names: by class index.
        loss: criterion to report beside the scores; its share form is summed over the whole data set.
        cfg: settings.
        device: where `predict` runs.
        num_examples: how many images to keep in the report, half of them the first and half the worst.
        per_image: whether to keep the confusion matrix of every image of the data set.
        on_batch: called with the number of images after each batch.
        is_over: asked before each batch: whether to leave.

    Raises:
        DataError: samples or pixels that were counted differ from `expected`.
        LeftEarlyError: on every rank, where `is_over` said so on any.
    """
    num_classes = len(class_names)
    images = ImageCounts(
        num_classes,
        replicates=cfg.bootstrap_replicates,
        boundary=cfg.boundary,
        calibration=cfg.calibration,
        num_kept=expected.num_samples if per_image else 0,
    )
    loss_parts = torch.zeros(4, dtype=torch.float64, device=device)  # two sums, two denominators
    seen = torch.zeros(2, dtype=torch.int64)
    was_left = torch.zeros(1, dtype=torch.int64)
    examples = Examples(num_examples)
    for batch in batches:
        if is_over():
            was_left += 1
            break
        there = batch.to(device, non_blocking=True)
        examples.read()
        logits = predict_fixed(predict, there.image, cfg.batch_size)
        if logits is not None:
            mask, class_pixels = there.mask, there.class_pixels
            preds = logits.argmax(1)
            for index, sample_id in enumerate(batch.ids.tolist()):
                one = slice(index, index + 1)  # image by image: the sums of a batch round by its company
                loss_parts += torch.cat(
                    [loss.sums(logits[one], mask[one]).double(), loss.denominators(class_pixels[one])]
                )
                confusion = images.add(sample_id, logits[index], preds[index], mask[index])
                of_image = batch.image[index], batch.mask[index], preds[index]
                examples.add(sample_id, confusion, *of_image)
            seen += torch.tensor([len(batch.ids), fingerprint(batch.ids.numpy())])
        on_batch(len(batch.ids))

    counts = torch.cat([was_left, seen, images.to_vector()]).to(device)
    counts, loss_parts = all_reduce_sum(counts).cpu(), all_reduce_sum(loss_parts).cpu()
    if counts[0]:
        raise LeftEarlyError
    seen = counts[1:3]
    images.load_vector(counts[3:])
    total = images.confusion.numpy()
    prove_complete(total, seen.tolist(), expected, class_names)
    per_unit = torch.where(loss_parts[2:] > 0, loss_parts[:2] / loss_parts[2:], 0.0)
    return Report(
        confusion=total,
        scores=Scores.from_confusion(total, class_names),
        interval=images.bootstrap.interval(0.95),
        loss=float(per_unit.sum()),
        num_samples=int(seen[0]),
        boundary=BoundaryScores.from_counts(images.boundary.numpy(), class_names) if cfg.boundary else None,
        reliability=Reliability.from_counts(images.reliability.numpy()) if cfg.calibration else None,
        per_image=images.per_image.numpy() if per_image else None,
        examples=examples.gather(device),
    )


@torch.inference_mode()
def predict_fixed(predict: Predict, image: Tensor, batch_size: int) -> Tensor | None:
    """Logits of `image`, computed in a batch of exactly `batch_size`.

    Kernels are chosen by shape, and another kernel rounds differently: with a batch that is partly empty on one
    count of ranks and full on another, pixels near a tie would flip. So the batch is filled with its last image.
    """
    missing = batch_size - len(image)
    if missing > 0:
        image = torch.cat([image, image[-1:].expand(missing, -1, -1, -1)])
    logits = predict(image)
    return None if logits is None else logits[: batch_size - missing]
