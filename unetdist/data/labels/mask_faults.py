"""Masks that cannot mean what they would be read as, and the lines of Labels.txt that mend it."""

from collections.abc import Sequence

import numpy as np

from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_notes import MaskNotes
from unetdist.data.labels.masks import MaskFormat, MaskReading, UnknownColors
from unetdist.data.labels.palette import Label, Palette

PHOTOGRAPHS = "Photographs have so many colours, not masks: are images and masks exchanged?"
MANY = 1000
"""Colours that no mask has, where most of its pixels are not listed."""

CLOSE = 16.0
"""Two colours nearer than this, in RGB, are one after a lossy compression."""
_DARK, _GREY = 64, 3
_COMMON = 0.01
_FEW = 16
_ELSE = "If it is another class, add a line for it; --unknown-colors ignore leaves these pixels out."


def fault_of(reading: MaskReading, palette: Palette, unknown_colors: UnknownColors) -> str | None:
    """Why no class may be taken from this mask; None where it may."""
    export = "export the masks as PNG, not smoothed"
    if reading.lossy and (not reading.is_color or _looks_like_ids(reading)):
        return (
            f"the mask is a {reading.lossy}, which keeps no ids: it changes numbers, and so classes; {export}"
        )
    if reading.lossy and reading.unknowns:
        distance, one, other = closest(palette)
        if distance < CLOSE:
            return (
                f"the mask is a {reading.lossy}, which cannot keep '{one}' and '{other}' apart: their colours differ "
                f"by {distance:.0f}; {export}"
            )
    if not reading.lossy and unknown_colors == "nearest" and reading.is_color and _fits(reading, "ids"):
        return "the mask holds ids, which have no nearest colour; use --mask-format ids in place of --unknown-colors"
    return None


def closest(palette: Palette) -> tuple[float, str, str]:
    """The two labels whose colours differ least: Euclidean distance in RGB and names."""
    colors = np.array([label.color for label in palette.labels], np.float64)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)
    # Labels of one colour are all ignored.
    distances[distances == 0] = np.inf
    one, other = np.unravel_index(distances.argmin(), distances.shape)
    return float(distances[one, other]), palette.labels[int(one)].name, palette.labels[int(other)].name


def _looks_like_ids(reading: MaskReading) -> bool:
    """Whether a lossy picture has several dark greys, as ids would be, where it should have listed colours."""
    colors = [each.color for each in reading.unknowns if isinstance(each.color, tuple)]
    are_dark_greys = all(max(color) - min(color) <= _GREY and max(color) <= _DARK for color in colors)
    common = [each for each in reading.unknowns if each.count >= _COMMON * reading.mask.size]
    return len(common) > 1 and len(colors) == len(reading.unknowns) and are_dark_greys


def _fits(reading: MaskReading, what: str) -> bool:
    return bool(reading.unknowns) and reading.unknowns[0].fits == what


def resampled(notes: MaskNotes, mask_format: MaskFormat) -> str | None:
    """Says what to do if the masks were resized smoothly, and the user has not said what they hold."""
    if not notes.is_resampled or mask_format != "auto":
        return None
    share = 100 * notes.num_thin / notes.num_edges
    how = "ids" if notes.num_ids else "color"
    return (
        f"the masks were resized smoothly, or were JPEGs before: at {share:.0f} % of their edges is a thin line of "
        "a third class, whose number is between those of the two others, and nobody drew it; export the "
        "masks again, at their own size or resized by the nearest pixel. If all these lines were drawn, say so with "
        f"--mask-format {how}."
    )


def black_and_white(palette: Palette, notes: MaskNotes) -> str | None:
    """Says what to do if the ids of all masks are 0 and 255: one class alone would be left to learn."""
    first = min(palette.labels, key=lambda label: label.id)
    if not notes.num_255 or first.id != 0 or not set(notes.classes) <= {first.index}:
        return None
    black, white = _names_of_black_and_white(palette)
    taken = {label.color for label in palette.labels}
    spare = next((grey, grey, grey) for grey in range(255, -1, -1) if (grey, grey, grey) not in taken)
    ids = [f"{label.id} {_rgb(label.color)} {label.name}" for label in palette.labels]
    lines = [
        f"'{first.name}' (0) is the only class in the masks: the id 255, which {notes.num_255:,} of "
        f"{notes.num_masks:,} masks have, means pixels to ignore.",
        "If 255 is a class, write these two lines and no others (exchange the names if 0 is the other class):",
        f"  0 0 0 {black}",
        f"  255 255 255 {white}",
        "If those pixels should be ignored, add --ignore unlabelled and write these lines:",
        *(f"  {line}" for line in [*ids, f"255 {_rgb(spare)} unlabelled"]),
    ]
    return "\n".join(lines)


def _names_of_black_and_white(palette: Palette) -> tuple[str, str]:
    """Names for black and white, by the labels' own colours if one is black or white, or by the order of the file."""
    labels = [label for label in palette.labels if label.index is not None]
    if len(labels) == 1:
        return "background" if labels[0].name != "background" else "rest", labels[0].name
    colors = [label.color for label in labels]
    is_white_first = colors[0] == (255, 255, 255) and len(labels) == 2
    black = colors.index((0, 0, 0)) if (0, 0, 0) in colors else int(is_white_first)
    others = [label.name for label in labels if label is not labels[black]]
    return labels[black].name, others[0] if len(others) == 1 else "NAME"


def remedy(census: Census, palette: Palette, notes: MaskNotes) -> str | None:
    """The lines of Labels.txt that would list everything, or another cause; None if only the user can know."""
    if census.num_colors > MANY and 2 * census.num_far > notes.num_pixels:
        return PHOTOGRAPHS
    colors = [unknown.color for unknown in census.commonest(_FEW)]
    unseen = [x for x in palette.labels if x.index is not None and x.index not in notes.classes]
    if census.num_colors != len(colors) or census.fits_another_format:
        return None
    if len(unseen) == 1 and len(colors) == 1 and isinstance(color := colors[0], tuple):
        (label,) = unseen
        id = f"{label.id} " if palette.has_ids else ""
        return (
            f"No mask has the colour {_rgb(label.color)} of '{label.name}'. If it is drawn in {_rgb(color)}, write "
            f"'{id}{_rgb(color)} {label.name}' in place of its line in {palette.path}. {_ELSE}"
        )
    values = [color for color in colors if isinstance(color, int)]
    if len(values) < len(colors):
        return None
    if values == [len(palette.labels)] and not palette.has_ids and 0 in (label.id for label in unseen):
        lines = [f"{label.id + 1} {_rgb(label.color)} {label.name}" for label in palette.labels]
        return _in_lines(f"The masks count from 1. Write these lines in {palette.path}:", lines)
    lines = _greys([*values, *[255] * bool(notes.num_255)], palette, notes, unseen)
    return (
        _in_lines(
            f"If these are greys, write all lines of {palette.path} so, in this order or another:", lines
        )
        if lines
        else None
    )


def _in_lines(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, *(f"  {line}" for line in lines)])


def _greys(values: Sequence[int], palette: Palette, notes: MaskNotes, unseen: Sequence[Label]) -> list[str]:
    """All lines as greys, if as many classes do not occur as there are values that no line lists."""
    greys = sorted(value if value <= 255 else value // 257 for value in values)
    are_greys = all(len(palette.labels) < value <= 255 or value % 257 == 0 for value in values)
    if not are_greys or len(set(greys)) != len(unseen):
        return []
    seen = [(label.id, label.name) for label in palette.labels if label.index in notes.classes]
    new = zip(greys, (label.name for label in unseen), strict=True)
    return [f"{_rgb((grey, grey, grey))} {name}" for grey, name in sorted([*seen, *new])]


def _rgb(color: tuple[int, int, int]) -> str:
    return " ".join(map(str, color))
