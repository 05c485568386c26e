"""Measures the training between two log lines, and names everything that is logged."""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from unetdist.distributed.collectives import World, all_gather
from unetdist.evaluation.evaluate import Report

Item = TypeVar("Item")

# Values that say how the work proceeds, and not how well the model does.
OF_WORK = ("train/epoch", "train/samples_seen", "train/bad_samples", "train/bad_steps")


class Meter:
    """Sums loss, steps and time until it is read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        """Forget the sums, for example after a validation, whose time is not step time."""
        self._losses: list[Tensor] = []
        self._good_steps = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self._num_bad = 0
        self._steps = 0
        self._data_s = 0.0
        self._began = time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items, and count the wait for each as data time."""
        began = time.perf_counter()
        for item in items:
            self._data_s += time.perf_counter() - began
            yield item
            began = time.perf_counter()

    def add(self, losses: Sequence[Tensor], is_bad: Tensor, num_bad: int) -> None:
        """Count an optimizer step without waiting for the device.

        Args:
            losses: () loss of each micro-batch, of which every rank has equally many.
            is_bad: () bool, whether the step was skipped.
            num_bad: number of samples that were left blank.
        """
        self._losses.append(torch.where(is_bad, 0.0, torch.stack([*losses])))
        self._good_steps += ~is_bad
        self._num_bad += num_bad
        self._steps += 1

    def read(
        self,
        *,
        lr: float,
        grad_norm: Tensor,
        global_batch_size: int,
        epoch: float,
        bad_steps: int,
        is_compiled: bool | None = None,
    ) -> dict[str, float]:
        """Collective. Sum over ranks, wait for the device, and restart.

        Returns:
            Values by name; times are seconds per step, and `data_s` is that of the slowest rank.
        """
        waits = torch.tensor([self._data_s, self._num_bad], dtype=torch.float64, device=self.world.device)
        mine = torch.cat([waits, torch.cat(self._losses).double()])
        data_s, num_bad, *losses = zip(*all_gather(mine[None]).tolist(), strict=True)
        # Correctly rounded, so it does not matter which rank had which loss.
        loss = math.fsum(itertools.chain(*losses))
        good_steps = float(self._good_steps)
        step_s = (time.perf_counter() - self._began) / self._steps
        values = {
            "train/loss": loss / good_steps if good_steps else math.nan,  # without skipped steps
            "train/lr": lr,
            "train/grad_norm": float(grad_norm),  # before clipping
            "train/epoch": epoch,
            "train/bad_samples": sum(num_bad),
            "train/bad_steps": bad_steps,
            "time/images_per_s": global_batch_size / step_s,
            "time/data_s": max(data_s) / self._steps,
            "time/step_s": step_s,
        }
        if is_compiled is not None:
            values["time/is_compiled"] = float(is_compiled)
        self.restart()
        return values


def validation_metrics(report: Report) -> dict[str, float]:
    """Name the values of a validation; ratios 0..1, nan for an absent class."""
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
    if (boundary := report.boundary) is not None:
        per_class = zip(boundary.class_names, boundary.iou, strict=True)
        values |= {f"val/boundary_iou/{name}": float(value) for name, value in per_class}
        values["val/boundary_miou"] = boundary.miou
    if report.reliability is not None:
        values["val/calibration_error"] = report.reliability.error
    return values


def dashboard_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values under their names in dashboards, without counts of bad samples and steps that are 0.

    A dashboard shows a group, the part of the names before the first slash, after the other in alphabetical order:
    `train` (loss, lr, gradient norm, images per second), `val` (the scores of the whole set), then one group for the
    scores of each kind by class, such as `val_iou`, and `work` (times, epochs, samples).
    """
    return {_dashboard_name(name): value for name, value in values.items() if value or "/bad_" not in name}


def _dashboard_name(name: str) -> str:
    group, _, rest = name.partition("/")
    if name == "time/images_per_s":
        return "train/images_per_s"
    if group == "time" or name in OF_WORK:
        return f"work/{rest}"
    return f"val_{rest}" if group == "val" and "/" in rest else name
