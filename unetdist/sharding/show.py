"""Draws a contact sheet: samples of a data set with their classes, their keys, and one legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from unetdist.cli.logs import progress
from unetdist.data.drawing import pad_alike, shrink, tint, with_legend
from unetdist.data.labels import Palette
from unetdist.data.order import Order
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples
from unetdist.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]

# Longer side of an image on the sheet.
CELL_PX = 256
# Approximate width of a sheet.
SHEET_PX = 1600

_GAP_PX, _KEY_PX, _TEXT_PX, _LEGEND_PX = 6, 24, 14, 18
_PAPER, _INK = 255, (25, 25, 25)


@dataclass(frozen=True)
class SheetSample:
    """A sample on the sheet: image (H, W, C), mask (H, W) of class indices, and its key."""

    image: Pixels
    mask: Pixels
    key: str


def choose(reader: ShardReader, num: int, *, seed: int) -> list[int]:
    """Ids of the `num` samples (or all, if there are fewer) that a training with this seed sees first."""
    if num < 1:
        raise ConfigError(f"--num ({num}) must be 1 or more; use 16.")
    order = Order(reader.manifest.shard_sizes, seed=seed)
    ids: list[int] = order.locate(np.arange(min(num, order.num_samples))).sample_id.tolist()
    return ids


def find(reader: ShardReader, keys: Sequence[str]) -> list[int]:
    """Ids of the samples with these keys, in this order; reads header after header until it has all."""
    wanted, found = set(keys), dict[str, int]()
    with progress("looking for keys", reader.manifest.num_samples) as bar:
        for sample_id in range(reader.manifest.num_samples):
            key = reader.key(sample_id)
            bar.advance()
            if key in wanted:
                found.setdefault(key, sample_id)
            if len(found) == len(wanted):
                return [found[key] for key in keys]
    raise DataError(
        f"no sample has the key {', '.join(sorted(wanted - set(found)))}; keys look like {reader.key(0)}.",
        source=reader.folder,
    )


def load(reader: ShardReader, sample_ids: Sequence[int]) -> list[SheetSample]:
    """The stored samples, without augmentation."""
    manifest = reader.manifest
    samples = Samples(reader, channels=manifest.channels, num_classes=manifest.num_classes)
    shown = []
    for sample_id in sample_ids:
        image, mask = samples.load(sample_id)
        samples.finish(sample_id, image, mask)
        shown.append(SheetSample(image, mask, reader.key(sample_id)))
    return shown


def draw(shown: Sequence[SheetSample], palette: Palette) -> np.ndarray:
    """The sheet, (H, W, 3) uint8."""
    cells = [_cell(item, palette.colors) for item in shown]
    columns = max(1, min(math.ceil(math.sqrt(len(cells))), SHEET_PX // max(cell.shape[1] for cell in cells)))
    # The last row is filled with paper.
    cells += [np.full((1, 1, 3), _PAPER, np.uint8)] * (-len(cells) % columns)
    rows = [pad_alike(cells[at : at + columns], _PAPER) for at in range(0, len(cells), columns)]
    # Cells of one width, so that the rows fit below each other.
    filler = np.full((1, max(cell.shape[1] for cell in cells), 3), _PAPER, np.uint8)
    sheet = np.concatenate(
        [np.concatenate([pad_alike([cell, filler], _PAPER)[0] for cell in row], axis=1) for row in rows]
    )
    present = sorted({int(index) for item in shown for index in np.unique(item.mask)})
    return with_legend(sheet, present, palette.colors, palette.class_names, _font(_LEGEND_PX))


def _cell(item: SheetSample, colors: np.ndarray) -> np.ndarray:
    """Image, tinted image, and the key below them."""
    image, mask = shrink(CELL_PX, item.image, item.mask)
    # Whole factors keep the pixels of small masks sharp.
    factor = max(1, CELL_PX // max(mask.shape))
    image, mask = (array.repeat(factor, axis=0).repeat(factor, axis=1) for array in (image, mask))
    height, width = mask.shape
    cell = np.full((height + _KEY_PX + 2 * _GAP_PX, 2 * width + 3 * _GAP_PX, 3), _PAPER, np.uint8)
    for number, picture in enumerate((image, tint(image, mask, colors))):
        cell[_GAP_PX:, _GAP_PX + number * (width + _GAP_PX) :][:height, :width] = picture
    canvas = Image.fromarray(cell)
    font = _font(_TEXT_PX)
    pen = ImageDraw.Draw(canvas)
    # Aligned on the right, because the end of a key that is too long says more than its start.
    pen.text((cell.shape[1] - _GAP_PX, height + _GAP_PX + _KEY_PX // 2), item.key, _INK, font, anchor="rm")
    return np.asarray(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
