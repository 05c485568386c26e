"""Decodes images and masks with the fastest decoder that gives Pillow's pixels; Pillow decodes the rest."""

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from isal import igzip_lib, isal_zlib
from PIL import Image, ImageFile, UnidentifiedImageError

from unetdist.cli.commands import typed
from unetdist.data.jpeg import JpegHeader, cut, parse_header
from unetdist.errors import DataError

Pixels = npt.NDArray[np.uint8]

# Suffixes of files and tar members that are taken for images.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".tif", ".tiff"),
    *(".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
)

# Pillow's mode by number of channels.
CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# First bytes of every Git LFS pointer, the text file that stands in for a file that was not fetched.
GIT_LFS_START = b"version https://git-lfs.github.com/spec/"

# Limit for an image that Pillow decodes, in place of its own; shards hold no larger ones by default.
MAX_PIXELS = 2**28
# Limit for a PNG or JPEG, which other decoders read.
MOST_PIXELS = 2**30
# Bytes that deflate can make of one: it repeats 258 of them for two bits.
_MOST_INFLATED = 1032
# Pixels that one byte of a JPEG can hold: Huffman coding spends at least a bit on each block of 8x8.
_MOST_JPEG_PIXELS = 512
# Data beyond what the pixels can need that a PNG may hold.
_SPARE_BYTES = 2**18

_ARITHMETIC_FRAMES = range(0xC9, 0xD0)
_PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_PNG_GREY = 0
# Values per pixel by PNG colour type.
_PNG_SAMPLES = {_PNG_GREY: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Signature; length and name of IHDR, width, height, kind, checksum; length and name of IDAT.
_MASK_HEADER = struct.Struct(">8s8sII5s4xI4s")
_MASK_IHDR = b"\0\0\0\rIHDR"
# 8 bits, grey, deflate, filters by row, not interlaced.
_MASK_KIND = b"\x08\0\0\0\0"
# Bytes after the data: their checksum, and IEND.
_MASK_END = 16

_pillow_limit_lock = threading.Lock()


class Box(NamedTuple):
    """A rectangle of an image, in pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def decode_image(data: bytes, channels: int) -> Pixels:
    """Decode an image to uint8 (H, W, channels): 1 grey, 3 RGB, 4 RGBA.

    Grey from colour is ITU-R 601 luma of the RGB values; alpha is dropped, or 255 if it is asked for and absent;
    16 bits keep the high byte; palettes and CMYK become RGB. EXIF orientation is ignored, because the mask was drawn
    on the stored pixels (TIFF's own orientation is followed).

    Raises:
        DataError: no image, a file that was cut short, or one that claims more than it can hold.
    """
    header = parse_header(data)
    check_header(data, header)
    pixels = _decode_png(data, channels) if header is None else _decode_jpeg(data, header.channels, channels)
    return _decode_with_pillow(data, channels) if pixels is None else pixels


def decode_part(data: bytes, header: JpegHeader, channels: int, box: Box) -> Pixels | None:
    """The part of `decode_image` in `box`, (h, w, channels), at the cost of that part; `header` is that of `data`.

    None if the whole image must be decoded: JPEGs that are not baseline or lack restart markers, and boxes that cover
    nearly all of the image.
    """
    piece = cut(data, header, *box)
    if piece is None:
        return None
    part, top, left = piece
    pixels = _decode_jpeg(part, header.channels, channels)
    if pixels is None:
        return None
    return pixels[box.top - top : box.bottom - top, box.left - left : box.right - left]


def decode_mask(data: bytes) -> Pixels:
    """Decode a mask to class indices, uint8 (H, W): the stored values, whatever the palette or bit depth.

    Raises:
        DataError: more than one channel, values over 255, or a file that cannot be read.
    """
    check_header(data, parse_header(data), "mask")
    rows = _unfiltered_rows(data)
    if rows is not None:
        return rows
    with _readable("mask"):
        image = open_with_pillow(data)
        image.load()
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise DataError(
            f"mask is {image.mode}, not one value per pixel; write the shards with `{typed('shard')}`, "
            "which turns colours into class indices."
        )
    values = np.asarray(image)
    depth, color = _png_kind(data)
    if color == _PNG_GREY and depth in (2, 4):
        # Pillow stretches these to 0..255.
        values = values // (255 // (2**depth - 1))
    if values.size and values.max() > 255:
        raise DataError(f"mask holds the value {values.max()}; class indices end at 255 (ignored).")
    return np.ascontiguousarray(values, np.uint8)


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a JPEG or PNG; None for other files."""
    if data[:8] == _PNG_START and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    header = parse_header(data)
    return None if header is None else (header.height, header.width)


def check_header(data: bytes, header: JpegHeader | None, what: str = "image") -> None:
    """Refuse an image whose header shows that it cannot be decoded, before memory is allocated.

    Args:
        data: The encoded image, of any kind.
        header: Its `parse_header`.
        what: Its name in errors.

    Raises:
        DataError: A PNG or JPEG claims more pixels than `MOST_PIXELS` or than its bytes can hold, or holds far more
            data than its pixels need, which may take hours to unpack; or the file is a Git LFS pointer.
    """
    refuse_pointer(data, what)
    if header is not None:
        height, width = header.height, header.width
        is_arithmetic = data[header.sof_offset + 1] in _ARITHMETIC_FRAMES
        is_possible = is_arithmetic or height * width <= _MOST_JPEG_PIXELS * len(data)
    elif data[:8] == _PNG_START and len(data) >= 26:
        width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
        raw = height * (1 + width * depth * _PNG_SAMPLES.get(kind, 0) // 8)
        packed = _idat_bytes(data, what)
        is_possible = raw <= _MOST_INFLATED * packed
        if is_possible and packed > 2 * raw + _SPARE_BYTES:
            raise DataError(f"{what} of {width}x{height} holds far more data than its pixels need; replace the file.")
    else:
        return
    if not is_possible or height * width > MOST_PIXELS:
        limit = f"the limit of {MOST_PIXELS:,} pixels" if is_possible else f"its {len(data):,} bytes can hold"
        raise DataError(f"{what} claims to be {width}x{height}, more than {limit}; replace the file.")


def refuse_pointer(data: bytes, what: str) -> None:
    """Raise `DataError` if `data`, the beginning of a file, is a Git LFS pointer; `what` names the file."""
    if data.startswith(GIT_LFS_START):
        raise DataError(
            f"{what} was not fetched, only its Git LFS pointer is there; run `git lfs pull` in its repository."
        )


def _idat_bytes(data: bytes, what: str) -> int:
    """Bytes in the IDAT chunks of a PNG."""
    at, total = 8, 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        at += 12 + size
        if at > len(data):
            # Decoders allocate what a chunk claims before they read it.
            raise DataError(f"{what} cannot be read (cut off in a chunk of {size:,} bytes); replace the file.")
        if name == b"IDAT":
            total += size
        elif name == b"IEND":
            break
    return total


def _unfiltered_rows(data: bytes) -> Pixels | None:
    """Pixels of a PNG as `encode_mask` writes it, 8-bit grey without filters in one chunk; None for others."""
    # This takes a quarter of the time of a decoder that knows all of PNG (480x360).
    start, end = _MASK_HEADER.size, len(data) - _MASK_END
    if len(data) < start + _MASK_END or data[-8:] != PNG_END:
        return None
    signature, header, width, height, kind, size, name = _MASK_HEADER.unpack_from(data)
    if (signature, header, kind, name, size) != (_PNG_START, _MASK_IHDR, _MASK_KIND, b"IDAT", end - start):
        return None
    if isal_zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        return None
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    num_bytes = height * (width + 1)
    try:
        # Inflate no more than the header promises, because a few bytes may hold gigabytes. Zlib's own checksum, in
        # the last four bytes, would cost half as much as inflating; the chunk's was compared above.
        rows = np.frombuffer(stream.decompress(data[start + 2 : end - 4], num_bytes + 1), np.uint8)
    except isal_zlib.error:  # type: ignore[misc]  # its stub does not say that it is an exception
        return None
    if len(rows) != num_bytes or not stream.eof:
        return None
    rows = rows.reshape(height, width + 1)
    return None if rows[:, 0].any() else rows[:, 1:]


def _decode_jpeg(data: bytes, stored: int, channels: int) -> Pixels | None:
    """libjpeg-turbo's pixels of a whole JPEG of `stored` channels; None for CMYK and damaged files."""
    if stored not in (1, 3):
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if stored == channels == 1 else "RGB")
    except (ValueError, MemoryError):
        return None
    if channels == 4 or (channels == 1 and stored == 3):
        pixels = _as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA if channels == 4 else cv2.COLOR_RGB2GRAY))
    return pixels.reshape(*pixels.shape[:2], channels)


def _decode_png(data: bytes, channels: int) -> Pixels | None:
    """OpenCV's pixels of a PNG; None for other files, and if they would differ from Pillow's."""
    depth, color = _png_kind(data)
    # No palettes, grey with alpha or 16 bits; no transparency other than an alpha channel.
    stored = {_PNG_GREY: 1, 2: 3, 6: 4}.get(color, 0) if depth == 8 else 0
    if stored == 0 or (channels == 4 and stored < 4):
        return None
    if channels == 4:
        flags, conversion = cv2.IMREAD_UNCHANGED, cv2.COLOR_BGRA2RGBA
    elif channels == 1 and stored == 1:
        flags, conversion = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION, None
    else:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        conversion = cv2.COLOR_RGB2GRAY if channels == 1 else None
    pixels = decode_with_opencv(data, flags)
    if pixels is None:
        return None
    if conversion is not None:
        pixels = cv2.cvtColor(pixels, conversion)
    return _as_pixels(pixels).reshape(*pixels.shape[:2], channels)


def decode_with_opencv(data: bytes, flags: int) -> npt.NDArray[Any] | None:
    """OpenCV's pixels; None if it finds a fault."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # such as more pixels than it reads
        return None


def _decode_with_pillow(data: bytes, channels: int) -> Pixels:
    with _readable("image"):
        image: Image.Image = open_with_pillow(data)
        image.load()
        if image.mode.startswith("I"):
            high = np.asarray(image) >> 8
            image = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
        elif image.mode == "P" or image.has_transparency_data:
            # Through RGBA, so that transparency is dropped, not blended, in RGB.
            image = image.convert("RGBA")
        if channels == 1 and image.mode != "L":
            # Pillow rounds luma differently from OpenCV.
            return _as_pixels(cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY))[..., None]
        pixels = np.array(image.convert(CHANNEL_MODES[channels]), np.uint8)
        return pixels.reshape(*pixels.shape[:2], channels)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns anything that Pillow's plug-ins raise (OSError, SyntaxError, struct.error ...) into a `DataError`."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what} cannot be read ({reason_of(error)}); replace the file.") from None


def open_with_pillow(data: bytes) -> ImageFile.ImageFile:
    """An image that is not loaded yet, with its checksums verified; raises whatever Pillow's plug-ins raise."""
    with _pillow_limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} are more than {MAX_PIXELS} pixels")
            if image.format == "PNG":
                Image.open(io.BytesIO(data)).verify()  # load() does not compare checksums
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    return image


def reason_of(error: Exception) -> str:
    """Why Pillow did not read an image; its own words for an unknown format name the address of a buffer."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error) or type(error).__name__


def _as_pixels(array: npt.NDArray[np.generic]) -> Pixels:
    assert array.dtype == np.uint8
    return array  # type: ignore[return-value]


def _png_kind(data: bytes) -> tuple[int, int]:
    """(bit depth, colour type) of a whole PNG; (0, 0) for other files and if its end is missing."""
    if data[:8] != _PNG_START or data[-8:] != PNG_END:
        return 0, 0
    return data[24], data[25]
