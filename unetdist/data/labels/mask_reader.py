"""Reads the masks of other people's tars in training: same result as `read_mask`, at the speed of a table lookup.

The meaning of a value depends only on the kind of file (and, with a table of colours, on the values that occur). So
each kind of PNG has a table. It learns new values from `read_mask` itself, which reads the first file that holds them.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdist.data.labels.mask_file import NUM_COLORS, codes_of, load_mask
from unetdist.data.labels.masks import MaskFormat, UnknownColors, read_mask
from unetdist.data.labels.palette import Palette
from unetdist.errors import DataError

# Modes of PNGs that have a table; `read_mask` reads the others.
_MODES = ("1", "L", "P", "RGB", "RGBA")

# No class if there are 254 or fewer. Tables hold `class ^ _UNSEEN`, so that a new one is all zeros and the system
# gives memory only to those pages of its 16 MiB that are used.
_UNSEEN = 254

_MAX_TABLES = 4096


class MaskReader:
    """Encoded mask -> class indices, uint8 (H, W), exactly as `read_mask` gives them; picklable.

    Args:
        palette: Colours and ids that are listed.
        mask_format: Meaning of the pixels.
        unknown_colors: Treatment of unlisted colours; `error` raises.

    Raises:
        DataError: When called, if the mask is damaged or holds an unlisted colour that is an error.
    """

    def __init__(self, palette: Palette, mask_format: MaskFormat, unknown_colors: UnknownColors) -> None:
        self._palette = palette
        self._mask_format = mask_format
        self._unknown_colors = unknown_colors
        self._tables: dict[tuple[int, bytes, bytes], NDArray[np.uint8]] = {}

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a whole file."""
        image, white = load_mask(data)
        if image.format != "PNG" or image.mode not in _MODES or self._palette.num_classes > _UNSEEN:
            return self._read(data)
        codes = codes_of(image, white)
        table = self._table(image, white, codes)
        stored = np.asarray(cv2.LUT(codes, table) if codes.dtype == np.uint8 else np.take(table, codes), np.uint8)
        if stored.all():
            return np.bitwise_xor(stored, _UNSEEN, out=stored)
        mask = self._read(data)
        table[codes] = mask ^ _UNSEEN
        return mask

    def _table(self, image: Image.Image, white: int, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The table for this kind of file."""
        if codes.dtype != np.uint8:
            key = (0, b"", b"")
        else:
            used = b""
            if image.mode == "P" and self._mask_format == "auto":
                used = (cv2.calcHist([codes], [0], None, [256], [0, 256]) > 0).tobytes()
            key = (white, bytes(image.getpalette() or ()), used)
        if len(self._tables) > _MAX_TABLES:
            self._tables.clear()
        if key not in self._tables:
            self._tables[key] = np.zeros(256 if codes.dtype == np.uint8 else NUM_COLORS, np.uint8)
        return self._tables[key]

    def _read(self, data: bytes) -> NDArray[np.uint8]:
        reading = read_mask(data, self._palette, mask_format=self._mask_format, unknown_colors=self._unknown_colors)
        if reading.unknowns and self._unknown_colors == "error":
            what, (x, y) = reading.unknowns[0].color, reading.unknowns[0].first_pixel
            raise DataError(
                f"mask holds {what} at x {x}, y {y}, which the labels do not list; the tar or the labels have changed "
                "since the tar was indexed: index it again."
            )
        return reading.mask
