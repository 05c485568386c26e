"""Census of the colours in the masks of a data set that Labels.txt does not list."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from unetdist.data.labels.masks import UnknownColor
from unetdist.errors import one_line

# Distance in RGB up to which a colour may be a listed one that compression or smoothing has changed.
_NEAR = 64.0
# Distance from which the nearest colour may be a wrong one: half of that between two colours of CamVid.
_FAR = 32.0
# Colours kept apart in a census; beyond, only the pixels of the rarest half are kept.
_MAX_COLORS = 20_000
_NUMERIC_COLUMNS = (1, 2, 4)

Color = tuple[int, int, int]


@dataclass
class _Entry:
    """One colour over all masks; the example is that of the first file by name, so that their order has no effect."""

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
        num_files: Masks with unlisted colours.
        num_pixels: Unlisted pixels.
        num_jpegs: Masks among them that are JPEG by name.
        is_exact: Whether `num_colors` is exact, not a lower bound.
    """

    num_files: int = 0
    num_pixels: int = 0
    num_jpegs: int = 0
    is_exact: bool = True
    _entries: dict[Color | int, _Entry] = field(default_factory=dict)
    _most_in_a_mask: int = 0
    _pixels_that: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return self.num_files > 0

    def add(self, file: str, unknowns: Sequence[UnknownColor]) -> None:
        """Add what `read_mask` found in `file`, which may be nothing; call it once for each file."""
        self.num_files += bool(unknowns)
        self.num_jpegs += bool(unknowns) and file.lower().endswith((".jpg", ".jpeg"))
        self._most_in_a_mask = max(self._most_in_a_mask, sum(unknown.num_colors for unknown in unknowns))
        for unknown in unknowns:
            self.num_pixels += unknown.count
            self._pixels_that[f"fit {unknown.fits}"] += unknown.count
            if not isinstance(unknown.color, int):
                self._pixels_that["are near"] += unknown.count * (unknown.distance <= _NEAR)
                self._pixels_that["are far"] += unknown.count * (unknown.distance > _FAR)
            if unknown.color is None:
                self.is_exact = False
                continue
            entry = _Entry(unknown, file, 1, unknown.count)
            if unknown.color in self._entries:
                self._entries[unknown.color].merge(entry)
            else:
                self._entries[unknown.color] = entry
        if len(self._entries) > _MAX_COLORS:
            self._entries = dict(self._ranked()[: _MAX_COLORS // 2])
            self.is_exact = False

    @property
    def num_colors(self) -> int:
        """Different colours or values; a lower bound unless `is_exact`."""
        return max(self._most_in_a_mask, len(self._entries))

    @property
    def num_far(self) -> int:
        """Pixels whose colour is far from all listed colours."""
        return self._pixels_that["are far"]

    @property
    def fits_another_format(self) -> str | None:
        """The `--mask-format` that lists nearly all of these pixels, if any."""
        formats = (what for what in ("ids", "color") if self._pixels_that[f"fit {what}"] >= 0.99 * self.num_pixels)
        return next(formats, None)

    def commonest(self, count: int) -> list[UnknownColor]:
        """The colours with most pixels, each as in one of the masks."""
        return [entry.example for _, entry in self._ranked()[:count]]

    def colors_over(self, num_pixels: float, *, beyond: float) -> int:
        """Number of colours with more than `num_pixels` and farther than `beyond` from all listed ones."""
        entries = self._entries.values()
        return sum(e.num_pixels > num_pixels and e.example.distance > beyond for e in entries)

    def report(self, max_rows: int = 20, *, remedy: str | None = None) -> str:
        """A table of unlisted colours, most pixels first, and what to do; "" if there are none.

        Args:
            max_rows: Rows of the table.
            remedy: What to do; None: what the colours alone suggest.
        """
        if not self:
            return ""
        ranked = [entry for _, entry in self._ranked()]
        what = "colour" if isinstance(ranked[0].example.color, tuple) else "value"
        at_least = "" if self.is_exact else "at least "
        lines = [
            f"Labels.txt does not list {at_least}{_count(self.num_colors, what)} of the masks: "
            f"{_count(self.num_pixels, 'pixel')} in {_count(self.num_files, 'file')}.",
            *_table(ranked[:max_rows]),
        ]
        if self.num_colors > max_rows:
            listed = sum(entry.num_pixels for entry in ranked[:max_rows])
            others = _count(self.num_colors - max_rows, "rarer one")
            lines.append(f"  and {at_least}{others}: {_count(self.num_pixels - listed, 'pixel')}")
        return "\n".join([*lines, remedy or self._remedy(ranked[0].example.color)])

    def _remedy(self, commonest: Color | int | None) -> str:
        if fits := self.fits_another_format:
            return f"Read as {fits}, these values are listed: use --mask-format {fits}."
        if self.num_colors > 16 and self._pixels_that["are near"] >= 0.8 * self.num_pixels:
            cause = "JPEG changes colours" if self.num_jpegs else "Smoothed or compressed edges make colours"
            wrong = f" ({_count(self.num_far, 'pixel')} may then get a wrong class)" if self.num_far else ""
            return f"{cause} like these: export masks as PNG without smoothing, or use --unknown-colors nearest{wrong}."
        if isinstance(commonest, tuple):
            return (
                f"Add a line for each missing class to Labels.txt, such as '{rgb(commonest)} NAME'; "
                "use --unknown-colors ignore to leave the pixels out, or nearest if they are only noise."
            )
        if commonest is not None and not 0 <= commonest <= 254:
            return (
                f"Labels.txt has room for the ids 0 to 254, but not for {commonest}: renumber the classes of the "
                "masks, or use --unknown-colors ignore to leave the pixels out."
            )
        return (
            "Add a line for each missing class to Labels.txt, with this id if the other lines have ids too (otherwise "
            "lines count from 0); use --unknown-colors ignore to leave the pixels out."
        )

    def _ranked(self) -> list[tuple[Color | int, _Entry]]:
        """All colours, most pixels first, in an order that does not depend on when they were added."""
        return sorted(self._entries.items(), key=lambda item: (-item[1].num_pixels, item[1].file, str(item[0])))


def _table(entries: Sequence[_Entry]) -> list[str]:
    rows = [("colour", "pixels", "files", "nearest label", "distance", "first pixel")]
    for entry in entries:
        color, (x, y) = entry.example.color, entry.example.first_pixel
        name = rgb(color) if isinstance(color, tuple) else f"value {color}"
        numbers = f"{entry.num_pixels:,}", f"{entry.num_files:,}", f"{entry.example.distance:.0f}"
        where = f"x {x}, y {y} in {one_line(entry.file)}"
        rows.append((name, *numbers[:2], entry.example.nearest, numbers[2], where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if column in _NUMERIC_COLUMNS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def rgb(color: Color) -> str:
    """`red green blue`, as Labels.txt writes it."""
    return " ".join(map(str, color))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
