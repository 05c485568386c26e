"""The census: what in the masks of a data set Labels.txt does not list, told in one look."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unetdist.errors import one_line

_MAX_COLORS = 20_000
"""Colours that a census tells apart; beyond, the rarest half is only counted."""

_NEAR = 64.0
"""Distance in RGB up to which a colour may well be a listed one that compression or smoothing has changed."""

_FAR = 32.0
"""Distance from which the nearest colour may well be a wrong one: half of that between two colours of CamVid."""

_NUMERIC_COLUMNS = (1, 2, 4)

_COLORS = 1 << 24
_VALUES = 1 << 16


@dataclass(frozen=True)
class UnknownColor:
    """A colour or value of one mask that Labels.txt does not list.

    Attributes:
        color: Red, green, blue; a number if the mask holds ids, or a 16-bit grey that is no 8-bit colour;
            None for the rarest colours of a mask taken together.
        count: Pixels.
        first_pixel: x and y of the uppermost, then leftmost one.
        nearest: Name of the label nearest in colour (in number, for ids).
        distance: To it, Euclidean in RGB, 0..442 (difference of the numbers, for ids).
        fits: The `--mask-format` under which all of the mask would be listed, if any.
        num_colors: How many colours it stands for.
        others: Which ones (see `places`), if they are not too many.
    """

    color: tuple[int, int, int] | int | None
    count: int
    first_pixel: tuple[int, int]
    nearest: str
    distance: float
    fits: Literal["color", "ids"] | None = None
    num_colors: int = 1
    others: tuple[int, ...] = ()


@dataclass
class _Entry:
    """One colour over all masks; the example is of the first file by name, whatever order they came in."""

    example: UnknownColor
    file: str
    num_files: int
    num_pixels: int

    def merge(self, other: "_Entry") -> None:
        if other.file < self.file:
            self.example, self.file = other.example, other.file
        self.num_files += other.num_files
        self.num_pixels += other.num_pixels


@dataclass
class Census:
    """Unlisted colours of many masks; true if there are any.

    Attributes:
        num_files: Masks that have any.
        num_pixels: Their pixels.
        num_jpegs: How many of the masks are JPEG by name.
    """

    num_files: int = 0
    num_pixels: int = 0
    num_jpegs: int = 0
    _entries: dict[tuple[int, int, int] | int, _Entry] = field(default_factory=dict)
    _seen: NDArray[np.bool_] | None = field(default=None, compare=False)
    """Flags by `places`, from the first colour on that is not among the entries."""
    _most_in_a_mask: int = 0
    _is_exact: bool = True
    _pixels_that: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return self.num_files > 0

    def add(self, file: str, unknowns: Iterable[UnknownColor]) -> None:
        """Note what `read_mask` found in `file`, which may be nothing; once for each file."""
        unknowns = list(unknowns)
        self.num_files += bool(unknowns)
        self.num_jpegs += bool(unknowns) and file.lower().endswith((".jpg", ".jpeg"))
        self._most_in_a_mask = max(self._most_in_a_mask, sum(unknown.num_colors for unknown in unknowns))
        for unknown in unknowns:
            self.num_pixels += unknown.count
            self._pixels_that[f"fit {unknown.fits}"] += unknown.count
            if not isinstance(unknown.color, int):
                self._pixels_that["are near"] += unknown.count * (unknown.distance <= _NEAR)
                self._pixels_that["are far"] += unknown.count * (unknown.distance > _FAR)
            if unknown.color is not None:
                self._note(unknown.color, _Entry(unknown, file, 1, unknown.count))
            elif len(unknown.others) == unknown.num_colors:
                self._mark(unknown.others)
            else:
                self._is_exact = False
        self._forget_rarest()

    @property
    def num_colors(self) -> int:
        """Different colours or values; at least so many, unless `is_exact`."""
        known = len(self._entries) if self._seen is None else int(self._seen.sum())
        return max(self._most_in_a_mask, known)

    @property
    def is_exact(self) -> bool:
        """Whether each colour was counted; of masks with very many, not all are known."""
        return self._is_exact

    def commonest(self, count: int) -> list[UnknownColor]:
        """The colours with most pixels, each as one of the masks has it."""
        return [entry.example for _, entry in self._ranked()[:count]]

    @property
    def num_far(self) -> int:
        """Pixels whose colour is far from all that are listed."""
        return self._pixels_that["are far"]

    @property
    def fits_another_format(self) -> str | None:
        """The `--mask-format` that lists nearly all of these pixels, if any."""
        fits = (
            what for what in ("ids", "color") if self._pixels_that[f"fit {what}"] >= 0.99 * self.num_pixels
        )
        return next(fits, None)

    def colors_over(self, num_pixels: float, *, beyond: float) -> int:
        """How many colours have more pixels than this, and differ by more than `beyond` from all that is listed."""
        entries = self._entries.values()
        return sum(e.num_pixels > num_pixels and e.example.distance > beyond for e in entries)

    def report(self, max_rows: int = 20, *, remedy: str | None = None) -> str:
        """A table of what is not listed, most pixels first, and what to do; "" if there is nothing.

        Args:
            max_rows: Lines of the table.
            remedy: What to do, where more is known than the colours; None: what they alone suggest.
        """
        if not self:
            return ""
        ranked = [entry for _, entry in self._ranked()]
        rows = [("colour", "pixels", "files", "nearest label", "distance", "first pixel")]
        for entry in ranked[:max_rows]:
            color, (x, y) = entry.example.color, entry.example.first_pixel
            rows.append(
                (
                    " ".join(map(str, color)) if isinstance(color, tuple) else f"value {color}",
                    f"{entry.num_pixels:,}",
                    f"{entry.num_files:,}",
                    entry.example.nearest,
                    f"{entry.example.distance:.0f}",
                    f"x {x}, y {y} in {one_line(entry.file)}",
                )
            )
        num_colors = self.num_colors
        what = "colour" if isinstance(ranked[0].example.color, tuple) else "value"
        at_least = "" if self.is_exact else "at least "
        lines = [
            f"Labels.txt does not list {at_least}{_count(num_colors, what)} of the masks: "
            f"{_count(self.num_pixels, 'pixel')} in {_count(self.num_files, 'file')}."
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                cell.rjust(width) if i in _NUMERIC_COLUMNS else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        if num_colors >= len(rows):
            listed = sum(entry.num_pixels for entry in ranked[:max_rows])
            others = _count(num_colors - len(rows) + 1, "rarer one")
            lines.append(f"  and {at_least}{others}: {_count(self.num_pixels - listed, 'pixel')}")
        return "\n".join([*lines, remedy or self._remedy(ranked[0].example.color, num_colors)])

    def _remedy(self, commonest: tuple[int, int, int] | int | None, num_colors: int) -> str:
        if fits := self.fits_another_format:
            return f"Read as {fits}, these values are listed: use --mask-format {fits}."
        if num_colors > 16 and self._pixels_that["are near"] >= 0.8 * self.num_pixels:
            cause = "JPEG changes colours" if self.num_jpegs else "Smoothed or compressed edges make colours"
            some = (
                f", though {_count(self.num_far, 'pixel')} may so get a class that nobody drew"
                if self.num_far
                else ""
            )
            return f"{cause} like these: export the masks as PNG, not smoothed, or use --unknown-colors nearest{some}."
        if isinstance(commonest, tuple):
            line = " ".join(map(str, commonest))
            return (
                f"Add a line for each class that is missing to Labels.txt, such as '{line} NAME'; "
                "use --unknown-colors ignore to leave the pixels out, or nearest if they are only noise."
            )
        if commonest is not None and not 0 <= commonest <= 254:
            return (
                f"Labels.txt has room for the ids 0 to 254, and not for {commonest}: renumber the classes of the "
                "masks, or use --unknown-colors ignore to leave the pixels out."
            )
        return (
            "Add a line for each class that is missing to Labels.txt, with this id if the other lines have ids too "
            "(else lines count from 0); "
            "use --unknown-colors ignore to leave the pixels out."
        )

    def _note(self, color: tuple[int, int, int] | int, entry: _Entry) -> None:
        if color in self._entries:
            self._entries[color].merge(entry)
            return
        self._entries[color] = entry
        if self._seen is not None:
            self._mark(_places_of([color]))

    def _mark(self, places: Sequence[int]) -> None:
        """Remember colours that are not among the entries, or soon are no more."""
        if self._seen is None:
            self._seen = np.zeros(_COLORS + _VALUES, np.bool_)
            self._mark(_places_of(self._entries))
        known = [place for place in places if place < len(self._seen)]
        self._is_exact &= len(known) == len(places)
        self._seen[known] = True

    def _ranked(self) -> list[tuple[tuple[int, int, int] | int, _Entry]]:
        """All colours, most pixels first; in the same order whatever order they came in."""
        return sorted(
            self._entries.items(), key=lambda item: (-item[1].num_pixels, item[1].file, str(item[0]))
        )

    def _forget_rarest(self) -> None:
        if len(self._entries) <= _MAX_COLORS:
            return
        self._mark(())
        self._entries = dict(self._ranked()[: _MAX_COLORS // 2])


def places(
    colors: NDArray[np.int64], numbers: NDArray[np.int64], is_color: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """A number for each colour (K, 3), or for each value (K,) that is no colour: different ones, 64 bits."""
    packed = np.asarray(colors @ np.array([1, 1 << 8, 1 << 16]))
    return np.where(is_color, packed, _COLORS + numbers.astype(np.uint32).astype(np.int64))


def _places_of(colors: Iterable[tuple[int, int, int] | int]) -> list[int]:
    listed = list(colors)
    is_color = np.array([isinstance(color, tuple) for color in listed], np.bool_)
    rgb = np.array([color if isinstance(color, tuple) else (0, 0, 0) for color in listed], np.int64).reshape(
        -1, 3
    )
    numbers = np.array([color if isinstance(color, int) else 0 for color in listed], np.int64)
    found: list[int] = places(rgb, numbers, is_color).tolist()
    return found


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
