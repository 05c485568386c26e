"""Draws class colours over images, legends, panels, and a heat map of a confusion matrix.

Pure functions from arrays to a uint8 (H, W, 3) image. A mask is (H, W) class indices, 255 = ignored; `colors` is
(num_classes, 3) uint8 and `names` the class names, both by class index.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unetdist.data.labels import IGNORE_INDEX

Array = np.ndarray

# Images whose longer side is shorter are enlarged by a whole factor, because a legend needs room.
SMALLEST_PX = 256

_PAPER, _INK, _FRAME = (255, 255, 255), (25, 25, 25), (140, 140, 140)
_STRIPES = np.array([(95, 95, 95), (165, 165, 165)], np.uint8)
_TITLES = ("image", "target", "prediction")


def overlay(image: Array, mask: Array, colors: Array, names: Sequence[str]) -> Array:
    """The image with class colours on top, and a legend of its classes below.

    Args:
        image: (H, W, C) uint8; may be grey or have alpha.
        mask: (H, W) class indices.
        colors: Colour per class.
        names: Name per class.
    """
    base, labels = _enlarged(_as_rgb(image), mask)
    # The image becomes grey, because a blue class on a yellow wall would look green, like another class of the legend.
    grey = np.asarray(Image.fromarray(base).convert("L")) // 2
    # In place, because a picture may have 24 million pixels.
    tinted = paint(labels, colors)
    tinted //= 2
    tinted += grey[..., None]
    return with_legend(tinted, np.unique(mask).tolist(), colors, names)


def gallery(
    rows: Sequence[tuple[str, Array, *tuple[Array, ...]]], colors: Array, names: Sequence[str], *, largest_px: int = 512
) -> Array:
    """One row of panels per (caption, image, target) or (..., prediction), under titles and above one legend.

    Each panel is at most `largest_px` wide and high.
    """
    present = np.unique(np.concatenate([mask.ravel() for _, _, *masks in rows for mask in masks])).tolist()
    pictures = []
    for _, *arrays in rows:
        base, *masks = _enlarged(*shrink(largest_px, *arrays))
        pictures.append([base, *(paint(mask, colors) for mask in masks)])
    width = max(base.shape[1] for base, *_ in pictures)
    titles = _TITLES[: len(pictures[0])]
    font = _font(pictures[0][0])
    line, gap = math.ceil(font.size * 1.8), max(4, round(font.size / 2))
    lines = [line if caption else 0 for caption, *_ in rows]
    height = line + sum(base.shape[0] + below for (base, *_), below in zip(pictures, lines, strict=True))
    canvas = Image.new("RGB", (len(titles) * (width + gap) - gap, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((column * (width + gap) + width // 2, line // 2), title, _INK, font, anchor="mm")
    top = line
    for (caption, *_), columns, below in zip(rows, pictures, lines, strict=True):
        for column, picture in enumerate(columns):
            canvas.paste(Image.fromarray(picture), (column * (width + gap), top))
        top += columns[0].shape[0]
        draw.text((gap, top + below // 2), caption, _INK, font, anchor="lm")
        top += below
    return with_legend(np.asarray(canvas), present, colors, names, font)


def heat_map(confusion: Array, names: Sequence[str]) -> Array:
    """A confusion matrix (rows target, columns prediction) in fractions of the target pixels of each row.

    Names stand at the rows, and columns have their order. Large cells show percent; the row of a class that no target
    holds stays white.
    """
    num_classes = len(names)
    cell = min(44, max(6, 1600 // num_classes))
    font = ImageFont.load_default(min(14, max(7, cell * 0.36)))
    axes = ("rows: target", "columns: prediction", "percent of target")
    margin = math.ceil(max(font.getlength(text) for text in (*names, *axes))) + 30
    size = margin + num_classes * cell + 10
    canvas = Image.new("RGB", (size, size), _PAPER)
    draw = ImageDraw.Draw(canvas)
    fraction = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for row, column in np.ndindex(num_classes, num_classes):
        value = float(fraction[row, column])
        left, top = margin + column * cell, margin + row * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), _shade(value), _shade(max(value, 0.08)))
        if cell >= 24 and value >= 0.005:
            ink = _PAPER if value > 0.5 else _INK
            draw.text((left + cell // 2, top + cell // 2), f"{100 * value:.0f}", ink, font, anchor="mm")
    for index, name in enumerate(names):
        draw.text((margin - 6, margin + index * cell + cell // 2), name, _INK, font, anchor="rm")
    draw.text((8, 8), "\n".join(axes), _INK, font)
    return np.asarray(canvas)


def paint(mask: Array, colors: Array) -> Array:
    """Class colours (H, W, 3) of a mask; ignored pixels become grey stripes, which look like no class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    painted: Array = table[mask]
    rows, columns = np.nonzero(mask == IGNORE_INDEX)
    painted[rows, columns] = _STRIPES[(rows + columns) // 4 % 2]
    return painted


def shrink(largest_px: int, image: Array, *masks: Array) -> list[Array]:
    """The image in RGB (averaged) and its masks (nearest pixel), at most `largest_px` wide and high."""
    height, width = image.shape[:2]
    scale = min(1.0, largest_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [Image.fromarray(_as_rgb(image)).resize(size, Image.Resampling.BOX)]
    small += [Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST) for mask in masks]
    return [np.asarray(picture) for picture in small]


def pad_alike(arrays: Sequence[Array], value: int) -> list[Array]:
    """Pad images or masks with `value` at the right and bottom, to the size of the largest."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
    padded = []
    for array in arrays:
        canvas = np.full((height, width, *array.shape[2:]), value, np.uint8)
        canvas[: array.shape[0], : array.shape[1]] = array
        padded.append(canvas)
    return padded


def with_legend(
    picture: Array,
    present: Sequence[int],
    colors: Array,
    names: Sequence[str],
    font: ImageFont.FreeTypeFont | None = None,
) -> Array:
    """`picture` with a legend of the class indices `present` below it, in as many columns as fit."""
    font = font or _font(picture)
    labels = ["ignored" if index == IGNORE_INDEX else names[index] for index in present]
    swatch, pad = math.ceil(font.size), max(6, round(font.size / 2))
    line = math.ceil(font.size * 1.5)
    column = swatch + 2 * pad + math.ceil(max(map(font.getlength, labels), default=0))
    height, width = picture.shape[:2]
    columns = max(1, min(len(present), (width - pad) // column))
    rows = math.ceil(len(present) / columns)
    legend = Image.new("RGB", (max(width, columns * column + pad), rows * line + 2 * pad), _PAPER)
    draw = ImageDraw.Draw(legend)
    for place, (index, label) in enumerate(zip(present, labels, strict=True)):
        x, y = pad + place % columns * column, pad + place // columns * line
        sample = paint(np.full((swatch, swatch), index), colors)
        legend.paste(Image.fromarray(sample), (x, y))
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), outline=_FRAME)
        draw.text((x + swatch + pad // 2, y + swatch // 2), label, _INK, font, anchor="lm")
    sheet = np.full((height + legend.height, legend.width, 3), _PAPER, np.uint8)
    left = (legend.width - width) // 2
    sheet[:height, left : left + width] = picture
    sheet[height:] = legend
    return sheet


def _font(picture: Array) -> ImageFont.FreeTypeFont:
    """A font that is as readable on 3000 pixels as on 300."""
    font = ImageFont.load_default(min(64, max(14, round(math.sqrt(picture.shape[0] * picture.shape[1]) / 40))))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _as_rgb(image: Array) -> Array:
    """(H, W, 3) of grey, RGB, RGBA or more channels."""
    return np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]


def _enlarged(image: Array, *masks: Array) -> list[Array]:
    factor = math.ceil(SMALLEST_PX / max(image.shape[:2]))
    if factor == 1:
        return [image, *masks]
    return [picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in (image, *masks)]


def _shade(value: float) -> tuple[int, int, int]:
    """White (0) to dark blue (1)."""
    red, green, blue = (round(255 + value * (end - 255)) for end in (8, 48, 107))
    return red, green, blue
