"""Seconds of a call that may run on a device, asynchronously."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

WARM_UP_CALLS = 2
LEAST_CALLS = 5


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
        times.append(clock(call))
    return of(times)


def _on_host(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _on_cuda(call: Callable[[], object]) -> float:
    began, ended = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000
