"""A window of a scaled picture, flipped and turned: one map from output pixels to source pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_MARGIN_PX = 2
"""Source pixels kept around what a warp needs: linear interpolation looks one further."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is taken of a picture: scale, cut, flip, turn, in this order; parts outside are filled."""

    top: int
    """First row, in pixels of the scaled picture; may be negative."""
    left: int
    """First column, in pixels of the scaled picture; may be negative."""
    height: int
    """Rows, before the turn."""
    width: int
    """Columns, before the turn."""
    scale: float = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: int = 0
    """Counter-clockwise, 0..3, as `np.rot90`."""

    def apply(self, pixels: Pixels, *, fill: tuple[int, ...], interpolation: int) -> Pixels:
        """The window's content, uint8 (h, w[, C]) from (H, W[, C]); `fill` is the colour outside.

        At scale 1 it is exactly the slice, flipped and turned, and may be a view of `pixels`; else it is
        sampled with `interpolation` (of cv2), pixel centres lying at half-integers of the scaled picture.
        """
        taken = self._cut(pixels, fill) if self.scale == 1 else self.warp(pixels, fill, interpolation)
        return taken.reshape(*taken.shape[:2], *pixels.shape[2:])  # OpenCV drops a last axis of length one.

    def matrix(self) -> Matrix:
        """(3, 3): (x, y, 1) of an output pixel to that of the source, integers being pixel centres."""
        last_x, last_y = self.width - 1.0, self.height - 1.0
        turn = {
            0: np.eye(3),
            1: np.array([[0, -1, last_x], [1, 0, 0], [0, 0, 1]]),
            2: np.array([[-1, 0, last_x], [0, -1, last_y], [0, 0, 1]]),
            3: np.array([[0, 1, 0], [-1, 0, last_y], [0, 0, 1]]),
        }[self.quarter_turns]
        flip = np.eye(3)
        if self.flip_horizontal:
            flip[0] = -1, 0, last_x
        if self.flip_vertical:
            flip[1] = 0, -1, last_y
        step = 1 / self.scale
        unscale: Matrix = np.array(
            [
                [step, 0, (self.left + 0.5) * step - 0.5],
                [0, step, (self.top + 0.5) * step - 0.5],
                [0, 0, 1],
            ]
        )
        matrix: Matrix = unscale @ flip @ turn
        return matrix

    def warp(self, pixels: Pixels, fill: tuple[int, ...], interpolation: int) -> Pixels:
        """The window's content through `matrix`, at any scale."""
        matrix = self.matrix()
        size = (self.width, self.height) if self.quarter_turns % 2 == 0 else (self.height, self.width)
        # OpenCV takes no source beyond 32767 pixels, and is more exact near zero: it gets what is needed.
        y, x = self._begin(self.top, pixels.shape[0]), self._begin(self.left, pixels.shape[1])
        bottom, right = self._end(self.top + self.height), self._end(self.left + self.width)
        matrix[:2, 2] -= x, y
        warped: Pixels = cv2.warpAffine(  # type: ignore[assignment]
            pixels[y : max(bottom, y + 1), x : max(right, x + 1)],
            matrix[:2],
            size,
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        return warped

    def _begin(self, offset: int, size: int) -> int:
        return min(max(int(offset / self.scale) - _MARGIN_PX, 0), size - 1)

    def _end(self, offset: int) -> int:
        return int(offset / self.scale) + 1 + _MARGIN_PX

    def _cut(self, pixels: Pixels, fill: tuple[int, ...]) -> Pixels:
        height, width = pixels.shape[:2]
        top, bottom = np.clip((self.top, self.top + self.height), 0, height)
        left, right = np.clip((self.left, self.left + self.width), 0, width)
        taken = pixels[top:bottom, left:right]
        if taken.shape[:2] != (self.height, self.width):
            padded = np.empty((self.height, self.width, *pixels.shape[2:]), np.uint8)
            padded[...] = fill if pixels.ndim == 3 else fill[0]
            y, x = top - self.top, left - self.left
            padded[y : y + taken.shape[0], x : x + taken.shape[1]] = taken
            taken = padded
        # OpenCV's flip is 30 times as fast as numpy's reversed view and its copy.
        if self.flip_horizontal or self.flip_vertical:
            taken = cv2.flip(taken, self._flip_code())  # type: ignore[assignment]
        if self.quarter_turns:
            taken = cv2.rotate(taken, _ROTATIONS[self.quarter_turns])  # type: ignore[assignment]
        return taken

    def _flip_code(self) -> int:
        """0 exchanges top and bottom, 1 left and right, -1 both."""
        return -1 if self.flip_horizontal and self.flip_vertical else int(self.flip_horizontal)
