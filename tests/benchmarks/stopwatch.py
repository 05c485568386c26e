"""Seconds of a call that may run on a device, asynchronously."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

WARM_UP_CALLS = 2
LEAST_CALLS = 5

CALLS_AT_ONCE = 20
HEAD_START_CYCLES = 5_000_000
"""Some milliseconds of a GPU, in which the host launches so many calls."""


def seconds_per_call(
    call: Callable[[], object],
    device: torch.device,
    *,
    budget_s: float = 0.2,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> float:
    """Median, or what `of` says, of at least `LEAST_CALLS` calls, and of as many as `budget_s` has room for.

    On CUDA by its events, elsewhere by the clock.
    """
    for _ in range(WARM_UP_CALLS):
        call()
    clock = _on_cuda if device.type == "cuda" else _on_host
    times: list[float] = []
    while len(times) < LEAST_CALLS or sum(times) < budget_s:
        times += clock(call)
    return of(times)


def _on_host(call: Callable[[], object]) -> list[float]:
    began = time.perf_counter()
    call()
    return [time.perf_counter() - began]


def _on_cuda(call: Callable[[], object]) -> list[float]:
    """Of `CALLS_AT_ONCE` calls.

    They queue behind a kernel that only waits: on an idle device the time of a short call would be that of its launch.
    """
    marks = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(CALLS_AT_ONCE + 1)
    ]
    torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [began.elapsed_time(ended) / 1000 for began, ended in pairwise(marks)]
