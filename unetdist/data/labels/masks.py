"""Masks -> class indices, and an account of each colour that Labels.txt does not list."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unetdist.data.ignore_index import IGNORE_INDEX
from unetdist.data.labels.census import UnknownColor, places
from unetdist.data.labels.mask_file import Pixels, decode
from unetdist.data.labels.palette import Palette
from unetdist.errors import DataError

MaskFormat = Literal["auto", "color", "ids"]
"""What the pixels of a mask are; `auto` goes by the kind of file, as `read_mask` says."""

UnknownColors = Literal["error", "ignore", "nearest"]
"""What becomes of unlisted colours; `error` differs from `ignore` in what the caller does with the census."""

MAX_LISTED = 256
"""Unlisted colours of one mask that are listed one by one; a JPEG mask may hold tens of thousands."""

MAX_OTHERS = 4096
"""Further ones that are only remembered, so that the same colour in two masks is counted once."""

_UNKNOWN = -1


@dataclass(frozen=True)
class MaskReading:
    """A mask, with notes on how it was read.

    Attributes:
        mask: uint8 (H, W), of class indices and `IGNORE_INDEX`.
        unknowns: What Labels.txt does not list, most pixels first.
        is_color: Whether pixels were taken as colours, not as ids.
        is_scale: Whether they are numbers, or greys, of which one may lie between two others.
        classes: Indices of the classes that occur, without those that only `nearest` gives.
        has_255: Whether it holds the id 255, which no label lists.
        lossy: Name of the compression where it changes pixels; "" where it keeps them.
        is_transparent: Where it is transparent and yet has a class, bool (H, W); None where it has no transparency.
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
    data: bytes,
    palette: Palette,
    *,
    mask_format: MaskFormat = "auto",
    unknown_colors: UnknownColors = "error",
) -> tuple[NDArray[np.uint8], list[UnknownColor]]:
    """Decode a PNG, TIFF, GIF, BMP or JPEG mask into class indices.

    Alpha is dropped. `auto` takes RGB as colours; grey, 1-bit and 16-bit values as colours if all colours of
    the palette are grey (1-bit: 0 and 255; 16-bit: v / 257, or v itself up to 255), else as ids; and files
    with a table of colours as colours if all that occur are listed or the table contradicts the ids, else as
    ids. The id 255 is always `IGNORE_INDEX`.

    Args:
        data: The whole file.
        palette: Colours and ids that are listed.
        mask_format: What the pixels are.
        unknown_colors: `nearest` gives unlisted colours the label nearest in colour (ids have no nearness and
            stay ignored); otherwise they become `IGNORE_INDEX`.

    Returns:
        The mask, uint8 (H, W), of indices and `IGNORE_INDEX`; and what was not listed, most pixels first.

    Raises:
        DataError: The file is no picture, is truncated, holds several pictures, or has colours or fractions
            where ids are asked for. The message does not name the file: the caller knows it.
    """
    reading = examine_mask(data, palette, mask_format=mask_format, unknown_colors=unknown_colors)
    return reading.mask, reading.unknowns


def examine_mask(
    data: bytes,
    palette: Palette,
    *,
    mask_format: MaskFormat = "auto",
    unknown_colors: UnknownColors = "error",
) -> MaskReading:
    """`read_mask`, with an account of how it was read."""
    pixels = decode(data)
    if mask_format == "ids" and not pixels.is_number.all():
        remedy = (
            "use --mask-format color" if palette.has_colors else "write 'R G B name' lines to the label file"
        )
        raise DataError(f"the mask has colours, not ids; {remedy}, or save ids as grey PNG")
    classes_of_labels = np.array([IGNORE_INDEX if x.index is None else x.index for x in palette.labels])
    colors_of_labels = np.array([label.color for label in palette.labels])
    ids_of_labels = np.array([label.id for label in palette.labels])
    by_color = _look_up(_packed(pixels.colors), _packed(colors_of_labels), classes_of_labels)
    by_color[~pixels.is_color] = _UNKNOWN
    by_id = _look_up(pixels.numbers, ids_of_labels, classes_of_labels)
    by_id[pixels.numbers == IGNORE_INDEX] = IGNORE_INDEX
    by_id[~pixels.is_number] = _UNKNOWN
    is_unlisted_255 = (pixels.numbers == IGNORE_INDEX) & ~(ids_of_labels == IGNORE_INDEX).any()
    is_color = mask_format == "color" or (
        mask_format == "auto" and _holds_colors(pixels, by_color, by_id, palette)
    )
    classes, other = (by_color, by_id) if is_color else (by_id, by_color)
    is_class = (classes != _UNKNOWN) & (classes != IGNORE_INDEX)
    listed = tuple(np.unique(classes[is_class]).tolist())
    # Black and white is no sign of ids: 255 would then mean pixels to ignore, and nothing would be left but black.
    is_black_and_white = bool((is_unlisted_255 | (pixels.numbers == 0)).all())
    fits_other = not (other == _UNKNOWN).any() and not (
        is_color and is_unlisted_255.any() and is_black_and_white
    )

    unknown = np.flatnonzero(classes == _UNKNOWN)
    unknowns: list[UnknownColor] = []
    if len(unknown):
        points = pixels.colors if is_color else pixels.numbers[:, None]
        known = colors_of_labels if is_color else ids_of_labels[:, None]
        nearest, distance = _nearest(points[unknown], known)
        unknowns = _list_unknown(
            pixels,
            unknown,
            names=[palette.labels[label].name for label in nearest],
            distance=distance,
            is_color=is_color,
            fits=None if not fits_other else "ids" if is_color else "color",
        )
        is_nearest = is_color and unknown_colors == "nearest"
        classes[unknown] = classes_of_labels[nearest] if is_nearest else IGNORE_INDEX
    table = np.empty(pixels.num_codes, np.uint8)
    table[pixels.used] = classes
    mask = np.take(table, pixels.codes)
    return MaskReading(
        mask,
        unknowns,
        is_color=is_color,
        is_scale=not is_color or pixels.kind == "grey",
        classes=listed,
        has_255=not is_color and bool(is_unlisted_255.any()),
        lossy=pixels.lossy,
        is_transparent=None
        if pixels.is_transparent is None
        else pixels.is_transparent & (mask != IGNORE_INDEX),
    )


def _holds_colors(
    pixels: Pixels, by_color: NDArray[np.int64], by_id: NDArray[np.int64], palette: Palette
) -> bool:
    """The rule of `auto`, as `read_mask` states it."""
    match pixels.kind:
        case "color":
            return True
        case "grey":
            return all(len(set(label.color)) == 1 for label in palette.labels)
        case "table":
            is_listed = by_color != _UNKNOWN
            is_contradicted = (is_listed & (by_color != by_id)).any()
            return bool(is_listed.all() or is_contradicted or (by_id == _UNKNOWN).any())


def _packed(colors: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(colors @ np.array([1, 1 << 8, 1 << 16]))


def _look_up(
    keys: NDArray[np.int64], known: NDArray[np.int64], classes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The class of each key, or `_UNKNOWN`."""
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], keys), len(known) - 1)]
    return np.where(known[place] == keys, classes[place], _UNKNOWN)


def _nearest(
    points: NDArray[np.int64], known: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row of the known point nearest to each point, the first of equals, and the Euclidean distance."""
    best = np.full(len(points), np.iinfo(np.int64).max)
    nearest = np.zeros(len(points), np.int64)
    for row, center in enumerate(known):
        squared = ((points - center) ** 2).sum(axis=1)
        nearest[squared < best] = row
        best = np.minimum(best, squared)
    return nearest, np.sqrt(best)


def _list_unknown(
    pixels: Pixels,
    unknown: NDArray[np.int64],
    *,
    names: list[str],
    distance: NDArray[np.float64],
    is_color: bool,
    fits: Literal["color", "ids"] | None,
) -> list[UnknownColor]:
    """One entry for each row of `pixels.used` in `unknown`, most pixels first, the rarest as one."""
    counts, firsts = _count(pixels, pixels.used[unknown])
    width = pixels.codes.shape[1]
    order = np.argsort(-counts, kind="stable")
    found = []
    for row in order[:MAX_LISTED]:
        red, green, blue = pixels.colors[unknown[row]].tolist()
        is_number = not (is_color and pixels.is_color[unknown[row]])
        found.append(
            UnknownColor(
                color=int(pixels.numbers[unknown[row]]) if is_number else (red, green, blue),
                count=int(counts[row]),
                first_pixel=(int(firsts[row] % width), int(firsts[row] // width)),
                nearest=names[row],
                distance=float(distance[row]),
                fits=fits,
            )
        )
    if len(rest := order[MAX_LISTED:]):
        first = int(firsts[rest].min())
        rows = unknown[rest]
        others = places(pixels.colors[rows], pixels.numbers[rows], pixels.is_color[rows] & is_color)
        found.append(
            UnknownColor(
                color=None,
                count=int(counts[rest].sum()),
                first_pixel=(first % width, first // width),
                nearest="",
                distance=float(np.average(distance[rest], weights=counts[rest])),
                fits=fits,
                num_colors=len(rest),
                others=tuple(others.tolist()) if len(rest) <= MAX_OTHERS else (),
            )
        )
    return found


def _count(pixels: Pixels, codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How often each of these codes occurs, and its first position in the flattened mask."""
    is_counted = np.zeros(pixels.num_codes, bool)
    is_counted[codes] = True
    positions = np.flatnonzero(np.take(is_counted, pixels.codes))
    # Code and position sorted as one number put each code's first pixel first, without an argsort.
    keys = np.sort(pixels.codes.reshape(-1)[positions].astype(np.int64) << 34 | positions)
    starts = np.flatnonzero(np.diff(keys >> 34, prepend=-1))
    return np.diff(starts, append=len(keys)), keys[starts] & ((1 << 34) - 1)
