"""Random augmentation of a training sample: one geometric map for image and mask, one colour map for the image.

Every random number is a function of (seed, epoch, sample id) and its place in `Draw`, so the pixels do not depend on
rank, on worker or on the other options in use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unetdist.data.batch import count_values
from unetdist.data.config import AugmentConfig
from unetdist.data.decode import Box, Pixels
from unetdist.data.keyed_random import Stream, keyed_uniform
from unetdist.data.labels.palette import IGNORE_INDEX
from unetdist.data.mix import Mixer, RandomNumbers

# Weights of red, green and blue in the grey of a pixel (ITU-R 601).
LUMA = (0.299, 0.587, 0.114)

# Pixels counted at a time.
_BLOCK = 16_384
# Source pixels kept around what a warp needs: linear interpolation reads one further.
_MARGIN_PX = 2
_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}

_TO_YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_LUMA_ONLY = _FROM_YIQ[:, :1] @ _TO_YIQ[:1]
# Adds up with `_LUMA_ONLY` to the identity.
_CHROMA = _FROM_YIQ[:, 1:] @ _TO_YIQ[1:]
# `_CHROMA`, a quarter of the colour circle further.
_TURNED_CHROMA = _FROM_YIQ[:, 1:] @ np.array([[0, -1], [1, 0]]) @ _TO_YIQ[1:]


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


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of an image: scaled, cut, flipped and turned, in this order; parts outside the image are filled."""

    top: int
    """First row, in pixels of the scaled image; may be negative."""
    left: int
    """First column, in pixels of the scaled image; may be negative."""
    height: int
    """Rows before the turn."""
    width: int
    """Columns before the turn."""
    scale: float = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: int = 0
    """Counter-clockwise quarter turns 0..3, like `np.rot90`."""

    def apply(self, pixels: Pixels, *, fill: tuple[int, ...], interpolation: int) -> Pixels:
        """The window's content, uint8 (h, w[, C]), from the whole image (H, W[, C]); may be a view of it.

        At scale 1 it is exactly the slice, flipped and turned. Otherwise it is sampled with `interpolation` (of cv2),
        with pixel centres at half-integers of the scaled image. `fill` is the colour outside.
        """
        size = (pixels.shape[0], pixels.shape[1])
        return self.apply_to_box(pixels[self.box(size).slices], size, fill=fill, interpolation=interpolation)

    def apply_to_box(
        self, pixels: Pixels, size: tuple[int, int], *, fill: tuple[int, ...], interpolation: int
    ) -> Pixels:
        """Same as `apply`, from the part `box(size)` of an image of `size` (height, width)."""
        box = self.box(size)
        taken = self._slice(pixels, box, fill) if self.scale == 1 else self._warp(pixels, box, fill, interpolation)
        # OpenCV drops a last axis of length one.
        return taken.reshape(*taken.shape[:2], *pixels.shape[2:])

    def box(self, size: tuple[int, int]) -> Box:
        """The part of an image of `size` (height, width) that the window needs; empty if they do not meet."""
        top, bottom = self._range(self.top, self.height, size[0])
        left, right = self._range(self.left, self.width, size[1])
        return Box(top, left, bottom, right)

    def _range(self, offset: int, length: int, size: int) -> tuple[int, int]:
        if self.scale == 1:
            return min(max(offset, 0), size), min(max(offset + length, 0), size)
        begin = min(max(int(offset / self.scale) - _MARGIN_PX, 0), size - 1)
        # A warp needs a source of at least one pixel, even where only the fill is seen.
        return begin, max(min(int((offset + length) / self.scale) + 1 + _MARGIN_PX, size), begin + 1)

    def matrix(self) -> npt.NDArray[np.float64]:
        """(2, 3): maps (x, y, 1) of an output pixel to the source; integers are pixel centres."""
        is_left = self.flip_horizontal != (self.quarter_turns in (1, 2))
        is_up = self.flip_vertical != (self.quarter_turns in (2, 3))
        x_gain, x_shift = self._axis(self.left, self.width, is_left)
        y_gain, y_shift = self._axis(self.top, self.height, is_up)
        if self.quarter_turns % 2:
            return np.array([[0, x_gain, x_shift], [y_gain, 0, y_shift]])
        return np.array([[x_gain, 0, x_shift], [0, y_gain, y_shift]])

    def _axis(self, begin: int, length: int, is_reversed: bool) -> tuple[float, float]:
        """Gain and shift: source coordinate = gain * output coordinate + shift."""
        step = 1 / self.scale
        shift = (begin + 0.5) * step - 0.5
        return (-step, shift + (length - 1) * step) if is_reversed else (step, shift)

    def _warp(self, pixels: Pixels, box: Box, fill: tuple[int, ...], interpolation: int) -> Pixels:
        """The window's content at any scale."""
        matrix = self.matrix()
        size = (self.width, self.height) if self.quarter_turns % 2 == 0 else (self.height, self.width)
        # OpenCV refuses sources beyond 32767 pixels and is more exact near zero, so it gets only the box.
        matrix[:, 2] -= box.left, box.top
        flags, border = interpolation | cv2.WARP_INVERSE_MAP, cv2.BORDER_CONSTANT
        return cv2.warpAffine(  # type: ignore[return-value]
            pixels, matrix, size, flags=flags, borderMode=border, borderValue=fill
        )

    def _slice(self, taken: Pixels, box: Box, fill: tuple[int, ...]) -> Pixels:
        """The window's content at scale 1."""
        if taken.shape[:2] != (self.height, self.width):
            padded = np.empty((self.height, self.width, *taken.shape[2:]), np.uint8)
            padded[...] = fill if taken.ndim == 3 else fill[0]
            y, x = box.top - self.top, box.left - self.left
            padded[y : y + taken.shape[0], x : x + taken.shape[1]] = taken
            taken = padded
        # OpenCV's flip is 30 times as fast as numpy's reversed view and its copy.
        if self.flip_horizontal or self.flip_vertical:
            code = -1 if self.flip_horizontal and self.flip_vertical else int(self.flip_horizontal)
            taken = cv2.flip(taken, code)  # type: ignore[assignment]
        if self.quarter_turns:
            taken = cv2.rotate(taken, _ROTATIONS[self.quarter_turns])  # type: ignore[assignment]
        return taken


class AugmentParams(NamedTuple):
    """The augmentation drawn for one sample."""

    window: Window
    jitter: RandomNumbers
    """(4,) draws for brightness, contrast, saturation and hue."""


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
        """Take the settings and the facts about the data set and the run.

        Args:
            config: Options.
            seed: Seed of the run.
            class_pixels: (C,) pixels of each class in the data set.
            mean: Mean red, green and blue of the data set, 0..255, for padding and contrast.
            native_from: First epoch in which nothing is scaled or mixed; None: there is none.
        """
        self.config = config
        self.seed = seed
        self._rarity = 1 / np.maximum(np.asarray(class_pixels, np.float64), 1)
        self._mean = tuple(float(value) for value in mean)
        self._native_from = math.inf if native_from is None else native_from
        self.mixer = Mixer(
            cutmix=config.cutmix,
            classmix=config.classmix,
            seed=seed,
            num_classes=len(class_pixels),
            until_epoch=self._native_from,
        )

    def draws(self, keys: Sequence[tuple[int, int]]) -> RandomNumbers:
        """Numbers in [0, 1) for each (epoch, sample id), (N, len(Draw)); one call for many costs little more."""
        epoch, sample_id = np.array(keys, np.int64).T[..., None]
        return keyed_uniform(Stream.AUGMENT, self.seed, epoch, sample_id, _ALL_DRAWS)

    def params(self, mask: Pixels, draws: RandomNumbers, *, epoch: int) -> AugmentParams:
        """The augmentation of a sample, whose image is then needed only in `params.window.box(mask.shape)`."""
        scale = 1.0
        if epoch < self._native_from:
            low, high = self.config.scale_min, self.config.scale_max
            scale = low * (high / low) ** float(draws[Draw.SCALE])
        return AugmentParams(self._window(mask, scale, draws), draws[Draw.BRIGHTNESS : Draw.HUE + 1])

    def image(self, part: Pixels, size: tuple[int, int], params: AugmentParams) -> Pixels:
        """The augmented image (h, w, C) from the part that `params` needs; `size` is (height, width) of the whole.

        Outside the original it has the mean colour of the data set, and alpha 255.
        """
        red, green, blue = self._mean
        fill: tuple[int, ...] = (round(red), round(green), round(blue), 255)[: part.shape[2]]
        if part.shape[2] == 1:
            fill = (round(float(np.dot(LUMA, self._mean))),)
        image = params.window.apply_to_box(part, size, fill=fill, interpolation=cv2.INTER_LINEAR)
        return self.jittered(image, params.jitter)

    def mask(self, mask: Pixels, params: AugmentParams) -> Pixels:
        """The augmented mask from the whole one; outside the original it is ignored."""
        return params.window.apply(mask, fill=(IGNORE_INDEX,), interpolation=cv2.INTER_NEAREST)

    def _window(self, mask: Pixels, scale: float, draws: RandomNumbers) -> Window:
        cfg = self.config
        height, width = cfg.crop_size or mask.shape
        turns = 0
        if draws[Draw.TURN] < cfg.quarter_turns:
            turns = 1 + int(3 * draws[Draw.TURN] / cfg.quarter_turns)
        if turns % 2 == 1:
            # This is the size before the turn, which swaps the two again.
            height, width = width, height
        pixel = self._rare_pixel(mask, draws) if draws[Draw.RARE] < cfg.rare_class_crop else None
        y, x = pixel or (None, None)
        return Window(
            top=_offset(mask.shape[0], height, scale, draws[Draw.CROP_TOP], y),
            left=_offset(mask.shape[1], width, scale, draws[Draw.CROP_LEFT], x),
            height=height,
            width=width,
            scale=scale,
            flip_horizontal=bool(draws[Draw.FLIP_HORIZONTAL] < cfg.flip_horizontal),
            flip_vertical=bool(draws[Draw.FLIP_VERTICAL] < cfg.flip_vertical),
            quarter_turns=turns,
        )

    def _rare_pixel(self, mask: Pixels, draws: RandomNumbers) -> tuple[int, int] | None:
        """(y, x) of a pixel of a random class of the mask; None if the whole mask is ignored."""
        counts = count_values(mask)
        weights = np.cumsum(np.where(counts[: len(self._rarity)] > 0, self._rarity, 0.0))
        if weights[-1] == 0:
            return None
        index = int(np.searchsorted(weights, draws[Draw.RARE_CLASS] * weights[-1], side="right"))
        place = find(mask.ravel() == index, int(draws[Draw.RARE_PIXEL] * counts[index]))
        y, x = divmod(place, mask.shape[1])
        return y, x

    def jittered(self, image: Pixels, draws: RandomNumbers) -> Pixels:
        """`image` (H, W, 1 | 3 | 4) with new colours; alpha stays. Values are rounded once, at the end, to 0..255."""
        cfg, channels = self.config, image.shape[2]
        if not (cfg.brightness or cfg.contrast or ((cfg.saturation or cfg.hue) and channels != 1)):
            return image
        matrix = self.color_matrix(draws)
        if channels == 1:
            # On grey the three rows agree, and saturation and hue do nothing.
            matrix = np.array([[matrix[0, :3].sum(), matrix[0, 3]]])
        colors = cv2.transform(np.ascontiguousarray(image[..., :3]), matrix.astype(np.float32))
        changed: Pixels = colors.reshape(*image.shape[:2], -1)  # type: ignore[assignment]
        return changed if channels != 4 else np.concatenate((changed, image[..., 3:]), axis=2)

    def color_matrix(self, draws: RandomNumbers) -> npt.NDArray[np.float64]:
        """(3, 4): maps (red, green, blue, 1) to the new colours; `draws` are those of `AugmentParams.jitter`.

        Hue turns the colour plane of YIQ, so that grey stays grey and luma is kept. Contrast keeps the mean grey.
        """
        brightness, contrast, saturation, hue = 2 * draws - 1
        cfg = self.config
        gain = (1 + cfg.brightness * brightness) * (1 + cfg.contrast * contrast)
        angle = 2 * math.pi * cfg.hue * hue
        chroma = 1 + cfg.saturation * saturation
        plane = chroma * (np.cos(angle) * _CHROMA + np.sin(angle) * _TURNED_CHROMA)
        matrix = np.empty((3, 4))
        matrix[:, :3] = gain * (_LUMA_ONLY + plane)
        matrix[:, 3] = -cfg.contrast * contrast * float(np.dot(LUMA, self._mean))
        return matrix


def find(is_there: npt.NDArray[np.bool_], number: int) -> int:
    """Index of the true value that has `number` true values before it."""
    # Counting is several times as fast as listing the indices.
    for start in range(0, len(is_there), _BLOCK):
        block = is_there[start : start + _BLOCK]
        held = int(np.count_nonzero(block))
        if number < held:
            return start + int(np.flatnonzero(block)[number])
        number -= held
    raise IndexError(number)


def _offset(size: int, crop: int, scale: float, draw: float, pixel: int | None) -> int:
    """First row (or column) of a crop in a scaled image of `size`, at random or around row `pixel` of the original."""
    # The crop stays inside the image, or the image inside the crop.
    room = int(size * scale) - crop
    low, high = min(room, 0), max(room, 0)
    if pixel is None:
        return low + int(draw * (high - low + 1))
    # The pixel can be anywhere in the middle half of the crop.
    return min(max(int((pixel + 0.5) * scale - (0.25 + 0.5 * draw) * crop), low), high)
