"""Reads the masks of other people's tars in training: same result as `read_mask`, at the speed of a table lookup.

The meaning of a value depends only on the kind of file (and, with a table of colours, on the values that occur). So
each kind of PNG has a table. It learns each new value from `read_mask` itself, called with an image of one row that
holds the new values: the same by construction, and hardly slower than decoding the file.
"""

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from unetdist.data.decode import check_header
from unetdist.data.labels.masks import MaskFormat, MaskReading, UnknownColors, read_mask
from unetdist.data.labels.palette import Palette
from unetdist.errors import DataError

Codes = NDArray[np.uint8] | NDArray[np.uint32]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
# PNG colour types; `read_mask` reads grey with alpha.
_GREY, _RGB, _TABLE, _RGBA = 0, 2, 3, 6

# No class if there are 254 or fewer. Tables hold `class ^ _UNSEEN`, so that a new one is all zeros and the system
# gives memory only to those pages of its 16 MiB that are used.
_UNSEEN = 254

_MAX_TABLES = 4096


@dataclass(frozen=True)
class _Png:
    """Everything in a whole, undamaged PNG that determines its pixels."""

    width: int
    height: int
    depth: int
    """Bits per value."""
    kind: int
    """Colour type."""
    colors: bytes
    """Table of colours, empty if there is none."""
    content: bytes
    """IDAT chunks."""

    def encoded(self, kind: int) -> bytes:
        """A file with these contents that claims the colour type `kind`."""
        header = struct.pack(">IIBBBBB", self.width, self.height, self.depth, kind, 0, 0, 0)
        table = _chunk(b"PLTE", self.colors) if kind == _TABLE else b""
        return b"".join((_SIGNATURE, _chunk(b"IHDR", header), table, self.content, _END))


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
        self._tables: dict[tuple[int, int, bytes, bytes], NDArray[np.uint8]] = {}

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a whole file."""
        png = _parse(data) if self._palette.num_classes <= _UNSEEN else None
        if png is not None:
            check_header(data, None, "mask")
        codes = None if png is None else _decode(png)
        if png is None or codes is None:
            return self._read(data)
        table = self._table(png, codes)
        stored = _look_up(table, codes)
        if not stored.all():
            if not self._learn(table, png, np.unique(codes[stored == 0])):
                return self._read(data)
            stored = _look_up(table, codes)
        return np.bitwise_xor(stored, _UNSEEN, out=stored)

    def _table(self, png: _Png, codes: Codes) -> NDArray[np.uint8]:
        used = b""
        if png.kind == _TABLE and self._mask_format == "auto":
            used = (cv2.calcHist([codes], [0], None, [256], [0, 256]) > 0).tobytes()
        if len(self._tables) > _MAX_TABLES:
            self._tables.clear()
        is_wide = png.kind in (_RGB, _RGBA)
        key = (8, _RGB, b"", b"") if is_wide else (png.depth, png.kind, png.colors, used)
        if key not in self._tables:
            self._tables[key] = np.zeros(1 << 24 if is_wide else 256, np.uint8)
        return self._tables[key]

    def _learn(self, table: NDArray[np.uint8], png: _Png, codes: Codes) -> bool:
        """Fill in the classes of these codes; False if one of them is not listed and must be."""
        reading = self._read_mask(_row_of(png, codes))
        if reading.unknowns and self._unknown_colors == "error":
            return False
        table[codes] = reading.mask[0] ^ _UNSEEN
        return True

    def _read(self, data: bytes) -> NDArray[np.uint8]:
        reading = self._read_mask(data)
        if reading.unknowns and self._unknown_colors == "error":
            what, (x, y) = reading.unknowns[0].color, reading.unknowns[0].first_pixel
            raise DataError(
                f"mask holds {what} at x {x}, y {y}, which the labels do not list; the tar or the labels have changed "
                "since the tar was indexed: index it again."
            )
        return reading.mask

    def _read_mask(self, data: bytes) -> MaskReading:
        return read_mask(data, self._palette, mask_format=self._mask_format, unknown_colors=self._unknown_colors)


def _parse(data: bytes) -> _Png | None:
    """None unless it is a whole, undamaged PNG of at most 8 bits with a single image."""
    if data[:8] != _SIGNATURE:
        return None
    view, at = memoryview(data), 8
    header, colors, content = b"", b"", list[memoryview]()
    while at + 12 <= len(data):
        size = int.from_bytes(view[at : at + 4], "big")
        name, body, end = data[at + 4 : at + 8], view[at + 8 : at + 8 + size], at + 12 + size
        if data[end - 4 : end] != isal_zlib.crc32(view[at + 4 : end - 4]).to_bytes(4, "big"):
            return None
        match name:
            case b"IHDR":
                header = bytes(body)
            case b"PLTE":
                colors = bytes(body)
            case b"IDAT":
                content.append(view[at:end])
            case b"acTL":
                return None
            case b"IEND":
                return _png(header, colors, b"".join(content))
        at = end
    return None


def _png(header: bytes, colors: bytes, content: bytes) -> _Png | None:
    if len(header) != 13 or not content:
        return None
    width, height, depth, kind, *_, interlace = struct.unpack(">IIBBBBB", header)
    is_known = kind in (_GREY, _RGB, _TABLE, _RGBA) and depth <= 8 and interlace == 0
    return _Png(width, height, depth, kind, colors, content) if is_known else None


def _decode(png: _Png) -> Codes | None:
    """Stored values, uint8 (H, W), or colours packed as `red | green << 8 | blue << 16`, uint32 (H, W)."""
    is_wide = png.kind in (_RGB, _RGBA)
    # A table's numbers are read as grey values, because OpenCV would replace them with its colours.
    data = np.frombuffer(png.encoded(png.kind if is_wide else _GREY), np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB if is_wide else cv2.IMREAD_UNCHANGED)
    except cv2.error:  # too large
        return None
    if pixels is None or pixels.shape[:2] != (png.height, png.width):
        return None
    if is_wide:
        packed: NDArray[np.uint32] = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
        return packed & np.uint32(0xFFFFFF)
    # OpenCV stretches values of fewer bits to 0..255.
    codes = np.asarray(pixels, np.uint8)
    return codes // np.uint8(255 // (2**png.depth - 1)) if png.depth < 8 else codes


def _look_up(table: NDArray[np.uint8], codes: Codes) -> NDArray[np.uint8]:
    found = cv2.LUT(codes, table) if codes.dtype == np.uint8 else np.take(table, codes)
    return np.asarray(found, np.uint8)


def _row_of(png: _Png, codes: Codes) -> bytes:
    """An image of the same kind with one row that holds each of these codes once."""
    if codes.dtype == np.uint32:
        row = codes.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        png = _Png(len(codes), 1, 8, _RGB, b"", b"")
    else:
        bits = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1)[:, 8 - png.depth :]
        row = np.packbits(bits.ravel()).tobytes()
        png = _Png(len(codes), 1, png.depth, png.kind, png.colors, b"")
    content = _chunk(b"IDAT", zlib.compress(b"\0" + row))
    return _Png(png.width, 1, png.depth, png.kind, png.colors, content).encoded(png.kind)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", isal_zlib.crc32(name + body))
