"""What is measured between two log lines: sums stay on the device until they are read."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from unetdist.distributed import World, all_reduce_sum

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class TrainStats:
    """Training between two log lines."""

    loss: float
    """Mean over steps of the loss of the global batch."""

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


class Meter:
    """Counts steps, loss and time since it was last read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, such as after a validation, whose time is no step time."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
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

    def add(self, share: Tensor, num_bad: int) -> None:
        """Count a micro-batch: its share of the loss, and its bad samples; does not wait for the device."""
        self._loss += share.detach()
        self._num_bad += num_bad

    def count_step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def read(self, *, lr: float, grad_norm: Tensor, global_batch_size: int, epoch: float) -> TrainStats:
        """Collective. Sum over ranks, wait for the device, start anew."""
        waits = torch.zeros(self.world.world_size, dtype=torch.float64, device=self.world.device)
        waits[self.world.rank] = self._data_s
        bad = torch.tensor([self._num_bad], dtype=torch.float64, device=self.world.device)
        numbers = all_reduce_sum(torch.cat([self._loss[None], bad, waits])).tolist()
        step_s = (time.perf_counter() - self._began) / self._steps
        stats = TrainStats(
            loss=numbers[0] / self._steps,
            lr=lr,
            grad_norm=float(grad_norm),
            images_per_s=global_batch_size / step_s,
            data_s=max(numbers[2:]) / self._steps,
            step_s=step_s,
            epoch=epoch,
            num_bad=int(numbers[1]),
        )
        self.restart()
        return stats
