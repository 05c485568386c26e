"""The settings of a U-Net, with its presets, of the loss, and of inference, also as options of a command line."""

import argparse
import math
from dataclasses import dataclass
from typing import Literal

from unetdist.errors import ConfigError

Norm = Literal["batch", "sync_batch", "group", "instance", "none"]
Upsample = Literal["transpose", "bilinear"]
Preset = Literal["student", "classic", "residual"]

# Widths by name. Apart from `PRESET_BLOCKS`, a preset has the defaults of `UNetConfig`.
PRESETS: dict[Preset, tuple[int, ...]] = {
    "student": (16, 32, 64, 128, 256),
    "classic": (64, 128, 256, 512, 1024),
    "residual": (32, 64, 128, 256, 512, 512),
}

# Residual blocks per level of presets that have some. `residual` follows nnU-Net's residual encoder (Isensee et al.
# 2024, arXiv 2404.09556), narrower and less deep; its decoder has two convolutions per level like the others.
PRESET_BLOCKS: dict[Preset, tuple[int, ...]] = {"residual": (1, 2, 2, 4, 4, 2)}

ClassWeighting = Literal["none", "median_frequency", "sqrt_median_frequency", "inverse", "enet"]

TTA_SCALES = (0.75, 1.0, 1.25)

# Upper limits: beyond them no image and no memory is large enough.
MAX_LEVELS, MAX_WIDTH, MAX_CONVS = 16, 2**16, 64


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Architecture. A *level* is one resolution; level 0 is the image's, the last one is the bottleneck."""

    preset: Preset = "student"
    """Widths by name: `student` 16..256 (1.9 M parameters), `classic` 64..1024 (31 M), `residual` 32..512 with
    `encoder_blocks` (44 M); see `widths`."""

    widths: tuple[int, ...] | None = None
    """Channels of each level, finest first; their count is the number of levels. Overrides `preset`."""

    encoder_convs: int | tuple[int, ...] = 2
    """3x3 convolutions per encoder level, bottleneck included: one number, or one per level. Only used without
    `encoder_blocks`."""

    encoder_blocks: int | tuple[int, ...] | None = None
    """Residual blocks (two 3x3 convolutions, input added) per encoder level, bottleneck included: one number, or one
    per level; 0: none. null: those of `preset` (residual: 1, 2, 2, 4, 4, 2; others: none)."""

    decoder_convs: int | tuple[int, ...] = 2
    """3x3 convolutions per decoder level: one number, or one per level except the bottleneck, finest first."""

    norm: Norm = "batch"
    """Norm after each convolution: batch, sync_batch (GPUs only), group (at most 8 groups), instance or none."""

    upsample: Upsample = "transpose"
    """Upsampling in the decoder: `transpose` (2x2 transposed convolution, as in the paper) or `bilinear`."""

    residual: bool = False
    """Add each block's input to its output."""

    drop_path: float = 0.0
    """Probability, 0 to below 1, that the last residual block of the encoder is skipped for a sample in training; it
    grows linearly from the first block. Needs `encoder_blocks` or `residual`."""

    attention: bool = False
    """Attention gates: weigh each pixel of the skips by the coarser level."""

    dropout: float = 0.0
    """Probability, 0 to below 1, of dropping a channel of the bottleneck's output in training."""

    deep_supervision: bool = False
    """In training, also predict from each coarser level of the decoder."""

    encoder: str | None = None
    """Name of a network of the library timm, such as resnet34, that replaces the encoder; only levels finer than its
    first features remain from `widths`. Needs the package timm; without it an error says how to install it."""

    pretrained: bool = False
    """Start from the weights and pixel statistics that timm publishes for `encoder`; downloaded once."""

    in_channels: int = 3
    """Channels of the image: 1 grey, 3 RGB, 4 RGBA."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.level_widths) <= MAX_LEVELS:
            levels = len(self.level_widths)
            raise ConfigError(f"model.widths has {levels} levels, and must have 1 to {MAX_LEVELS}; use [16, 32, 64]")
        if not 1 <= min(self.level_widths) <= max(self.level_widths) <= MAX_WIDTH:
            widths = list(self.level_widths)
            raise ConfigError(f"model.widths ({widths}) must be channels from 1 to {MAX_WIDTH}; use [16, 32, 64]")
        for name, value, num_levels in (
            ("encoder_convs", self.encoder_convs, self.depth + 1),
            ("encoder_blocks", self.level_blocks or 1, self.depth + 1),
            ("decoder_convs", self.decoder_convs, self.depth),
        ):
            counts = (value,) * num_levels if isinstance(value, int) else value
            if len(counts) != num_levels or not all(1 <= count <= MAX_CONVS for count in counts):
                raise ConfigError(
                    f"model.{name} ({value}) must be from 1 to {MAX_CONVS}, for {len(self.level_widths)} widths; "
                    f"use one number or a list of {num_levels}"
                )
        for name, rate in (("dropout", self.dropout), ("drop_path", self.drop_path)):
            if not 0 <= rate < 1:
                raise ConfigError(f"model.{name} ({rate}) must be at least 0 and below 1; use 0 for none")
        if self.drop_path and not (self.residual or self.level_blocks):
            raise ConfigError(
                f"model.drop_path ({self.drop_path}) must have residual blocks to drop; use encoder_blocks: 2, "
                "residual: true, or 0 for none"
            )
        if self.pretrained and self.encoder is None:
            raise ConfigError("model.pretrained (true) must have a model.encoder; use a name such as resnet34")
        if self.encoder is not None and not isinstance(self.decoder_convs, int):
            raise ConfigError(
                f"model.decoder_convs ({self.decoder_convs}) must be one number with model.encoder "
                f"({self.encoder}), which says how many levels there are"
            )
        if not 1 <= self.in_channels <= MAX_WIDTH:
            raise ConfigError(f"model.in_channels ({self.in_channels}) must be from 1 to {MAX_WIDTH}; use 3 for RGB")

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first, from `widths` or `preset`."""
        return PRESETS[self.preset] if self.widths is None else self.widths

    @property
    def level_blocks(self) -> int | tuple[int, ...] | None:
        """Residual blocks of each encoder level, from `encoder_blocks` or `preset`; None or 0: none."""
        return PRESET_BLOCKS.get(self.preset) if self.encoder_blocks is None else self.encoder_blocks

    @property
    def depth(self) -> int:
        """Number of halvings of the resolution: levels - 1."""
        return len(self.level_widths) - 1


def check_norm(config: UNetConfig, *, device_type: str, world_size: int) -> None:
    """Raise `ConfigError` for sync_batch on processes without GPUs, which torch would refuse only at the first step."""
    if config.norm == "sync_batch" and device_type != "cuda" and world_size > 1:
        raise ConfigError(
            f"model.norm (sync_batch) must have a GPU for each of the {world_size} processes, this run is on "
            f"{device_type}; use group (statistics per image) or batch (statistics per process)"
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A sum of terms, each times its weight; a weight of 0 leaves the term out."""

    ce_weight: float = 1.0
    """Cross entropy: mean over the valid pixels, weighted by `class_weights`."""

    dice_weight: float = 0.0
    """Soft Dice: mean over images of 1 - the mean Dice of the classes that occur in the image."""

    focal_weight: float = 0.0
    """Focal loss: cross entropy times (1 - p)^focal_gamma, weighted by `class_weights` likewise."""

    lovasz_weight: float = 0.0
    """Lovász-softmax, a surrogate of 1 - IoU: mean over images of the mean over the classes in the image."""

    class_weights: ClassWeighting | tuple[float, ...] = "none"
    """Weight of a pixel by its class, in `ce` and `focal`: a rule (see `class_weights`) or one number each."""

    label_smoothing: float = 0.0
    """Fraction of the target that `ce` spreads over all classes, 0 to below 1."""

    focal_gamma: float = 2.0
    """Exponent that fades out pixels that are already right in `focal`; 0 gives cross entropy."""

    def __post_init__(self) -> None:
        weights = ("ce_weight", "dice_weight", "focal_weight", "lovasz_weight")
        for name in (*weights, "focal_gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"loss.{name} ({getattr(self, name)}) must be a number of at least 0; use 0 or 1")
        if not any(getattr(self, name) for name in weights):
            raise ConfigError("loss.ce_weight (0) must be above 0 if no other term is; use ce_weight: 1")
        if not 0 <= self.label_smoothing < 1:
            smoothing = self.label_smoothing
            raise ConfigError(f"loss.label_smoothing ({smoothing}) must be at least 0 and below 1; use 0 for none")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How an image is predicted: by default once, as a whole."""

    window: tuple[int, int] | None = None
    """Size of the windows, (height, width) in pixels that the network sees; best no smaller than the training crops.
    None: the image as a whole."""

    overlap: float = 0.5
    """Fraction of a window that overlaps its neighbour, 0 to below 1."""

    window_batch: int = 2
    """Windows per forward pass."""

    flips: bool = False
    """Average the probabilities of the image and its mirror image (left and right exchanged). There is no vertical
    flip, because a network that never saw sky and ground exchanged would lose accuracy."""

    scales: tuple[float, ...] = (1.0,)
    """Sizes, relative to the training size, over which probabilities are averaged. Accuracy only improves if the
    network saw such sizes in training (`augment.scale_min`, `augment.scale_max`)."""

    def __post_init__(self) -> None:
        scales_hold = bool(self.scales) and all(0 < scale < math.inf for scale in self.scales)
        for name, holds, demand in (
            ("window", self.window is None or min(self.window) >= 1, "1 or more pixels; use [512, 512]"),
            ("overlap", 0 <= self.overlap < 1, "at least 0 and below 1; use 0.5"),
            ("window_batch", self.window_batch >= 1, "at least 1; use 2"),
            ("scales", scales_hold, "one or more numbers above 0; use [0.75, 1.0, 1.25]"),
        ):
            if not holds:
                value = getattr(self, name)
                shown = list(value) if isinstance(value, tuple) else value  # as users write it
                raise ConfigError(f"inference.{name} ({shown}) must be {demand}.")

    @property
    def averages(self) -> bool:
        """Whether the network sees an image more than once, or at another scale."""
        return self.flips or self.scales != (1.0,)


WHOLE_IMAGE = InferenceConfig()


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add --window, --overlap, --tta and --scales for `inference_of`."""
    add = parser.add_argument
    windows = "predict in overlapping windows of H x W pixels, so that memory does not grow with the image"
    add("--window", nargs=2, type=int, metavar=("H", "W"), help=windows)
    overlap = "fraction of a window that overlaps its neighbour (default: %(default)s)"
    add("--overlap", type=float, default=InferenceConfig.overlap, metavar="FRACTION", help=overlap)
    views = f"average over the mirror image and the scales {', '.join(map(str, TTA_SCALES))}; takes 7 times as long. "
    add("--tta", action="store_true", help=views + "Add --scales 1 if the model was trained at one scale only")
    add("--scales", nargs="+", type=float, metavar="SCALE", help="average over these relative sizes of the image")


def inference_of(args: argparse.Namespace) -> InferenceConfig:
    """Turn parsed options into settings; raises `ConfigError` if they are out of range."""
    scales = args.scales or (TTA_SCALES if args.tta else (1.0,))
    window = None if args.window is None else tuple(args.window)
    return InferenceConfig(window=window, overlap=args.overlap, flips=args.tta, scales=tuple(scales))
