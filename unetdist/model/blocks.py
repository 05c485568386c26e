"""The parts of a U-Net: convolution blocks, attention gates, decoder blocks, norms by name, He initialisation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unetdist.model.config import Norm, Upsample

# Group norm uses the largest power of two up to this that divides the channels (width 64: 8 groups of 8).
MAX_GROUPS = 8


def build_norm(norm: Norm, channels: int) -> nn.Module:
    """A normalisation layer over `channels` maps, with a learned scale and shift.

    `batch` is Ioffe & Szegedy 2015, `sync_batch` the same with statistics over all processes (CUDA only),
    `group` is Wu & He 2018, `instance` is Ulyanov 2016; `none` is the identity.
    """
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "sync_batch":
            return nn.SyncBatchNorm(channels)
        case "group":
            return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        case "none":
            return nn.Identity()


class ConvNorm(nn.Module):
    """A convolution that keeps height and width, and its norm. It has a bias only without a norm to cancel it."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "none")
        self.norm = build_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        out: Tensor = self.norm(self.conv(x))
        return out


class DropPath(nn.Dropout):
    """Dropout of whole samples in training: 0 with probability `p`, otherwise divided by 1 - p.

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382). It draws one number per sample from torch's generator, and
    none if p is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or self.p == 0:
            return x
        return x * super().forward(x.new_ones(len(x), 1, 1, 1))


class ConvBlock(nn.Module):
    """`num_convs` times 3x3 convolution, norm, ReLU: one level of the U-Net, or a part of one.

    With `residual` the input (through a 1x1 convolution if the widths differ) is added before the last ReLU (He et al.
    2015, arXiv 1512.03385); `drop_path` is the probability that the convolutions add nothing to it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_convs: int, norm: Norm, residual: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_convs - 1)
        self.layers = nn.ModuleList(ConvNorm(channels, out_channels, kernel_size=3, norm=norm) for channels in inputs)
        self.shortcut: nn.Module | None = nn.Identity() if residual else None
        if residual and in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, kernel_size=1, norm=norm)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        *inner, last = self.layers
        out = x
        for layer in inner:
            out = F.relu(layer(out), inplace=True)
        out = last(out)
        if self.shortcut is not None:
            out = self.drop_path(out) + self.shortcut(x)
        return F.relu(out, inplace=True)


class AttentionGate(nn.Module):
    """Weighs each pixel of a skip, 0..1, by the coarser level (Oktay et al. 2018, arXiv 1804.03999, section 2).

    Both are projected to half of the skip's channels at the coarser resolution and added; their ReLU gives one weight
    for every 2x2 pixels, which is interpolated.
    """

    def __init__(self, skip_channels: int, coarse_channels: int) -> None:
        super().__init__()
        inner = max(1, skip_channels // 2)
        self.skip = nn.Conv2d(skip_channels, inner, kernel_size=2, stride=2, bias=False)
        self.coarse = nn.Conv2d(coarse_channels, inner, kernel_size=1)
        self.weight = nn.Conv2d(inner, 1, kernel_size=1)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """Skip (B, skip_channels, 2H, 2W) and coarse (B, coarse_channels, H, W) -> (B, skip_channels, 2H, 2W)."""
        weight = self.weight(F.relu(self.skip(skip) + self.coarse(coarse)))
        weight = F.interpolate(weight, scale_factor=2, mode="bilinear", align_corners=False)
        return skip * weight.sigmoid()


class UpBlock(nn.Module):
    """One level of the decoder: double height and width, concatenate the skip, convolve.

    `transpose` doubles with a 2x2 transposed convolution of stride 2, as in the paper; `bilinear` with a 1x1
    convolution and interpolation. With `attention` the skip passes a gate first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_convs: int,
        norm: Norm,
        residual: bool,
        upsample: Upsample,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.is_bilinear = upsample == "bilinear"
        self.up: nn.ConvTranspose2d | nn.Conv2d
        if self.is_bilinear:  # the convolution commutes with the interpolation, and costs a quarter before it
            self.up = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        else:
            self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.gate = AttentionGate(out_channels, in_channels) if attention else None
        self.block = ConvBlock(2 * out_channels, out_channels, num_convs=num_convs, norm=norm, residual=residual)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, H, W) and skip (B, out_channels, 2H, 2W) -> (B, out_channels, 2H, 2W)."""
        if self.gate is not None:
            skip = self.gate(skip, x)
        x = self.up(x)
        if self.is_bilinear:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.block(torch.cat([skip, x], dim=1))
        return out


class _WithoutDraws(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built in the block have shapes but no weights."""
    # Even for weights on the meta device torch would load all that it needs to draw them, which takes seconds.
    with torch.device("meta"), _WithoutDraws():
        yield


def initialise(model: nn.Module) -> None:
    """Draw the weights of convolutions after He et al. 2015 (arXiv 1502.01852), and set their biases to zero.

    The standard deviation is sqrt(2 / N) with N inputs per output (fan in), as in Ronneberger's section 3; upsampling,
    which no ReLU follows, has sqrt(1 / N). Norms keep scale 1 and shift 0, heads and gates keep torch's weights.
    """
    for module in model.modules():
        if isinstance(module, ConvBlock):
            for conv in (part for part in module.modules() if isinstance(part, nn.Conv2d)):
                nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, UpBlock):
            # Windows of a 2x2 kernel with stride 2 do not overlap: an output sees each input channel once.
            nn.init.normal_(module.up.weight, std=module.up.in_channels**-0.5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
