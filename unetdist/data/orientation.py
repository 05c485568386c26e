"""EXIF orientation: how stored pixels have to be turned to stand as a viewer shows them."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

ORIENTATION_TAG = 0x0112


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


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo orientations 2..8 of (H, W, C): mirrored, turned by half, both, and the same of the transposed."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
