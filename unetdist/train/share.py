"""The network and its loss as one module, which can be compiled as one graph."""

import math
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.model.losses import Loss

TOLERANCE = 0.05
"""Largest difference, relative, of loss and gradient between compiled and plain: beyond rounding, even in bf16."""

RUNS_TO_REPLAY = 3
"""CUDA graphs are warmed up, then recorded, then replayed."""

Graph = Callable[[Tensor, Tensor, Tensor], Tensor]


class LossShare(nn.Module):
    """Pixels in, this batch's share of the global loss out.

    The loss belongs to the graph: logits, the largest of all activations, are then neither written in float32
    nor read again, and a compiler sees the whole step. It is compiled inside, before DDP wraps it: DDP would
    cut the graph at its buckets.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, *, compiler: str | None = None, cuda_graphs: bool = False
    ) -> None:
        """Take a model, not wrapped, and its loss.

        Args:
            model: on its device.
            loss: likewise.
            compiler: a backend of `torch.compile`, such as "inductor"; None: the plain path.
            cuda_graphs: have Inductor replay the step's kernels instead of launching them one by one.
        """
        super().__init__()
        self.model, self.loss = model, loss
        self.has_cuda_graphs = cuda_graphs
        self.wants_compiler = compiler is not None
        self.problem: str | None = None
        """Why a compiler that was asked for is not used."""
        self._graph: Graph = self._plain
        if compiler is not None:
            options = _inductor_options(cuda_graphs) if compiler == "inductor" else None
            self._graph = torch.compile(
                self._plain, backend=compiler, fullgraph=True, dynamic=False, options=options
            )

    @property
    def is_compiled(self) -> bool:
        """Whether `forward` is a compiled graph."""
        return self._graph != self._plain

    def forward(self, image: Tensor, mask: Tensor, units: Tensor) -> Tensor:
        """The loss of (B, C, H, W) uint8 images against (B, H, W) uint8 masks, divided by the global `units`: ()."""
        if self.has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._graph(image, mask, units)

    def prove(self, image: Tensor, mask: Tensor, units: Tensor, *, scale: float = 1.0) -> str | None:
        """What speaks against the compiled graph: an error, or another result than the plain path's on this batch.

        In fp16 gradients are noise, or 0, unless the loss is multiplied by `scale`, as in training; where that is too
        much, it is halved until the plain path's are finite. Buffers change, as in training. Waits for the device,
        and for the compiler.
        """
        compiled = self._graph
        self._graph = self._plain
        try:
            expected = self._trial(image, mask, units, scale)
            while scale > 1 and not math.isfinite(expected[1]):
                scale = max(1.0, scale / 2)
                expected = self._trial(image, mask, units, scale)
        finally:
            self._graph = compiled
        try:
            skipped = _skipped_cuda_graphs()
            for _ in range(RUNS_TO_REPLAY if self.has_cuda_graphs else 1):
                seen = self._trial(image, mask, units, scale)
        except Exception as error:  # the compiler's may be of any kind
            return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        if self.has_cuda_graphs and _skipped_cuda_graphs() > skipped:
            self.has_cuda_graphs = False
            logger.warning(
                "trains without CUDA graphs: torch.compile skipped them (TORCH_LOGS=cudagraphs says why)"
            )
        if self._has_dropout():
            return None  # each path draws its own numbers
        for name, value, wanted in zip(("loss", "norm of the gradient"), seen, expected, strict=True):
            if not abs(value - wanted) <= TOLERANCE * abs(wanted):
                return f"its {name} on the first batch is {value:.6g}, the plain path's {wanted:.6g}"
        return None

    def use_plain(self, problem: str) -> None:
        """Go back to the plain path, because of a `problem` with the compiled one."""
        self.problem = problem
        self._graph = self._plain
        self.has_cuda_graphs = False

    def _plain(self, image: Tensor, mask: Tensor, units: Tensor) -> Tensor:
        share: Tensor = self.loss(self.model(image), mask, units)
        return share

    def _trial(self, image: Tensor, mask: Tensor, units: Tensor, scale: float) -> tuple[float, float]:
        """The loss and the norm of its gradient."""
        share = self(image, mask, units)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradient = torch.autograd.grad(share * scale, parameters)
        return float(share.detach()), float(nn.utils.get_total_norm(gradient)) / scale

    def _has_dropout(self) -> bool:
        return any(
            module.p > 0 for module in self.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))
        )


def _skipped_cuda_graphs() -> int:
    """How many graphs of this process Inductor launches kernel by kernel although CUDA graphs were asked for."""
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


def _inductor_options(cuda_graphs: bool) -> dict[str, Any]:
    # In training Inductor gives up channels_last for nets that have convolutions from many channels to few, as every
    # U-Net's decoder has.
    return {"force_layout_optimization": True, "triton.cudagraphs": cuda_graphs}
