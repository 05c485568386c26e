"""Runs a function in N connected gloo processes, at the price of a fork each.

The fork server imports torch once per test session (about 7 s); after that, N ranks start in some 50 ms.
"""

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOAD = ["unetdist.distributed.collectives", "torch._dynamo", "cv2", "pytest", "hypothesis"]
"""`torch._dynamo` because building a DistributedDataParallel imports it, which takes 4 s."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class RankError(AssertionError):
    """A rank raised, died or did not finish; the message holds the traceback of each that raised."""


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Call `fn(*args)` in `world_size` connected processes and return what each rank returned.

    Args:
        fn: a function at the top level of its module; the environment has RANK, WORLD_SIZE and so on, and the
            gloo process group exists (also for one process, so that collectives are the real ones).
        world_size: number of processes.
        args: passed to every rank, pickled.
        timeout_s: after this, and in any collective, ranks that hang are killed.

    Raises:
        RankError: some rank raised, died or hung.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends: dict[Connection, int] = {}
        processes = []
        for rank in range(world_size):
            reading, writing = _context.Pipe(duplex=False)
            job = pickle.dumps((fn, args))
            environment = _environment(rank, world_size)
            process = _context.Process(target=_rank_main, args=(job, environment, folder, writing, timeout_s))
            process.start()
            writing.close()
            ends[reading] = rank
            processes.append(process)
        try:
            return _gather(ends, world_size, timeout_s, Path(folder))
        finally:
            for process in processes:
                process.join(timeout=0.5)
                if process.is_alive():  # it hangs, or waits for a rank that does
                    process.kill()
                    process.join()


def _gather(ends: dict[Connection, int], world_size: int, timeout_s: float, folder: Path) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    pending = dict(ends)
    deadline = time.monotonic() + timeout_s
    while pending and (left := deadline - time.monotonic()) > 0:
        for connection in wait(list(pending), timeout=left):
            rank = pending.pop(connection)  # type: ignore[call-overload]
            try:
                good, value = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                good, value = False, "died without a traceback (os._exit, a signal or out of memory)\n"
            if good:
                results[rank] = value
            else:
                errors[rank] = value
                # the others will fail in their next collective; their tracebacks are worth a short wait
                deadline = min(deadline, time.monotonic() + 1.0)
    if errors or pending:
        told = [f"--- rank {rank}\n{text}" for rank, text in sorted(errors.items())]
        if pending:
            told.append(f"unfinished when the others had ended: rank {sorted(pending.values())}")
            told += [f"where rank {rank} was:\n{_stacks(folder, rank)}" for rank in sorted(pending.values())]
        raise RankError("\n".join([f"{len(results)} of {world_size} ranks succeeded", *told]))
    return [results[rank] for rank in range(world_size)]


def _stacks(folder: Path, rank: int) -> str:
    """What a rank wrote of its threads when most of the time was over, if it came to that."""
    file = folder / f"stacks_{rank}"
    return file.read_text() if file.exists() else ""


def _environment(rank: int, world_size: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # never opened: the processes meet in a file, so that no free port can be lost
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _rank_main(job: bytes, environment: dict[str, str], folder: str, out: Connection, timeout_s: float) -> None:
    os.environ.update(environment)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    stacks = open(Path(folder) / f"stacks_{rank}", "w")  # noqa: SIM115 - as long as the process lives
    faulthandler.dump_traceback_later(0.8 * timeout_s, file=stacks)
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    timeout = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        # a rank that is connected, and ends at once, breaks the connecting of the others
        store.set(f"connected/{rank}", "")
        store.wait([f"connected/{other}" for other in range(world_size)], timeout)
        fn, args = pickle.loads(job)
        answer = pickle.dumps((True, fn(*args)))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    out.send_bytes(answer)
    out.close()
    if dist.is_initialized():
        dist.destroy_process_group()
