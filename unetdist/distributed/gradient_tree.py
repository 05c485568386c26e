"""Adds the gradients of all micro-batches along one binary tree, whichever process computed which of them.

A sum of floating-point numbers depends on its order. Data parallelism usually adds the micro-batches of a process one
after another, and these sums in an order that the backend chooses, so that the last digits of the weights depend on the
number of processes. Here the tree is fixed by the number of micro-batches alone. Ranks hold neighbouring micro-batches,
thus for 1, 2, 4, ... processes each rank adds up one subtree, and the ranks exchange its root.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from unetdist.distributed.collectives import all_gather

Gradients = dict[Tensor, Tensor]
"""A gradient for each parameter."""


def odd_part(number: int) -> int:
    """The largest odd divisor of `number`, which is 1 or more."""
    return number // (number & -number)


def is_whole_subtree(num_micro_batches: int, world_size: int) -> bool:
    """Whether the micro-batches of a rank form one subtree of the sum over all of them."""
    return odd_part(world_size) == 1 or world_size == num_micro_batches


def tree_sum(parts: Tensor) -> Tensor:
    """Sum over the first dimension, (n, ...) -> (...): runs of `odd_part(n)` from left to right, then in pairs."""
    runs = parts.view(-1, odd_part(len(parts)), *parts.shape[1:])
    sums = runs[:, 0]
    for index in range(1, runs.shape[1]):
        sums = sums + runs[:, index]
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]


class GradientTree:
    """Sums gradients over the micro-batches of a step and over ranks; holds at most log2(micro-batches) + 1 of them."""

    def __init__(self, wrapped: nn.Module, num_micro_batches: int) -> None:
        """Sum over `num_micro_batches` of this rank; `wrapped` is the network, in DDP if there are other ranks."""
        self._parameters = list(wrapped.parameters())
        self._run = odd_part(num_micro_batches)
        self._num_kept = 0
        # Roots of the finished subtrees, from left to right: of 7 micro-batches those of 4, the next 2, and the last.
        self._roots: list[Gradients] = []
        self._stream: torch.cuda.Stream | None = None
        self._ddp = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        if self._ddp is not None:
            self._ddp.register_comm_hook(None, self._reduce)

    @contextmanager
    def add(self, *, is_last: bool) -> Iterator[None]:
        """Collective. Take the gradient of the block's backward pass; after the last one parameters have the sum."""
        # Not Accelerate's no_sync, which lets DDP with a single process reduce every micro-batch.
        with nullcontext() if self._ddp is None or is_last else self._ddp.no_sync():
            yield
        if is_last:
            self._finish()
        else:
            self._keep()

    def _keep(self) -> None:
        """Move the gradient from the parameters to where it belongs in the tree."""
        gradient: Gradients = {}
        for parameter in self._parameters:
            if parameter.grad is not None:
                gradient[parameter], parameter.grad = parameter.grad, None
        if self._num_kept % self._run:
            _add(self._roots[-1], gradient)
        else:
            self._roots.append(gradient)
        self._num_kept += 1
        runs, rest = divmod(self._num_kept, self._run)
        while rest == 0 and runs % 2 == 0:
            right = self._roots.pop()
            _add(self._roots[-1], right)
            runs //= 2

    def _finish(self) -> None:
        """Add the roots to the gradient of the last micro-batch, unless DDP's hook did."""
        if self._ddp is None:
            last: Gradients = {
                parameter: parameter.grad for parameter in self._parameters if parameter.grad is not None
            }
            for root in reversed(self._roots):
                _add(last, root)
        self._roots.clear()
        self._num_kept = 0

    def _reduce(self, _: Any, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Collective. Hook of DDP, which calls it for a bucket once the last micro-batch's gradients are in it."""
        buffer = bucket.buffer()
        if not buffer.is_cuda:
            self._reduce_now(buffer, bucket.parameters())
            future: Future[Tensor] = Future()
            future.set_result(buffer)
            return future
        # A stream of its own, so that the backward pass computes the next buckets meanwhile.
        self._stream = self._stream or torch.cuda.Stream(buffer.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(buffer.device))
        with torch.cuda.stream(self._stream):
            self._reduce_now(buffer, bucket.parameters())
            future = Future(devices=[buffer.device])
            future.set_result(buffer)
        return future

    def _reduce_now(self, buffer: Tensor, parameters: list[Tensor]) -> None:
        parts = torch.split(buffer, [parameter.numel() for parameter in parameters])
        for root in reversed(self._roots):
            # A bucket holds gradients in the order of their memory. `GradBucket.gradients` would take them for
            # contiguous, which weights in channels_last are not.
            torch._foreach_add_(parts, [_in_memory_order(root[parameter]) for parameter in parameters])
        reduce_along_tree(buffer)


def reduce_along_tree(buffer: Tensor) -> None:
    """Collective. Sum a flat tensor over ranks in place along the tree; sends as many bytes as a ring does."""
    world_size = dist.get_world_size()
    size = -(-buffer.numel() // world_size) * world_size
    padded = buffer if size == buffer.numel() else torch.cat([buffer, buffer.new_zeros(size - buffer.numel())])
    parts = torch.empty_like(padded)
    # Each rank gets its piece of the buffer from all ranks, adds them up, and passes the sum on.
    dist.all_to_all_single(parts, padded)
    buffer.copy_(all_gather(tree_sum(parts.view(world_size, -1)))[: buffer.numel()])


def _add(total: Gradients, part: Gradients) -> None:
    torch._foreach_add_(list(total.values()), [part[parameter] for parameter in total])


def _in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
