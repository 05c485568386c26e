"""Each convolution of a network alone: its forward pass and both of its gradients, beside what the device could do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.peaks import DTYPES
from tests.benchmarks.stopwatch import seconds_per_call
from unetdist.cli.logs import progress
from unetdist.model.limit import Layer, Peaks, Work

PASSES = ("forward", "dgrad", "wgrad")
"""dgrad: the gradient of the input; wgrad: of the weights."""


@dataclass(frozen=True)
class PassTime:
    """One pass of one layer."""

    layer: Layer
    name: str
    work: Work
    seconds: float

    @property
    def flops_per_s(self) -> float:
        """Reached."""
        return self.work.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Reached, if each byte moved but once."""
        return self.work.bytes / self.seconds

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.work.flops / self.work.bytes

    def share(self, peaks: Peaks) -> float:
        """Least seconds over seconds: 1 is the roof."""
        return self.work.seconds(peaks) / self.seconds


def time_layers(
    layers: Sequence[Layer], *, batch_size: int, device: torch.device, precision: str
) -> list[PassTime]:
    """Every pass of every layer, on random numbers in channels_last."""
    times = []
    with progress("timing layers", len(layers)) as bar:
        for layer in layers:
            calls, work = _calls(layer, batch_size, device, DTYPES[precision])
            for name, call in calls.items():
                times.append(PassTime(layer, name, work, seconds_per_call(call, device)))
            bar.advance(1, layer.name)
    return times


def to_mapping(times: Sequence[PassTime], peaks: Peaks) -> list[dict[str, Any]]:
    """For JSON: a mapping for each pass."""
    return [
        {
            "layer": each.layer.name,
            "pass": each.name,
            "in_shape": each.layer.in_shape,
            "out_shape": each.layer.out_shape,
            "gflop": each.work.flops / 1e9,
            "mbytes": each.work.bytes / 1e6,
            "ms": 1000 * each.seconds,
            "tflop_per_s": each.flops_per_s / 1e12,
            "gbyte_per_s": each.bytes_per_s / 1e9,
            "share_of_roof": each.share(peaks),
        }
        for each in times
    ]


def _calls(
    layer: Layer, batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], object]], Work]:
    given, out = (
        torch.randn(batch_size, *shape, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        for shape in (layer.in_shape, layer.out_shape)
    )
    is_transposed = layer.out_shape[1] == 2 * layer.in_shape[1] and layer.kernel_size == 2
    channels = (layer.in_shape[0], layer.out_shape[0])
    weight = torch.randn(
        *(channels if is_transposed else channels[::-1]),
        layer.kernel_size,
        layer.kernel_size,
        device=device,
        dtype=dtype,
    ).contiguous(memory_format=torch.channels_last)
    stride = [2, 2] if is_transposed else [1, 1]
    padding = [0, 0] if is_transposed else [layer.kernel_size // 2] * 2
    rest = (stride, padding, [1, 1], is_transposed, [0, 0], 1)

    def forward() -> Tensor:
        result: Tensor = torch.ops.aten.convolution(given, weight, None, *rest)
        return result

    def backward(*wanted: bool) -> object:
        return torch.ops.aten.convolution_backward(out, given, weight, None, *rest, [*wanted, False])

    calls: dict[str, Callable[[], object]] = {"forward": forward}
    if not layer.is_first:
        calls["dgrad"] = lambda: backward(True, False)
    calls["wgrad"] = lambda: backward(False, True)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (given, out, weight))
    return calls, Work(layer.flops * batch_size, num_bytes)
