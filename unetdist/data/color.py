"""Brightness, contrast, saturation and hue as one affine map of the colours of an image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey of a pixel (ITU-R 601)."""

_TO_YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Strengths as in `AugmentConfig`. Hue turns the colour plane of YIQ: grey stays, luma is kept."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    mean: Sequence[float]
    """Mean red, green and blue of the data set, 0..255; contrast acts about its grey."""

    def apply(self, image: Pixels, draws: npt.NDArray[np.float64]) -> Pixels:
        """`image` (H, W, 1 | 3 | 4) with new colours; `draws`: 4 numbers in [0, 1) for the four options.

        Alpha is kept. Values are rounded once, at the end, and stay in 0..255.
        """
        is_grey = image.shape[2] == 1
        if not (self.brightness or self.contrast or ((self.saturation or self.hue) and not is_grey)):
            return image
        matrix = self.matrix(draws)
        if is_grey:
            # On grey the three rows agree and saturation and hue do nothing.
            matrix = np.array([[matrix[0, :3].sum(), matrix[0, 3]]])
        colors = cv2.transform(np.ascontiguousarray(image[..., :3]), matrix.astype(np.float32))
        changed: Pixels = colors.reshape(*image.shape[:2], -1)  # type: ignore[assignment]
        return changed if image.shape[2] != 4 else np.concatenate((changed, image[..., 3:]), axis=2)

    def matrix(self, draws: npt.NDArray[np.float64]) -> Matrix:
        """(3, 4): (red, green, blue, 1) to the new red, green, blue."""
        sway = 2 * draws - 1
        gain = (1 + self.brightness * sway[0]) * (1 + self.contrast * sway[1])
        mean_grey = float(np.dot(LUMA, self.mean))
        angle = 2 * math.pi * self.hue * sway[3]
        chroma = (1 + self.saturation * sway[2]) * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        plane = np.eye(3)
        plane[1:, 1:] = chroma
        matrix = np.empty((3, 4))
        matrix[:, :3] = gain * (_FROM_YIQ @ plane @ _TO_YIQ)
        matrix[:, 3] = -self.contrast * sway[1] * mean_grey
        return matrix
