"""Losses that are divided by counts of the *global* batch, so that the losses of any split add up exactly.

A mean per process or micro-batch is wrong as soon as they hold different numbers of valid pixels: with class weights
and ignored pixels its gradient is off by 12-14 %. Here the denominators are counted first (`Loss.denominators`) and the
caller sums them over the global batch; the loss of a part is `local sum / global denominator`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetdist.data.labels import IGNORE_INDEX
from unetdist.errors import ConfigError
from unetdist.model.config import ClassWeighting, LossConfig


class Loss(nn.Module):
    """The terms of a `LossConfig`, divided by counts of the global batch.

    Computed in float32 or better, also under autocast. Nothing here waits for the device.
    """

    class_weights: Tensor

    def __init__(self, config: LossConfig, weights: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", weights.double(), persistent=False)
        # Pixels may be counted on the host, and copying the weights in either direction would wait for the device.
        self._host_weights = weights.double()

    @staticmethod
    def counts(class_pixels: Tensor) -> Tensor:
        """Counts of these images: (num_classes + 1,) int64, the pixels of each class and the images that have any.

        They are integers, so their sum over the global batch is exact in any order.

        Args:
            class_pixels: (B, num_classes) int64, the valid pixels of each class in each mask.
        """
        return torch.cat([class_pixels.sum(dim=0), (class_pixels.sum(dim=1) > 0).sum()[None]])

    def denominators(self, counts: Tensor) -> Tensor:
        """Divisors of the terms: (2,) float64, pixels weighted by class, and images that have a valid pixel.

        Args:
            counts: `counts` summed over the global batch; the result is on the same device.
        """
        weights = self._host_weights if counts.is_cpu else self.class_weights
        return torch.stack([counts[:-1].double() @ weights, counts[-1].double()])

    def sums(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The terms summed over these images: (2,), still to be divided by the denominators.

        The first number sums the terms that are means over pixels, the second those that are means over images.

        Args:
            logits: (B, num_classes, H, W).
            mask: (B, H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
        """
        config = self.config
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weights = self.class_weights.to(logits.dtype)
        over_pixels = over_images = logits.new_zeros(())
        if factor := config.ce_weight:
            over_pixels = over_pixels + factor * cross_entropy_sum(logits, mask, weights, config.label_smoothing)
        if factor := config.focal_weight:
            over_pixels = over_pixels + factor * focal_sum(logits, mask, weights, config.focal_gamma)
        if factor := config.dice_weight:
            over_images = over_images + factor * dice_sum(logits, mask)
        if factor := config.lovasz_weight:
            over_images = over_images + factor * lovasz_sum(logits, mask)
        return torch.stack([over_pixels, over_images])

    def forward(self, logits: Tensor | list[Tensor], mask: Tensor, denominators: Tensor) -> Tensor:
        """The loss of these images; over the parts of a global batch it adds up to the loss of that batch.

        Args:
            logits: (B, num_classes, H, W), or a list of them: the i-th weighs 1 / 2^i, and the weights sum to 1.
            mask: (B, H, W) uint8 classes, `IGNORE_INDEX` where a pixel does not count.
            denominators: (2,) `denominators` summed over the global batch, on the device of the logits.

        Returns:
            A scalar; 0, with a gradient of 0, where no pixel counts.
        """
        levels = [logits] if isinstance(logits, Tensor) else logits
        factors = [0.5**level for level in range(len(levels))]
        weighted = [factor * self.sums(level, mask) for factor, level in zip(factors, levels, strict=True)]
        sums = torch.stack(weighted).sum(dim=0)
        # A division by 0 would be hidden by `where`, but its gradient would still be NaN.
        counts = denominators > 0
        safe = torch.where(counts, denominators, 1.0).to(sums.dtype)
        return torch.where(counts, sums / safe, 0.0).sum() / sum(factors)


def build_loss(
    config: LossConfig, *, num_classes: int, class_pixels: Sequence[int] = (), presence_pixels: Sequence[int] = ()
) -> Loss:
    """Build the loss; a rule for class weights needs the pixel counts of the training manifest.

    Raises:
        ConfigError: there is only one class, or the class weights do not fit.
    """
    if num_classes < 2:  # the softmax of one logit is 1, whatever the network predicts
        raise ConfigError(
            f"the data has {num_classes} class apart from ignored pixels, so the loss and its gradient would be 0 and "
            "the network would learn nothing; write the shards again with at least 2 classes: list the background in "
            "Labels.txt as a class, and do not name it in --ignore."
        )
    rule = config.class_weights
    if rule == "none":
        return Loss(config, torch.ones(num_classes))
    if isinstance(rule, str):
        return Loss(config, class_weights(rule, class_pixels, presence_pixels))
    weights = torch.tensor(rule, dtype=torch.float64)
    is_valid = len(weights) == num_classes and bool((weights.isfinite() & (weights >= 0)).all())
    if not is_valid or not weights.any():
        raise ConfigError(
            f"loss.class_weights ({list(rule)}) must be {num_classes} numbers of at least 0 (one per class), not "
            "all of them 0; use such a list, or a rule such as median_frequency"
        )
    return Loss(config, weights)


def class_weights(rule: ClassWeighting, class_pixels: Sequence[int], presence_pixels: Sequence[int]) -> Tensor:
    """Compute the weight of each class from the training manifest: (num_classes,) float64.

    With n the pixels of a class (`class_pixels`), N those of all, and m the valid pixels of the images in which the
    class occurs (`presence_pixels`):

    - `median_frequency`: median(f) / f, f = n / m (Eigen & Fergus 2015, arXiv 1411.4734, section 5.3)
    - `sqrt_median_frequency`: its square root
    - `inverse`: N / (classes that occur * n), so that each class has the same influence
    - `enet`: 1 / ln(1.02 + n / N) (Paszke et al. 2016, arXiv 1606.02147, section 5.2)

    A class without a pixel is left out of the median and has weight 0, because no count says what it is worth. Training
    never meets it; in a validation loss its pixels do not count.
    """
    pixels = torch.as_tensor(class_pixels, dtype=torch.float64)
    presence = torch.as_tensor(presence_pixels, dtype=torch.float64)
    occurs = pixels > 0
    match rule:
        case "median_frequency" | "sqrt_median_frequency":
            frequency = pixels / presence
            # torch.median would take the lower of the middle two; this takes their mean.
            weights = frequency[occurs].quantile(0.5) / frequency
            weights = weights.sqrt() if rule == "sqrt_median_frequency" else weights
        case "inverse":
            weights = pixels.sum() / (occurs.sum() * pixels)
        case "enet":
            weights = 1 / torch.log(1.02 + pixels / pixels.sum())
    return torch.where(occurs, weights, 0.0)


def cross_entropy_sum(logits: Tensor, mask: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Sum over valid pixels; divided by their weights it is exactly `F.cross_entropy` with reduction "mean"."""
    # reduction="sum" adds a map on CUDA in no fixed order; `sum` does not.
    return F.cross_entropy(
        logits, mask.long(), weights, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=label_smoothing
    ).sum()


def focal_sum(logits: Tensor, mask: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Sum over valid pixels of -weight (1 - p)^gamma log p (Lin et al. 2017, arXiv 1708.02002)."""
    valid = mask != IGNORE_INDEX
    target = torch.where(valid, mask, 0).long()
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    # For gamma below 1 the slope of x^gamma at 0 is infinite.
    wrong = (-torch.expm1(log_p)).clamp(min=1e-12)
    return -(valid * weights[target] * wrong**gamma * log_p).sum()


def dice_sum(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum over images with a valid pixel of 1 - mean of 2 |p y| / (|p| + |y|) over the classes in the image.

    p are probabilities and y is 0 or 1, over the valid pixels of the image (Milletari et al. 2016, arXiv
    1606.04797, without the squares). A class that the image lacks is left out, because it could only score 0.
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
    # Selecting the valid pixels would wait for the device; instead ignored ones are sorted last and count 0.
    errors, order = torch.where(valid, errors, -1.0).sort(dim=2, descending=True, stable=True)
    hits = target.gather(2, order)
    num_targets = hits.sum(dim=2, keepdim=True)
    intersection = num_targets - hits.cumsum(dim=2)
    union = num_targets + hits.logical_not().cumsum(dim=2)
    # The rise of 1 - intersection / union at each pixel is written out: a difference would drown in rounding.
    rise_at_miss = intersection.to(logits.dtype) / (union * (union - 1).clamp(min=1))
    slope = torch.where(hits, union.to(logits.dtype).reciprocal(), rise_at_miss)
    return _sum_of_image_losses((errors.clamp(min=0) * slope).sum(dim=2), num_targets[..., 0] > 0)


def _sum_of_image_losses(class_losses: Tensor, occurs: Tensor) -> Tensor:
    """(B, C) losses and whether the image has the class -> sum over images of the mean over its classes."""
    return ((class_losses * occurs).sum(dim=1) / occurs.sum(dim=1).clamp(min=1)).sum()
