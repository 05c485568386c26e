"""Random changes of a whole micro-batch on the device: the twin of what workers do to one sample after another.

What is changed is decided on the host, by the same `Augmenter`; only numbers travel. The device follows the arithmetic
of OpenCV, so that the pixels are equal to the last bit; see `device_warp` for where they are not.
"""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetdist.data.augment import Augmenter, Change
from unetdist.data.device_mix import count_classes, mix, pack_mixes
from unetdist.data.device_warp import IS_FIXED_POINT, as_bytes, find_places, fma, interpolated, nearest
from unetdist.data.mix import Mix
from unetdist.ignore_index import IGNORE_INDEX
from unetdist.logs import logger

Packed = npt.NDArray[np.float64]

_FILL, _COLORS, _END = 9, 13, 25
"""What is told of a sample are `_END` numbers of float64:

the first pixel of the box that is looked at, the picture's width, the box's height and width; whether rows of the
output are columns of the source; gain and shift of the source's axis that runs along a row of the output, and of that
along a column; from `_FILL` on the four colours of what lies outside; from `_COLORS` on the rows of the change of
colours, in fixed point, but of grey images just two numbers as they are. What `mix` is told follows, where
samples may be mixed."""
_COLOR_BITS = 10
"""Fraction of the fixed point in which OpenCV changes colours."""

_Three = tuple[Tensor, Tensor, Tensor]
_Change = Callable[[Tensor, Tensor, Tensor], _Three]


class Place(NamedTuple):
    """Where a picture lies in the storage; its pixels row after row."""

    first: int
    """Number of its first pixel."""
    height: int
    width: int


class DeviceAugmenter:
    """What `augmenter` does, on the device that holds the pictures."""

    def __init__(
        self,
        augmenter: Augmenter,
        *,
        size: tuple[int, int],
        channels: int,
        num_classes: int,
        compiler: str | None = None,
    ) -> None:
        """`size`: (height, width) of what comes out; `compiler`: a backend of torch.compile, None for none."""
        self.augmenter = augmenter
        self._size = size
        self._channels = channels
        self._num_classes = num_classes
        self._is_colored = augmenter.color.changes(channels)
        self._change: _Change = partial(
            change,
            size=size,
            num_classes=num_classes,
            is_scaled=(augmenter.config.scale_min, augmenter.config.scale_max) != (1, 1),
            is_colored=self._is_colored,
            is_mixed=augmenter.mixer.is_on,
            is_fixed_point=IS_FIXED_POINT,
        )
        self._unproved: _Change | None = None
        if compiler is not None:
            self._unproved = torch.compile(self._change, backend=compiler, fullgraph=True, dynamic=False)

    def pack(
        self, changes: Sequence[Change | None], places: Sequence[Place], mixes: Sequence[Mix | None] = ()
    ) -> Packed:
        """What `__call__` is told of the samples, (B, 25); a sample without a change is left blank.

        Where samples may be mixed, their partners follow, and it is (2B, 29 + num_classes); `mixes`: (B,), those with a
        blank one left out.
        """
        packed = np.zeros((len(changes), _END))
        packed[:, :_FILL] = [
            _map(change, place) if change else [0.0] * _FILL
            for change, place in zip(changes, places, strict=True)
        ]
        is_whole = np.array([change is not None for change in changes])
        packed[is_whole, _FILL : _FILL + self._channels] = self.augmenter.fill(self._channels)
        if self._is_colored:
            packed[~is_whole, _COLORS:] = self._pack_colors(np.full((1, 4), 0.5))
            jitters = [change.jitter for change in changes if change]
            if jitters:
                packed[is_whole, _COLORS:] = self._pack_colors(np.stack(jitters))
        if self.augmenter.mixer.is_on:
            is_pair = is_whole[: len(mixes)] & is_whole[len(mixes) :]
            whole = [each if there else None for each, there in zip(mixes, is_pair, strict=True)]
            told = pack_mixes(whole, size=self._size, num_classes=self._num_classes)
            packed = np.hstack((packed, np.tile(told, (2, 1))))
        return packed

    def __call__(self, images: Tensor, masks: Tensor, packed: Tensor) -> _Three:
        """The batch's image (B, C, h, w) uint8 with channels_last strides, mask (B, h, w) uint8, and class_pixels.

        Where samples are mixed, of the samples alone, without their partners.

        The storage: `images` (P, C) and `masks` (P,) uint8 with at least one pixel; `packed` as from `pack`, on the
        same device. Nothing waits for the device, but for the first batch of a compiler, which must be equal to that
        without it.
        """
        changed = self._change(images, masks, packed)
        if self._unproved is not None:
            self._prove(self._unproved, (images, masks, packed), changed)
            self._unproved = None
        return changed

    def _prove(self, compiled: _Change, arguments: _Three, expected: _Three) -> None:
        """Take the compiled function if it works and changes nothing."""
        try:
            found = compiled(*arguments)
        except Exception as error:  # the compiler's may be of any kind
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        else:
            if all(map(torch.equal, found, expected)):
                self._change = compiled
                return
            reason = "its first batch is not that of the plain path"
        logger.warning("pictures are changed on the device without the compiler: %s", reason)

    def _pack_colors(self, jitter: Packed) -> Packed:
        """The last twelve numbers of each sample, of `jitter` (B, 4)."""
        rows = self.augmenter.color.rows(jitter, self._channels)
        if self._channels == 1:
            numbers = np.pad(rows[:, 0], ((0, 0), (0, 10)))
        else:
            numbers = np.rint(rows * np.float32(1 << _COLOR_BITS)).reshape(-1, 12)
        return numbers.astype(np.float64)


def _map(change: Change, place: Place) -> list[float]:
    """The numbers before `_FILL`."""
    window = change.window
    box = window.box((place.height, place.width))
    x, y = window.axes()
    x, y = x._replace(shift=x.shift - box.left), y._replace(shift=y.shift - box.top)
    is_turned = window.quarter_turns % 2
    row, column = (y, x) if is_turned else (x, y)
    first = place.first + box.top * place.width + box.left
    height, width = box.bottom - box.top, box.right - box.left
    return [first, place.width, height, width, is_turned, *row, *column]


def change(
    images: Tensor,
    masks: Tensor,
    packed: Tensor,
    *,
    size: tuple[int, int],
    num_classes: int,
    is_scaled: bool,
    is_colored: bool,
    is_mixed: bool,
    is_fixed_point: bool,
) -> _Three:
    """As `DeviceAugmenter.__call__`; without scales and colours the pixels are only moved.

    `is_fixed_point`: as `find_places` takes it.
    """
    first, stride, height, width, is_turned = packed[:, :5, None, None].long().unbind(1)
    x, y = find_places(
        packed[:, 5:_FILL, None, None], is_turned != 0, size, is_fixed_point=is_scaled and is_fixed_point
    )
    fill = packed[:, None, None, _FILL : _FILL + images.shape[1]].to(torch.uint8)

    def look(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return is_inside, torch.where(is_inside, first + row * stride + column, 0)

    def color(row: Tensor, column: Tensor) -> Tensor:
        is_inside, pixel = look(row, column)
        return torch.where(is_inside[..., None], images[pixel], fill)

    row, column = nearest(y), nearest(x)
    is_inside, pixel = look(row, column)
    mask = torch.where(is_inside, masks[pixel], IGNORE_INDEX)
    image = interpolated(color, x, y) if is_scaled else color(row, column)
    if is_colored:
        image = _recolored(image, packed[:, None, None, _COLORS:_END])
    if is_mixed:
        image, mask = mix(image, mask, packed[: len(packed) // 2, _END:])
    return image.permute(0, 3, 1, 2), mask, count_classes(mask, num_classes)


def _recolored(image: Tensor, rows: Tensor) -> Tensor:
    """`image` (B, h, w, C) uint8, `rows` (B, 1, 1, 12)."""
    if image.shape[3] == 1:
        return as_bytes(fma(image.float(), rows[..., :1].float(), rows[..., 1:2].float()))
    red, green, blue, offset = rows.int().reshape(-1, 1, 1, 3, 4).unbind(4)
    pixels = image.int()
    total = red * pixels[..., 0:1] + green * pixels[..., 1:2] + blue * pixels[..., 2:3] + offset
    changed = ((total + (1 << (_COLOR_BITS - 1))) >> _COLOR_BITS).clamp(0, 255).to(torch.uint8)
    return torch.cat((changed, image[..., 3:]), dim=3) if image.shape[3] == 4 else changed
