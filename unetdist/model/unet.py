"""The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with padded convolutions and a norm after each."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdist.errors import ConfigError, DataError
from unetdist.model.blocks import ConvBlock, UpBlock, initialise
from unetdist.model.config import UNetConfig
from unetdist.model.timm_encoder import TimmEncoder


class UNet(nn.Module):
    """Image in pixel units -> logits of the same height and width.

    Its parts name the keys of the state dict: `encoder.I` (finest first), `bottleneck`, `decoder.I` (coarsest first,
    in the order of computation), `head`, `aux_heads.I` (for deep supervision, ordered like `decoder.I`), and the
    buffers `mean` and `std`. With `config.encoder` the timm network is `backbone`, and `encoder` holds finer levels.

    Args:
        config: The architecture.
        num_classes: Channels of the logits, at least 1.
        mean: Mean of each image channel over the training set, in pixel units (0..255).
        std: Standard deviation of each channel; a channel that never varies (0) is only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: UNetConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone: TimmEncoder | None = None
        level_widths: Sequence[int] = config.level_widths
        if config.encoder is None:
            *levels, bottleneck = _encoder_levels(config)
        else:
            self.backbone = TimmEncoder(config.encoder, in_channels=config.in_channels, pretrained=config.pretrained)
            levels, bottleneck = list(islice(_encoder_levels(config), self.backbone.first_level)), nn.Identity()
            level_widths = [*level_widths[: len(levels)], *self.backbone.channels]
            if config.pretrained and config.in_channels == len(self.backbone.mean):
                mean, std = self.backbone.mean, self.backbone.std
        self._keep_statistics(mean, std)
        widths = level_widths[:-1]
        self.depth = len(widths)
        up_convs = _per_level(config.decoder_convs, self.depth)
        self.encoder = nn.ModuleList(levels)
        self.bottleneck = bottleneck
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = nn.ModuleList(
            UpBlock(
                level_widths[level + 1],
                widths[level],
                num_convs=up_convs[level],
                norm=config.norm,
                residual=config.residual,
                upsample=config.upsample,
                attention=config.attention,
            )
            for level in reversed(range(self.depth))
        )
        self.head = nn.Conv2d(level_widths[0], num_classes, kernel_size=1)
        aux_widths = widths[:0:-1] if config.deep_supervision else ()
        self.aux_heads = nn.ModuleList(nn.Conv2d(width, num_classes, kernel_size=1) for width in aux_widths)
        for part in self.children():
            if part is not self.backbone:  # timm has already drawn or loaded its weights
                initialise(part)
        # This layout makes convolutions 1.3 to 1.7 times faster on CPU and GPU, and the loader's images have it.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _keep_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values, lowest in (("mean", mean, -math.inf), ("std", std, 0.0)):
            are_valid = all(math.isfinite(value) and value >= lowest for value in values)
            if len(values) != self.config.in_channels or not are_valid:
                raise ConfigError(
                    f"{name} ({list(values)}) must be one finite number (std: not negative) for each of the "
                    f"{self.config.in_channels} input channels; use those of the training manifest"
                )
            numbers = [value or 1.0 for value in values] if name == "std" else list(values)
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.get_default_dtype()).view(-1, 1, 1))

    def _pad(self, x: Tensor) -> Tensor:  # a method, so that a benchmark can leave it out
        return pad(x, 2**self.depth)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Predict each pixel's class.

        Args:
            image: (B, in_channels, H, W), uint8 or floating, in pixel units 0..255; any H and W of 1 or more.

        Returns:
            Logits (B, num_classes, H, W). In training with deep supervision it is a list: the logits, then those of
            each coarser level of the decoder, finer levels first, all at full resolution.

        Raises:
            DataError: the image has another number of channels.
        """
        if image.shape[1] != self.config.in_channels:
            raise DataError(
                f"image has {image.shape[1]} channels, the model takes {self.config.in_channels}; convert "
                "the image, or train with another model.in_channels"
            )
        height, width = image.shape[-2:]
        x = self._pad((image.to(self.mean.dtype) - self.mean) / self.std)
        padded_size = x.shape[-2:]
        features = [] if self.backbone is None else self.backbone(x)
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        if features:
            *finer, x = features
            skips += finer
        x = self.dropout(self.bottleneck(x))
        levels = []
        for up in self.decoder:
            x = up(x, skips.pop())
            levels.append(x)
        logits = crop(self.head(x), height, width)
        if not (self.training and self.config.deep_supervision):
            return logits
        auxiliary = [
            F.interpolate(head(level), size=padded_size, mode="bilinear", align_corners=False)
            for head, level in zip(self.aux_heads, levels[:-1], strict=True)
        ]
        return [logits, *(crop(coarse, height, width) for coarse in reversed(auxiliary))]


def pad(x: Tensor, factor: int) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) up to multiples of `factor`, at least 2 * `factor`.

    The minimum gives a bottleneck of 2x2 or more: batch and instance norm cannot train on a single value.
    """
    # Padded even by 0 pixels: a test of the size would tie an exported model to the sizes that it was traced with.
    bottom, right = (_missing(size, factor) for size in x.shape[-2:])
    padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return padded.contiguous(memory_format=torch.channels_last)  # CUDA padding loses the layout.


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Crop (B, C, H, W) to its upper left (B, C, height, width)."""
    if _is_exporting():
        # The strides of a slice depend on whether it cut anything, which would tie the exported model to its sizes.
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(-2, rows).index_select(-1, columns)
    return x[..., :height, :width]


def _missing(size: int, factor: int) -> int:
    """Pixels to add to `size` for a multiple of `factor` that is at least 2 * `factor`."""
    least, even = 2 * factor - size, -size % factor
    if not _is_exporting():
        return max(least, even)  # torch.compile of torch 2.11 takes no sym_max of plain numbers
    # max would compare the sizes and tie the exported model to the result.
    missing: int = torch.sym_max(least, even)  # type: ignore[no-untyped-call]
    return missing


def _is_exporting() -> bool:
    """Whether torch.export traces a graph for any size."""
    # torch 2.11 also reports exporting inside torch.compile, where sizes are fixed.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def _encoder_levels(config: UNetConfig) -> Iterator[nn.Module]:
    """Build the levels of the encoder, bottleneck last.

    A level is one block of `encoder_convs` convolutions or `encoder_blocks` residual blocks. Block l of L is dropped
    with probability `drop_path` * l / L (Huang et al. 2016, section 3).
    """
    num_levels = config.depth + 1
    counts = _per_level(config.level_blocks or 1, num_levels)
    rates = (config.drop_path * (block + 1) / sum(counts) for block in range(sum(counts)))
    in_channels = config.in_channels
    for width, count, convs in zip(
        config.level_widths, counts, _per_level(config.encoder_convs, num_levels), strict=True
    ):
        blocks = [
            ConvBlock(
                inputs,
                width,
                num_convs=2 if config.level_blocks else convs,
                norm=config.norm,
                residual=config.residual or bool(config.level_blocks),
                drop_path=next(rates),
            )
            for inputs in [in_channels] + [width] * (count - 1)
        ]
        yield nn.Sequential(*blocks) if config.level_blocks else blocks[0]
        in_channels = width


def _per_level(value: int | tuple[int, ...], num_levels: int) -> list[int]:
    return [value] * num_levels if isinstance(value, int) else list(value)
