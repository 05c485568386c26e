"""Notes on how the masks of a data set were read, faults that nobody can have meant, and their remedies."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unetdist.data.labels.census import Census, rgb
from unetdist.data.labels.masks import MaskFormat, MaskReading, UnknownColors
from unetdist.data.labels.palette import IGNORE_INDEX, Label, Palette

# Number of colours that no mask has if most of its pixels are not listed.
MANY = 1000
# Distance in RGB below which two colours become one in a lossy compression.
CLOSE = 16.0
# Largest value and largest difference between channels of a colour that may be an id.
_DARK, _GREY = 64, 3
# Part of a mask's pixels from which a colour is no noise.
_COMMON = 0.01
# Unlisted values up to which a remedy can be worked out.
_FEW = 16

# Thin lines per edge from which masks count as resampled. Measured: 0.006 in CamVid, 0.025 in CamVid reduced by
# nearest pixel, 0 in ISBI; 0.15 to 0.4 in CamVid resized smoothly.
THIN = 0.1
_ENOUGH_THIN = 50
# Step between the rows and columns in which thin lines are counted.
_EVERY = 4


@dataclass
class MaskNotes:
    """Sums over masks, with notes for people; `merge` gives the same in any order. All fields are plain JSON types.

    Attributes:
        num_masks: Masks that could be decoded.
        num_pixels: Pixels of these masks.
        num_ids: Masks that were read as ids.
        num_255: Masks with the id 255, which no label lists.
        classes: Indices of classes that occur.
        num_transparent: Masks with transparent pixels that have a class.
        transparent_pixels: Such pixels.
        transparent_at: The first of them by file name: file, and place with class.
        num_thin: Pixels between a class of a smaller and one of a larger index, all three in a line, of classes
            that also have areas in the mask: a class that has only lines was drawn so.
        num_edges: Pairs of neighbours of different classes, counted in the same rows and columns.
    """

    num_masks: int = 0
    num_pixels: int = 0
    num_ids: int = 0
    num_255: int = 0
    classes: list[int] = field(default_factory=list)
    num_transparent: int = 0
    transparent_pixels: int = 0
    transparent_at: list[str] | None = None
    num_thin: int = 0
    num_edges: int = 0

    def add(self, file: str, reading: MaskReading, palette: Palette) -> None:
        """Add one mask."""
        notes = MaskNotes(1, reading.mask.size, int(not reading.is_color), int(reading.has_255))
        notes.classes = list(reading.classes)
        if reading.is_transparent is not None and reading.is_transparent.any():
            y, x = np.argwhere(reading.is_transparent)[0].tolist()
            name = palette.class_names[int(reading.mask[y, x])]
            notes.num_transparent, notes.transparent_pixels = 1, int(reading.is_transparent.sum())
            notes.transparent_at = [file, f"'{name}' at x {x}, y {y} in {file}"]
        if reading.is_scale and len(reading.classes) > 2:
            notes.num_thin, notes.num_edges = count_thin(reading.mask)
        self.merge(notes)

    def merge(self, other: "MaskNotes") -> None:
        """Add the sums of `other`."""
        places = [notes.transparent_at for notes in (self, other) if notes.transparent_at]
        self.transparent_at = min(places) if places else None
        self.classes = sorted({*self.classes, *other.classes})
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)

    def describe(self, palette: Palette) -> list[str]:
        """One line for each thing that a person should know."""
        lines = [self._describe_ids(palette)] if self.num_ids else []
        if self.num_transparent:
            lines.append(
                f"warning: {self.transparent_pixels:,} pixels of {self.num_transparent:,} masks are transparent, and "
                f"count as the class of their colour or id, such as {self.transparent_at[1]}; to ignore them, "  # type: ignore[index]
                "give them a colour of their own, list it, and name it with --ignore."
            )
        return lines

    def _describe_ids(self, palette: Palette) -> str:
        some = "masks" if self.num_ids == self.num_masks else f"{self.num_ids:,} of {self.num_masks:,} masks"
        by_id = sorted(palette.labels, key=lambda label: label.id)
        ids = [f"{label.id} {label.name}" for label in by_id]
        ids = ids if len(ids) <= 6 else [*ids[:4], "...", ids[-1]]
        how = f"as {palette.path} gives them" if palette.has_ids else f"as the lines of {palette.path} count from 0"
        text = f"{some} hold ids, taken {how}: {', '.join(ids)}"
        if self.num_255:
            text += f"; 255, which no line lists, is ignored (in {self.num_255:,} masks)"
        first = by_id[0]
        if not palette.has_ids and first.index is not None and first.index not in self.classes:
            text += (
                f"; none holds 0 ({first.name}): if the masks count from 1, begin each line of {palette.path} with its "
                f"id, such as '1 {rgb(first.color)} {first.name}'"
            )
        return f"{text}."


def count_thin(mask: NDArray[np.uint8]) -> tuple[int, int]:
    """Thin lines and edges of class indices (H, W), on some rows and columns, which is enough for their ratio.

    The lines of a class count if it has more pixels inside areas than in lines.
    """
    edges = 0
    thin = np.zeros(256, np.int64)
    for lines in (mask[::_EVERY], np.ascontiguousarray(mask[:, ::_EVERY].T)):
        rises, falls = lines[:, :-1] < lines[:, 1:], lines[:, :-1] > lines[:, 1:]
        edges += int(rises.sum() + falls.sum())
        is_thin = rises[:, :-1] & rises[:, 1:] & (lines[:, 2:] != IGNORE_INDEX)
        is_thin |= falls[:, :-1] & falls[:, 1:] & (lines[:, :-2] != IGNORE_INDEX)
        thin += np.bincount(lines[:, 1:-1][is_thin], minlength=256)
    # A pixel is inside an area if its four neighbours are of its class.
    above, rows, below = mask[:-2:_EVERY], mask[1:-1:_EVERY], mask[2::_EVERY]
    middle = rows[:, 1:-1]
    is_inside = (middle == rows[:, :-2]) & (middle == rows[:, 2:])
    is_inside &= (middle == above[:, 1:-1]) & (middle == below[:, 1:-1])
    areas = np.bincount(middle[is_inside], minlength=256)
    return int(thin[areas > thin].sum()), edges


def fault_of(reading: MaskReading, palette: Palette, unknown_colors: UnknownColors) -> str | None:
    """Why no class can be taken from this mask; None if they can."""
    export = "export the masks as PNG without smoothing"
    if reading.lossy and (not reading.is_color or _looks_like_ids(reading)):
        return f"the mask is a {reading.lossy}, which keeps no ids: it changes numbers, and so classes; {export}"
    if reading.lossy and reading.unknowns:
        distance, one, other = closest(palette)
        if distance < CLOSE:
            return (
                f"the mask is a {reading.lossy}, which cannot keep '{one}' and '{other}' apart: their colours differ "
                f"by {distance:.0f}; {export}"
            )
    fits_ids = bool(reading.unknowns) and reading.unknowns[0].fits == "ids"
    if not reading.lossy and unknown_colors == "nearest" and reading.is_color and fits_ids:
        return "the mask holds ids, which have no nearest colour; use --mask-format ids instead of --unknown-colors"
    return None


def closest(palette: Palette) -> tuple[float, str, str]:
    """The two labels with the most similar colours: Euclidean distance in RGB, and their names."""
    colors = np.array([label.color for label in palette.labels], np.float64)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)
    # Labels that share a colour are all ignored.
    distances[distances == 0] = np.inf
    one, other = np.unravel_index(distances.argmin(), distances.shape)
    return float(distances[one, other]), palette.labels[int(one)].name, palette.labels[int(other)].name


def _looks_like_ids(reading: MaskReading) -> bool:
    """Whether a lossy image has several dark greys, like ids, instead of listed colours."""
    num_common = sum(each.count >= _COMMON * reading.mask.size for each in reading.unknowns)
    return num_common > 1 and all(
        isinstance(each.color, tuple) and max(each.color) - min(each.color) <= _GREY and max(each.color) <= _DARK
        for each in reading.unknowns
    )


def resampled(notes: MaskNotes, mask_format: MaskFormat) -> str | None:
    """Advice if the masks were resized smoothly and the user has not said what they hold."""
    if notes.num_thin < max(_ENOUGH_THIN, THIN * notes.num_edges) or mask_format != "auto":
        return None
    how = "ids" if notes.num_ids else "color"
    return (
        f"the masks were resized smoothly, or were JPEGs before: {100 * notes.num_thin / notes.num_edges:.0f} % of "
        "their edges have a thin line of a third class, whose number is between those of the two others, and which "
        "nobody drew; export the masks again, at their own size or resized by nearest pixel. If all these lines were "
        f"drawn, add --mask-format {how}."
    )


def black_and_white(palette: Palette, notes: MaskNotes) -> str | None:
    """Advice if the ids of all masks are 0 and 255, so that only one class would be left."""
    first = min(palette.labels, key=lambda label: label.id)
    if not notes.num_255 or first.id != 0 or not set(notes.classes) <= {first.index}:
        return None
    # The darkest class is taken for black; the text says what to do if that is wrong.
    names = [label.name for label in sorted(palette.labels, key=lambda x: sum(x.color)) if label.index is not None]
    if len(names) == 1:
        names = ["background" if names[0] != "background" else "rest", names[0]]
    taken = {label.color for label in palette.labels}
    spare = next((grey, grey, grey) for grey in range(255, -1, -1) if (grey, grey, grey) not in taken)
    ids = [f"{label.id} {rgb(label.color)} {label.name}" for label in palette.labels]
    lines = [
        f"'{first.name}' (0) is the only class in the masks: the id 255, which {notes.num_255:,} of "
        f"{notes.num_masks:,} masks have, means pixels to ignore.",
        "If 255 is a class, write these two lines and no others (swap the names if 0 is the other class):",
        f"  0 0 0 {names[0]}",
        f"  255 255 255 {names[1] if len(names) == 2 else 'NAME'}",
        "If those pixels should be ignored, add --ignore unlabelled and write these lines:",
        *(f"  {line}" for line in [*ids, f"255 {rgb(spare)} unlabelled"]),
    ]
    return "\n".join(lines)


def remedy(census: Census, palette: Palette, notes: MaskNotes) -> str | None:
    """The lines of Labels.txt that would list everything, or another cause; None if only the user can know."""
    colors = census.commonest(_FEW)
    unseen = [x for x in palette.labels if x.index is not None and x.index not in notes.classes]
    if not census.is_exact or census.num_colors > _FEW or census.fits_another_format:
        return None
    if len(unseen) == 1 and len(colors) == 1 and isinstance(color := colors[0], tuple):
        (label,) = unseen
        id = f"{label.id} " if palette.has_ids else ""
        return (
            f"No mask has the colour {rgb(label.color)} of '{label.name}'. If it is drawn in {rgb(color)}, replace "
            f"its line in {palette.path} with '{id}{rgb(color)} {label.name}'. If it is another class, add a line for "
            "it; --unknown-colors ignore leaves these pixels out."
        )
    values = [color for color in colors if isinstance(color, int)]
    if len(values) < len(colors):
        return None
    if values == [len(palette.labels)] and not palette.has_ids and 0 in (label.id for label in unseen):
        heading = f"The masks count from 1. Write these lines in {palette.path}:"
        lines = [f"{label.id + 1} {rgb(label.color)} {label.name}" for label in palette.labels]
    else:
        heading = f"If these are greys, write all lines of {palette.path} as follows, in this order or another:"
        lines = _greys([*values, *[255] * bool(notes.num_255)], palette, notes, unseen)
    return "\n".join([heading, *(f"  {line}" for line in lines)]) if lines else None


def _greys(values: Sequence[int], palette: Palette, notes: MaskNotes, unseen: Sequence[Label]) -> list[str]:
    """All lines as greys, if as many classes are missing in the masks as there are unlisted values."""
    greys = sorted(value if value <= 255 else value // 257 for value in values)
    are_greys = all(len(palette.labels) < value <= 255 or value % 257 == 0 for value in values)
    if not are_greys or len(set(greys)) != len(unseen):
        return []
    seen = [(label.id, label.name) for label in palette.labels if label.index in notes.classes]
    new = zip(greys, (label.name for label in unseen), strict=True)
    return [f"{rgb((grey, grey, grey))} {name}" for grey, name in sorted([*seen, *new])]
