"""Problems of a data set that a few samples or the headers of all files show, before hours of writing.

Wrong masks or labels, the range of values of images with more than 8 bits, and the meaning of EXIF orientations.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from unetdist.cli.logs import logger, progress
from unetdist.data.image_file import Drawn, ImageRange, drawn_by_size, extremes, open_image, orientation_of, shown_size
from unetdist.data.labels import Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import CLOSE, MANY, MaskNotes, fault_of, resampled
from unetdist.data.labels.masks import MaskReading
from unetdist.errors import DataError
from unetdist.sharding.account import Extremes, wider
from unetdist.sharding.convert import ConvertOptions, examine, read_sample
from unetdist.sharding.pool import run_jobs
from unetdist.sharding.sources import FileReader, RawSample, Reader, SampleSource
from unetdist.sharding.split import READ_THREADS

NUM_SAMPLES = 8
# A photograph has more unlisted colours than this; where unlisted colours are accepted, a mask may have `MANY`.
_FEW = 64
# Fraction of all pixels from which a colour is a class of its own, not an edge or an error.
_COMMON = 0.005

# A span below this leaves fewer than 64 of the 256 grey levels.
LITTLE_OF_SIXTEEN_BITS = 2**14
_SAMPLES_PER_JOB = 64
_NUM_MEASURED = 32

_EXCHANGE = (
    "Exchange --images and --masks (or the columns of --list or --dataset), or say how masks are named with "
    "--mask-name."
)
_REMEDY = "Give --labels the file of these masks, or add the missing classes to it."


@dataclass(frozen=True)
class _Look:
    sample: RawSample
    image: bytes
    reading: MaskReading
    fault: str | None

    @property
    def is_far(self) -> bool:
        """Whether most of the mask has colours that are far from all listed ones."""
        return _far(self.reading) > 0.5

    @property
    def num_colors(self) -> int:
        return sum(unknown.num_colors for unknown in self.reading.unknowns)


def look(reader: Reader, samples: Sequence[RawSample], palette: Palette, options: ConvertOptions) -> None:
    """Read a few samples, spread over all, and refuse what no other sample could make right.

    Problems of single samples (a file, a size, a colour) are reported later, together with those of all samples.

    Raises:
        DataError: Images and masks are exchanged, the masks are photographs, lossy or resized, or the label file
            belongs to other masks.
    """
    number = min(NUM_SAMPLES, len(samples))
    # Spread over all, because the first files of a folder are often alike.
    chosen = [samples[place * len(samples) // number] for place in range(number)]
    looks = [seen for sample in chosen if (seen := _look_at(reader, sample, palette, options))]
    if not looks:
        return
    census, notes = Census(), MaskNotes()
    for seen in looks:
        census.add(seen.sample.mask, seen.reading.unknowns)
        notes.add(seen.sample.mask, seen.reading, palette)
    if all(seen.is_far for seen in looks):
        _refuse_photographs(looks, palette, options)
    if all(seen.fault for seen in looks):
        raise DataError(f"{looks[0].fault}.", source=looks[0].sample.mask)
    if len(looks) == NUM_SAMPLES and not census and (fault := resampled(notes, options.mask_format)):
        raise DataError(fault, source=palette.path)
    are_others = all(seen.is_far for seen in looks) or (not options.skip_bad and _are_others(census, notes))
    if are_others and options.unknown_colors == "error":
        listed = 1 - census.num_pixels / notes.num_pixels
        raise DataError(
            f"lists {100 * listed:.0f} % of the pixels of {len(looks)} masks, and {len(notes.classes)} of its "
            f"{palette.num_classes} classes occur there: it is the label file of other masks, or lacks most classes. "
            f"Nothing else was checked.\n{census.report(remedy=_REMEDY)}",
            source=palette.path,
        )


def _look_at(reader: Reader, sample: RawSample, palette: Palette, options: ConvertOptions) -> _Look | None:
    try:
        image, mask = read_sample(reader, sample, options.max_pixels)
        reading = examine(mask, palette, options)
    except DataError:
        return None
    return _Look(sample, image, reading, fault_of(reading, palette, options.unknown_colors))


def _far(reading: MaskReading) -> float:
    """Fraction of the pixels whose colour no label lists, nor one that compression could have changed into it."""
    far = (x.count for x in reading.unknowns if not reading.is_color or x.distance > CLOSE)
    return sum(far) / reading.mask.size


def _refuse_photographs(looks: Sequence[_Look], palette: Palette, options: ConvertOptions) -> None:
    try:
        are_exchanged = all(_far(examine(seen.image, palette, options)) < 0.01 for seen in looks)
    except DataError:
        are_exchanged = False
    if are_exchanged:
        raise DataError(
            f"is an image with the colours of {palette.path}, but its mask {looks[0].sample.mask} does not have them "
            f"(nor do {len(looks) - 1} others): images and masks are exchanged. {_EXCHANGE}",
            source=looks[0].sample.image,
        )
    most = _FEW if options.unknown_colors == "error" else MANY
    if all(seen.num_colors > most for seen in looks):
        raise DataError(
            f"has {looks[0].num_colors:,} colours that {palette.path} does not list, like a photograph (and so have "
            f"{len(looks) - 1} others): are images and masks exchanged? {_EXCHANGE}",
            source=looks[0].sample.mask,
        )


def _are_others(census: Census, notes: MaskNotes) -> bool:
    """Whether the masks have at least three unlisted classes, and far fewer listed ones."""
    common = census.colors_over(_COMMON * notes.num_pixels, beyond=CLOSE)
    return common >= 3 and common > 2 * len(notes.classes)


@dataclass(frozen=True)
class _ValueRange:
    """Values of the images of more than 8 bits among some samples."""

    extremes: Extremes = None
    is_integer: bool = True
    num_uint16: int = 0

    def __or__(self, other: "_ValueRange") -> "_ValueRange":
        return _ValueRange(
            wider(self.extremes, other.extremes),
            self.is_integer and other.is_integer,
            self.num_uint16 + other.num_uint16,
        )


def _measure(reader: Reader, samples: Sequence[RawSample]) -> _ValueRange:
    found = _ValueRange()
    for sample in samples:
        try:
            opened = open_image(reader.read(sample)[0])
            if opened.is_plain:
                continue
            values = opened.values()
            if values.dtype != np.uint8:
                found |= _ValueRange(extremes(values), values.dtype.kind in "ui", int(values.dtype == np.uint16))
        except (DataError, OSError):
            continue  # reported when the sample is written
    return found


def with_measured_range(options: ConvertOptions, source: SampleSource, workers: int) -> ConvertOptions:
    """Options with the range that suits all images of the source; the same in every process."""
    jobs = [
        source.samples[first : first + _SAMPLES_PER_JOB] for first in range(0, len(source.samples), _SAMPLES_PER_JOB)
    ]
    found = _ValueRange()
    with progress("measuring the range of values", len(jobs)) as bar:

        def done(part: _ValueRange) -> None:
            nonlocal found
            found |= part
            bar.advance()

        run_jobs(partial(_measure, source.reader), jobs, workers=workers, done=done)
    if found.extremes is None:
        logger.info("--image-range auto: all images have 8 bits and need no range.")
        return options
    image_range = suitable_range(*found.extremes, is_integer=found.is_integer)
    logger.info(
        "--image-range auto: values are %s; %s become black and white.",
        _numbers(found.extremes, " to "),
        _numbers(image_range, " and "),
    )
    return replace(options, image_range=image_range)


def refuse_little_used(options: ConvertOptions, source: SampleSource) -> None:
    """Stop before hours of writing if a few samples already show that little of 16 bits is used.

    Raises:
        DataError: All samples that were measured have 16 bits and use few of their values.
    """
    if options.image_range is not None or not source.samples:
        return
    few = source.samples[:: -(-len(source.samples) // _NUM_MEASURED)]
    found = _measure(source.reader, few)
    # Images without a range that are not uint16 are refused one by one.
    # A mixture cannot be judged from a few samples.
    if found.num_uint16 == len(few) and (fault := little_used(found.extremes)):
        raise DataError(f"{len(few)} images that were measured: {fault}")


def little_used(extremes: Extremes) -> str | None:
    """A fault with the range to type, if 16-bit images use few of the values 0..65535 and none is given."""
    if extremes is None or extremes[1] - extremes[0] >= LITTLE_OF_SIXTEEN_BITS:
        return None
    levels = int((extremes[1] - extremes[0]) * 255 / 65535) + 1
    return (
        f"values are {_numbers(extremes, ' to ')} of 0 to 65535, which would become {levels} of 256 grey levels; say "
        f"which are black and white: --image-range {_numbers(suitable_range(*extremes), ' ')} (or --image-range auto; "
        "or --image-range 0 65535, if that is intended)."
    )


def suitable_range(low: float, high: float, *, is_integer: bool = True) -> ImageRange:
    """The full range of the bits that integers use, if they use most of it; else the extremes."""
    if is_integer and low >= 0:
        top = float(2 ** int(high).bit_length() - 1)
        if 4 * (high - low) >= top > 0:
            # A range of whole bits is the same for the next data set of the same camera.
            return 0.0, top
    return (low, high) if high > low else (low, low + 1)


def _numbers(values: ImageRange, between: str) -> str:
    return between.join(f"{value:.10g}" for value in values)


def decide_exif(options: ConvertOptions, source: SampleSource) -> ConvertOptions:
    """Options that say what masks were drawn on, if the sizes of some samples leave it open and others tell.

    Reads headers only, and decides the same in every process. In sources other than files, an image whose size does
    not tell is refused when it is converted.
    """
    if options.exif is not None or not isinstance(source.reader, FileReader):
        return options
    with ThreadPoolExecutor(READ_THREADS) as pool:
        votes = Counter(pool.map(partial(_drawn, source.reader), source.samples))
    num_doubtful, raw, turned = votes["unknown"], votes["raw"], votes["upright"]
    if not num_doubtful:
        warn_of_raw_masks("raw" if raw else None)
        return options
    if bool(raw) == bool(turned):
        return options
    # The masks of one data set come from one tool, so images that are turned on their side decide for the others.
    logger.info(
        "%d images have an EXIF orientation that does not change their size: their masks are taken as drawn on %s, "
        "like those of %d other images, whose sizes tell (--exif raw or --exif upright overrides this).",
        num_doubtful,
        "the pixels as stored" if raw else "the image as viewers show it",
        raw or turned,
    )
    return replace(options, exif="raw" if raw else "upright")


def _drawn(reader: FileReader, sample: RawSample) -> Drawn | Literal["unknown"] | None:
    """The pixels that the mask was drawn on, by its size; "unknown" if both fit; None if EXIF turns nothing."""
    try:
        with open(reader.images / sample.image, "rb") as file:
            image = Image.open(file)
            orientation, size = orientation_of(image), (image.height, image.width)
        if orientation == 1:
            return None
        if shown_size(size, orientation) == size:
            return "unknown"
        with Image.open(reader.masks / sample.mask) as mask:
            return drawn_by_size(size, orientation, (mask.height, mask.width))
    except Exception:  # conversion reports unreadable files
        return None


def warn_of_raw_masks(drawn: Drawn | None) -> None:
    """Log a warning if masks were drawn on stored pixels: models do not record it, and prediction turns images."""
    if drawn == "raw":
        logger.warning(
            "masks were drawn on the stored pixels of images that have an EXIF orientation, and a model learns from "
            "these pixels; but predict.py turns such images upright and may do worse on them: give it copies without "
            "the orientation (exiftool -Orientation= FILE removes it), or shards."
        )
