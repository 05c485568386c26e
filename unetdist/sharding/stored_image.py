"""The image of a sample as a shard holds it: the original file if every decoder reads it alike, else an 8-bit PNG."""

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from unetdist.data.decode import Pixels, decode_image
from unetdist.data.image_file import (
    HIGH_BYTE,
    SIXTEEN_BITS,
    Drawn,
    ImageRange,
    OpenedImage,
    eight_bit,
    is_to_be_turned,
    open_image,
    upright,
)
from unetdist.errors import DataError
from unetdist.sharding.restart import add_restart_markers, best_interval

ImageFormat = Literal["png", "jpg"]

JPEG_QUALITY = 95
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}

_RANGE_REMEDY = "say which values are black and white with --image-range LOW HIGH (or auto, which measures all images)."
_UNFIT = (
    "an indexed tar gives 8-bit grey, RGB and RGBA, and the high byte of 16 bits: unpack it, and write "
    "shards of its images and masks (shard_dataset.py --images DIR --masks DIR)."
)


@dataclass(frozen=True)
class StoredImage:
    """An image ready for a shard."""

    data: bytes
    extension: str
    """Without dot: jpg or png."""
    pixels: Pixels
    """(H, W, 3) RGB, as the loader will decode it."""
    channels: int
    """1 grey, 3 RGB, 4 RGBA."""
    is_kept: bool
    """The pixels are those of the source: its bytes were kept, or only restart markers were added."""
    extremes: tuple[float, float] | None = None
    """Lowest and highest value of an image of more than 8 bits."""


def store_image(
    data: bytes,
    mask_size: tuple[int, int],
    *,
    resize: tuple[int, int] | None = None,
    image_format: ImageFormat | None = None,
    image_range: ImageRange | None = None,
    seekable: bool = True,
    exif: Drawn | None = None,
) -> StoredImage:
    """Convert an encoded image of any kind that `open_image` reads; the options are those of `ConvertOptions`.

    `mask_size` (height, width) decides whether to apply an EXIF orientation: if the mask fits the upright image, the
    image is stored upright, because decoders disagree about EXIF.

    Raises:
        DataError: The image is unreadable or cut short, holds several frames or bands that cannot be kept,
            has float or 32-bit pixels and no `image_range` is given, or does not have the mask's size.
    """
    opened = open_image(data)
    # Re-encoding would change pixels (JPEG) or only cost time (PNG).
    if opened.image is not None and _is_kept(opened, image_format) and not resize:
        raw = (opened.image.height, opened.image.width)
        if mask_size == raw and not is_to_be_turned(raw, opened.orientation, mask_size, exif):
            pixels = decode_image(data, 3)
            kept = _with_restart_markers(data, pixels) if seekable else data
            return StoredImage(kept, EXTENSIONS[str(opened.image.format)], pixels, opened.channels, True)
    values = opened.values()
    # Other types have no natural range: float images may hold 0..1, 0..255 or kelvins.
    default = SIXTEEN_BITS if values.dtype == np.uint16 else None
    stored, extremes = eight_bit(values, image_range or default, remedy=_RANGE_REMEDY)
    if is_to_be_turned((stored.shape[0], stored.shape[1]), opened.orientation, mask_size, exif):
        stored = upright(stored, opened.orientation)
    _check_size(stored, mask_size, "export both at one size")
    if resize:
        stored = cv2.resize(stored, resize, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        stored = stored.reshape(resize[1], resize[0], -1)
    extension = image_format or "png"
    encoded = encode(stored, extension, seekable=seekable)
    return StoredImage(encoded, extension, decode_image(encoded, 3), stored.shape[2], False, extremes)


def keep_image(image: bytes, mask_size: tuple[int, int], exif: Drawn | None = None) -> StoredImage:
    """An image that stays in a tar that others wrote.

    Raises:
        DataError: The loader would not read from the tar what our own shards would hold.
    """
    opened = open_image(image)
    pixels = decode_image(image, 3)
    _check_size(pixels, mask_size, "pack the sample again")
    if is_to_be_turned(mask_size, opened.orientation, mask_size, exif):
        raise DataError(
            "image must be turned upright, but tars are never changed; unpack the tars and write shards "
            "of the files with --exif upright."
        )
    extremes = None
    if not opened.is_plain:
        values = opened.values()
        # OpenCV and Pillow decode 16 bits to the high byte, which is what training will read.
        scaled, extremes = eight_bit(values, HIGH_BYTE if values.dtype == np.uint16 else None, remedy=_UNFIT)
        if not np.array_equal(decode_image(image, scaled.shape[2]), scaled):
            raise DataError(f"image has {values.shape[2]} bands of {values.dtype}; {_UNFIT}")
    return StoredImage(image, "", pixels, opened.channels, True, extremes)


def _check_size(pixels: Pixels, mask_size: tuple[int, int], remedy: str) -> None:
    if pixels.shape[:2] != mask_size:
        raise DataError(
            f"image is {pixels.shape[1]}x{pixels.shape[0]}, mask is {mask_size[1]}x{mask_size[0]} "
            f"(width x height); {remedy}."
        )


def _is_kept(opened: OpenedImage, wanted: ImageFormat | None) -> bool:
    image = opened.image
    if image is None or not opened.is_plain or (wanted and EXTENSIONS[str(image.format)] != wanted):
        return False
    # A progressive JPEG decodes 2.7 times slower, so --image-format jpg re-encodes it as baseline.
    return not (wanted and image.info.get("progressive"))


def _with_restart_markers(data: bytes, pixels: Pixels) -> bytes:
    """The data with restart markers if these can be added and leave the `pixels` unchanged."""
    marked = add_restart_markers(data)
    return marked if marked and np.array_equal(decode_image(marked, 3), pixels) else data


def encode(pixels: Pixels, image_format: ImageFormat, *, seekable: bool = True) -> bytes:
    """Pixels (H, W, 1|3|4) as PNG, or as JPEG without alpha, with restart markers if `seekable`."""
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image_format == "jpg":
        image = image.convert("RGB") if image.mode == "RGBA" else image
        # 4:4:4, because half the colour resolution would blur the edges that the mask draws.
        interval = best_interval(-(-image.width // 8), 8) if seekable else 0
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, restart_marker_blocks=interval)
    else:
        image.save(file, "PNG")
    return file.getvalue()
