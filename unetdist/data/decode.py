"""Encoded bytes to pixels: OpenCV where it is exact and fast, PIL for the rest, equal pixels from both."""

import io
import struct

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from unetdist.errors import DataError

Pixels = npt.NDArray[np.uint8]

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm")
"""Of files (and members of tars) that are taken for pictures."""

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of a picture by count, in PIL's words."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_GREY = 0
_PNG_CHANNELS = {_PNG_GREY: 1, 2: 3, 6: 4}
"""By PNG colour type; palettes and grey with alpha are left out."""
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_image(data: bytes, channels: int) -> Pixels:
    """Pixels of an encoded picture as uint8 (H, W, channels): 1 grey, 3 RGB, 4 RGBA.

    Grey from colour is ITU-R 601 luma of the RGB values; an alpha channel is dropped or, where it is asked
    for and absent, 255; 16 bits keep the high byte; palettes and CMYK become RGB. EXIF orientation is
    ignored, for the mask was drawn on the pixels as they are stored (TIFF's own orientation is followed).
    `DataError` where the bytes are no picture or are cut short.
    """
    pixels = _decode_with_opencv(data, channels)
    return _decode_with_pil(data, channels) if pixels is None else pixels


def decode_mask(data: bytes) -> Pixels:
    """Class indices of an encoded mask as uint8 (H, W): the stored values, whatever the palette or bit depth.

    `DataError` where the mask has more than one channel, values over 255, or cannot be read.
    """
    depth, color = _png_kind(data)
    if (depth, color) == (8, _PNG_GREY):
        # Not imdecode(GRAYSCALE): "unchanged" is the flag that promises the stored values.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 2:
            return _as_pixels(pixels)
    image = _open(data, "mask")
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise DataError(
            f"mask is {image.mode}, not one value per pixel; write the shards with launch/shard_dataset.py, "
            "which turns colours into class indices."
        )
    values = np.asarray(image)
    if color == _PNG_GREY and depth in (2, 4):
        values = values // (255 // (2**depth - 1))  # PIL stretches these to 0..255.
    if values.size and values.max() > 255:
        raise DataError(f"mask holds the value {values.max()}; class indices end at 255 (ignored).")
    return np.ascontiguousarray(values, np.uint8)


def _decode_with_opencv(data: bytes, channels: int) -> Pixels | None:
    """None where OpenCV would not give PIL's pixels, or would not notice that the data is cut short."""
    depth, color = _png_kind(data)
    stored = _PNG_CHANNELS.get(color, 0) if depth == 8 else _jpeg_components(data)
    is_png = depth > 0
    if stored == 0 or (stored == 4 and not is_png) or (channels == 4 and is_png and stored < 4):
        return None  # Palettes, 16 bits; CMYK; transparency other than an alpha channel.
    if channels == 4 and stored == 4:
        flags, conversion = cv2.IMREAD_UNCHANGED, cv2.COLOR_BGRA2RGBA
    elif channels == 1 and stored == 1:
        flags, conversion = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION, None
    else:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        conversion = {1: cv2.COLOR_RGB2GRAY, 3: None, 4: cv2.COLOR_RGB2RGBA}[channels]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        return None
    if conversion is not None:
        pixels = cv2.cvtColor(pixels, conversion)
    return _as_pixels(pixels).reshape(*pixels.shape[:2], channels)


def _decode_with_pil(data: bytes, channels: int) -> Pixels:
    image = _open(data, "image")
    if image.mode.startswith("I"):
        high = np.asarray(image) >> 8
        image = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    elif image.mode == "P" or image.has_transparency_data:
        # By way of RGBA: transparency then becomes alpha, and is dropped (not blended) on the way to RGB.
        image = image.convert("RGBA")
    if channels == 1 and image.mode != "L":
        # PIL rounds luma otherwise than OpenCV.
        return _as_pixels(cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY))[..., None]
    pixels = np.array(image.convert(CHANNEL_MODES[channels]), np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(data: bytes, what: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "PNG":
            Image.open(io.BytesIO(data)).verify()  # load() overlooks checksums
        image.load()
    except Exception as error:  # PIL's plug-ins raise what they like: OSError, SyntaxError, struct.error ...
        raise DataError(f"{what} cannot be read ({reason_of(error)}); replace the file.") from None
    return image


def reason_of(error: Exception) -> str:
    """Why PIL did not read a picture; its own words for an unknown format are the address of a buffer."""
    return "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)


def _as_pixels(array: npt.NDArray[np.generic]) -> Pixels:
    assert array.dtype == np.uint8
    return array  # type: ignore[return-value]


def _png_kind(data: bytes) -> tuple[int, int]:
    """(bit depth, colour type) of a whole PNG; (0, 0) where it is none or its end is missing."""
    if data[:8] != _PNG_START or data[-8:] != _PNG_END:
        return 0, 0
    return data[24], data[25]


def _jpeg_components(data: bytes) -> int:
    """Channels of a whole JPEG, 0 where it is none or its end is missing: libjpeg would fill up with grey."""
    if data[:3] != _JPEG_START or not data.rstrip(b"\0").endswith(_JPEG_END):
        return 0
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker in _JPEG_FRAMES:
            return data[at + 9]
        at += 2 + length
    return 0
