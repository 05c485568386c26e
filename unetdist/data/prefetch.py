"""Fetches the shards that the order will need into the cache, in a process of its own."""

import ctypes
import multiprocessing
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import count
from multiprocessing.context import ForkProcess
from time import sleep
from typing import Any

from unetdist.cli.logs import logger
from unetdist.data.cache import CacheFullError, ShardCache
from unetdist.data.manifest import Manifest, Shard
from unetdist.distributed.signals import PR_SET_PDEATHSIG
from unetdist.errors import DataError
from unetdist.storage.folders import Folder

# Simultaneous downloads of a rank.
DOWNLOADS = 4

POLL_S = 0.1

# From a first position: (position at which a shard is needed, number of the shard), in order.
Upcoming = Callable[[int], Iterator[tuple[int, int]]]


class Prefetcher:
    """Downloads the shards that are needed after `position`, up to `ahead_bytes` of them.

    `upcoming` is asked again when the position goes back, as it does with each validation, because shards may have
    been evicted since. The work is done in a process, as threads would slow down the training. The process ends with
    its parent and never keeps it from ending. If it fails, the workers read for themselves.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        cache: ShardCache,
        upcoming: Upcoming,
        *,
        ahead_bytes: int,
        first_position: int = 0,
    ) -> None:
        self.position: Any = multiprocessing.RawValue(ctypes.c_int64, first_position)
        """Where the training is: the loader sets `position.value`."""
        # Forked, because the iterators of `upcoming` cannot be pickled.
        ahead = (number for _ in count() for number in _ahead(upcoming, manifest, self.position, ahead_bytes))
        self._process = multiprocessing.get_context("fork").Process(
            target=_run, args=(os.getpid(), folder, manifest, cache, ahead), name="prefetch", daemon=True
        )
        self._process.start()
        # Called once: by `close`, with this object, or at the interpreter's exit, while modules still exist.
        self._end = weakref.finalize(self, _end, self._process, cache)

    def close(self) -> None:
        """End the process and remove its half-written files."""
        self._end()


def _end(process: ForkProcess, cache: ShardCache) -> None:
    process.kill()
    process.join()
    cache.remove_leftovers()


def _run(parent: int, folder: Folder, manifest: Manifest, cache: ShardCache, ahead: Iterable[int | None]) -> None:
    # The signals that stop the training are the parent's. SIGTERM ends this process: Python's exit sends it and waits.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The kernel ends this process with its parent, however that dies.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    try:
        _fetch_ahead(folder, manifest, cache, ahead)
    except CacheFullError as error:
        logger.warning("no more shards are fetched ahead, samples are read one by one: %s", error)
    except Exception:
        logger.exception("no more shards are fetched ahead, samples are read one by one")
    finally:
        cache.remove_leftovers()
        os._exit(0)  # a normal exit would wait for threads that still download


def _fetch_ahead(folder: Folder, manifest: Manifest, cache: ShardCache, ahead: Iterable[int | None]) -> None:
    pool = ThreadPoolExecutor(DOWNLOADS)
    running: set[Future[None]] = set()
    has_warned = False
    for number in ahead:
        done, running = wait(running, None if len(running) == DOWNLOADS else 0, FIRST_COMPLETED)
        for download in done:
            try:
                download.result()
            # No later shard would find room either.
            except CacheFullError:
                raise
            except DataError as error:
                if not has_warned:
                    logger.warning("could not be fetched ahead (logged once): %s", error)
                has_warned = True
        if number is None:
            sleep(POLL_S)
        elif not folder.is_in_place(manifest.shards[number].name):
            running.add(pool.submit(_fetch, folder, manifest.shards[number], cache))


def _fetch(folder: Folder, shard: Shard, cache: ShardCache) -> None:
    if not folder.is_local:
        cache.index(folder, shard)
    cache.fetch(folder, shard)


def _ahead(upcoming: Upcoming, manifest: Manifest, position: Any, ahead_bytes: int) -> Iterator[int | None]:
    """Numbers of the shards that come next, None while there is nothing to fetch; ends when the position goes back."""
    waiting: deque[tuple[int, int]] = deque()  # (position, bytes) of the shards that were yielded
    num_bytes = 0
    seen = position.value
    for begin, number in upcoming(seen):
        size = manifest.shards[number].num_bytes
        # No more than an epoch ahead either: a small data set would be looked up again and again.
        while waiting and (num_bytes + size > ahead_bytes or len(waiting) >= len(manifest.shards)):
            now = position.value
            if now < seen:
                return
            seen = now
            if waiting[0][0] <= seen:  # needed by now, so no longer ahead
                num_bytes -= waiting.popleft()[1]
            else:
                yield None
        waiting.append((begin, size))
        num_bytes += size
        yield number
    while (now := position.value) >= seen:
        seen = now
        yield None
