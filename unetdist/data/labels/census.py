"""The census: what in the masks of a data set Labels.txt does not list, told in one look."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

_MAX_COLORS = 20_000
"""Colours that a census tells apart; beyond, the rarest half is only counted."""

_NEAR = 64.0
"""Distance in RGB up to which a colour may well be a listed one that compression or smoothing has changed."""

_NUMERIC_COLUMNS = (1, 2, 4)


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
    """

    color: tuple[int, int, int] | int | None
    count: int
    first_pixel: tuple[int, int]
    nearest: str
    distance: float
    fits: Literal["color", "ids"] | None = None
    num_colors: int = 1


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
    _rare: Counter[str] = field(default_factory=Counter)
    _pixels_that: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return self.num_files > 0

    def add(self, file: str, unknowns: Iterable[UnknownColor]) -> None:
        """Note what `read_mask` found in `file`, which may be nothing; once for each file."""
        unknowns = list(unknowns)
        self.num_files += bool(unknowns)
        self.num_jpegs += bool(unknowns) and file.lower().endswith((".jpg", ".jpeg"))
        for unknown in unknowns:
            self.num_pixels += unknown.count
            self._pixels_that[f"fit {unknown.fits}"] += unknown.count
            if unknown.distance <= _NEAR and not isinstance(unknown.color, int):
                self._pixels_that["are near"] += unknown.count
            if unknown.color is None:
                self._rare.update(colors=unknown.num_colors, pixels=unknown.count)
            else:
                self._note(unknown.color, _Entry(unknown, file, 1, unknown.count))
        self._forget_rarest()

    def report(self, max_rows: int = 20) -> str:
        """A table of what is not listed, most pixels first, and what to do; "" if there is nothing."""
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
                    f"x {x}, y {y} in {entry.file}",
                )
            )
        num_colors = len(ranked) + self._rare["colors"]
        what = "colour" if isinstance(ranked[0].example.color, tuple) else "value"
        lines = [
            f"Labels.txt does not list {_count(num_colors, what)} of the masks: "
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
            lines.append(f"  and {others}: {_count(self.num_pixels - listed, 'pixel')}")
        return "\n".join([*lines, self._remedy(ranked[0].example.color, num_colors)])

    def _remedy(self, commonest: tuple[int, int, int] | int | None, num_colors: int) -> str:
        for fits in ("ids", "color"):
            if self._pixels_that[f"fit {fits}"] >= 0.99 * self.num_pixels:
                return f"Read as {fits}, these values are listed: use --mask-format {fits}."
        if num_colors > 16 and self._pixels_that["are near"] >= 0.8 * self.num_pixels:
            cause = "JPEG changes colours" if self.num_jpegs else "Smoothed or compressed edges make colours"
            return (
                f"{cause} like these: use --unknown-colors nearest, or export the masks as PNG, not smoothed."
            )
        if isinstance(commonest, tuple):
            line = " ".join(map(str, commonest))
            return (
                f"Add a line for each class that is missing to Labels.txt, such as '{line} NAME'; "
                "use --unknown-colors ignore to leave the pixels out, or nearest if they are only noise."
            )
        return (
            "Add a line with this id for each class that is missing to Labels.txt; "
            "use --unknown-colors ignore to leave the pixels out."
        )

    def _note(self, color: tuple[int, int, int] | int, entry: _Entry) -> None:
        if color in self._entries:
            self._entries[color].merge(entry)
        else:
            self._entries[color] = entry

    def _ranked(self) -> list[tuple[tuple[int, int, int] | int, _Entry]]:
        """All colours, most pixels first; in the same order whatever order they came in."""
        return sorted(
            self._entries.items(), key=lambda item: (-item[1].num_pixels, item[1].file, str(item[0]))
        )

    def _forget_rarest(self) -> None:
        if len(self._entries) <= _MAX_COLORS:
            return
        ranked = self._ranked()
        self._entries = dict(ranked[: _MAX_COLORS // 2])
        for _, entry in ranked[_MAX_COLORS // 2 :]:
            self._rare.update(colors=1, pixels=entry.num_pixels)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
