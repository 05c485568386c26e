"""Every name that is logged, in one place."""

from typing import Protocol

import numpy as np

from unetdist.evaluation.boundary import BoundaryScores
from unetdist.evaluation.calibration import Reliability
from unetdist.evaluation.metrics import Scores
from unetdist.tracking.meter import TrainStats


class Validation(Protocol):
    """What is told of a validation: the part of `unetdist.evaluation.evaluate.Report` that is used here."""

    @property
    def scores(self) -> Scores:
        """From `confusion`."""

    @property
    def confusion(self) -> np.ndarray:
        """(num_classes, num_classes), rows target, columns prediction, in pixels."""

    @property
    def loss(self) -> float:
        """Of the data set."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of mIoU."""

    @property
    def boundary(self) -> BoundaryScores | None:
        """Of outlines, where they were scored."""

    @property
    def reliability(self) -> Reliability | None:
        """Of confidence, where it was counted."""


def train_metrics(stats: TrainStats, *, samples_seen: int) -> dict[str, float]:
    """Every name logged while training; times are seconds per step."""
    values = {
        "train/loss": stats.loss,
        "train/lr": stats.lr,
        "train/grad_norm": stats.grad_norm,
        "train/epoch": stats.epoch,
        "train/samples_seen": samples_seen,
        "train/bad_samples": stats.num_bad,
        "train/bad_steps": stats.bad_steps,
        "time/images_per_s": stats.images_per_s,
        "time/data_s": stats.data_s,
        "time/step_s": stats.step_s,
    }
    if stats.is_compiled is not None:
        values["time/is_compiled"] = float(stats.is_compiled)
    return values


def validation_metrics(report: Validation) -> dict[str, float]:
    """Every name logged at a validation; ratios 0..1, nan for what an absent class cannot have."""
    scores, (low, high) = report.scores, report.interval
    values = {
        "val/loss": report.loss,
        "val/miou": scores.miou,
        "val/miou_low": low,
        "val/miou_high": high,
        "val/pixel_accuracy": scores.pixel_accuracy,
        "val/fw_iou": scores.fw_iou,
    }
    for kind in ("iou", "dice", "precision", "recall"):
        per_class = zip(scores.class_names, getattr(scores, kind), strict=True)
        values |= {f"val/{kind}/{name}": float(value) for name, value in per_class}
    if (outlines := report.boundary) is not None:
        per_class = zip(outlines.class_names, outlines.iou, strict=True)
        values |= {f"val/boundary_iou/{name}": float(value) for name, value in per_class}
        values["val/boundary_miou"] = outlines.miou
    if report.reliability is not None:
        values["val/calibration_error"] = report.reliability.error
    return values
