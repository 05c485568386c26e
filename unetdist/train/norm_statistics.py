"""Batch norm's running statistics, in one copy for each micro-batch of the global batch.

A process that updated one copy by all of its micro-batches would hold other statistics than two that share them. Here
the i-th micro-batch of each step updates the i-th copy, on whichever rank it is computed. Predictions use their mean.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unetdist.distributed.collectives import World, all_gather
from unetdist.train.optim import Ema


class NormStatistics:
    """The copies of this rank, of a network and of its average; a network without batch norm has none.

    Call `load` before the forward pass of a micro-batch, `store` after its backward pass, and `step` at the end of a
    step. The network's own buffers only hold what the latest of these calls left there.
    """

    def __init__(self, model: nn.Module, ema: Ema | None, *, num_micro_batches: int, world: World) -> None:
        """Begin with the statistics of a model that is not wrapped, in each of `num_micro_batches` of all ranks."""
        self.models = [model] if ema is None else [model, ema.module]
        self._buffers = [_running(each) for each in self.models]
        self.num_micro_batches, self.world = num_micro_batches, world
        self.num_mine = num_micro_batches // world.world_size
        self.settled: list[Tensor] = []
        """For each model the copies of all ranks, (micro-batches, values), when `settle` was last called."""
        self.begin()

    def begin(self, copies: Iterable[Tensor] = ()) -> None:
        """Begin with `copies` if they are like `settled` and of as many micro-batches, or with the models' buffers."""
        first = self.world.rank * self.num_mine
        found = list(copies)
        if [len(each) for each in found] == [self.num_micro_batches] * len(self.models):
            mine = [each[first : first + self.num_mine].clone() for each in found]
        else:
            mine = [_flat(buffers).repeat(self.num_mine, 1).to(self.world.device) for buffers in self._buffers]
        self._kept, *self._averaged = mine
        self._new = self._kept.clone()

    def load(self, index: int) -> None:
        """Give the network the statistics of the `index`-th micro-batch of this rank."""
        _fill(self._buffers[0], self._kept[index])

    def store(self, index: int) -> None:
        """Take the network's statistics as those of the `index`-th micro-batch after this step."""
        if self._buffers[0]:
            torch.cat([buffer.flatten() for buffer in self._buffers[0]], out=self._new[index])

    def step(self, is_skipped: Tensor, ema_decay: float) -> None:
        """Accept what was stored, unless the step is skipped, and average it in with `ema_decay`."""
        torch.where(is_skipped, self._kept, self._new, out=self._kept)
        for averaged in self._averaged:
            averaged.lerp_(self._kept, 1 - ema_decay)

    def settle(self, num_steps: int) -> None:
        """Collective. Give each model the mean over all copies, and batch norm's counters the steps that were done."""
        self.settled = [all_gather(copies) for copies in (self._kept, *self._averaged)]
        for model, buffers, copies in zip(self.models, self._buffers, self.settled, strict=True):
            _fill(buffers, copies.double().mean(dim=0).to(copies.dtype))
            for name, buffer in model.named_buffers():
                if name.endswith("num_batches_tracked"):
                    buffer.fill_(num_steps)


def _running(model: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2].startswith("running_")]


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers]) if buffers else torch.empty(0)


def _fill(buffers: list[Tensor], values: Tensor) -> None:
    if buffers:
        parts = torch.split(values, [buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])
