"""Processes that prepare batches: they start once, live as long as the loader, and leave signals to the trainer."""

import atexit
import multiprocessing
import resource
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from unetdist.distributed.malloc import keep_freed
from unetdist.distributed.signals import leave_to_parent
from unetdist.errors import ConfigError, DataError, UnetdistError

CAN_SHARE = sys.platform == "linux"
"""Whether workers are forked, and so see an `Arena` that was made before them; elsewhere they start anew."""

FILES_OF_PROCESS = Path("/proc/self/fd")
FILES_PER_WORKER = 12
"""Pipes of a worker and the batches that it shares, in the process that uses them; as many for what else it opens."""

KEPT_BYTES = 64 << 20
"""Freed memory that a worker keeps."""
_LARGEST_KEPT = 32 << 20
"""Bytes of a single array that is kept."""


def work(
    dataset: Dataset[Any],
    requests: Sampler[Any] | Sequence[Any],
    *,
    num_workers: int,
    prefetch: int,
    pin_memory: bool,
) -> "DataLoader[Any]":
    """One item of `dataset` per request, in their order; 0 workers: prepared by the process that asks."""
    _check_open_files(num_workers)
    is_closing = multiprocessing.RawValue("b", 0)  # No lock, for it is read in a signal handler.
    if num_workers:
        # Runs before multiprocessing's own exit function, which was registered earlier.
        atexit.register(setattr, is_closing, "value", 1)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=num_workers > 0,
        multiprocessing_context="fork" if num_workers and CAN_SHARE else None,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_set_up_worker, is_closing),
        # A generator of its own: the loader would else draw from the global one, and change what follows.
        generator=torch.Generator(),
    )


def _check_open_files(num_workers: int) -> None:
    """Refuse workers for whose pipes and shared memory there are too few files: they die, or wait, without a reason."""
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
    """What the workers prepare, in order.

    Raises:
        UnetdistError: What a worker sent instead of an item.
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
    """One thread per worker; signals are the trainer's until it exits (`is_closing`)."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed(KEPT_BYTES, largest=_LARGEST_KEPT)
    leave_to_parent(lambda: is_closing.value, 0)
