"""The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with padded convolutions and a norm after each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdist.errors import ConfigError, DataError
from unetdist.model.blocks import ConvBlock, Norm, UpBlock, Upsample, initialise

Preset = Literal["student", "classic"]

PRESETS: dict[Preset, tuple[int, ...]] = {
    "student": (16, 32, 64, 128, 256),
    "classic": (64, 128, 256, 512, 1024),
}
"""Widths by name; everything else of a preset is the defaults of `UNetConfig`."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Architecture. A *level* is one resolution; level 0 is the image's, the last one is the bottleneck."""

    preset: Preset = "student"
    """Widths by name: `student` 16..256 (1.9 M parameters), `classic` 64..1024 (31 M); see `widths`."""

    widths: tuple[int, ...] | None = None
    """Channels of each level, finest first; as many levels as there are numbers. Overrules `preset`."""

    encoder_convs: int | tuple[int, ...] = 2
    """3x3 convolutions per level on the way down, bottleneck included: one number, or one per level."""

    decoder_convs: int | tuple[int, ...] = 2
    """3x3 convolutions per level on the way up: one number, or one per level but the last, finest first."""

    norm: Norm = "batch"
    """What follows each convolution: batch, sync_batch (GPUs only), group (at most 8), instance or none."""

    upsample: Upsample = "transpose"
    """How the decoder doubles the size: `transpose` (2x2 convolution, as in the paper) or `bilinear`."""

    residual: bool = False
    """Add each block's input to its output."""

    dropout: float = 0.0
    """Probability, 0 to below 1, of dropping a channel of the bottleneck's output while training."""

    deep_supervision: bool = False
    """While training, also predict from each coarser level of the decoder."""

    in_channels: int = 3
    """Channels of the image: 1 grey, 3 RGB, 4 RGBA."""

    def __post_init__(self) -> None:
        if not self.level_widths or min(self.level_widths) < 1:
            raise ConfigError(
                f"model.widths ({list(self.level_widths)}) must be one or more channel counts of at least 1; "
                "use a list such as [16, 32, 64]"
            )
        for name, num_levels in (("encoder_convs", self.depth + 1), ("decoder_convs", self.depth)):
            value = getattr(self, name)
            convs = [value] if isinstance(value, int) else list(value)
            if (not isinstance(value, int) and len(convs) != num_levels) or min(convs, default=1) < 1:
                raise ConfigError(
                    f"model.{name} ({value}) must be at least 1, for {len(self.level_widths)} widths; "
                    f"use one number or a list of {num_levels}"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"model.dropout ({self.dropout}) must be at least 0 and below 1; use 0 for none"
            )
        if self.in_channels < 1:
            raise ConfigError(f"model.in_channels ({self.in_channels}) must be at least 1; use 3 for RGB")

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first: `widths`, or those of `preset`."""
        return PRESETS[self.preset] if self.widths is None else self.widths

    @property
    def depth(self) -> int:
        """How often the resolution is halved: levels - 1."""
        return len(self.level_widths) - 1


class UNet(nn.Module):
    """Image in pixel units -> logits of the same height and width.

    Parts, and so the keys of the state dict: `encoder.I` (finest first), `bottleneck`, `decoder.I` (in the
    order of computation: coarsest first), `head`, `aux_heads.I` (with deep supervision, like `decoder.I`),
    and the buffers `mean` and `std`.

    Args:
        config: The architecture.
        num_classes: Channels of the logits, at least 1.
        mean: Of each image channel over the training set, in pixel units (0..255).
        std: Likewise; a channel that never varies (0) is only centred.

    Raises:
        ConfigError: If `mean` and `std` do not hold one finite number per input channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: UNetConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self._keep_statistics(mean, std)

        *widths, bottom = config.level_widths
        *down_convs, bottom_convs = _per_level(config.encoder_convs, config.depth + 1)
        up_convs = _per_level(config.decoder_convs, config.depth)

        def block(in_channels: int, out_channels: int, num_convs: int) -> ConvBlock:
            return ConvBlock(
                in_channels, out_channels, num_convs=num_convs, norm=config.norm, residual=config.residual
            )

        inputs = [config.in_channels, *widths]
        self.encoder = nn.ModuleList(map(block, inputs, widths, down_convs))
        self.bottleneck = block(inputs[-1], bottom, bottom_convs)
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = nn.ModuleList(
            UpBlock(
                config.level_widths[level + 1],
                widths[level],
                num_convs=up_convs[level],
                norm=config.norm,
                residual=config.residual,
                upsample=config.upsample,
            )
            for level in reversed(range(config.depth))
        )
        self.head = nn.Conv2d(config.level_widths[0], num_classes, kernel_size=1)
        aux_widths = widths[:0:-1] if config.deep_supervision else []
        self.aux_heads = nn.ModuleList(nn.Conv2d(width, num_classes, kernel_size=1) for width in aux_widths)
        initialise(self)
        # Convolutions are 1.3 to 1.7 times faster so, on CPU and GPU, and the loader's images have this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _keep_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values, lowest in (("mean", mean, -math.inf), ("std", std, 0.0)):
            if len(values) != self.config.in_channels or not all(
                math.isfinite(value) and value >= lowest for value in values
            ):
                raise ConfigError(
                    f"{name} ({list(values)}) must be one finite number (std: not negative) for each of the "
                    f"{self.config.in_channels} input channels; use those of the training manifest"
                )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        spread = [value or 1.0 for value in std]
        self.register_buffer("std", torch.tensor(spread, dtype=torch.get_default_dtype()).view(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Predict each pixel's class.

        Args:
            image: (B, in_channels, H, W), uint8 or floating, in pixel units 0..255; any H and W of 1 or more.

        Returns:
            Logits (B, num_classes, H, W). In training with deep supervision a list: the logits, then those of
            each coarser level of the decoder, the finer first, all at full resolution.

        Raises:
            DataError: If the image has another number of channels.
        """
        if image.shape[1] != self.config.in_channels:
            raise DataError(
                f"image has {image.shape[1]} channels, the model takes {self.config.in_channels}; convert "
                "the image, or train with another model.in_channels"
            )
        height, width = image.shape[-2:]
        x = self._pad((image.to(self.mean.dtype) - self.mean) / self.std)
        padded_size = x.shape[-2:]
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        x = self.dropout(self.bottleneck(x))
        levels = []
        for up in self.decoder:
            x = up(x, skips.pop())
            levels.append(x)
        logits = _crop(self.head(x), height, width)
        if not (self.training and self.config.deep_supervision):
            return logits
        auxiliary = [
            F.interpolate(head(level), size=padded_size, mode="bilinear", align_corners=False)
            for head, level in zip(self.aux_heads, levels[:-1], strict=True)
        ]
        return [logits, *(_crop(coarse, height, width) for coarse in reversed(auxiliary))]

    def _pad(self, x: Tensor) -> Tensor:
        """Repeat the last row and column so that every level halves evenly and the bottleneck is 2x2 or more.

        2x2, since batch and instance norm cannot train on a single value. Always done, even by nothing: a
        test of the size would tie an exported model to the sizes that it was traced with.
        """
        bottom, right = (_missing(size, 2**self.config.depth) for size in x.shape[-2:])
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return padded.contiguous(memory_format=torch.channels_last)  # On CUDA padding forgets the layout.


def check_norm(config: UNetConfig, *, device_type: str, world_size: int) -> None:
    """Refuse a norm that this launch cannot train; to be called before the model is built.

    Raises:
        ConfigError: For sync_batch with several processes that have no GPU, which torch refuses at the first
            step.
    """
    if config.norm == "sync_batch" and device_type != "cuda" and world_size > 1:
        raise ConfigError(
            f"model.norm (sync_batch) must have a GPU for each of the {world_size} processes, this run is on "
            f"{device_type}; use group (statistics per image) or batch (statistics per process)"
        )


def _missing(size: int, factor: int) -> int:
    """How much to add to `size` for a multiple of `factor` that is at least twice it."""
    # sym_max, since max would compare the sizes while tracing.
    missing: int = torch.sym_max(2 * factor - size, -size % factor)  # type: ignore[no-untyped-call]
    return missing


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    if torch.compiler.is_exporting():
        # A slice's strides say whether it cut anything: they would tie the exported model to sizes that do.
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(-2, rows).index_select(-1, columns)
    return x[..., :height, :width]


def _per_level(value: int | tuple[int, ...], num_levels: int) -> list[int]:
    return [value] * num_levels if isinstance(value, int) else list(value)
