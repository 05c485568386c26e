"""Weights of classes, from the pixel counts of the training set."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unetdist.errors import ConfigError

ClassWeighting = Literal["none", "median_frequency", "sqrt_median_frequency", "inverse", "enet"]


def class_weights(
    rule: ClassWeighting | Sequence[float],
    *,
    num_classes: int,
    class_pixels: Sequence[int] | None = None,
    presence_pixels: Sequence[int] | None = None,
) -> Tensor:
    """Weight of each class, (num_classes,) float64.

    With n the pixels of a class, N those of all, m the valid pixels of the images in which the class occurs:

    - `none`: 1
    - `median_frequency`: median(f) / f, f = n / m (Eigen & Fergus 2015, arXiv 1411.4734, section 5.3)
    - `sqrt_median_frequency`: its square root
    - `inverse`: N / (classes that occur * n), so that each class has the same say
    - `enet`: 1 / ln(1.02 + n / N) (Paszke et al. 2016, arXiv 1606.02147, section 5.2)

    Under all rules but `none` a class without a pixel is left out of the median and has weight 0, for nothing
    says what it is worth. Training never meets it; in a validation loss its pixels do not count.

    Args:
        rule: One of the names above, or the weights themselves.
        num_classes: How many classes there are.
        class_pixels: n, from the training manifest; needed by every rule but `none`.
        presence_pixels: m, likewise.

    Raises:
        ConfigError: If a list of weights does not fit, or the rule has no pixels to go by.
    """
    if not isinstance(rule, str):
        weights = torch.tensor(rule, dtype=torch.float64)
        if (
            len(weights) != num_classes
            or not (weights.isfinite() & (weights >= 0)).all()
            or not weights.any()
        ):
            raise ConfigError(
                f"loss.class_weights ({list(rule)}) must be {num_classes} numbers of at least 0 (one per class), "
                "not all of them 0; use such a list, or a rule such as median_frequency"
            )
        return weights
    if rule == "none":
        return torch.ones(num_classes, dtype=torch.float64)
    pixels = torch.as_tensor([] if class_pixels is None else class_pixels, dtype=torch.float64)
    presence = torch.as_tensor([] if presence_pixels is None else presence_pixels, dtype=torch.float64)
    if len(pixels) != num_classes or len(presence) != num_classes or not pixels.any():
        raise ConfigError(
            f"loss.class_weights ({rule}) must have pixel counts of {num_classes} classes, not all 0, to go by; "
            "use those of the training manifest, or class_weights: none"
        )
    occurs = pixels > 0
    match rule:
        case "median_frequency" | "sqrt_median_frequency":
            frequency = pixels / presence
            # The mean of the middle two, where torch.median would take the lower.
            weights = frequency[occurs].quantile(0.5) / frequency
            weights = weights.sqrt() if rule == "sqrt_median_frequency" else weights
        case "inverse":
            weights = pixels.sum() / (occurs.sum() * pixels)
        case "enet":
            weights = 1 / torch.log(1.02 + pixels / pixels.sum())
    return torch.where(occurs, weights, 0.0)
