"""A part of another training sample laid over a sample: a rectangle (CutMix) or some of its classes (ClassMix).

CutMix is Yun et al. 2019, arXiv 1905.04899, section 3.1, for segmentation as in French et al. 2020, arXiv 1906.01916;
ClassMix is Olsson et al. 2021, arXiv 2007.07936, section 3.1. Here masks are given, so they are pasted like the image.

The other sample is the partner: the neighbour in the endless order, changed as it is in its own place. What is drawn is
a function of (seed, epoch, sample id), so the pixels depend on neither rank, worker nor micro-batch.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unetdist.data.augment_config import AugmentConfig
from unetdist.data.batch import Pixels, Sample, count_values
from unetdist.data.geometry import Box
from unetdist.data.keyed_random import Stream, keyed_uniform

Draws = npt.NDArray[np.float64]
Key = tuple[int, int]
"""(epoch, sample id)"""


class MixDraw(IntEnum):
    """Number of each random draw, the last part of its key."""

    KIND = 0
    AREA = 1
    TOP = 2
    LEFT = 3
    CLASSES = 4
    """The first of one for each class."""


class Mix(NamedTuple):
    """The part that a sample gets of its partner."""

    partner: Key
    is_cut: bool
    """A rectangle, else classes."""
    draws: Draws
    """(MixDraw.CLASSES + C,)"""

    def box(self, size: tuple[int, int]) -> Box:
        """The rectangle in a picture of `size` (height, width): inside, of its proportions."""
        side = math.sqrt(self.draws[MixDraw.AREA])
        height, width = round(side * size[0]), round(side * size[1])
        top = int(self.draws[MixDraw.TOP] * (size[0] - height + 1))
        left = int(self.draws[MixDraw.LEFT] * (size[1] - width + 1))
        return Box(top, left, top + height, left + width)

    def classes(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Half of the classes with pixels in the partner, rounded up; `counts`: (256,) its pixels by value."""
        draws = self.draws[MixDraw.CLASSES :]
        shown = np.flatnonzero(counts[: len(draws)])
        return shown[np.argsort(draws[shown], kind="stable")][: (len(shown) + 1) // 2]

    def is_taken(self, partner: Sample) -> Pixels:
        """1 where the partner's pixel is taken, else 0: (H, W)."""
        height, width = partner.mask.shape
        if self.is_cut:
            taken = np.zeros((height, width), np.uint8)
            taken[self.box((height, width)).slices] = 1
            return taken
        table = np.zeros(256, np.uint8)
        table[self.classes(partner.counts)] = 1
        return cv2.LUT(partner.mask, table).reshape(height, width)  # type: ignore[return-value]


class Mixer:
    """Says which samples get a part of their partner, and which part."""

    def __init__(
        self, config: AugmentConfig, *, seed: int, num_classes: int, until_epoch: float = math.inf
    ) -> None:
        """`until_epoch`: the first in which nothing is mixed any more."""
        self._cutmix = config.cutmix
        self._either = config.cutmix + config.classmix
        self._until_epoch = until_epoch
        self._seed = seed
        self._numbers = np.arange(MixDraw.CLASSES + num_classes)

    @property
    def is_on(self) -> bool:
        """Whether any sample may be mixed."""
        return self._either > 0

    def __call__(self, keys: Sequence[Key], partners: Sequence[Key]) -> list[Mix | None]:
        """Of each of `keys` the part that it gets; None: it stays alone, as all do without `partners`."""
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
    """`sample` with the part of `partner` in its place; it stays as it is where one of them is bad."""
    if sample.is_bad or partner.is_bad:
        return sample
    is_taken = mix.is_taken(partner)
    image, mask = sample.image.copy(), sample.mask.copy()  # The sample itself may be the other's partner.
    cv2.copyTo(partner.image, is_taken, image)
    cv2.copyTo(partner.mask, is_taken, mask)
    return sample._replace(image=image, mask=mask, counts=count_values(mask))
