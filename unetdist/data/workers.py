"""Processes that prepare batches, and the requests that they answer.

Workers start once, live as long as the loader, and leave signals to the trainer. Requests are the micro-batches of a
rank without end, or each validation sample once.
"""

import atexit
import multiprocessing
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from unetdist.data.batch import BatchPool
from unetdist.data.order import Order
from unetdist.distributed.hardware import keep_freed
from unetdist.distributed.signals import leave_to_parent
from unetdist.errors import ConfigError, DataError, UnetdistError

# Whether workers are forked, so that they share a `BatchPool` that was made before them.
CAN_SHARE = sys.platform == "linux"

FILES_OF_PROCESS = Path("/proc/self/fd")
# Descriptors of the training process per worker: pipes and shared batches. As many are left for other files.
FILES_PER_WORKER = 12

# Bytes of freed memory that a worker keeps.
KEPT_BYTES = 64 << 20
# Bytes of the largest array that is kept.
_LARGEST_KEPT = 32 << 20


def work(
    dataset: Dataset[Any], requests: Iterable[Any], *, num_workers: int, prefetch: int, pin_memory: bool
) -> "DataLoader[Any]":
    """A loader of one item of `dataset` per request, in order; with 0 workers the calling process prepares them."""
    _check_open_files(num_workers)
    is_closing = multiprocessing.RawValue("b", 0)  # no lock: a signal handler reads it
    if num_workers:
        # Runs before multiprocessing's own exit function, as that was registered earlier.
        atexit.register(setattr, is_closing, "value", 1)
    return DataLoader(
        dataset,
        # The requests are whole batches already.
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        # Starting them again would cost seconds at each validation.
        persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if num_workers and CAN_SHARE else None,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_set_up_worker, is_closing),
        # Its own generator: drawing from the global one would change the random numbers of the training.
        generator=torch.Generator(),
    )


def _check_open_files(num_workers: int) -> None:
    """Refuse more workers than there are open files for: they would die or hang without a reason."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if num_workers == 0 or limit == resource.RLIM_INFINITY or not FILES_OF_PROCESS.is_dir():
        return
    needed = len([*FILES_OF_PROCESS.iterdir()]) + FILES_PER_WORKER * (num_workers + 1)
    if needed > limit:
        raise ConfigError(
            f"data.num_workers ({num_workers}) needs about {needed} open files, and this process may have {limit} "
            "(ulimit -n); raise that, for example with ulimit -n 4096, or use --data.num_workers 0."
        )


def items(loader: "DataLoader[Any]") -> Iterator[Any]:
    """The items that the workers prepare, in order.

    Raises:
        UnetdistError: A worker sent it instead of an item.
        DataError: A worker was killed.
    """
    try:
        for item in loader:
            if isinstance(item, UnetdistError):
                raise item
            yield item
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that prepares batches was killed ({str(error).strip()}), as the system does when memory runs "
            "out; use fewer data.num_workers or a smaller data.prefetch, then run the same command again."
        ) from None


def _as_it_is(item: Any) -> Any:
    return item


def _set_up_worker(is_closing: Any, _: int) -> None:
    """Use one thread, and leave signals to the trainer until it exits (`is_closing`)."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed(KEPT_BYTES, largest=_LARGEST_KEPT)
    leave_to_parent(lambda: is_closing.value, 0)
    # In a worker, only the thread that hands memory to the parent calls it: when the parent leaves on Ctrl-C meanwhile.
    sys.excepthook = lambda *_: None


class MicroBatch(NamedTuple):
    """The samples of one micro-batch, and the memory for it."""

    keys: list[tuple[int, int]]
    """(epoch, sample id)"""
    slot: int | None = None
    """Slot of the pool; None: new memory."""
    partners: Sequence[tuple[int, int]] = ()
    """(epoch, sample id) of the other sample that each may get a part of; none where nothing is mixed."""


def micro_batches(
    order: Order,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    from_sample: int,
    pool: BatchPool | None = None,
    progress: Any = None,
    has_partners: bool = False,
) -> Iterator[MicroBatch]:
    """The endless micro-batches of a rank, step after step.

    `progress` is a shared counter that is set to the first sample of each step; the prefetcher follows it.
    """
    for first in count(from_sample, global_batch_size):
        if progress is not None:
            progress.value = first
        share = (first, global_batch_size, rank, world_size)
        keys = _keys(*order.rank_slice(*share))
        partners = _keys(*order.partners(*share)) if has_partners else []
        for start in range(0, len(keys), micro_batch_size):
            slot = pool.take() if pool else None
            part = slice(start, start + micro_batch_size)
            yield MicroBatch(keys[part], slot, partners[part])


def _keys(epoch: npt.NDArray[np.int64], sample_id: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(epoch.tolist(), sample_id.tolist(), strict=True))


@dataclass(frozen=True)
class ValBatches:
    """Consecutive samples in groups of `batch_size`, which are computed when asked for: there may be millions."""

    ids: range
    batch_size: int
    progress: Any = None
    """Shared counter that is set to the first sample of each group, then to the end of `ids`."""

    def __iter__(self) -> Iterator[range]:
        for start in range(0, len(self.ids), self.batch_size):
            group = self.ids[start : start + self.batch_size]
            if self.progress is not None:
                self.progress.value = group[0]
            yield group
        if self.progress is not None:
            self.progress.value = self.ids.stop  # shows that the next validation begins


def part_of(num_samples: int, *, rank: int, world_size: int) -> range:
    """The validation samples of a rank: equal parts (+-1) of consecutive samples, which are in few shards."""
    return range(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def shards_of(shard_sizes: npt.NDArray[np.int64], ids: range) -> Iterator[tuple[int, int]]:
    """(id of its first sample, shard number) of each shard that holds some of these samples, in order."""
    ends = np.cumsum(shard_sizes)
    first, last = np.searchsorted(ends, [ids.start, ids.stop - 1], side="right") if ids else (0, -1)
    for number in range(first, last + 1):
        if shard_sizes[number]:
            yield int(ends[number] - shard_sizes[number]), number
