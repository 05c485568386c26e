"""Random changes of a training sample: one geometric map for image and mask, one colour map for the image.

Every number drawn is a function of (seed, epoch, sample id) and its place in `Draw`, so the pixels do not
depend on rank, worker or on which other options are in use.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unetdist.data.augment_config import AugmentConfig
from unetdist.data.batch import count_values
from unetdist.data.color import LUMA, ColorJitter
from unetdist.data.geometry import Window
from unetdist.data.ignore_index import IGNORE_INDEX
from unetdist.data.keyed_random import Stream, keyed_uniform
from unetdist.data.mix import Mixer

Pixels = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]

_BLOCK = 16_384
"""Pixels that are counted at a time."""


class Draw(IntEnum):
    """Number of each random draw of a sample, the last part of its key; new ones go to the end."""

    SCALE = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP_HORIZONTAL = 3
    FLIP_VERTICAL = 4
    TURN = 5
    RARE = 6
    RARE_CLASS = 7
    RARE_PIXEL = 8
    BRIGHTNESS = 9
    CONTRAST = 10
    SATURATION = 11
    HUE = 12


_ALL_DRAWS = np.arange(len(Draw))


class Change(NamedTuple):
    """What was drawn for a sample."""

    window: Window
    jitter: Draws
    """Of brightness, contrast, saturation, hue."""


class Augmenter:
    """Applies the options of `config`; a pure function of pixels, epoch and sample id."""

    def __init__(
        self,
        config: AugmentConfig,
        *,
        seed: int,
        class_pixels: Sequence[int],
        mean: Sequence[float],
        native_from: int | None = None,
    ) -> None:
        """Take the settings, and what they need to know of the data set and the run.

        Args:
            config: What may be done.
            seed: Of the run.
            class_pixels: (C,) of the data set.
            mean: Its mean red, green, blue, 0..255, for padding.
            native_from: The epoch from which on nothing is scaled or mixed; None: there is none.
        """
        self.config = config
        self.seed = seed
        self._rarity = 1 / np.maximum(np.asarray(class_pixels, np.float64), 1)
        self._mean = tuple(float(value) for value in mean)
        self._native_from = math.inf if native_from is None else native_from
        self.mixer = Mixer(config, seed=seed, num_classes=len(class_pixels), until_epoch=self._native_from)
        self.color = ColorJitter(
            brightness=config.brightness,
            contrast=config.contrast,
            saturation=config.saturation,
            hue=config.hue,
            mean=self._mean,
        )

    def __call__(self, image: Pixels, mask: Pixels, *, epoch: int, sample_id: int) -> tuple[Pixels, Pixels]:
        """The changed image (h, w, C) and mask (h, w) of uint8 (H, W, C) and (H, W); may be views of them.

        Outside of the picture the image is the mean colour of the data set (alpha 255), the mask ignored.
        """
        change = self.change(mask, self.draws([(epoch, sample_id)])[0], epoch=epoch)
        size = (mask.shape[0], mask.shape[1])
        box = change.window.box(size)
        return self.image(image[box.slices], size, change), self.mask(mask, change)

    def draws(self, keys: Sequence[tuple[int, int]]) -> Draws:
        """Numbers in [0, 1) for each (epoch, sample id), (N, len(Draw)): together, for that costs little more."""
        epoch, sample_id = np.array(keys, np.int64).T[..., None]
        return keyed_uniform(Stream.AUGMENT, self.seed, epoch, sample_id, _ALL_DRAWS)

    def change(self, mask: Pixels, draws: Draws, *, epoch: int) -> Change:
        """Draw the change of a sample; only the part `change.window.box(mask.shape)` of its image is needed then."""
        scale = self._scale(draws[Draw.SCALE]) if epoch < self._native_from else 1.0
        return Change(self._window(mask, scale, draws), draws[Draw.BRIGHTNESS : Draw.HUE + 1])

    def image(self, part: Pixels, size: tuple[int, int], change: Change) -> Pixels:
        """The changed image from the part of it that `change` needs; `size`: (height, width) of the whole."""
        fill = self._fill(part.shape[2])
        image = change.window.apply_to_box(part, size, fill=fill, interpolation=cv2.INTER_LINEAR)
        return self.color.apply(image, change.jitter)

    def mask(self, mask: Pixels, change: Change) -> Pixels:
        """The changed mask, from the whole one."""
        return change.window.apply(mask, fill=(IGNORE_INDEX,), interpolation=cv2.INTER_NEAREST)

    def _scale(self, draw: float) -> float:
        low, high = self.config.scale_min, self.config.scale_max
        scale: float = low * (high / low) ** float(draw)
        return scale

    def _fill(self, channels: int) -> tuple[int, ...]:
        """The colour of what lies outside of the picture."""
        red, green, blue = self._mean
        if channels == 1:
            return (round(float(np.dot(LUMA, self._mean))),)
        return (round(red), round(green), round(blue), 255)[:channels]

    def _window(self, mask: Pixels, scale: float, draws: Draws) -> Window:
        """Draw what part of the picture is taken, and how it is laid."""
        cfg = self.config
        height, width = cfg.crop_size or mask.shape
        turns = 0
        if draws[Draw.TURN] < cfg.quarter_turns:
            turns = 1 + int(3 * draws[Draw.TURN] / cfg.quarter_turns)
        if turns % 2 == 1:
            height, width = width, height  # Of the window; the turn exchanges them again.
        pixel = None
        if draws[Draw.RARE] < cfg.rare_class_crop:
            pixel = self._rare_pixel(mask, draws)
        if pixel is not None:
            y, x = pixel
            # The pixel comes to lie anywhere in the middle half of the crop.
            top = int((y + 0.5) * scale - (0.25 + 0.5 * draws[Draw.CROP_TOP]) * height)
            left = int((x + 0.5) * scale - (0.25 + 0.5 * draws[Draw.CROP_LEFT]) * width)
            top_range, left_range = (
                _offsets(mask.shape[0], scale, height),
                _offsets(mask.shape[1], scale, width),
            )
            top = min(max(top, top_range[0]), top_range[1])
            left = min(max(left, left_range[0]), left_range[1])
        else:
            top = _pick(_offsets(mask.shape[0], scale, height), draws[Draw.CROP_TOP])
            left = _pick(_offsets(mask.shape[1], scale, width), draws[Draw.CROP_LEFT])
        return Window(
            top=top,
            left=left,
            height=height,
            width=width,
            scale=scale,
            flip_horizontal=bool(draws[Draw.FLIP_HORIZONTAL] < cfg.flip_horizontal),
            flip_vertical=bool(draws[Draw.FLIP_VERTICAL] < cfg.flip_vertical),
            quarter_turns=turns,
        )

    def _rare_pixel(self, mask: Pixels, draws: Draws) -> tuple[int, int] | None:
        """(y, x) of a pixel of a class that the mask holds; None where all is ignored."""
        counts = count_values(mask)
        weights = np.cumsum(np.where(counts[: len(self._rarity)] > 0, self._rarity, 0.0))
        if weights[-1] == 0:
            return None
        index = int(np.searchsorted(weights, draws[Draw.RARE_CLASS] * weights[-1], side="right"))
        place = find(mask.ravel() == index, int(draws[Draw.RARE_PIXEL] * counts[index]))
        y, x = divmod(place, mask.shape[1])
        return y, x


def find(is_there: npt.NDArray[np.bool_], number: int) -> int:
    """Place of the true value before which `number` others lie."""
    # To count is several times as fast as to list the places.
    for start in range(0, len(is_there), _BLOCK):
        block = is_there[start : start + _BLOCK]
        held = int(np.count_nonzero(block))
        if number < held:
            return start + int(np.flatnonzero(block)[number])
        number -= held
    raise IndexError(number)


def _offsets(size: int, scale: float, crop: int) -> tuple[int, int]:
    """Least and greatest begin of a crop in a scaled picture: inside it, or the picture inside the crop."""
    room = int(size * scale) - crop
    return min(room, 0), max(room, 0)


def _pick(limits: tuple[int, int], draw: float) -> int:
    low, high = limits
    return low + int(draw * (high - low + 1))
