"""Mask files of any kind -> class indices, and an account of every colour that Labels.txt does not list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from unetdist.data.labels.mask_file import Ints, MaskCodes, decode_codes
from unetdist.data.labels.palette import IGNORE_INDEX, Palette
from unetdist.errors import DataError

# Meaning of a mask's pixels; `auto` decides by the kind of file, as `read_mask` describes.
MaskFormat = Literal["auto", "color", "ids"]

# Treatment of unlisted colours; `error` reads like `ignore`, and the caller raises.
UnknownColors = Literal["error", "ignore", "nearest"]

# Unlisted colours of one mask that are listed one by one; a JPEG mask may hold tens of thousands.
MAX_LISTED = 256

_UNKNOWN = -1


@dataclass(frozen=True)
class UnknownColor:
    """A colour or value of one mask that Labels.txt does not list.

    Attributes:
        color: Red, green, blue; a number if the mask holds ids or a 16-bit grey that is no 8-bit colour; None for
            the rarest colours of a mask taken together.
        count: Pixels.
        first_pixel: x and y of the topmost, then leftmost pixel.
        nearest: Name of the label with the nearest colour (or number, for ids).
        distance: Distance to it: Euclidean in RGB, 0..442 (or the difference of the numbers, for ids).
        fits: The `--mask-format` with which the whole mask would be listed, if any.
        num_colors: Colours taken together.
    """

    color: tuple[int, int, int] | int | None
    count: int
    first_pixel: tuple[int, int]
    nearest: str
    distance: float
    fits: Literal["color", "ids"] | None = None
    num_colors: int = 1


@dataclass(frozen=True)
class MaskReading:
    """A mask, with notes on how it was read.

    Attributes:
        mask: Class indices and `IGNORE_INDEX`, uint8 (H, W).
        unknowns: Colours that Labels.txt does not list, most pixels first.
        is_color: Whether pixels were taken as colours, not as ids.
        is_scale: Whether they are numbers or greys, so that one can be between two others.
        classes: Indices of the classes that occur, without those that only `nearest` gives.
        has_255: Whether the mask holds the id 255, and no label lists it.
        lossy: Name of the compression if it changes pixels; "" if it keeps them.
        is_transparent: Transparent pixels that have a class, bool (H, W); None if the file has no transparency.
    """

    mask: NDArray[np.uint8]
    unknowns: list[UnknownColor]
    is_color: bool
    is_scale: bool
    classes: tuple[int, ...]
    has_255: bool
    lossy: str
    is_transparent: NDArray[np.bool_] | None


def read_mask(
    data: bytes, palette: Palette, *, mask_format: MaskFormat = "auto", unknown_colors: UnknownColors = "error"
) -> MaskReading:
    """Decode a PNG, TIFF, GIF, BMP or JPEG mask to class indices.

    Alpha is dropped. `auto` takes RGB as colours. It takes grey, 1-bit and 16-bit values as colours if all colours of
    the palette are grey (1-bit: 0 and 255; 16-bit: v / 257, or v itself up to 255), and otherwise as ids. It takes
    files with a table of colours as colours if all that occur are listed or the table contradicts the ids, and
    otherwise as ids. The id 255 is always `IGNORE_INDEX`.

    Args:
        data: The whole file.
        palette: Listed colours and ids.
        mask_format: Meaning of the pixels.
        unknown_colors: `nearest` gives unlisted colours the label with the nearest colour; otherwise, and for ids,
            they become `IGNORE_INDEX`.

    Raises:
        DataError: The file is no image, is cut short, holds several images, or has colours or fractions where ids
            are asked for. The message does not name the file, which the caller knows.
    """
    decoded = decode_codes(data)
    if mask_format == "ids" and not decoded.is_number.all():
        remedy = "use --mask-format color" if palette.has_colors else "write 'R G B name' lines to the label file"
        raise DataError(f"the mask has colours, not ids; {remedy}, or save ids as grey PNG")
    as_colors, as_ids = _by_color(decoded, palette), _by_id(decoded, palette)
    is_color = mask_format == "color" or (
        mask_format == "auto" and _holds_colors(decoded, as_colors.classes, as_ids.classes, palette)
    )
    match, other = (as_colors, as_ids) if is_color else (as_ids, as_colors)
    classes = match.classes
    listed = tuple(np.unique(classes[(classes != _UNKNOWN) & (classes != IGNORE_INDEX)]).tolist())
    has_255 = bool((decoded.numbers == IGNORE_INDEX).any()) and all(x.id != IGNORE_INDEX for x in palette.labels)
    unknowns: list[UnknownColor] = []
    if (classes == _UNKNOWN).any():
        fits_other = not (other.classes == _UNKNOWN).any()
        # Black and white is no sign of ids: 255 would then mean pixels to ignore, and only black would be left.
        if is_color and has_255 and np.isin(decoded.numbers, (0, IGNORE_INDEX)).all():
            fits_other = False
        fits: Literal["color", "ids"] | None = ("ids" if is_color else "color") if fits_other else None
        unknowns = _unlisted(decoded, match, palette, is_color=is_color, fits=fits)
        takes_nearest = is_color and unknown_colors == "nearest"
        nearest = _classes(palette)[match.nearest] if takes_nearest else IGNORE_INDEX
        classes = np.where(classes == _UNKNOWN, nearest, classes)
    table = np.empty(decoded.num_codes, np.uint8)
    table[decoded.used] = classes
    # NumPy makes indices of 64 bits first, so OpenCV is several times as fast for codes of 8 bits.
    has_bytes = decoded.codes.dtype == np.uint8
    mask = np.asarray(cv2.LUT(decoded.codes, table) if has_bytes else np.take(table, decoded.codes), np.uint8)
    transparent = decoded.is_transparent
    return MaskReading(
        mask,
        unknowns,
        is_color=is_color,
        is_scale=not is_color or decoded.kind == "grey",
        classes=listed,
        has_255=not is_color and has_255,
        lossy=decoded.lossy,
        is_transparent=None if transparent is None else transparent & (mask != IGNORE_INDEX),
    )


def read_listed_mask(
    palette: Palette, mask_format: MaskFormat, unknown_colors: UnknownColors, data: bytes
) -> NDArray[np.uint8]:
    """The class indices of `read_mask`; raises `DataError` for an unlisted colour too, if that is an error."""
    reading = read_mask(data, palette, mask_format=mask_format, unknown_colors=unknown_colors)
    if reading.unknowns and unknown_colors == "error":
        what, (x, y) = reading.unknowns[0].color, reading.unknowns[0].first_pixel
        raise DataError(
            f"mask holds {what} at x {x}, y {y}, which the labels do not list; the tar or the labels have changed "
            "since the tar was indexed: index it again."
        )
    return reading.mask


class _Match(NamedTuple):
    """The label of each used code, (K,)."""

    classes: Ints
    """Its class, or `_UNKNOWN`."""
    nearest: Ints
    """The nearest label in the palette, the first of equals."""
    distance: NDArray[np.float64]


def _by_color(decoded: MaskCodes, palette: Palette) -> _Match:
    nearest, distance = _nearest(decoded.colors, [label.color for label in palette.labels])
    classes = np.where((distance == 0) & decoded.is_color, _classes(palette)[nearest], _UNKNOWN)
    return _Match(classes, nearest, distance)


def _by_id(decoded: MaskCodes, palette: Palette) -> _Match:
    nearest, distance = _nearest(decoded.numbers[:, None], [(label.id,) for label in palette.labels])
    classes = np.where(distance == 0, _classes(palette)[nearest], _UNKNOWN)
    classes[decoded.numbers == IGNORE_INDEX] = IGNORE_INDEX
    classes[~decoded.is_number] = _UNKNOWN
    return _Match(classes, nearest, distance)


def _classes(palette: Palette) -> Ints:
    return np.array([IGNORE_INDEX if label.index is None else label.index for label in palette.labels])


def _holds_colors(decoded: MaskCodes, by_color: Ints, by_id: Ints, palette: Palette) -> bool:
    """The rule of `auto`, as `read_mask` states it."""
    match decoded.kind:
        case "color":
            return True
        case "grey":
            return all(len(set(label.color)) == 1 for label in palette.labels)
        case "table":
            is_listed = by_color != _UNKNOWN
            is_contradicted = (is_listed & (by_color != by_id)).any()
            return bool(is_listed.all() or is_contradicted or (by_id == _UNKNOWN).any())


def _nearest(points: Ints, known: Sequence[tuple[int, ...]]) -> tuple[Ints, NDArray[np.float64]]:
    """Row of the known point nearest to each point (the first of equals), and the Euclidean distance."""
    best = np.full(len(points), np.inf)
    nearest = np.zeros(len(points), np.int64)
    for row, center in enumerate(known):
        # Floats, because the square of a difference of 32-bit ids can exceed 64 bits.
        squared = ((points - np.array(center, np.float64)) ** 2).sum(axis=1)
        nearest[squared < best] = row
        best = np.minimum(best, squared)
    return nearest, np.sqrt(best)


def _unlisted(
    decoded: MaskCodes, match: _Match, palette: Palette, *, is_color: bool, fits: Literal["color", "ids"] | None
) -> list[UnknownColor]:
    """The colours or values without a class: most pixels first, the rarest as one."""
    unknown = np.flatnonzero(match.classes == _UNKNOWN)
    is_counted = np.zeros(decoded.num_codes, bool)
    is_counted[decoded.used[unknown]] = True
    positions = np.flatnonzero(np.take(is_counted, decoded.codes))
    # Both are in the order of codes, and so are the rows of `unknown`.
    _, firsts, counts = np.unique(decoded.codes.reshape(-1)[positions], return_index=True, return_counts=True)
    firsts = positions[firsts]
    distance = match.distance[unknown]
    width = decoded.codes.shape[1]
    order = np.argsort(-counts, kind="stable")
    found = []
    for row in order[:MAX_LISTED]:
        at = unknown[row]
        red, green, blue = decoded.colors[at].tolist()
        color = (red, green, blue) if is_color and decoded.is_color[at] else int(decoded.numbers[at])
        y, x = divmod(int(firsts[row]), width)
        name = palette.labels[match.nearest[at]].name
        found.append(UnknownColor(color, int(counts[row]), (x, y), name, float(distance[row]), fits))
    if len(rest := order[MAX_LISTED:]):
        y, x = divmod(int(firsts[rest].min()), width)
        mean = float(np.average(distance[rest], weights=counts[rest]))
        found.append(UnknownColor(None, int(counts[rest].sum()), (x, y), "", mean, fits, len(rest)))
    return found
