"""Decodes mask files of any kind: the values that occur, each as a number and as a colour."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from unetdist.data.decode import PNG_END, check_header, open_with_pillow, reason_of
from unetdist.data.jpeg import parse_header
from unetdist.errors import DataError

Ints = NDArray[np.int64]

NUM_COLORS = 1 << 24

# Largest number of 2- and 4-bit grey, which Pillow stretches to 0..255.
_WHITE_OF_RAWMODE = {"L;2": 3, "L;2I": 3, "L;4": 15, "L;4I": 15}
_TIFF_COMPRESSION = 259
_JPEG_IN_TIFF = (6, 7, 34892)


@dataclass(frozen=True)
class MaskCodes:
    """A decoded mask as codes, and the number and colour of each of the K codes that occur.

    Attributes:
        codes: Integers 0..num_codes-1, (H, W); packed RGB is `red | green << 8 | blue << 16`.
        num_codes: One more than the largest code of this kind of file.
        used: The codes that occur, ascending, (K,).
        numbers: The number of each, (K,); -1 for what is only a colour.
        colors: The colour of each, (K, 3), the nearest if there is none.
        is_color: Whether that colour is exact, (K,): 16-bit grey 1000 is no 8-bit colour.
        kind: Whether the file has colours, grey values, or numbers that point into a table of colours.
        lossy: Same as in `MaskReading`.
        is_transparent: Pixels with alpha 0, bool (H, W); None if the file has no transparency.
    """

    codes: NDArray[Any]
    num_codes: int
    used: Ints
    numbers: Ints
    colors: Ints
    is_color: NDArray[np.bool_]
    kind: Literal["color", "grey", "table"]
    lossy: str = ""
    is_transparent: NDArray[np.bool_] | None = None

    @property
    def is_number(self) -> NDArray[np.bool_]:
        """Whether each value can be an id, (K,)."""
        return (self.numbers >= 0) | (self.kind != "color")


def decode_codes(data: bytes) -> MaskCodes:
    """Decode a whole PNG, TIFF, GIF, BMP or JPEG file (or another that Pillow opens); alpha is dropped.

    Raises `DataError` if it is no image, is cut short or damaged, or holds several images or fractions.
    """
    image, white = _load(data)
    if image.mode in ("1", "L", "LA"):
        decoded = _from_grey(_codes_of(image, white), white)
    elif image.mode in ("P", "PA"):
        decoded = _from_table(image, _codes_of(image, white))
    elif image.mode[0] in "IF":
        return replace(_from_deep_grey(image), lossy=_lossy(image, data))
    else:
        decoded = _from_rgb(_codes_of(image, white))
    is_transparent = None
    if image.has_transparency_data:
        has_alpha = image.mode in ("LA", "PA", "RGBA")
        alpha = (image if has_alpha else image.convert("RGBA")).getchannel("A")
        is_transparent = np.asarray(alpha, np.uint8) == 0
    return replace(decoded, lossy=_lossy(image, data), is_transparent=is_transparent)


def _load(data: bytes) -> tuple[ImageFile.ImageFile, int]:
    """The loaded image, and the largest number of its bit depth if it is grey."""
    check_header(data, parse_header(data), "mask")
    try:
        # Warnings of Pillow and libtiff add nothing: whatever matters is raised as well.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_with_pillow(data)
            if image.format == "PNG" and PNG_END not in data:
                # Pillow does not notice a file that was cut between two chunks.
                raise OSError("the end is missing")
            num_images = getattr(image, "n_frames", 1)
            packing = image.tile[0][3] if image.tile else ""
            image.load()
            if image.mode in ("P", "PA") and not image.getpalette("RGB"):
                raise OSError("its table of colours is empty")
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError and more
        raise DataError(f"the mask is damaged or no image ({reason_of(error)}); export it again") from None
    if num_images > 1:
        raise DataError(f"the mask file holds {num_images} images; save each as a file of its own")
    rawmode = packing[0] if isinstance(packing, tuple) else packing
    return image, 1 if image.mode == "1" else _WHITE_OF_RAWMODE.get(str(rawmode), 255)


def _codes_of(image: Image.Image, white: int) -> NDArray[Any]:
    """The numbers of an image of up to 8 bits, uint8 (H, W), or its packed colours, uint32 (H, W)."""
    if image.mode in ("1", "L", "LA", "P", "PA"):
        grey = image.getchannel(0) if image.mode in ("LA", "PA") else image
        codes = np.asarray(grey).astype(np.uint8, copy=False)
        return codes // (255 // white) if 1 < white < 255 else codes
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return (np.frombuffer(rgb.tobytes("raw", "RGBX"), "<u4") & 0xFFFFFF).reshape(image.height, image.width)


def _lossy(image: ImageFile.ImageFile, data: bytes) -> str:
    """The compression that may have changed pixels, or ""."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "WEBP" and b"VP8L" not in data:
        return "lossy WebP"
    if image.format == "TIFF" and tags.get(_TIFF_COMPRESSION) in _JPEG_IN_TIFF:
        return "JPEG in TIFF"
    return {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}.get(str(image.format), "")


def _from_grey(codes: NDArray[Any], white: int) -> MaskCodes:
    used = _occurring(codes)
    grey = np.repeat(used[:, None] * (255 // white), 3, axis=1)
    return MaskCodes(codes, 256, used, used, grey, np.ones(len(used), bool), kind="grey")


def _from_deep_grey(image: Image.Image) -> MaskCodes:
    """Grey of 16 or 32 bits, and floats that are whole numbers; 65535 is white."""
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise DataError("the mask holds fractions; save its classes as whole numbers")
    if values.dtype == np.uint16:
        codes, num_codes = values, 1 << 16
        used = numbers = _occurring(codes)
    else:
        numbers, inverse = np.unique(values, return_inverse=True)
        numbers, num_codes = numbers.astype(np.int64), len(numbers)
        codes, used = inverse.reshape(values.shape), np.arange(num_codes)
    grey = np.where(numbers <= 255, numbers, numbers // 257)
    is_color = (numbers >= 0) & (numbers <= 65535) & ((numbers <= 255) | (numbers % 257 == 0))
    colors = np.repeat(np.clip(grey, 0, 255)[:, None], 3, axis=1)
    return MaskCodes(codes, num_codes, used, numbers, colors, is_color, kind="grey")


def _from_table(image: Image.Image, codes: NDArray[Any]) -> MaskCodes:
    """8-bit numbers that point into the file's own table of colours."""
    used = _occurring(codes)
    table = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    is_color = used < len(table)
    colors = table[np.minimum(used, len(table) - 1)]
    # Writers of GIF renumber the greys that occur to 0, 1, 2 ..., so these numbers may not be the ids.
    if image.format == "GIF" and _is_grey(colors).all() and (colors[:, 0] != used).any():
        return MaskCodes(codes, 256, used, np.full(len(used), -1), colors, is_color, kind="color")
    return MaskCodes(codes, 256, used, used, colors, is_color, kind="table")


def _from_rgb(codes: NDArray[Any]) -> MaskCodes:
    """Packed colours; those with r = g = b are numbers too."""
    used = _occurring(codes)
    colors = np.stack([used & 255, used >> 8 & 255, used >> 16], axis=1)
    numbers = np.where(_is_grey(colors), colors[:, 0], -1)
    return MaskCodes(codes, NUM_COLORS, used, numbers, colors, np.ones(len(used), bool), kind="color")


def _is_grey(colors: Ints) -> NDArray[np.bool_]:
    return np.asarray((colors == colors[:, :1]).all(axis=1))


def _occurring(codes: NDArray[Any]) -> Ints:
    """The codes that occur, ascending."""
    # Only those that begin a run of equal pixels are sorted, of which masks have few.
    flat = codes.reshape(-1)
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(np.append(flat[:1], flat[starts])).astype(np.int64)
