"""Batches on their way to the device, while it still computes those before."""

from collections.abc import Iterable, Iterator

import torch

from unetdist.data.batch import Batch


def feed(steps: Iterable[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The micro-batches of each step on `device`; their ids stay on the host.

    On CUDA the copies have a stream of their own. As the host is steps ahead of the device, they are done long before
    the device gets to them; the batches must lie in page-locked memory for that.
    """
    if device.type != "cuda":
        yield from ([batch.to(device) for batch in step] for step in steps)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for step in steps:
        with torch.profiler.record_function("step: copy"), torch.cuda.stream(stream):
            there = [batch.to(device, non_blocking=True) for batch in step]
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for batch in there:
            batch.keep_for(computing)
        yield there
