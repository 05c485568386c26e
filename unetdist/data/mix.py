"""Pastes a part of another training sample over one: a rectangle (CutMix) or the pixels of some classes (ClassMix).

CutMix is Yun et al. 2019, arXiv 1905.04899, section 3.1, for segmentation as in French et al. 2020, arXiv 1906.01916;
ClassMix is Olsson et al. 2021, arXiv 2007.07936, section 3.1. Here masks are given, so they are pasted like the image.

The other sample, the partner, is the neighbour in the endless order, augmented as in its own place. What is drawn is a
function of (seed, epoch, sample id), so the pixels do not depend on rank, worker or micro-batch.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unetdist.data.batch import Sample, count_values
from unetdist.data.decode import Box, Pixels
from unetdist.data.keyed_random import Stream, keyed_uniform

# Uniform in [0, 1).
RandomNumbers = npt.NDArray[np.float64]
# (epoch, sample id)
Key = tuple[int, int]


class MixDraw(IntEnum):
    """Number of each random draw, the last part of its key."""

    KIND = 0
    AREA = 1
    TOP = 2
    LEFT = 3
    CLASSES = 4
    """The first of one draw per class."""


class Mix(NamedTuple):
    """The part of its partner that a sample gets."""

    partner: Key
    is_cut: bool
    """Whether it is a rectangle, not classes."""
    draws: RandomNumbers
    """(MixDraw.CLASSES + C,)"""

    def box(self, size: tuple[int, int]) -> Box:
        """The rectangle in an image of `size` (height, width), with the image's proportions."""
        side = math.sqrt(self.draws[MixDraw.AREA])
        height, width = round(side * size[0]), round(side * size[1])
        top = int(self.draws[MixDraw.TOP] * (size[0] - height + 1))
        left = int(self.draws[MixDraw.LEFT] * (size[1] - width + 1))
        return Box(top, left, top + height, left + width)

    def classes(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Half of the partner's classes, rounded up; `counts` (256,) are the partner's pixels by value."""
        draws = self.draws[MixDraw.CLASSES :]
        shown = np.flatnonzero(counts[: len(draws)])
        return shown[np.argsort(draws[shown], kind="stable")][: (len(shown) + 1) // 2]

    def is_taken(self, partner: Sample) -> Pixels:
        """(H, W): 1 where the partner's pixel is taken, 0 elsewhere."""
        height, width = partner.mask.shape
        if self.is_cut:
            taken = np.zeros((height, width), np.uint8)
            taken[self.box((height, width)).slices] = 1
            return taken
        table = np.zeros(256, np.uint8)
        table[self.classes(partner.counts)] = 1
        return cv2.LUT(partner.mask, table).reshape(height, width)  # type: ignore[return-value]


class Mixer:
    """Draws which samples get a part of their partner, and which part.

    Args:
        cutmix: Probability of a rectangle.
        classmix: Probability of classes.
        seed: Seed of the run.
        num_classes: Trained classes.
        until_epoch: First epoch without mixing.
    """

    def __init__(
        self, *, cutmix: float, classmix: float, seed: int, num_classes: int, until_epoch: float = math.inf
    ) -> None:
        self._cutmix = cutmix
        self._either = cutmix + classmix
        self.is_on = self._either > 0
        self._until_epoch = until_epoch
        self._seed = seed
        self._numbers = np.arange(MixDraw.CLASSES + num_classes)

    def __call__(self, keys: Sequence[Key], partners: Sequence[Key]) -> list[Mix | None]:
        """The part that each of `keys` gets; None for samples that get none, which are all without `partners`."""
        if not partners:
            return [None] * len(keys)
        epoch, sample_id = np.array(keys, np.int64).T[..., None]
        draws = keyed_uniform(Stream.MIX, self._seed, epoch, sample_id, self._numbers)
        return [
            Mix(partner, bool(row[MixDraw.KIND] < self._cutmix), row)
            if row[MixDraw.KIND] < self._either and key[0] < self._until_epoch
            else None
            for key, partner, row in zip(keys, partners, draws, strict=True)
        ]


def mixed(sample: Sample, partner: Sample, mix: Mix) -> Sample:
    """`sample` with the part of `partner` pasted; unchanged if either of them is bad."""
    if sample.is_bad or partner.is_bad:
        return sample
    is_taken = mix.is_taken(partner)
    # Copies, because this sample may itself be the partner of another one.
    image, mask = sample.image.copy(), sample.mask.copy()
    cv2.copyTo(partner.image, is_taken, image)
    cv2.copyTo(partner.mask, is_taken, mask)
    return sample._replace(image=image, mask=mask, counts=count_values(mask))
