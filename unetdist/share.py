"""The network and its loss as one module, which can be compiled as one graph."""

import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unetdist.losses import Loss

TOLERANCE = 0.05
"""Largest difference, relative, of loss and gradient between compiled and plain: beyond rounding, even in bf16."""

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

    def prove(self, image: Tensor, mask: Tensor, units: Tensor) -> str | None:
        """What speaks against the compiled graph: an error, or another result than the plain path's on this batch.

        Buffers change, as in training. Waits for the device, and for the compiler.
        """
        compiled = self._graph
        try:
            seen = self._trial(image, mask, units)
        except Exception as error:  # the compiler's may be of any kind
            return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        self._graph = self._plain
        try:
            expected = self._trial(image, mask, units)
        finally:
            self._graph = compiled
        if self._has_dropout():
            return None  # each path draws its own numbers
        for name, value, wanted in zip(("loss", "norm of the gradient"), seen, expected, strict=True):
            if not abs(value - wanted) <= TOLERANCE * abs(wanted):
                return f"its {name} on the first batch is {value:.6g}, the plain path's {wanted:.6g}"
        return None

    def use_plain(self) -> None:
        """Go back to the plain path."""
        self._graph = self._plain
        self.has_cuda_graphs = False

    def _plain(self, image: Tensor, mask: Tensor, units: Tensor) -> Tensor:
        share: Tensor = self.loss(self.model(image), mask, units)
        return share

    def _trial(self, image: Tensor, mask: Tensor, units: Tensor) -> tuple[float, float]:
        """The loss and the norm of its gradient."""
        share = self(image, mask, units)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradient = torch.autograd.grad(share, parameters)
        return float(share.detach()), float(nn.utils.get_total_norm(gradient))

    def _has_dropout(self) -> bool:
        return any(
            module.p > 0 for module in self.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))
        )


def _inductor_options(cuda_graphs: bool) -> dict[str, Any]:
    # In training Inductor gives up channels_last for nets that have convolutions from many channels to few, as every
    # U-Net's decoder has.
    return {"force_layout_optimization": True, "triton.cudagraphs": cuda_graphs}
