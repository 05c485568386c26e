"""Reads image files by one set of rules, for sharding, prediction and export.

Values of more than 8 bits are scaled to 0..255 by a range (black, white); 8-bit values do not change. EXIF orientation
is undone here, or left alone if the mask was drawn on the stored pixels.
"""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from unetdist.cli.logs import logger
from unetdist.data.decode import CHANNEL_MODES, Pixels, check_header, decode_image, decode_with_opencv, reason_of
from unetdist.data.jpeg import parse_header
from unetdist.data.tiff import SUPPORTED, Tiff, read_tiff
from unetdist.errors import DataError
from unetdist.storage import remote

ORIENTATION_TAG = 0x0112

# Pixels on which a mask was drawn: as the file stores them, or as viewers show them.
Drawn = Literal["raw", "upright"]


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 that is left to undo; 1 for a TIFF, which Pillow turns upright while it loads it."""
    if image.format == "TIFF":
        return 1
    # getexif would decode the whole file to look for EXIF behind the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # whatever Pillow's parser raises: an image with damaged EXIF is a good image
        return 1
    return orientation if orientation in range(1, 9) else 1


def shown_size(raw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) that viewers show for stored pixels (height, width)."""
    return raw[::-1] if orientation >= 5 else raw


def drawn_by_size(raw: tuple[int, int], orientation: int, mask_size: tuple[int, int]) -> Drawn | None:
    """Whether a mask was drawn on raw or upright pixels, judged by sizes (height, width); None if they do not tell."""
    if orientation == 1:
        return "raw"
    shown = shown_size(raw, orientation)
    if raw == shown or mask_size not in (raw, shown):
        return None
    return "raw" if mask_size == raw else "upright"


def is_to_be_turned(raw: tuple[int, int], orientation: int, mask_size: tuple[int, int], drawn: Drawn | None) -> bool:
    """Whether an image must be turned upright to fit its mask.

    Args:
        raw: (height, width) of the stored image.
        orientation: EXIF orientation, 1..8.
        mask_size: (height, width) of the mask.
        drawn: Pixels on which masks were drawn, used if the sizes do not tell.

    Raises:
        DataError: The sizes do not tell, and `drawn` is None.
    """
    if mask_size not in (raw, shown_size(raw, orientation)):
        return False  # reported elsewhere as a mask of the wrong size
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


# (H, W, 1|3|4): grey, RGB, or RGB and one more band; uint8 unless the image has more than 8 bits.
Values = npt.NDArray[Any]

# Values that become 0 and 255 (black and white).
ImageRange = tuple[float, float]

SIXTEEN_BITS: ImageRange = (0.0, 65535.0)
# Range that gives exactly the high byte of 16 bits, as images in indexed tars are decoded.
HIGH_BYTE: ImageRange = (127.5, 65407.5)

# Largest image read from a URL, in bytes.
MOST_BYTES = 2**30

# Modes that all decoders read alike. MPO is the JPEG of phones, with further images after the first.
_PLAIN_MODES = {"JPEG": ("L", "RGB"), "MPO": ("L", "RGB"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}


@dataclass(frozen=True)
class OpenedImage:
    """An image file with its header read."""

    data: bytes
    image: Image.Image | None
    """None for a TIFF that only OpenCV reads."""
    tiff: Tiff | None = None

    @property
    def is_plain(self) -> bool:
        """Whether all decoders give the same 8-bit pixels, those of `decode_image`."""
        image = self.image
        if image is None or image.mode not in _PLAIN_MODES.get(str(image.format), ()):
            return False
        return image.format != "PNG" or (self.data[24] <= 8 and "transparency" not in image.info)

    @property
    def orientation(self) -> int:
        """EXIF orientation 1..8 that `values` does not undo."""
        return 1 if self.image is None else orientation_of(self.image)

    @property
    def channels(self) -> int:
        """Channels to train on: 1 grey (alpha of grey is dropped), 3 RGB, 4 RGBA."""
        if self.image is not None:
            return channels_of_mode(self.image)
        assert self.tiff is not None
        return self.tiff.bands

    def values(self) -> Values:
        """Decode the pixels, without scaling.

        Raises:
            DataError: the file is damaged or cut short.
        """
        if self.tiff is not None and (self.image is None or self.tiff.is_deep_colors):
            return upright(_deep_colors(self.tiff.unturned), self.tiff.orientation)
        assert self.image is not None
        if self.image.format == "PNG" and self.data[24] == 16 and self.data[25] != 0:
            return _deep_colors(self.data)
        return values_of_pillow(self.image)


def open_image(data: bytes) -> OpenedImage:
    """Read the header of an encoded image.

    Raises:
        DataError: no image, several frames or pages, or an unsupported number of bands.
    """
    check_header(data, parse_header(data))
    tiff = read_tiff(data)
    data = data if tiff is None else tiff.data
    try:
        image = Image.open(io.BytesIO(data))
        frames = 1 if tiff is not None else getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise DataError(f"image cannot be read ({error}); cut it into parts.") from None
    except Exception as error:  # whatever Pillow's plug-ins raise
        if tiff is not None and tiff.bits > 8:
            return OpenedImage(data, None, tiff)
        raise DataError(f"image cannot be read ({reason_of(error)}); replace the file.") from None
    if frames > 1 and image.format != "MPO":
        raise DataError(f"image holds {frames} frames or pages; save each as a file of its own.")
    return OpenedImage(data, image, tiff)


def read_image(data: bytes, channels: int, image_range: ImageRange | None) -> Pixels:
    """Pixels (H, W, channels) uint8 of an encoded image, turned upright.

    Args:
        data: An image of any kind that can be sharded.
        channels: 1 grey, 3 RGB, 4 RGBA.
        image_range: Range of the training images; None: they had 8 bits, or it is unknown.

    Raises:
        DataError: An image that cannot be sharded either, or one of more than 8 bits without a range.
    """
    opened = open_image(data)
    if opened.is_plain:
        return upright(decode_image(data, channels), opened.orientation)
    pixels = eight_bit_of_model(opened.values(), image_range)
    return upright(with_channels(pixels, channels), opened.orientation)


def read_file(source: Path | str) -> bytes:
    """The bytes of an image at a path or URL; raises `DataError` if it cannot be read."""
    try:
        return remote.read(source, most=MOST_BYTES) if isinstance(source, str) else source.read_bytes()
    except FileNotFoundError:
        place = "" if remote.is_url(source) or Path(source).is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"file not found{place}; correct its path.") from None
    except IsADirectoryError:
        raise DataError("is a folder; give the images in it.") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}); correct its path, or replace the file.") from None


def values_of_pillow(image: Image.Image) -> Values:
    """The values of a Pillow image of any mode; raises `DataError` if its file is damaged or it has no pixels."""
    if 0 in image.size:
        raise DataError(f"image has {image.width}x{image.height} pixels; give another image.")
    try:
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image)[..., None]
            # Pillow scales PGM and PPM to 16 bits by the maximum in their header.
            is_short = image.format in ("PNG", "PPM") or image.mode.startswith("I;16")
            values = values.astype(np.uint16 if is_short else values.dtype.newbyteorder("="))
            # Pillow reads unsigned values of 32 bits as signed ones; tag 339 (SampleFormat) is 2 where they are signed.
            is_signed = image.format != "TIFF" or 2 in getattr(image, "tag_v2", {}).get(339, ())
            return values.view(np.uint32) if values.dtype == np.int32 and not is_signed else values
        if image.mode == "P" and not image.has_transparency_data:
            image = image.convert("RGB")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
        pixels = np.array(image.convert(CHANNEL_MODES[channels_of_mode(image)]), np.uint8)
    except Exception as error:  # whatever Pillow's plug-ins raise
        raise DataError(f"image cannot be read ({reason_of(error)}); replace the file.") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def pixels_of_pillow(image: Image.Image, channels: int, image_range: ImageRange | None) -> Pixels:
    """The pixels of a Pillow image, equal to `read_image` of its file.

    A loaded image does not always tell what Pillow dropped: a PNG of 16-bit colours that was loaded from a stream, and
    a copy of any image, give the 8 bits that are left.

    Raises:
        DataError: Same as `read_image`; or Pillow has already dropped bits, bands or frames of the file.
    """
    if isinstance(image, ImageFile.ImageFile):
        # Frames after the first are left to Pillow, because the file is read as its first one.
        if image.tile and image.tell() == 0 and (data := _file_behind(image)) is not None:
            return read_image(data, channels, image_range)
        _refuse_what_pillow_dropped(image)
    pixels = with_channels(eight_bit_of_model(values_of_pillow(image), image_range), channels)
    return upright(pixels, orientation_of(image))


def _file_behind(image: ImageFile.ImageFile) -> bytes | None:
    """The file's bytes, if Pillow has not closed it yet."""
    if image.fp is None:
        return None
    try:
        place = image.fp.tell()
        image.fp.seek(0)
        data: bytes = image.fp.read()
        image.fp.seek(place)
    except (OSError, ValueError):  # closed
        return None
    return data


def _refuse_what_pillow_dropped(image: ImageFile.ImageFile) -> None:
    """Raise `DataError` if the loaded image has fewer bits, bands or frames than its file."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"image holds {frames} frames or pages; pass a copy of the one you mean, image.copy().")
    tags = getattr(image, "tag_v2", {})
    bands, bits = tags.get(277, 1), tags.get(258, (8,))
    is_deep = len(bits) > 1 and max(bits) > 8
    if image.format == "PNG" and image.filename:
        # A loaded image does not tell how many bits its file has.
        with suppress(OSError), open(image.filename, "rb") as file:
            header = file.read(26)
            is_deep = header[24:25] == b"\x10" and header[25:] != b"\0"
    if is_deep or (bands > len(image.getbands()) and image.mode != "P"):
        raise DataError(
            "image was loaded by Pillow, which keeps 8 bits of each colour and drops further bands of this file; "
            "pass its path, or the image before it is loaded."
        )


def eight_bit(
    values: Values, image_range: ImageRange | None, *, remedy: str
) -> tuple[Pixels, tuple[float, float] | None]:
    """Scale values to uint8 by the range; 8-bit values are returned unchanged.

    Returns:
        The pixels, and the lowest and highest value of an image of more than 8 bits.

    Raises:
        DataError: No range is given (the message ends with `remedy`), or some values are not finite.
    """
    if values.dtype == np.uint8:
        return values, None
    low, high = extremes(values)
    if image_range is None:
        raise DataError(f"image has {values.dtype} pixels of {low:g} to {high:g}; {remedy}")
    black, white = image_range
    scaled = (values.astype(np.float64) - black) * (255.0 / (white - black))
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8), (low, high)


def eight_bit_of_model(values: Values, image_range: ImageRange | None) -> Pixels:
    """Values scaled as the images that a model was trained on; raises `DataError` if it needs a range and has none."""
    remedy = (
        "the model does not say which values are black and white (it was trained on images of 8 bits, or saved by "
        "an older version): give --image-range LOW HIGH (in Python: model.image_range = (LOW, HIGH)), or save the "
        "image with 8 bits."
    )
    pixels, found = eight_bit(values, image_range, remedy=remedy)
    # Not an error, because a flat part of a large image may look like this.
    is_wide = image_range and image_range[1] - image_range[0] > 255
    if values.dtype.kind == "f" and image_range and is_wide and found and 0 <= found[0] < found[1] <= 1:
        logger.warning(
            "an image has float values of %g to %g, all alike in the model's range %g to %g; if they are fractions of "
            "1, predict with --image-range 0 1.",
            *found,
            *image_range,
        )
    return pixels


def extremes(values: Values) -> tuple[float, float]:
    """The lowest and the highest value; raises `DataError` if some are not finite."""
    if values.dtype.kind == "f" and not (is_finite := np.isfinite(values)).all():
        raise DataError(
            f"image has {values.size - int(is_finite.sum()):,} values that are no finite numbers; replace them, for "
            "example with the lowest value, and mark such pixels as ignored in the mask."
        )
    return float(values.min()), float(values.max())


def warn_of_other_range(where: object, theirs: ImageRange | None, trained: ImageRange | None) -> None:
    """Log a warning if shards were written with another range than the training images of a model."""
    if theirs is not None and trained is not None and theirs != trained:
        logger.warning(
            "%s: its images have black and white at %g and %g, the training images at %g and %g, so equal pixels mean "
            "different things; if all images are of one kind, write all shards with the same --image-range.",
            where,
            *theirs,
            *trained,
        )


def as_values(array: npt.NDArray[Any]) -> Values:
    """An array (H, W) or (H, W, 1|3|4) as `Values`; raises `DataError` for another shape or type."""
    values = array[..., None] if array.ndim == 2 else array
    if values.dtype.kind not in "uif" or values.dtype == np.int8 or array.size == 0 or values.ndim != 3:
        raise DataError(
            f"an image is {array.dtype} of shape {array.shape}; give uint8 values 0..255, or the values of the images "
            "that were sharded, as (H, W), (H, W, C) or, in a tensor, (C, H, W)."
        )
    if values.shape[2] not in CHANNEL_MODES:
        raise DataError(f"an image of shape {array.shape} has {values.shape[2]} bands; {SUPPORTED}.")
    return values


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Pixels (H, W, 1|3|4) converted to the channels of a network, equal to `decode_image` of the stored image."""
    stored = pixels.shape[2]
    if stored == channels:
        return pixels
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)[..., None]  # type: ignore[return-value]
    colors = pixels[..., :3] if stored >= 3 else np.repeat(pixels, 3, axis=2)
    if channels == 3:
        return np.ascontiguousarray(colors)
    return np.dstack([colors, np.full(colors.shape[:2], 255, np.uint8)])


def channels_of_mode(image: Image.Image) -> int:
    """Channels of a Pillow image to train on: 1 grey (alpha of grey is dropped), 3 RGB, 4 RGBA."""
    return {"1": 1, "L": 1, "LA": 1, "F": 1, "RGBA": 4}.get(image.mode, 1 if image.mode[0] == "I" else 3)


def _deep_colors(data: bytes) -> Values:
    """Colours of more than 8 bits, of which Pillow would keep only 8."""
    values = decode_with_opencv(data, cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DataError("image of more than 8 bits cannot be read; save it as PNG.")
    return values[..., None] if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]
