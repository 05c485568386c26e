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
_LUMA_ONLY = _FROM_YIQ[:, :1] @ _TO_YIQ[:1]
_CHROMA = _FROM_YIQ[:, 1:] @ _TO_YIQ[1:]
"""With `_LUMA_ONLY` the identity."""
_TURNED_CHROMA = _FROM_YIQ[:, 1:] @ np.array([[0, -1], [1, 0]]) @ _TO_YIQ[1:]
"""A quarter of the colour circle on."""


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
        channels = image.shape[2]
        changes_color = (self.saturation or self.hue) and channels != 1
        if not (self.brightness or self.contrast or changes_color):
            return image
        matrix = self.matrix(draws)
        if channels == 1:
            # On grey the three rows agree and saturation and hue do nothing.
            matrix = np.array([[matrix[0, :3].sum(), matrix[0, 3]]])
        colors = cv2.transform(np.ascontiguousarray(image[..., :3]), matrix.astype(np.float32))
        changed: Pixels = colors.reshape(*image.shape[:2], -1)  # type: ignore[assignment]
        return changed if channels != 4 else np.concatenate((changed, image[..., 3:]), axis=2)

    def matrix(self, draws: npt.NDArray[np.float64]) -> Matrix:
        """(3, 4): (red, green, blue, 1) to the new red, green, blue; `draws`: (4,)."""
        brightness, contrast, saturation, hue = 2 * draws - 1
        gain = (1 + self.brightness * brightness) * (1 + self.contrast * contrast)
        angle = 2 * math.pi * self.hue * hue
        chroma = 1 + self.saturation * saturation
        plane = chroma * (np.cos(angle) * _CHROMA + np.sin(angle) * _TURNED_CHROMA)
        mean_grey = float(np.dot(LUMA, self.mean))
        matrix = np.empty((3, 4))
        matrix[:, :3] = gain * (_LUMA_ONLY + plane)
        matrix[:, 3] = -self.contrast * contrast * mean_grey
        return matrix
