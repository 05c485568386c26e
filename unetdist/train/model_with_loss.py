"""The network and its loss as one module, which can be compiled as one graph."""

import math
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.model.losses import Loss

# Largest relative difference of loss and gradient between compiled and plain: beyond rounding, even in bf16.
TOLERANCE = 0.05

# Runs until CUDA graphs replay: one warms up, one records.
RUNS_TO_REPLAY = 3

Graph = Callable[[Tensor, Tensor, Tensor], Tensor]


class ModelWithLoss(nn.Module):
    """Pixels in, loss out (divided by counts of the global batch, see `unetdist.model.losses`).

    The loss belongs to the graph: logits, the largest of all activations, are then neither written in float32 nor read
    again, and a compiler sees the whole step. It is compiled inside of DDP, which would cut the graph at its buckets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        compiler: str | None = None,
        cuda_graphs: bool = False,
        is_deterministic: bool = False,
    ) -> None:
        """Join an unwrapped model and its loss, both on the same device.

        `compiler` is a backend of `torch.compile`, such as "inductor"; None: the plain path. With `cuda_graphs`
        Inductor replays the kernels of a step instead of launching them one by one; with `is_deterministic` it chooses
        no kernel by its time whose choice would change digits.
        """
        super().__init__()
        self.model, self.loss = model, loss
        self.has_cuda_graphs = cuda_graphs
        self.wants_compiler = compiler is not None
        self.problem: str | None = None
        """Why the compiler that was chosen is not used."""
        self._graph: Graph = self._plain
        if compiler is not None:
            # In training Inductor gives up channels_last for networks with convolutions from many channels to few, and
            # the decoder of every U-Net has them.
            layout: dict[str, Any] = {"force_layout_optimization": True, "triton.cudagraphs": cuda_graphs}
            layout |= {"deterministic": True} if is_deterministic else {}
            options = layout if compiler == "inductor" else None
            self._graph = torch.compile(self._plain, backend=compiler, fullgraph=True, dynamic=False, options=options)

    @property
    def is_compiled(self) -> bool:
        """Whether `forward` runs a compiled graph."""
        return self._graph != self._plain

    def forward(self, image: Tensor, mask: Tensor, denominators: Tensor) -> Tensor:
        """Loss () of (B, C, H, W) uint8 images against (B, H, W) uint8 masks, with the global `denominators` (2,)."""
        if self.has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._graph(image, mask, denominators)

    def prove(self, image: Tensor, mask: Tensor, denominators: Tensor, *, scale: float = 1.0) -> str | None:
        """Compare the compiled graph with the plain path on a batch like those of `forward`.

        Changes buffers, as training does. Waits for the device and for the compiler. `scale` multiplies the loss in
        fp16, where gradients would otherwise be noise, or 0; it is halved until the plain path's gradient is finite.

        Returns the problem, an error or a different result; None if there is none.
        """
        compiled = self._graph
        self._graph = self._plain
        try:
            expected = self._trial(image, mask, denominators, scale)
            while scale > 1 and not math.isfinite(expected[1]):
                scale = max(1.0, scale / 2)
                expected = self._trial(image, mask, denominators, scale)
        finally:
            self._graph = compiled
        inductor = torch._dynamo.utils.counters["inductor"]
        skipped = inductor["cudagraph_skips"]
        try:
            for _ in range(RUNS_TO_REPLAY if self.has_cuda_graphs else 1):
                found = self._trial(image, mask, denominators, scale)
        except Exception as error:  # a compiler may raise anything
            return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        if self.has_cuda_graphs and inductor["cudagraph_skips"] > skipped:
            self.has_cuda_graphs = False
            logger.warning("training without CUDA graphs: torch.compile skipped them (TORCH_LOGS=cudagraphs shows why)")
        if any(module.p > 0 for module in self.modules() if isinstance(module, nn.Dropout | nn.Dropout2d)):
            return None  # each path draws its own numbers
        for name, value, wanted in zip(("loss", "norm of the gradient"), found, expected, strict=True):
            if not abs(value - wanted) <= TOLERANCE * abs(wanted):
                return f"its {name} on the first batch is {value:.6g}, the plain path's {wanted:.6g}"
        return None

    def use_plain(self, problem: str) -> None:
        """Return to the plain path because of a `problem` with the compiled one."""
        self.problem = problem
        self._graph = self._plain
        self.has_cuda_graphs = False

    def _plain(self, image: Tensor, mask: Tensor, denominators: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.model(image), mask, denominators)
        return loss

    def _trial(self, image: Tensor, mask: Tensor, denominators: Tensor, scale: float) -> tuple[float, float]:
        """The loss and the norm of its gradient."""
        loss = self(image, mask, denominators)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradient = torch.autograd.grad(loss * scale, parameters)
        return float(loss.detach()), float(nn.utils.get_total_norm(gradient)) / scale
