"""Runs jobs in worker processes, which end with their parent and leave Ctrl-C to it."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

import cv2

from unetdist.cli.logs import logger
from unetdist.errors import DataError

J = TypeVar("J")
R = TypeVar("R")


def run_jobs(work: Callable[[J], R], jobs: Sequence[J], *, workers: int, done: Callable[[R], None]) -> None:
    """Call `done(work(job))` for each job as it ends; `work` runs in `workers` processes.

    After an error or an interruption, running jobs are finished and the others are dropped.

    Raises:
        DataError: A worker was killed.
        BaseException: The first error of `work`.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            done(work(job))
        return
    methods = multiprocessing.get_all_start_methods()
    # Not fork: the parent may have threads (progress bar, OpenCV, a test's) whose locks a fork would freeze.
    method = "forkserver" if "forkserver" in methods else "spawn"
    if method == "forkserver":
        _start_server()
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            done(future.result())
    except KeyboardInterrupt:
        logger.info("waiting for the jobs that have begun; Ctrl-C again exits at once")
        raise
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, usually because memory ran out; run the same command "
            f"again with fewer than {workers} --workers (finished shards are kept)."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    """Start the process that forks the workers: with Ctrl-C blocked, which they inherit before they run any code."""
    resource_tracker.ensure_running()  # unblocks signals itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
