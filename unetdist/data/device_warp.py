"""Where the pixels of a scaled picture come from, and what is between them: OpenCV's arithmetic on the device.

OpenCV 5 computes in float32. On x86 with AVX2 it rounds product and sum together in the columns that fill whole vectors
and one after the other in those that are left, and so is done here; without AVX2 and on other processors it rounds
otherwise, which shows where a place lies halfway between two pixels. OpenCV 4 computes in fixed point, with shares of
neighbours of 1/32.
"""

from collections.abc import Callable

import cv2
import torch
from torch import Tensor

IS_FIXED_POINT = int(cv2.__version__.split(".")[0]) < 5
"""Whether the OpenCV at hand computes so."""

_VECTOR = 16
"""Columns that OpenCV 5 warps together."""
_BITS = 10
"""Fraction of a place in fixed point."""
_SHARE_BITS = 5
"""Fraction of a place, and of a neighbour's share, between pixels."""
_FAR = 1e9
"""Beyond all places and colours."""

Look = Callable[[Tensor, Tensor], Tensor]
"""The colours (B, h, w, C) uint8 at rows and columns (B, h, w)."""


def find_places(
    axes: Tensor, is_turned: Tensor, size: tuple[int, int], *, is_fixed_point: bool
) -> tuple[Tensor, Tensor]:
    """X and y in the source of each pixel of the output of `size` (height, width): (B, h, w).

    Args:
        axes: (B, 4, 1, 1) float64: gain and shift of the source's axis along a row of the output, and of that along a
            column.
        is_turned: (B, 1, 1); where that along a row is y.
        size: (height, width) of the output.
        is_fixed_point: the places are int64 in 1/1024 pixel; else they are float32.
    """
    height, width = size
    column = torch.arange(width, device=axes.device)
    row = torch.arange(height, device=axes.device)[:, None]
    along, down = (_fixed_point if is_fixed_point else _float)(axes, row, column)
    return torch.where(is_turned, down, along), torch.where(is_turned, along, down)


def nearest(places: Tensor) -> Tensor:
    """The pixel of each place, int64."""
    if places.is_floating_point():
        return places.round().long()
    return (places + (1 << (_BITS - 1))) >> _BITS


def interpolated(look: Look, x: Tensor, y: Tensor) -> Tensor:
    """Between the four pixels around each place, (B, h, w, C) uint8."""
    return (_interpolated if x.is_floating_point() else _interpolated_in_fixed_point)(look, x, y)


def fma(a: Tensor, b: Tensor, c: Tensor | float) -> Tensor:
    """The float32 a * b + c, rounded once.

    float64 holds the product; that the sum is rounded twice shows in one of 2**29 results.
    """
    c = c.double() if isinstance(c, Tensor) else c
    total = (a.double() * b.double() + c).float()
    # The bounds do nothing, but without them torch.compile may take a conversion and that back for none.
    return total.clamp(-_FAR, _FAR)


def as_bytes(values: Tensor) -> Tensor:
    """Rounded to uint8; a half to the even number."""
    return values.round().clamp(0, 255).to(torch.uint8)


def _float(axes: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    row_gain, row_shift, column_gain, column_shift = axes.float().unbind(1)
    in_vectors = column < column.shape[0] // _VECTOR * _VECTOR
    along = torch.where(in_vectors, fma(column, row_gain, row_shift), _product(column, row_gain) + row_shift)
    return along, _product(row, column_gain) + column_shift


def _fixed_point(axes: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    row_gain, row_shift, column_gain, column_shift = axes.unbind(1)
    one = 1 << _BITS
    along = (column * row_gain * one).round().long() + (row_shift * one).round().long()
    return along, ((row * column_gain + column_shift) * one).round().long()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The float32 a * b, rounded before anything is added: a compiler may round a product and a sum as one."""
    return fma(a, b, 0.0)


def _interpolated(look: Look, x: Tensor, y: Tensor) -> Tensor:
    left, top = x.floor(), y.floor()
    to_right, to_bottom = (x - left)[..., None], (y - top)[..., None]
    column, row = left.long(), top.long()

    def between(row: Tensor) -> Tensor:
        here, right = look(row, column).float(), look(row, column + 1).float()
        return fma(to_right, right - here, here)

    above, below = between(row), between(row + 1)
    return as_bytes(fma(to_bottom, below - above, above))


def _interpolated_in_fixed_point(look: Look, x: Tensor, y: Tensor) -> Tensor:
    lost, one = _BITS - _SHARE_BITS, 1 << _SHARE_BITS
    x, y = (x + (1 << (lost - 1))) >> lost, (y + (1 << (lost - 1))) >> lost
    to_right, to_bottom = (x % one)[..., None].int(), (y % one)[..., None].int()
    column, row = x >> _SHARE_BITS, y >> _SHARE_BITS

    def between(row: Tensor) -> Tensor:
        return look(row, column).int() * (one - to_right) + look(row, column + 1).int() * to_right

    total = between(row) * (one - to_bottom) + between(row + 1) * to_bottom
    return ((total + one * one // 2) >> (2 * _SHARE_BITS)).to(torch.uint8)
