"""Every name that is logged, in one place."""

from unetdist.meter import TrainStats
from unetdist.metrics import Scores


def train_metrics(stats: TrainStats, *, samples_seen: int) -> dict[str, float]:
    """Every name logged while training; times are seconds per step."""
    return {
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


def validation_metrics(scores: Scores, *, loss: float, interval: tuple[float, float]) -> dict[str, float]:
    """Every name logged at a validation; ratios 0..1, nan for what an absent class cannot have."""
    values = {
        "val/loss": loss,
        "val/miou": scores.miou,
        "val/miou_low": interval[0],
        "val/miou_high": interval[1],
        "val/pixel_accuracy": scores.pixel_accuracy,
        "val/fw_iou": scores.fw_iou,
    }
    for kind in ("iou", "dice", "precision", "recall"):
        per_class = zip(scores.class_names, getattr(scores, kind), strict=True)
        values |= {f"val/{kind}/{name}": float(value) for name, value in per_class}
    return values
