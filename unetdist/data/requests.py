"""What the workers are asked for: the micro-batches of a rank without end, or each validation sample once."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from unetdist.data.arena import Arena
from unetdist.data.order import Order


class MicroBatch(NamedTuple):
    """The samples of one micro-batch, and where it is to lie."""

    keys: list[tuple[int, int]]
    """(epoch, sample id)"""
    slot: int | None = None
    """Of the arena; None: new memory."""
    partners: Sequence[tuple[int, int]] = ()
    """(epoch, sample id) of the other sample that each may get a part of; none where nothing is mixed."""


class MicroBatches(Sampler[MicroBatch]):
    """Endless micro-batches of a rank, step after step."""

    def __init__(
        self,
        order: Order,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        from_sample: int,
        arena: Arena | None = None,
        progress: Any = None,
        has_partners: bool = False,
    ) -> None:
        """`progress`: a shared counter that is set to each step's first sample, for who fetches shards ahead."""
        self._order = order
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank = rank
        self._world_size = world_size
        self._from_sample = from_sample
        self._arena = arena
        self._progress = progress
        self._has_partners = has_partners

    def __iter__(self) -> Iterator[MicroBatch]:
        for first in count(self._from_sample, self._global_batch_size):
            if self._progress is not None:
                self._progress.value = first
            share = (first, self._global_batch_size, self._rank, self._world_size)
            keys = _keys(*self._order.rank_slice(*share))
            partners = _keys(*self._order.partners(*share)) if self._has_partners else []
            for start in range(0, len(keys), self._micro_batch_size):
                slot = self._arena.take() if self._arena else None
                part = slice(start, start + self._micro_batch_size)
                yield MicroBatch(keys[part], slot, partners[part])


def _keys(epoch: npt.NDArray[np.int64], sample_id: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(epoch.tolist(), sample_id.tolist(), strict=True))


class ValBatches(Sequence[range]):
    """Samples in groups of `batch_size`; looked up, for there may be millions."""

    def __init__(self, ids: range, *, batch_size: int, progress: Any = None) -> None:
        """`progress`: a shared counter that is set to each group's first sample, and to the end of `ids` in the end."""
        self._ids = ids
        self._batch_size = batch_size
        self._progress = progress

    def __len__(self) -> int:
        return -(-len(self._ids) // self._batch_size)

    def __iter__(self) -> Iterator[range]:
        for number in range(len(self)):
            yield self[number]
        if self._progress is not None:
            self._progress.value = self._ids.stop  # So that the next validation is seen to begin.

    def __getitem__(self, number: Any) -> Any:
        """The sample ids of a group."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        group = self._ids[number * self._batch_size : (number + 1) * self._batch_size]
        if self._progress is not None:
            self._progress.value = group[0]
        return group


def part_of(num_samples: int, *, rank: int, world_size: int) -> range:
    """The validation samples of a rank: equal parts (+-1), each of neighbours, which lie in few shards."""
    return range(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def shards_of(shard_sizes: npt.NDArray[np.int64], ids: range) -> Iterator[tuple[int, int]]:
    """(id of its first sample, shard number) of the shards that hold these samples, in their order, once."""
    ends = np.cumsum(shard_sizes)
    first, last = np.searchsorted(ends, [ids.start, ids.stop - 1], side="right") if ids else (0, -1)
    for number in range(first, last + 1):
        if shard_sizes[number]:
            yield int(ends[number] - shard_sizes[number]), number
