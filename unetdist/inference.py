"""From an image to the logits of every pixel at the image's own size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Image (B, C, H, W), uint8 or float in 0..255 -> logits (B, num_classes, H, W), as a `UNet` does."""


@torch.inference_mode()
def predict_logits(model: Predict, image: Tensor, *, resize: tuple[int, int] | None = None) -> Tensor:
    """Logits of whole images at their own size.

    The kernels of a convolution are chosen by the shape of the batch, and another kernel rounds differently.
    So callers whose result for an image must not depend on its company run a fixed batch shape; one image per
    call is the default everywhere in this project.

    Args:
        model: any callable from image to logits of the same height and width, in evaluation mode.
        image: (B, C, H, W) uint8, on the device of `model`.
        resize: (width, height) in pixels that the model was trained at; None: the image as it is.

    Returns:
        (B, num_classes, H, W) logits. With `resize` they are computed at that size and interpolated back.
    """
    if resize is None:
        return model(image)
    width, height = resize
    # Rounded, because the shards that the model learned from hold whole numbers.
    resized = resize_area(image, height=height, width=width).round().to(image.dtype)
    logits = model(resized)
    # Between logits of 8 bits, as bf16 has, interpolation would make classes tie.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def resize_area(image: Tensor, *, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) so that each new pixel is the mean of the area it covers; float32, same range.

    The averaging of `cv2.INTER_AREA`, with which shards are resized; `F.interpolate(mode="area")` agrees only
    where the old size is a multiple of the new one.
    """
    rows = _area_weights(image.shape[-2], height, image.device)
    columns = _area_weights(image.shape[-1], width, image.device)
    with torch.autocast(image.device.type, enabled=False):  # in bf16 a third of the pixels would be off by 1
        return rows @ image.float() @ columns.T


def _area_weights(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old) share of each old pixel in each new one; the rows sum to 1."""
    edges = torch.arange(new + 1, device=device, dtype=torch.float64) * (old / new)
    pixels = torch.arange(old, device=device, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * (new / old)).float()
