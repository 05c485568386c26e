"""The image of a sample as a shard holds it: the source's own where anyone decodes it, else an 8-bit PNG."""

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from unetdist.data.decode import Pixels, decode_image
from unetdist.data.image_file import (
    SIXTEEN_BITS,
    Drawn,
    ImageRange,
    OpenedImage,
    eight_bit,
    extremes_of_deep,
    is_to_be_turned,
    open_image,
    upright,
)
from unetdist.errors import DataError
from unetdist.sharding.restart import add_restart_markers, best_interval

ImageFormat = Literal["png", "jpg"]

JPEG_QUALITY = 95
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}

RANGE_REMEDY = (
    "say which values are black and white with --image-range LOW HIGH (or auto, which measures all images)."
)


@dataclass(frozen=True)
class Picture:
    """An image ready for a shard."""

    data: bytes
    extension: str
    """Without dot: jpg or png."""
    pixels: Pixels
    """(H, W, 3) RGB, as the loader will decode it."""
    channels: int
    """1 grey, 3 RGB, 4 RGBA."""
    is_kept: bool
    """Bytes or, where restart markers were added, the coefficients are the source's own, and so are the pixels."""
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
) -> Picture:
    """The image of a mask of `mask_size` (height, width).

    Args:
        data: An encoded image of any kind that `open_image` reads.
        mask_size: Decides whether an EXIF orientation is to be obeyed: where the mask fits the image as it is
            shown, the image is stored upright, for decoders disagree about EXIF.
        resize: (width, height), by area.
        image_format: Re-encode what is of another format; None: only what has to be.
        image_range: Values of more than 8 bits that become 0 and 255; None: 0 and 65535 for 16-bit integers.
        seekable: Give JPEGs restart markers, without loss, so that a crop is decoded from its own part of the data.
        exif: What masks were drawn on where the sizes cannot tell; None: such an image is refused.

    Raises:
        DataError: The image is unreadable or cut short, holds several frames or bands that cannot be kept,
            has float or 32-bit pixels and no `image_range` is given, or is not of the mask's size.
    """
    opened = open_image(data)
    if opened.image is not None and _is_kept(opened, image_format) and not resize:
        raw = (opened.image.height, opened.image.width)
        if mask_size == raw and not is_to_be_turned(raw, opened.orientation, mask_size, exif):
            pixels = decode_image(data, 3)
            kept = _with_restart_markers(data, pixels) if seekable else data
            return Picture(kept, EXTENSIONS[str(opened.image.format)], pixels, opened.channels, True)
    values = opened.values()
    default = SIXTEEN_BITS if values.dtype == np.uint16 else None
    stored = eight_bit(values, image_range or default, remedy=RANGE_REMEDY)
    if is_to_be_turned((stored.shape[0], stored.shape[1]), opened.orientation, mask_size, exif):
        stored = upright(stored, opened.orientation)
    if stored.shape[:2] != mask_size:
        raise DataError(
            f"image is {stored.shape[1]}x{stored.shape[0]}, mask is {mask_size[1]}x{mask_size[0]} "
            "(width x height); export both at one size."
        )
    if resize:
        stored = cv2.resize(stored, resize, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        stored = stored.reshape(resize[1], resize[0], -1)
    extension = image_format or "png"
    encoded = encode(stored, extension, seekable=seekable)
    pixels = decode_image(encoded, 3)
    return Picture(encoded, extension, pixels, stored.shape[2], False, extremes_of_deep(values))


def _is_kept(opened: OpenedImage, wanted: ImageFormat | None) -> bool:
    image = opened.image
    if image is None or not opened.is_plain or (wanted and EXTENSIONS[str(image.format)] != wanted):
        return False
    # A progressive JPEG decodes 2.7 times slower: who asks for jpg gets a baseline one.
    return not (wanted and image.info.get("progressive"))


def _with_restart_markers(data: bytes, pixels: Pixels) -> bytes:
    """The data as they are where nothing can be added, and should the `pixels` not stay the same."""
    marked = add_restart_markers(data)
    return marked if marked and np.array_equal(decode_image(marked, 3), pixels) else data


def encode(pixels: Pixels, image_format: ImageFormat, *, seekable: bool = True) -> bytes:
    """Pixels (H, W, 1|3|4) as PNG, or as JPEG without alpha, with restart markers where it is to be `seekable`."""
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image_format == "jpg":
        image = image.convert("RGB") if image.mode == "RGBA" else image
        # 4:4:4, for halved colour would blur what the mask separates.
        interval = best_interval(-(-image.width // 8), 8) if seekable else 0
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, restart_marker_blocks=interval)
    else:
        image.save(file, "PNG")
    return file.getvalue()
