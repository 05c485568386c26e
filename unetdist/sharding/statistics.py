"""What is counted while shards are written: sums of integers, so that any order of adding gives the same."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unetdist.cli import json_records
from unetdist.cli.json_records import Count
from unetdist.data.image_file import ImageRange
from unetdist.data.manifest import Manifest, Shard

Counts = npt.NDArray[np.int64]

NUM_COMMON_SIZES = 16
_ARRAYS = ("pixels", "images", "presence", "sums", "squares")
_VALUES = np.arange(256, dtype=np.int64)


def _per_value() -> Counts:
    return np.zeros(256, np.int64)


def _per_channel() -> Counts:
    return np.zeros(3, np.int64)


@dataclass(kw_only=True)
class Statistics:
    """Sums over samples; class counts are by value 0..255 of the mask, 255 being ignored."""

    pixels: Counts = field(default_factory=_per_value)
    """Pixels of each value."""
    images: Counts = field(default_factory=_per_value)
    """Images in which the value occurs."""
    presence: Counts = field(default_factory=_per_value)
    """Valid pixels of the images in which the value occurs."""
    sums: Counts = field(default_factory=_per_channel)
    """Of red, green, blue."""
    squares: Counts = field(default_factory=_per_channel)
    """Of red, green, blue."""
    channels: Counter[int] = field(default_factory=Counter)
    """Images with 1, 3, 4 channels."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each (height, width)."""
    num_kept: int = 0
    """Images whose bytes are the source's own."""
    extremes: tuple[float, float] | None = None
    """Lowest and highest value of all images of more than 8 bits; None: there are none."""

    def add(
        self,
        image: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        channels: int,
        is_kept: bool,
        extremes: tuple[float, float] | None = None,
    ) -> None:
        """Count one sample: (H, W, 3) RGB as it will be decoded, and (H, W) class indices."""
        counts = np.bincount(mask.ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        self.presence += np.where(counts > 0, counts[:255].sum(), 0)
        for channel in range(3):
            histogram = np.bincount(image[..., channel].ravel(), minlength=256)
            self.sums[channel] += histogram @ _VALUES
            self.squares[channel] += histogram @ _VALUES**2
        self.channels[channels] += 1
        self.sizes[image.shape[0], image.shape[1]] += 1
        self.num_kept += is_kept
        self.extremes = wider(self.extremes, extremes)

    def merge(self, other: "Statistics") -> None:
        """Add what another one has counted."""
        for name in _ARRAYS:
            getattr(self, name).__iadd__(getattr(other, name))
        self.channels += other.channels
        self.sizes += other.sizes
        self.num_kept += other.num_kept
        self.extremes = wider(self.extremes, other.extremes)

    def to_record(self) -> dict[str, Any]:
        """As plain JSON types."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {
            **arrays,
            "channels": sorted(self.channels.items()),
            "sizes": sorted([*size, count] for size, count in self.sizes.items()),
            "num_kept": self.num_kept,
            "extremes": self.extremes,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_record`; `ValueError` or `KeyError` for anything else."""
        empty = cls()
        arrays = {
            name: np.array(json_records.build(tuple[Count, ...], record[name]), np.int64) for name in _ARRAYS
        }
        if any(array.shape != getattr(empty, name).shape for name, array in arrays.items()):
            raise ValueError("a list of counts is too long or too short")
        if record["extremes"] is not None:
            json_records.build(tuple[float, float], record["extremes"])
        channels = json_records.build(tuple[tuple[Count, Count], ...], record["channels"])
        sizes = json_records.build(tuple[tuple[Count, Count, Count], ...], record["sizes"])
        return cls(
            **arrays,
            channels=Counter(dict(channels)),
            sizes=Counter({(height, width): count for height, width, count in sizes}),
            num_kept=json_records.build(int, record["num_kept"]),
            extremes=None if record["extremes"] is None else tuple(record["extremes"]),
        )

    def to_manifest(
        self,
        shards: Sequence[Shard],
        palette_records: Sequence[dict[str, Any]],
        num_classes: int,
        resize: tuple[int, int] | None,
        image_range: ImageRange,
    ) -> Manifest:
        """The manifest of `shards`, whose samples are what was counted (at least one).

        `image_range`: how images of more than 8 bits, if there are any, became 0..255.
        """
        num_pixels = int(self.pixels.sum())
        totals = [(int(total), int(square)) for total, square in zip(self.sums, self.squares, strict=True)]
        mean = tuple(total / num_pixels for total, _ in totals)
        # In integers up to the division: the difference of two large floats would lose what is left.
        std = tuple(math.sqrt(square * num_pixels - total**2) / num_pixels for total, square in totals)
        heights, widths = zip(*self.sizes, strict=True)
        common = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:NUM_COMMON_SIZES]
        return Manifest(
            shards=tuple(shards),
            palette_records=tuple(palette_records),
            class_pixels=tuple(self.pixels[:num_classes].tolist()),
            class_images=tuple(self.images[:num_classes].tolist()),
            presence_pixels=tuple(self.presence[:num_classes].tolist()),
            ignored_pixels=int(self.pixels[255]),
            num_samples=sum(self.sizes.values()),
            num_pixels=num_pixels,
            channels=max(sorted(self.channels), key=lambda channels: self.channels[channels]),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            min_size=(min(heights), min(widths)),
            max_size=(max(heights), max(widths)),
            sizes=tuple((*size, count) for size, count in common),
            resize=resize,
            image_range=None if self.extremes is None else image_range,
        )


def wider(one: tuple[float, float] | None, other: tuple[float, float] | None) -> tuple[float, float] | None:
    """The lowest and the highest of two pairs of extremes."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])
