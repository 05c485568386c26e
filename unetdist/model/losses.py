"""Losses that return a *share* of the loss of the global batch, so that shares of any split add up exactly.

A mean per process or micro-batch is wrong as soon as they hold different numbers of valid pixels: with
class weights and ignored pixels its gradient is off by 12-14 %. Here the denominators are counted first
(`Loss.units`) and summed over the global batch by the caller; each share is `local sum / global
denominator`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdist.data.ignore_index import IGNORE_INDEX
from unetdist.errors import ConfigError
from unetdist.model.class_weights import ClassWeighting, class_weights


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
    """Weight of a pixel by its class, in `ce` and `focal`: a rule (class_weights.py) or one number each."""

    label_smoothing: float = 0.0
    """Share, 0 to below 1, of the target that `ce` spreads over all classes."""

    focal_gamma: float = 2.0
    """How strongly `focal` fades out pixels that are already right; 0 is cross entropy."""

    def __post_init__(self) -> None:
        for name in ("ce_weight", "dice_weight", "focal_weight", "lovasz_weight", "focal_gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"{name} ({getattr(self, name)}) must be a number of at least 0; use 0 or 1"
                )
        if not any((self.ce_weight, self.dice_weight, self.focal_weight, self.lovasz_weight)):
            raise ConfigError("ce_weight (0) must be above 0 if no other term is; use ce_weight: 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing ({self.label_smoothing}) must be at least 0 and below 1; use 0 for none"
            )


class Loss(nn.Module):
    """The terms of a `LossConfig`, as shares of the global batch.

    Computed in float32 or better, under autocast too. Nothing here waits for the device.
    """

    class_weights: Tensor

    def __init__(self, config: LossConfig, weights: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", weights.double(), persistent=False)
        # Units may be counted on the host; copying the weights, either way, would wait for the device.
        self._host_weights = weights.double()

    def units(self, class_pixels: Tensor) -> Tensor:
        """What a share is divided by, counted over these images only; add it up over the global batch.

        Args:
            class_pixels: (B, num_classes) integers, the valid pixels of each class in each mask.

        Returns:
            (2,) float64 on the same device: pixels weighted by class, and images that have a valid pixel.
        """
        weights = self._host_weights if class_pixels.is_cpu else self.class_weights
        pixels = class_pixels.sum(dim=0).double() @ weights
        images = (class_pixels.sum(dim=1) > 0).sum().double()
        return torch.stack([pixels, images])

    def sums(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The terms summed over these images: (2,), to be divided by `units`.

        The first number is the terms that are means over pixels, the second those that are means over images.

        Args:
            logits: (B, num_classes, H, W).
            mask: (B, H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
        """
        config = self.config
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weights = self.class_weights.to(logits.dtype)
        over_pixels = over_images = logits.new_zeros(())
        if config.ce_weight:
            ce = cross_entropy_sum(logits, mask, weights, config.label_smoothing)
            over_pixels = over_pixels + config.ce_weight * ce
        if config.focal_weight:
            focal = focal_sum(logits, mask, weights, config.focal_gamma)
            over_pixels = over_pixels + config.focal_weight * focal
        if config.dice_weight:
            over_images = over_images + config.dice_weight * dice_sum(logits, mask)
        if config.lovasz_weight:
            over_images = over_images + config.lovasz_weight * lovasz_sum(logits, mask)
        return torch.stack([over_pixels, over_images])

    def forward(self, logits: Tensor | list[Tensor], mask: Tensor, units: Tensor) -> Tensor:
        """This batch's share of the loss: the shares of a global batch add up to its loss.

        Args:
            logits: (B, num_classes, H, W); or a list of such, the i-th weighted by 1 / 2^i, normalised.
            mask: (B, H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
            units: (2,) `units` summed over the global batch, on the device of the logits.

        Returns:
            A scalar; 0, with a gradient of 0, where no pixel counts.
        """
        levels = [logits] if isinstance(logits, Tensor) else logits
        factors = [0.5**level for level in range(len(levels))]
        sums = torch.stack(
            [factor * self.sums(level, mask) for factor, level in zip(factors, levels, strict=True)]
        ).sum(dim=0)
        counts = units > 0
        safe_units = torch.where(counts, units, 1.0).to(sums.dtype)
        return torch.where(counts, sums / safe_units, 0.0).sum() / sum(factors)


def build_loss(
    config: LossConfig,
    *,
    num_classes: int,
    class_pixels: Sequence[int] | None = None,
    presence_pixels: Sequence[int] | None = None,
) -> Loss:
    """The loss of `config`; a rule of class weights goes by the counts, those of the training manifest.

    Raises:
        ConfigError: there is one class only, or the class weights do not fit.
    """
    if num_classes < 2:  # the softmax of one logit is 1, whatever the network says
        raise ConfigError(
            f"the data has {num_classes} class apart from ignored pixels, so the loss and its gradient would be 0 and "
            "nothing would be learnt; write the shards again with at least 2 classes: list the background in "
            "Labels.txt as a class, and leave it out of --ignore."
        )
    weights = class_weights(
        config.class_weights,
        num_classes=num_classes,
        class_pixels=class_pixels,
        presence_pixels=presence_pixels,
    )
    return Loss(config, weights)


def cross_entropy_sum(logits: Tensor, mask: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Sum over valid pixels; divided by their weights, exactly `F.cross_entropy` with reduction "mean"."""
    # Summed by `sum`: on CUDA reduction="sum" of a map adds in no fixed order.
    return F.cross_entropy(
        logits,
        mask.long(),
        weights,
        ignore_index=IGNORE_INDEX,
        reduction="none",
        label_smoothing=label_smoothing,
    ).sum()


def focal_sum(logits: Tensor, mask: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Sum over valid pixels of -weight (1 - p)^gamma log p (Lin et al. 2017, arXiv 1708.02002)."""
    valid = mask != IGNORE_INDEX
    target = torch.where(valid, mask, 0).long()
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    # Clamped: the slope of x^gamma at 0 is infinite for gamma below 1.
    wrong = (-torch.expm1(log_p)).clamp(min=1e-12)
    return -(valid * weights[target] * wrong**gamma * log_p).sum()


def dice_sum(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum over images with a valid pixel of 1 - mean of 2 |p y| / (|p| + |y|) over the classes in the image.

    p are probabilities and y is 0 or 1, over the valid pixels of the image (Milletari et al. 2016, arXiv
    1606.04797, without the squares). A class that the image lacks is left out: it could only score 0.
    """
    valid = (mask != IGNORE_INDEX)[:, None]
    target = mask[:, None] == torch.arange(logits.shape[1], device=mask.device)[:, None, None]
    probability = F.softmax(logits, dim=1) * valid
    target_size = target.sum(dim=(2, 3))
    overlap = (probability * target).sum(dim=(2, 3))
    dice = 2 * overlap / (probability.sum(dim=(2, 3)) + target_size).clamp(min=1)
    return _sum_of_image_losses(1 - dice, target_size > 0)


def lovasz_sum(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum over images with a valid pixel of the Lovász-softmax loss, mean over the classes in the image.

    Berman et al. 2018, arXiv 1705.08790, with `per_image` and `classes="present"`.
    """
    valid = (mask != IGNORE_INDEX)[:, None].flatten(2)
    classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
    target = (mask[:, None] == classes).flatten(2)
    errors = (target.to(logits.dtype) - F.softmax(logits, dim=1).flatten(2)).abs()
    # Ignored pixels are sorted behind all others and then count 0: no selection, so no wait for the device.
    errors, order = torch.where(valid, errors, -1.0).sort(dim=2, descending=True, stable=True)
    hits = target.gather(2, order)
    num_targets = hits.sum(dim=2, keepdim=True)
    intersection = num_targets - hits.cumsum(dim=2)
    union = num_targets + hits.logical_not().cumsum(dim=2)
    # The rise of 1 - intersection / union at each pixel, written out: as a difference it drowns in rounding.
    rise_at_miss = intersection.to(logits.dtype) / (union * (union - 1).clamp(min=1))
    slope = torch.where(hits, union.to(logits.dtype).reciprocal(), rise_at_miss)
    return _sum_of_image_losses((errors.clamp(min=0) * slope).sum(dim=2), num_targets[..., 0] > 0)


def _sum_of_image_losses(class_losses: Tensor, occurs: Tensor) -> Tensor:
    """(B, C) losses and whether the image has the class -> sum over images of the mean over its classes."""
    return ((class_losses * occurs).sum(dim=1) / occurs.sum(dim=1).clamp(min=1)).sum()
