"""How fast training a U-Net can be: FLOPs and least bytes of each layer, and the seconds that these take.

A kernel takes max(FLOPs / peak, bytes / bandwidth), and kernels follow one another (the roofline model, Williams et
al. 2009, with a network as a sum of kernels). How many bytes there are depends on what is fused:

- `ideal`: all that can be. The sums of a norm come with the convolution before it, normalising, ReLU and pooling with
  the one after it, forward and backward; joining with the skip is free; head and cross entropy are one kernel each way.
- `compiled`: convolutions alone, as of a library, and everything between two of them in as few passes as there can be.
- `eager`: one pass per operator.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unetdist.model.blocks import AttentionGate, ConvBlock, ConvNorm
from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet

Execution = Literal["ideal", "compiled", "eager"]

OPTIMIZER_BYTES = 28
"""Of Adam, a parameter: weight and two averages read and written, gradient read, in float32."""


@dataclass(frozen=True)
class Peaks:
    """What a device can do."""

    flops: float
    """Of matrix products, per second."""
    bandwidth: float
    """Bytes per second of device memory, read and written together."""


H200 = Peaks(788e12, 4.3e12)
"""bf16 matrix product on random data and copy, measured."""


@dataclass(frozen=True)
class Work:
    """Of one kernel."""

    flops: float
    bytes: float

    def seconds(self, peaks: Peaks) -> float:
        """The least time that it takes."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bandwidth)


@dataclass(frozen=True)
class Layer:
    """A convolution of the network with what belongs to it, for one image."""

    name: str
    """Of the module, such as `encoder.0.layers.1.conv`."""
    kind: Literal["conv", "up", "head"]
    in_shape: tuple[int, int, int]
    """Channels, height, width."""
    out_shape: tuple[int, int, int]
    kernel_size: int
    is_normed: bool
    is_first: bool
    """Its input is the image, in bytes, which needs no gradient."""
    is_pooled: bool
    """Its input is the level above, pooled."""
    is_skip: bool
    """Its output goes to the level below and, past it, to the decoder."""
    adds_shortcut: bool = False
    """It ends a residual block."""
    is_shortcut: bool = False
    """It leads past a residual block, and no ReLU follows it."""
    scale: int = 1
    """Its output is interpolated to so many times its height and width."""
    num_gated: int = 0
    """Values of the skip that each value of its output weighs."""

    @property
    def num_weights(self) -> int:
        """Without biases and norms."""
        return self.in_shape[0] * self.out_shape[0] * self.kernel_size**2

    @property
    def flops(self) -> int:
        """Of the forward pass, of the gradient of the input, and of that of the weights: each as many."""
        _, height, width = self.in_shape if self.kind == "up" else self.out_shape
        return 2 * self.num_weights * height * width

    @property
    def training_flops(self) -> int:
        """Forward and backward."""
        return self.flops * (2 if self.is_first else 3)

    def kernels(self, execution: Execution, batch_size: int, value_bytes: int = 2) -> Iterator[Work]:
        """What a training step does for this layer: forward, gradients of input and weights, and what lies between."""
        out = batch_size * math.prod(self.out_shape) * value_bytes
        read = batch_size * math.prod(self.in_shape) * (1 if self.is_first else value_bytes)
        flops, weights = self.flops * batch_size, self.num_weights * value_bytes
        pooled = out / 4 if self.is_skip else 0.0
        if execution == "ideal":
            area = self.scale**2
            # What comes before a pooled input is read in full; a norm's gradient wants its input beside it.
            taken = 4 * read if self.is_pooled else read
            if self.kind == "head":
                mask = batch_size * math.prod(self.out_shape[1:]) * area
                yield Work(flops, read + mask)
                yield Work(2 * flops, 2 * read + mask)
                return
            out *= area
            shortcut = out if self.adds_shortcut else 0
            yield Work(flops, taken + out + shortcut + weights)
            gradient = (2 * out if self.is_normed else out) + pooled
            if not self.is_first:
                yield Work(flops, gradient + shortcut + 2 * read + weights)
            yield Work(flops, gradient + taken + 2 * weights)
            return
        if self.is_first:
            yield Work(
                0, read * (1 + value_bytes) if execution == "compiled" else read * (1 + 8 + value_bytes)
            )
            read *= value_bytes
        yield Work(flops, read + out + weights)
        if not self.is_first:
            yield Work(flops, out + read + weights)
        yield Work(flops, out + read + 2 * weights)
        yield Work(0, sum(_passes(self, execution)) * out)


def _passes(layer: Layer, execution: Execution) -> Iterator[float]:
    """Passes over the output of a layer beside its convolution, in units of its bytes."""
    compiled = execution == "compiled"
    area = layer.scale**2
    if layer.scale > 1:  # interpolation and its gradient; fused, but for the smaller side, with what follows
        yield 2 if compiled else 2 + 2 * area
    match layer.kind:
        case "head":
            # Cast, log-softmax, loss and their gradients; in float32 where each is a pass of its own.
            yield 4 * area if compiled else 24 * area
        case "up":  # joined with the skip, and parted again
            yield 4 * area if compiled else 8 * area
        case "conv":
            # Read and written; read twice, for gradients of weights and skip, and written; fused with the joining.
            yield layer.num_gated * (2 if compiled else 5)
            if layer.is_normed:
                yield 3  # sums; normalise
                yield 5 if compiled else 6  # two sums of the gradient, at once or one by one; its values
            if not layer.is_shortcut and not (compiled and layer.is_normed):
                yield 5  # ReLU and its gradient
            if layer.adds_shortcut:  # the sum; the gradient's sum at the block's entry
                yield 3 if compiled else 6
            if layer.is_skip:
                # Pooling writes a quarter, and where each value came from, in one byte or in eight; its gradient reads
                # the same and, eager, writes all. The sum with the skip's is one more read, or a pass of its own.
                yield 0.25 + 0.125 + 0.25 + 0.125 + 1 if compiled else 1.25 + 1 + 1.25 + 1 + 3


def layers_of(config: UNetConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """The layers of a network for images of `size` (height, width), in the order of computation.

    An encoder of timm is not counted: our own way down stands in its place, as without `config.encoder`.
    """
    config = replace(config, encoder=None, pretrained=False)
    if config.norm == "sync_batch":  # It refuses to run anywhere but on GPUs, and costs what batch norm does.
        config = replace(config, norm="batch")
    with torch.device("meta"):
        channels = config.in_channels
        model = UNet(config, num_classes, mean=[0.0] * channels, std=[1.0] * channels).train()
        image = torch.empty(1, channels, *size, dtype=torch.uint8)
    roles = _roles(model)
    found: list[Layer] = []

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            found.append(_layer(name, module, given[0].shape, out.shape, config, **roles.get(module, {})))

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, given, out, name=name: note(name, module, given, out))
    model(image)
    return found


def flops_of(layers: Sequence[Layer]) -> int:
    """Of training on one image, as `torch.utils.flop_counter.FlopCounterMode` counts them."""
    return sum(layer.training_flops for layer in layers)


def seconds_of(
    layers: Sequence[Layer],
    execution: Execution,
    *,
    batch_size: int,
    peaks: Peaks = H200,
    value_bytes: int = 2,
) -> float:
    """Of a training step; `value_bytes`: of an activation, 2 in bf16."""
    kernels = (work for layer in layers for work in layer.kernels(execution, batch_size, value_bytes))
    optimizer = sum(layer.num_weights for layer in layers) * OPTIMIZER_BYTES / peaks.bandwidth
    return sum(work.seconds(peaks) for work in kernels) + optimizer


def _roles(model: UNet) -> dict[object, dict[str, Any]]:
    """What sets a convolution apart, as fields of `Layer`."""
    roles: dict[object, dict[str, Any]] = defaultdict(dict)
    for block in model.modules():
        if isinstance(block, ConvBlock) and block.shortcut is not None:
            roles[block.layers[-1].conv]["adds_shortcut"] = True
            if isinstance(block.shortcut, ConvNorm):
                roles[block.shortcut.conv]["is_shortcut"] = True
        elif isinstance(block, AttentionGate):
            roles[block.weight]["num_gated"] = 4 * block.skip.in_channels
    for index, level in enumerate([*model.encoder, model.bottleneck]):
        blocks = [block for block in level.modules() if isinstance(block, ConvBlock)]
        for entry in (blocks[0].layers[0], blocks[0].shortcut):
            if isinstance(entry, ConvNorm):
                roles[entry.conv]["is_pooled" if index else "is_first"] = True
        if level is not model.bottleneck:
            roles[blocks[-1].layers[-1].conv]["is_skip"] = True
    return roles


def _layer(
    name: str,
    module: nn.Conv2d | nn.ConvTranspose2d,
    given: Sequence[int],
    out: Sequence[int],
    config: UNetConfig,
    **roles: Any,
) -> Layer:
    part, *inner = name.split(".")
    is_head = part in ("head", "aux_heads")
    is_up = inner[-1:] == ["up"]
    is_gate = inner[-2:-1] == ["gate"]
    scale = 1
    if is_up and config.upsample == "bilinear":
        scale = 2
    elif part == "aux_heads":
        scale = 2 ** (config.depth - 1 - int(inner[0]))
    flags = {"is_first": False, "is_pooled": False, "is_skip": False, **roles}
    return Layer(
        name=name,
        kind="head" if is_head else "up" if is_up else "conv",
        in_shape=(given[1], given[2], given[3]),
        out_shape=(out[1], out[2], out[3]),
        kernel_size=module.kernel_size[0],
        is_normed=config.norm != "none" and not (is_head or is_up or is_gate),
        scale=scale,
        **flags,
    )
