"""Samples -> pictures and class indices, with an account of what was counted and what is wrong."""

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
from unetdist.data.labels.mask_report import MaskNotes, fault_of
from unetdist.data.labels.masks import MaskFormat, MaskReading, UnknownColors, read_mask
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.pictures import ImageFormat, Picture, store_image
from unetdist.sharding.records import Found
from unetdist.sharding.sources import Problem, Reader, Sample
from unetdist.sharding.statistics import Statistics

BAD_SAMPLE = "bad sample"
UNKNOWN_COLORS = "mask with unknown colours"
"""Kinds of `Problem`."""

MAX_PIXELS = 2**28


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What decides the bytes of a shard, besides the samples and the palette."""

    resize: tuple[int, int] | None = None
    """(width, height) of every image (by area) and mask (nearest); None: as they come."""
    image_format: ImageFormat | None = None
    """Re-encode images of other formats; None: only those that not everyone can decode (to PNG)."""
    image_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; None: 0 and 65535."""
    exif: Drawn | None = None
    """Whether masks were drawn on raw or upright images where EXIF keeps the size; None: refuse such images."""
    seekable: bool = True
    """Give JPEGs restart markers, without loss, so that crops of them decode fast."""
    mask_format: MaskFormat = "auto"
    unknown_colors: UnknownColors = "error"
    skip_bad: bool = False
    """Leave bad samples out instead of refusing the data set."""
    max_pixels: int = MAX_PIXELS
    """A larger picture is a bad sample, by its header: a small file may unfold to more than memory holds."""

    def __post_init__(self) -> None:
        if self.resize and min(self.resize) < 1:
            width, height = self.resize
            raise ConfigError(f"resize ({width}x{height}) must be at least 1x1; use for example 480x360.")
        if self.image_range and self.image_range[0] >= self.image_range[1]:
            low, high = self.image_range
            raise ConfigError(f"image_range ({low:g} {high:g}) must ascend; use for example 0 4095.")
        if self.image_range and not np.isfinite(self.image_range).all():
            low, high = self.image_range
            raise ConfigError(f"image_range ({low:g} {high:g}) must be two numbers; use for example 0 4095.")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels ({self.max_pixels}) must be 1 or more; use {MAX_PIXELS}.")

    def deciding(self) -> dict[str, Any]:
        """The options that decide the bytes of good samples; a default `exif` is left out, as in older records."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in POLICY and (name, value) != ("exif", None)
        }


POLICY = ("unknown_colors", "skip_bad", "max_pixels")
"""Options that matter to a shard only if something in it is bad."""


@dataclass(frozen=True)
class Converted:
    """A good sample."""

    picture: Picture
    mask: npt.NDArray[np.uint8]
    """Class indices, (H, W)."""
    mask_file: bytes
    """As it came."""


@dataclass
class Converter:
    """Reads samples one by one, and keeps account of them."""

    reader: Reader
    palette: Palette
    options: ConvertOptions
    picture_of: Callable[[bytes, tuple[int, int]], Picture]
    """From an encoded image and the (height, width) of its mask."""
    statistics: Statistics = field(default_factory=Statistics)
    problems: list[Problem] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    notes: MaskNotes = field(default_factory=MaskNotes)

    def convert(self, sample: Sample) -> Converted | None:
        """The sample, counted; None where it is bad, which is noted."""
        options = self.options
        try:
            image, mask_file = read_sample(self.reader, sample, options.max_pixels)
            with _without_pillows_limit():
                reading = examine(mask_file, self.palette, options)
                mask, unknowns = reading.mask, reading.unknowns
                self.notes.add(sample.mask, reading, self.palette)
                picture = self.picture_of(image, (mask.shape[0], mask.shape[1]))
        except DataError as error:
            where = sample.image if sample.mask == sample.image else f"{sample.image}, {sample.mask}"
            self.problems.append(Problem(BAD_SAMPLE, where, str(error)))
            return None
        self.found += [Found(sample.mask, unknown) for unknown in unknowns]
        if unknowns and options.unknown_colors == "error":
            detail = f"{len(unknowns)} not in the label file"
            self.problems.append(Problem(UNKNOWN_COLORS, sample.mask, detail))
            return None
        if options.resize:
            # The exact one takes pixel centres, as resizing by area does; the other is off by half a pixel.
            resized = cv2.resize(mask, options.resize, interpolation=cv2.INTER_NEAREST_EXACT)
            mask = resized.astype(np.uint8, copy=False)
        self.statistics.add(picture.pixels, mask, picture.channels, picture.is_kept, picture.extremes)
        return Converted(picture, mask, mask_file)


def read_sample(reader: Reader, sample: Sample, max_pixels: int) -> tuple[bytes, bytes]:
    """Encoded image and mask; `DataError` where they cannot be read, or have more pixels than that."""
    try:
        image, mask = reader.read(sample)
    except OSError as error:
        raise DataError(f"cannot be read: {error}") from None
    for what, data in (("image", image), ("mask", mask)):
        width, height = _size_by_header(data)
        if width * height > max_pixels:
            raise DataError(
                f"{what} is {width}x{height}, which is more than --max-pixels {max_pixels}; "
                "raise it if the picture is genuine, and memory holds several of them."
            )
    return image, mask


def examine(mask: bytes, palette: Palette, options: ConvertOptions) -> MaskReading:
    """An encoded mask as class indices; `DataError` where it cannot hold what it would be read as."""
    reading = read_mask(mask, palette, mask_format=options.mask_format, unknown_colors=options.unknown_colors)
    fault = fault_of(reading, palette, options.unknown_colors)
    if fault is not None:
        raise DataError(fault)
    return reading


def storing(options: ConvertOptions) -> Callable[[bytes, tuple[int, int]], Picture]:
    """How images are stored in shards of our own."""

    def picture_of(image: bytes, mask_size: tuple[int, int]) -> Picture:
        return store_image(
            image,
            mask_size,
            resize=options.resize,
            image_format=options.image_format,
            image_range=options.image_range,
            seekable=options.seekable,
            exif=options.exif,
        )

    return picture_of


def _size_by_header(data: bytes) -> tuple[int, int]:
    """(width, height) without decoding anything; (0, 0) where the decoder will say what is wrong."""
    try:
        with warnings.catch_warnings(), _without_pillows_limit():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data)).size
    except Exception:  # PIL's plug-ins raise what they like
        return 0, 0


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Our own limit holds here, and is told as a problem of the sample: Pillow would warn, or refuse less."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
