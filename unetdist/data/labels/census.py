"""Census of the colours in the masks of a data set that Labels.txt does not list."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from unetdist.data.labels.masks import UnknownColor
from unetdist.errors import one_line

# Distance in RGB up to which a colour may be a listed one that compression or smoothing has changed.
_NEAR = 64.0

Color = tuple[int, int, int]


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
    _pixels: Counter[Color | int] = field(default_factory=Counter)
    _files: Counter[Color | int] = field(default_factory=Counter)
    _first: dict[Color | int, tuple[UnknownColor, str]] = field(default_factory=dict)
    _pixels_that: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return self.num_files > 0

    def add(self, file: str, unknowns: Sequence[UnknownColor]) -> None:
        """Add what `read_mask` found in `file`, which may be nothing; call it once for each file."""
        self.num_files += bool(unknowns)
        self.num_jpegs += bool(unknowns) and file.lower().endswith((".jpg", ".jpeg"))
        for unknown in unknowns:
            self.num_pixels += unknown.count
            self._pixels_that[f"fit {unknown.fits}"] += unknown.count
            if not isinstance(unknown.color, int):
                self._pixels_that["are near"] += unknown.count * (unknown.distance <= _NEAR)
            if unknown.color is None:
                self.is_exact = False
                continue
            self._pixels[unknown.color] += unknown.count
            self._files[unknown.color] += 1
            self._first.setdefault(unknown.color, (unknown, file))

    @property
    def num_colors(self) -> int:
        """Different colours or values; a lower bound unless `is_exact`."""
        return len(self._pixels)

    @property
    def fits_another_format(self) -> str | None:
        """The `--mask-format` that lists nearly all of these pixels, if any."""
        formats = (what for what in ("ids", "color") if self._pixels_that[f"fit {what}"] >= 0.99 * self.num_pixels)
        return next(formats, None)

    def commonest(self, count: int) -> list[Color | int]:
        """The colours with most pixels."""
        return [color for color, _ in self._pixels.most_common(count)]

    def colors_over(self, num_pixels: float, *, beyond: float) -> int:
        """Number of colours with more than `num_pixels` and farther than `beyond` from all listed ones."""
        return sum(self._pixels[color] > num_pixels and x.distance > beyond for color, (x, _) in self._first.items())

    def report(self, max_rows: int = 20, *, remedy: str | None = None) -> str:
        """A table of unlisted colours, most pixels first, and what to do; "" if there are none.

        Args:
            max_rows: Rows of the table.
            remedy: What to do; None: what the colours alone suggest.
        """
        if not self:
            return ""
        commonest = self.commonest(max_rows)
        what = "colour" if isinstance(commonest[0], tuple) else "value"
        heading = (
            f"Labels.txt does not list {'' if self.is_exact else 'at least '}{_count(self.num_colors, what)} of the "
            f"masks: {_count(self.num_pixels, 'pixel')} in {_count(self.num_files, 'file')}."
        )
        rarer = ["  (and rarer ones)"] * (self.num_colors > max_rows)
        return "\n".join([heading, *self._table(commonest), *rarer, remedy or self._remedy(commonest[0])])

    def _remedy(self, commonest: Color | int) -> str:
        if fits := self.fits_another_format:
            return f"Read as {fits}, these values are listed: use --mask-format {fits}."
        if self.num_colors > 16 and self._pixels_that["are near"] >= 0.8 * self.num_pixels:
            cause = "JPEG changes colours" if self.num_jpegs else "Smoothed or compressed edges make colours"
            return f"{cause} like these: export masks as PNG without smoothing, or use --unknown-colors nearest."
        if isinstance(commonest, tuple):
            return (
                f"Add a line for each missing class to Labels.txt, such as '{rgb(commonest)} NAME'; "
                "use --unknown-colors ignore to leave the pixels out, or nearest if they are only noise."
            )
        return (
            "Add a line for each missing class to Labels.txt, with this id if the other lines have ids too (otherwise "
            "lines count from 0), or renumber the masks if it is over 254; use --unknown-colors ignore to leave the "
            "pixels out."
        )

    def _table(self, colors: Sequence[Color | int]) -> list[str]:
        rows = [("colour", "pixels", "files", "nearest label", "distance", "first pixel")]
        for color in colors:
            first, file = self._first[color]
            x, y = first.first_pixel
            what = rgb(color) if isinstance(color, tuple) else f"value {color}"
            place = f"x {x}, y {y} in {one_line(file)}"
            counts = (f"{self._pixels[color]:,}", f"{self._files[color]:,}")
            rows.append((what, *counts, first.nearest, f"{first.distance:.0f}", place))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  " + "  ".join(f"{{:{align}{width}}}" for align, width in zip("<>><><", widths, strict=True))
        return [line.format(*row).rstrip() for row in rows]


def rgb(color: Color) -> str:
    """`red green blue`, as Labels.txt writes it."""
    return " ".join(map(str, color))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
