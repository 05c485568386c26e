"""Least time of a training step, estimated from the FLOPs and bytes of each convolution.

A kernel takes at least max(FLOPs / peak, bytes / bandwidth), and the kernels of a step run one after another (the
roofline model, Williams et al. 2009). How many bytes move between two convolutions depends on what is fused:

- `ideal`: everything is fused into the convolutions; only the gradient of a norm reads its input again.
- `compiled`: convolutions from a library, and as few passes as possible between two of them.
- `eager`: one pass per operator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet

Execution = Literal["ideal", "compiled", "eager"]
Kind = Literal["conv", "up", "head"]

# Adam, per parameter in float32: reads weight, gradient and both averages, writes all but the gradient.
OPTIMIZER_BYTES = 28

# Passes over the output of a convolution, forward and backward, in units of its bytes. `conv`: norm (sums, normalise;
# two sums of the gradient, its values), ReLU, and the skip and pooling of every second one. `up`: joining with the
# skip and splitting its gradient. `head`: cross entropy, which eager mode computes in float32 in many passes.
PASSES: dict[Execution, dict[Kind, float]] = {
    "ideal": {"conv": 2, "up": 0, "head": 0},
    "compiled": {"conv": 8.5, "up": 4, "head": 4},
    "eager": {"conv": 16, "up": 8, "head": 24},
}


@dataclass(frozen=True)
class Peaks:
    """Highest rates of a device: FLOP/s of matrix products, and bytes/s of memory, reads and writes together."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """Least time of one kernel."""
        return max(flops / self.flops, num_bytes / self.bandwidth)


# Measured: bf16 matrix product of random data, and copy.
H200 = Peaks(788e12, 4.3e12)


@dataclass(frozen=True)
class Layer:
    """One convolution of the network, for one image; shapes are (channels, height, width)."""

    name: str
    kind: Kind
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    num_weights: int
    kernel_size: int
    is_transposed: bool
    is_first: bool
    """The input is the image, which needs no gradient."""

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass; each of the two gradients takes as many."""
        _, height, width = self.in_shape if self.is_transposed else self.out_shape
        return 2 * self.num_weights * height * width

    @property
    def num_passes(self) -> int:
        """Forward, gradient of the weights, and gradient of the input where it is needed."""
        return 2 if self.is_first else 3


def layers_of(config: UNetConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """The convolutions of a network for images of `size` (height, width), in the order of computation.

    An encoder of timm is counted as the U-Net's own encoder.
    """
    config = replace(config, encoder=None, pretrained=False)
    if config.norm == "sync_batch":  # It runs on GPUs only, and costs as much as batch norm.
        config = replace(config, norm="batch")
    channels = config.in_channels
    # On the meta device nothing is computed and no random number is drawn.
    with torch.device("meta"):
        model = UNet(config, num_classes, mean=[0.0] * channels, std=[1.0] * channels).train()
        image = torch.empty(1, channels, *size, dtype=torch.uint8)
    layers: list[Layer] = []

    def add(name: str, conv: nn.Conv2d | nn.ConvTranspose2d, given: tuple[Tensor, ...], out: Tensor) -> None:
        is_head = name.startswith(("head", "aux_heads"))
        layers.append(
            Layer(
                name=name,
                kind="head" if is_head else "up" if name.endswith(".up") else "conv",
                in_shape=tuple(given[0].shape[1:]),
                out_shape=tuple(out.shape[1:]),
                num_weights=conv.weight.numel(),
                kernel_size=conv.kernel_size[0],
                is_transposed=isinstance(conv, nn.ConvTranspose2d),
                is_first=not given[0].requires_grad,
            )
        )

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(partial(add, name))
    model(image)
    return layers


def flops_of(layers: Sequence[Layer]) -> int:
    """FLOPs of training on one image, as `torch.utils.flop_counter.FlopCounterMode` counts them."""
    return sum(layer.flops * layer.num_passes for layer in layers)


def seconds_of(
    layers: Sequence[Layer], execution: Execution, *, batch_size: int, peaks: Peaks = H200, value_bytes: int = 2
) -> float:
    """Least time of a training step; an activation takes `value_bytes`, 2 in bf16."""
    total = 0.0
    for layer in layers:
        moved, out = (value_bytes * batch_size * math.prod(shape) for shape in (layer.in_shape, layer.out_shape))
        moved += out + value_bytes * layer.num_weights
        total += layer.num_passes * peaks.seconds(layer.flops * batch_size, moved)
        total += peaks.seconds(0, PASSES[execution][layer.kind] * out)
        total += peaks.seconds(0, OPTIMIZER_BYTES * layer.num_weights)
    return total
