"""Counts and problems of the samples of a data set. Sums of integers, so that any order of adding gives the same."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unetdist.cli import json_records
from unetdist.cli.json_records import Count
from unetdist.data.image_file import ImageRange
from unetdist.data.labels.mask_report import MaskNotes
from unetdist.data.labels.masks import UnknownColor
from unetdist.data.manifest import Manifest, Shard
from unetdist.sharding.sources import Problem

Counts = npt.NDArray[np.int64]
# Lowest and highest value of images of more than 8 bits; None if there are none.
Extremes = tuple[float, float] | None

NUM_COMMON_SIZES = 16
# Names in the records of finished shards: a new name would make old records unreadable.
_ARRAYS = ("pixels", "images", "presence", "sums", "squares")
_VALUES = np.arange(256, dtype=np.int64)


@dataclass(kw_only=True)
class Statistics:
    """Sums over samples; class counts are by mask value 0..255, where 255 is ignored."""

    pixels: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each value."""
    images: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    """Images that contain the value."""
    presence: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    """Valid pixels of the images that contain the value."""
    sums: Counts = field(default_factory=lambda: np.zeros(3, np.int64))
    """Sums of red, green, blue."""
    squares: Counts = field(default_factory=lambda: np.zeros(3, np.int64))
    """Sums of squares of red, green, blue."""
    channels: Counter[int] = field(default_factory=Counter)
    """Images with 1, 3, 4 channels."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each (height, width)."""
    num_kept: int = 0
    """Images that are stored with the source's own pixels."""
    extremes: Extremes = None

    def add(
        self,
        image: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        channels: int,
        is_kept: bool,
        extremes: Extremes = None,
    ) -> None:
        """Count one sample: (H, W, 3) RGB as it will be decoded, and (H, W) class indices."""
        counts = np.bincount(mask.ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        # The denominator of a class that is rare in the data set but common where it occurs.
        self.presence += np.where(counts > 0, counts[:255].sum(), 0)
        for channel in range(3):
            # A histogram is exact and faster than sums over int64 copies of the pixels.
            histogram = np.bincount(image[..., channel].ravel(), minlength=256)
            self.sums[channel] += histogram @ _VALUES
            self.squares[channel] += histogram @ _VALUES**2
        self.channels[channels] += 1
        self.sizes[image.shape[0], image.shape[1]] += 1
        self.num_kept += is_kept
        self.extremes = wider(self.extremes, extremes)

    @property
    def num_samples(self) -> int:
        """Number of samples that were counted."""
        return sum(self.sizes.values())

    def merge(self, other: "Statistics") -> None:
        """Add the counts of another part."""
        for name in (*_ARRAYS, "channels", "sizes"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.num_kept += other.num_kept
        self.extremes = wider(self.extremes, other.extremes)

    def to_record(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            "channels": sorted(self.channels.items()),
            "sizes": sorted([*size, count] for size, count in self.sizes.items()),
            "num_kept": self.num_kept,
            "extremes": self.extremes,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_record`; `ValueError` or `KeyError` for anything else."""
        empty = cls()
        arrays = {name: np.array(json_records.build(tuple[Count, ...], record[name]), np.int64) for name in _ARRAYS}
        if any(array.shape != getattr(empty, name).shape for name, array in arrays.items()):
            raise ValueError("a list of counts is too long or too short")
        channels = json_records.build(tuple[tuple[Count, Count], ...], record["channels"])
        sizes = json_records.build(tuple[tuple[Count, Count, Count], ...], record["sizes"])
        return cls(
            **arrays,
            channels=Counter(dict(channels)),
            sizes=Counter({(height, width): count for height, width, count in sizes}),
            num_kept=json_records.build(int, record["num_kept"]),
            extremes=json_records.build(tuple[float, float] | None, record["extremes"]),  # type: ignore[arg-type]
        )

    def to_manifest(
        self,
        shards: Sequence[Shard],
        palette_records: Sequence[dict[str, Any]],
        num_classes: int,
        resize: tuple[int, int] | None,
        image_range: ImageRange,
    ) -> Manifest:
        """The manifest of `shards` with the samples that were counted (at least one).

        `image_range`: how images of more than 8 bits, if there are any, were scaled to 0..255.
        """
        num_pixels = int(self.pixels.sum())
        totals = [(int(total), int(square)) for total, square in zip(self.sums, self.squares, strict=True)]
        mean = tuple(total / num_pixels for total, _ in totals)
        # Integers up to the division, because the difference of two large floats loses digits.
        std = tuple(math.sqrt(square * num_pixels - total**2) / num_pixels for total, square in totals)
        heights, widths = zip(*self.sizes, strict=True)
        # Bounds the manifest of a data set whose images all have different sizes.
        common = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:NUM_COMMON_SIZES]
        return Manifest(
            shards=tuple(shards),
            palette_records=tuple(palette_records),
            class_pixels=tuple(self.pixels[:num_classes].tolist()),
            class_images=tuple(self.images[:num_classes].tolist()),
            presence_pixels=tuple(self.presence[:num_classes].tolist()),
            ignored_pixels=int(self.pixels[255]),
            num_samples=self.num_samples,
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


@dataclass(frozen=True)
class UnlistedColor:
    """A colour or id in a sample's mask that the label file does not list."""

    file: str
    unknown: UnknownColor


@dataclass
class Account:
    """Everything known about some samples: counts, problems, unlisted colours and notes on the masks."""

    statistics: Statistics = field(default_factory=Statistics)
    problems: list[Problem] = field(default_factory=list)
    found: list[UnlistedColor] = field(default_factory=list)
    notes: MaskNotes = field(default_factory=MaskNotes)

    def add(self, part: "Account") -> None:
        """Add the account of other samples."""
        self.statistics.merge(part.statistics)
        self.problems += part.problems
        self.found += part.found
        self.notes.merge(part.notes)

    @classmethod
    def sum(cls, parts: Iterable["Account"]) -> "Account":
        """The accounts of several parts as one, in their order."""
        total = cls()
        for part in parts:
            total.add(part)
        return total


def wider(one: Extremes, other: Extremes) -> Extremes:
    """The lowest and the highest of two pairs of extremes."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])
