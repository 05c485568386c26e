"""How the masks of a data set were read, as far as a person should know it: sums over masks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.data.ignore_index import IGNORE_INDEX
from unetdist.data.labels.masks import MaskReading
from unetdist.data.labels.palette import Label, Palette

THIN = 0.1
"""Thin lines to edges at which masks are resampled. Counted as below: 0.006 in CamVid, 0.025 in CamVid reduced by the
nearest pixel, 0 in ISBI; 0.15 to 0.4 once CamVid is resized smoothly."""
_ENOUGH_THIN = 50
_EVERY = 4
"""Rows and columns that are looked at for thin lines: each of so many."""


@dataclass
class MaskNotes:
    """Sums over masks; `merge` gives the same in any order.

    Attributes:
        num_masks: All that could be decoded.
        num_pixels: Theirs.
        num_ids: Masks that were read as ids.
        num_255: Masks with the id 255, which no label lists.
        classes: Indices of classes that occur.
        num_transparent: Masks that are transparent where they have a class.
        transparent_pixels: Their pixels.
        transparent_at: The first of them by file name: (file, place and class).
        num_thin: Pixels between two classes of which one is less and one is more, where all three touch in a line, of
            classes that have areas in the same mask too: one that has only lines was drawn so.
        num_edges: Pairs of neighbours of two classes, counted on the same lines.
    """

    num_masks: int = 0
    num_pixels: int = 0
    num_ids: int = 0
    num_255: int = 0
    classes: list[int] = field(default_factory=list)
    num_transparent: int = 0
    transparent_pixels: int = 0
    transparent_at: tuple[str, str] | None = None
    num_thin: int = 0
    num_edges: int = 0

    @classmethod
    def sum(cls, parts: Iterable["MaskNotes"]) -> "MaskNotes":
        """All of them together."""
        notes = cls()
        for part in parts:
            notes.merge(part)
        return notes

    def add(self, file: str, reading: MaskReading, palette: Palette) -> None:
        """Note one mask."""
        notes = MaskNotes(1, reading.mask.size, int(not reading.is_color), int(reading.has_255))
        notes.classes = list(reading.classes)
        if reading.is_transparent is not None and reading.is_transparent.any():
            y, x = np.argwhere(reading.is_transparent)[0].tolist()
            name = palette.class_names[int(reading.mask[y, x])]
            notes.num_transparent, notes.transparent_pixels = 1, int(reading.is_transparent.sum())
            notes.transparent_at = file, f"'{name}' at x {x}, y {y} in {file}"
        if reading.is_scale and len(reading.classes) > 2:
            notes.num_thin, notes.num_edges = count_thin(reading.mask)
        self.merge(notes)

    def merge(self, other: "MaskNotes") -> None:
        """Add what another one has noted."""
        places = [notes.transparent_at for notes in (self, other) if notes.transparent_at]
        self.transparent_at = min(places) if places else None
        self.classes = sorted({*self.classes, *other.classes})
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)

    @property
    def is_resampled(self) -> bool:
        """Whether there are too many thin lines of a class between two others to be drawn."""
        return self.num_thin >= max(_ENOUGH_THIN, THIN * self.num_edges)

    def describe(self, palette: Palette) -> list[str]:
        """A line for each thing that a person should know."""
        lines = []
        if self.num_ids:
            lines.append(self._of_ids(palette))
        if self.num_transparent:
            lines.append(
                f"warning: {self.transparent_pixels:,} pixels of {self.num_transparent:,} masks are transparent, and "
                f"count as the class whose colour or id they have, such as {self.transparent_at[1]}; to ignore them, "  # type: ignore[index]
                "give them a colour of their own, list it, and name it with --ignore."
            )
        return lines

    def _of_ids(self, palette: Palette) -> str:
        some = "masks" if self.num_ids == self.num_masks else f"{self.num_ids:,} of {self.num_masks:,} masks"
        ids = _listed(sorted(palette.labels, key=lambda label: label.id))
        how = (
            f"as {palette.path} gives them"
            if palette.has_ids
            else f"as the lines of {palette.path} count from 0"
        )
        text = f"{some} hold ids, taken {how}: {ids}"
        if self.num_255:
            text += f"; 255, which no line lists, is left out (in {self.num_255:,} masks)"
        first = min(palette.labels, key=lambda label: label.id)
        if not palette.has_ids and first.index is not None and first.index not in self.classes:
            text += (
                f"; none holds 0 ({first.name}): if the masks count from 1, begin each line of {palette.path} with its "
                f"id, such as '1 {' '.join(map(str, first.color))} {first.name}'"
            )
        return f"{text}."

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "MaskNotes":
        """The inverse of `to_record`."""
        notes = cls(**record)
        notes.transparent_at = notes.transparent_at and (notes.transparent_at[0], notes.transparent_at[1])
        return notes


def count_thin(mask: NDArray[np.uint8]) -> tuple[int, int]:
    """Thin lines and edges of class indices (H, W), on some rows and columns: enough for a ratio, at little cost.

    The lines of a class count if more of its pixels have neighbours of the same class on all sides than are in lines.
    """
    edges = 0
    thin = np.zeros(256, np.int64)
    for lines in (mask[::_EVERY], np.ascontiguousarray(mask[:, ::_EVERY].T)):
        rises, falls = lines[:, :-1] < lines[:, 1:], lines[:, :-1] > lines[:, 1:]
        edges += int(rises.sum() + falls.sum())
        is_thin = rises[:, :-1] & rises[:, 1:] & (lines[:, 2:] != IGNORE_INDEX)
        is_thin |= falls[:, :-1] & falls[:, 1:] & (lines[:, :-2] != IGNORE_INDEX)
        thin += np.bincount(lines[:, 1:-1][is_thin], minlength=256)
    return int(thin[_areas(mask) > thin].sum()), edges


def _areas(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each class, its pixels between four of the same class, on some rows."""
    above, rows, below = mask[:-2:_EVERY], mask[1:-1:_EVERY], mask[2::_EVERY]
    middle = rows[:, 1:-1]
    is_inside = (middle == rows[:, :-2]) & (middle == rows[:, 2:])
    is_inside &= (middle == above[:, 1:-1]) & (middle == below[:, 1:-1])
    return np.bincount(middle[is_inside], minlength=256)


def _listed(labels: Sequence[Label], most: int = 6) -> str:
    told = [f"{label.id} {label.name}" for label in labels]
    return ", ".join(told if len(told) <= most else [*told[: most - 2], "...", told[-1]])
