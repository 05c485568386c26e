"""A window of a scaled picture, flipped and turned: one map from output pixels to source pixels."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_MARGIN_PX = 2
"""Source pixels kept around what a warp needs: linear interpolation looks one further."""


class Box(NamedTuple):
    """A rectangle of a picture, in pixels; bottom and right are the first that lie outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, as an array is indexed."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


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
        """The window's content, uint8 (h, w[, C]) from the whole picture (H, W[, C]); may be a view of it.

        At scale 1 it is exactly the slice, flipped and turned; else it is sampled with `interpolation` (of
        cv2), pixel centres lying at half-integers of the scaled picture. `fill` is the colour outside.
        """
        size = (pixels.shape[0], pixels.shape[1])
        return self.apply_to_box(pixels[self.box(size).slices], size, fill=fill, interpolation=interpolation)

    def apply_to_box(
        self, pixels: Pixels, size: tuple[int, int], *, fill: tuple[int, ...], interpolation: int
    ) -> Pixels:
        """As `apply`, from the part `box(size)` of a picture of `size` (height, width): no more need be decoded."""
        if self.scale == 1:
            taken = self._lay(pixels, self.box(size), fill)
        else:
            taken = self._warp(pixels, self.box(size), fill, interpolation)
        return taken.reshape(*taken.shape[:2], *pixels.shape[2:])  # OpenCV drops a last axis of length one.

    def box(self, size: tuple[int, int]) -> Box:
        """The part of a picture of `size` (height, width) that the window looks at; empty where it misses it."""
        height, width = size
        if self.scale == 1:
            top, bottom = _clip(self.top, height), _clip(self.top + self.height, height)
            left, right = _clip(self.left, width), _clip(self.left + self.width, width)
            return Box(top, left, bottom, right)
        top, left = self._begin(self.top, height), self._begin(self.left, width)
        bottom, right = self._end(self.top + self.height, height), self._end(self.left + self.width, width)
        return Box(top, left, max(bottom, top + 1), max(right, left + 1))

    def matrix(self) -> Matrix:
        """(2, 3): (x, y, 1) of an output pixel to that of the source, integers being pixel centres."""
        is_left = self.flip_horizontal != (self.quarter_turns in (1, 2))
        is_up = self.flip_vertical != (self.quarter_turns in (2, 3))
        x_gain, x_shift = self._axis(self.left, self.width, is_left)
        y_gain, y_shift = self._axis(self.top, self.height, is_up)
        if self.quarter_turns % 2:
            return np.array([[0, x_gain, x_shift], [y_gain, 0, y_shift]])
        return np.array([[x_gain, 0, x_shift], [0, y_gain, y_shift]])

    def _axis(self, begin: int, length: int, is_reversed: bool) -> tuple[float, float]:
        """Gain and shift: a coordinate of the source is gain * place along an axis of the output + shift."""
        step = 1 / self.scale
        shift = (begin + 0.5) * step - 0.5
        return (-step, shift + (length - 1) * step) if is_reversed else (step, shift)

    def _warp(self, pixels: Pixels, box: Box, fill: tuple[int, ...], interpolation: int) -> Pixels:
        """The window's content through `matrix`, at any scale."""
        matrix = self.matrix()
        size = (self.width, self.height) if self.quarter_turns % 2 == 0 else (self.height, self.width)
        # OpenCV takes no source beyond 32767 pixels, and is more exact near zero: it gets the box alone.
        matrix[:, 2] -= box.left, box.top
        warped: Pixels = cv2.warpAffine(  # type: ignore[assignment]
            pixels,
            matrix,
            size,
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        return warped

    def _begin(self, offset: int, size: int) -> int:
        return min(max(int(offset / self.scale) - _MARGIN_PX, 0), size - 1)

    def _end(self, offset: int, size: int) -> int:
        return min(int(offset / self.scale) + 1 + _MARGIN_PX, size)

    def _lay(self, taken: Pixels, box: Box, fill: tuple[int, ...]) -> Pixels:
        """The box in its place of the window, flipped and turned."""
        if taken.shape[:2] != (self.height, self.width):
            padded = np.empty((self.height, self.width, *taken.shape[2:]), np.uint8)
            padded[...] = fill if taken.ndim == 3 else fill[0]
            y, x = box.top - self.top, box.left - self.left
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


def _clip(offset: int, size: int) -> int:
    return min(max(offset, 0), size)
