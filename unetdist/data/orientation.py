"""EXIF orientation: how stored pixels have to be turned to stand as a viewer shows them."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetdist.errors import DataError

Pixels = npt.NDArray[np.uint8]

ORIENTATION_TAG = 0x0112

Drawn = Literal["raw", "upright"]
"""Which pixels a mask was drawn on: those that the file stores, or those that viewers show."""


def orientation_of(image: Image.Image) -> int:
    """The orientation 1..8 that is left to undo; 1 for a TIFF, which PIL turns upright while it loads it."""
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the whole file to look for EXIF behind the pixels
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # PIL's parser raises what it likes; an image with damaged EXIF is a good image
        return 1
    return orientation if orientation in range(1, 9) else 1


def shown_size(raw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) that a viewer shows of stored pixels (height, width)."""
    return raw[::-1] if orientation >= 5 else raw


def drawn_by_size(raw: tuple[int, int], orientation: int, mask_size: tuple[int, int]) -> Drawn | None:
    """Whether a mask was drawn on raw or upright pixels, from the sizes (height, width); None if they cannot tell."""
    shown = shown_size(raw, orientation)
    if orientation == 1 or raw == shown or mask_size not in (raw, shown):
        return "raw" if orientation == 1 else None
    return "raw" if mask_size == raw else "upright"


def is_to_be_turned(
    raw: tuple[int, int], orientation: int, mask_size: tuple[int, int], drawn: Drawn | None
) -> bool:
    """Whether an image must be turned upright to fit its mask.

    Args:
        raw: (height, width) of the stored image.
        orientation: EXIF's, 1..8.
        mask_size: (height, width).
        drawn: What masks were drawn on where the sizes cannot tell.

    Raises:
        DataError: The sizes cannot tell, and `drawn` is None.
    """
    if mask_size not in (raw, shown_size(raw, orientation)):
        return False  # which is a problem of its own
    drawn = drawn_by_size(raw, orientation, mask_size) or drawn
    if drawn is None:
        raise DataError(
            f"image has EXIF orientation {orientation}, and its size does not tell whether the mask was drawn on the "
            "stored pixels or on the image that viewers show; compare the two, and add --exif raw or --exif upright."
        )
    return drawn == "upright"


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo orientations 2..8 of (H, W, C): mirrored, turned by half, both, and the same of the transposed."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
