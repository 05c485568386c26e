"""Converts samples to stored images and class indices, and keeps an account of what is counted and what is wrong."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unetdist.data.image_file import Drawn
from unetdist.data.labels import Palette
from unetdist.data.labels.mask_report import fault_of
from unetdist.data.labels.masks import MaskFormat, MaskReading, UnknownColors, read_mask
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.account import Account, UnlistedColor
from unetdist.sharding.sources import Problem, RawSample, Reader
from unetdist.sharding.stored_image import ImageFormat, StoredImage

BAD_SAMPLE = "bad sample"
# Kinds of `Problem`.
UNKNOWN_COLORS = "mask with unknown colours"

MAX_PIXELS = 2**28

# Options that matter to a shard only if a sample is bad.
POLICY = ("unknown_colors", "skip_bad", "max_pixels")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """The settings that decide the bytes of a shard, besides the samples and the palette."""

    resize: tuple[int, int] | None = None
    """(width, height) of every image (by area) and mask (nearest); None: original sizes."""
    image_format: ImageFormat | None = None
    """Re-encode images of other formats; None: only those that not every decoder reads (to PNG)."""
    image_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; None: 0 and 65535."""
    exif: Drawn | None = None
    """Whether masks were drawn on raw or upright images if EXIF keeps the size; None: refuse such images."""
    seekable: bool = True
    """Give JPEGs restart markers, without loss, so that crops of them decode fast."""
    mask_format: MaskFormat = "auto"
    unknown_colors: UnknownColors = "error"
    skip_bad: bool = False
    """Leave bad samples out instead of refusing the data set."""
    max_pixels: int = MAX_PIXELS
    """Limit for images and masks, checked in the header: a small file may decode to more than memory holds."""

    def __post_init__(self) -> None:
        if self.resize and min(self.resize) < 1:
            width, height = self.resize
            raise ConfigError(f"resize ({width}x{height}) must be at least 1x1; use for example 480x360.")
        if self.image_range:
            low, high = self.image_range
            if not np.isfinite(self.image_range).all():
                raise ConfigError(f"image_range ({low:g} {high:g}) must be two numbers, for example 0 4095.")
            if low >= high:
                raise ConfigError(f"image_range ({low:g} {high:g}) must ascend; use for example 0 4095.")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels ({self.max_pixels}) must be 1 or more; use {MAX_PIXELS}.")

    def deciding(self) -> dict[str, Any]:
        """The options that decide the bytes of good samples; a default `exif` is omitted, as in older records."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in POLICY and (name, value) != ("exif", None)
        }


@dataclass(frozen=True)
class ConvertedSample:
    """A good sample."""

    image: StoredImage
    mask: npt.NDArray[np.uint8]
    """Class indices, (H, W)."""
    mask_file: bytes
    """The original file."""


@dataclass
class Converter:
    """Converts samples one by one and keeps an account of them."""

    reader: Reader
    palette: Palette
    options: ConvertOptions
    to_stored: Callable[[bytes, tuple[int, int]], StoredImage]
    """Function of an encoded image and the (height, width) of its mask."""
    account: Account = field(default_factory=Account)

    def convert(self, sample: RawSample) -> ConvertedSample | None:
        """The sample, counted; None if it is bad, which the account notes."""
        options, account = self.options, self.account
        try:
            image_file, mask_file = read_sample(self.reader, sample, options.max_pixels)
            with _without_pillows_limit():
                # The mask first: its size decides whether the image must be turned upright.
                reading = examine(mask_file, self.palette, options)
                if fault := fault_of(reading, self.palette, options.unknown_colors):
                    raise DataError(fault)
                mask = reading.mask
                account.notes.add(sample.mask, reading, self.palette)
                image = self.to_stored(image_file, (mask.shape[0], mask.shape[1]))
        except DataError as error:
            # In tars of others both have one name, which need not be repeated.
            where = sample.image if sample.mask == sample.image else f"{sample.image}, {sample.mask}"
            account.problems.append(Problem(BAD_SAMPLE, where, str(error)))
            return None
        # Noted even if they are accepted, because accepted colours are reported too.
        account.found += [UnlistedColor(sample.mask, unknown) for unknown in reading.unknowns]
        if reading.unknowns and options.unknown_colors == "error":
            detail = f"{len(reading.unknowns)} not in the label file"
            account.problems.append(Problem(UNKNOWN_COLORS, sample.mask, detail))
            return None
        if options.resize:
            # INTER_NEAREST is off by half a pixel; the exact version uses pixel centres, as resizing by area does.
            resized = cv2.resize(mask, options.resize, interpolation=cv2.INTER_NEAREST_EXACT)
            mask = resized.astype(np.uint8, copy=False)
        account.statistics.add(image.pixels, mask, image.channels, image.is_kept, image.extremes)
        return ConvertedSample(image, mask, mask_file)


def examine(data: bytes, palette: Palette, options: ConvertOptions) -> MaskReading:
    """Class indices of an encoded mask, with what is unusual about it."""
    return read_mask(data, palette, mask_format=options.mask_format, unknown_colors=options.unknown_colors)


def read_sample(reader: Reader, sample: RawSample, max_pixels: int) -> tuple[bytes, bytes]:
    """Encoded image and mask; `DataError` if they cannot be read or have more than `max_pixels`."""
    try:
        image, mask = reader.read(sample)
    except OSError as error:
        raise DataError(f"cannot be read: {error}") from None
    for what, data in (("image", image), ("mask", mask)):
        width, height = _size_by_header(data)
        if width * height > max_pixels:
            raise DataError(
                f"{what} is {width}x{height}, which is more than --max-pixels {max_pixels}; "
                "raise it if the picture is genuine and several of them fit into memory."
            )
    return image, mask


def _size_by_header(data: bytes) -> tuple[int, int]:
    """(width, height) without decoding; (0, 0) if the decoder will report what is wrong."""
    try:
        with warnings.catch_warnings(), _without_pillows_limit():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data)).size
    except Exception:  # PIL's plug-ins raise anything
        return 0, 0


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    # Pillow only warns up to twice its limit; --max-pixels is a strict limit with a message of its own.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
