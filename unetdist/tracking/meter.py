"""What is measured between two log lines: sums stay on the device until they are read."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from unetdist.distributed.collectives import World, all_reduce_sum

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class TrainStats:
    """Training between two log lines."""

    loss: float
    """Mean over steps of the loss of the global batch, without skipped ones."""

    lr: float
    """Learning rate of the last step."""

    grad_norm: float
    """Norm of the last step's gradient, before clipping."""

    images_per_s: float
    """Over all processes."""

    data_s: float
    """Seconds per step that a process waited for data; the largest over ranks."""

    step_s: float
    """Seconds per step."""

    epoch: float
    """Passes over the data so far."""

    num_bad: int
    """Samples that could not be read and were left blank."""

    bad_steps: int
    """Steps of the run so far that were skipped, for their loss or gradient was not finite."""

    is_compiled: bool | None = None
    """Whether the steps were compiled; None: they were not to be."""


class Meter:
    """Counts steps, loss and time since it was last read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, such as after a validation, whose time is no step time."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self._good_steps = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self._num_bad = 0
        self._steps = 0
        self._data_s = 0.0
        self._began = time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, with the wait for each counted as data time."""
        began = time.perf_counter()
        for item in items:
            self._data_s += time.perf_counter() - began
            yield item
            began = time.perf_counter()

    def add(self, shares: Iterable[Tensor], is_bad: Tensor, num_bad: int) -> None:
        """Count an optimizer step; does not wait for the device.

        Args:
            shares: (), of the loss, one for each micro-batch.
            is_bad: () bool, whether it was skipped.
            num_bad: samples that were left blank.
        """
        for share in shares:
            self._loss += torch.where(is_bad, 0.0, share)
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
    ) -> TrainStats:
        """Collective. Sum over ranks, wait for the device, start anew."""
        waits = torch.zeros(self.world.world_size, dtype=torch.float64, device=self.world.device)
        waits[self.world.rank] = self._data_s
        bad = torch.tensor([self._num_bad], dtype=torch.float64, device=self.world.device)
        numbers = all_reduce_sum(torch.cat([self._loss[None], bad, waits])).tolist()
        good_steps = float(self._good_steps)
        step_s = (time.perf_counter() - self._began) / self._steps
        stats = TrainStats(
            loss=numbers[0] / good_steps if good_steps else math.nan,
            lr=lr,
            grad_norm=float(grad_norm),
            images_per_s=global_batch_size / step_s,
            data_s=max(numbers[2:]) / self._steps,
            step_s=step_s,
            epoch=epoch,
            num_bad=int(numbers[1]),
            bad_steps=bad_steps,
            is_compiled=is_compiled,
        )
        self.restart()
        return stats
