"""Finds which values the images of a source have, where they have more than 8 bits, and which range suits them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unetdist.cli.logs import logger, progress
from unetdist.data.image_file import ImageRange, extremes_of_deep, open_image
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.pool import run_jobs
from unetdist.sharding.sources import Problem, Reader, Sample, Source
from unetdist.sharding.statistics import wider

LITTLE_OF_SIXTEEN_BITS = 2**14
"""Fewer values than these become fewer than 64 of the 256 grey levels."""

_SAMPLES_PER_JOB = 64
_LOOKED_AT = 32


@dataclass(frozen=True)
class Measured:
    """Values of the images of more than 8 bits among some samples."""

    extremes: tuple[float, float] | None = None
    """Lowest and highest; None: there are no such images."""
    is_integer: bool = True
    num_short: int = 0
    """Images of unsigned integers of 16 bits."""
    num_samples: int = 0

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(
            wider(self.extremes, other.extremes),
            self.is_integer and other.is_integer,
            self.num_short + other.num_short,
            self.num_samples + other.num_samples,
        )

    @property
    def suitable(self) -> ImageRange | None:
        """A range that uses most of the 256 grey levels."""
        return None if self.extremes is None else suitable_range(*self.extremes, is_integer=self.is_integer)


@dataclass(frozen=True)
class _Job:
    reader: Reader
    samples: Sequence[Sample]

    def measure(self) -> Measured:
        found = Measured(num_samples=len(self.samples))
        for sample in self.samples:
            try:
                opened = open_image(self.reader.read(sample)[0])
                if opened.is_plain:
                    continue
                values = opened.values()
                if (extremes := extremes_of_deep(values)) is not None:
                    is_integer, is_short = values.dtype.kind in "ui", values.dtype == np.uint16
                    found |= Measured(extremes, is_integer, int(is_short))
            except (DataError, OSError):
                continue  # The sample is reported as a problem when it is written.
        return found


def measured(options: ConvertOptions, source: Source, workers: int) -> ConvertOptions:
    """Options with the range that suits all images of the source, the same in every process that asks."""
    jobs = [
        _Job(source.reader, source.samples[first : first + _SAMPLES_PER_JOB])
        for first in range(0, len(source.samples), _SAMPLES_PER_JOB)
    ]
    found = Measured()
    with progress("measuring the range of values", len(source.samples)) as bar:

        def done(part: Measured) -> None:
            nonlocal found
            found |= part
            bar.advance(part.num_samples)

        run_jobs(_Job.measure, jobs, workers=workers, done=done)
    image_range = found.suitable
    if image_range is None:
        logger.info("--image-range auto: all images have 8 bits and need no range.")
    else:
        low, high = found.extremes or image_range
        logger.info(
            "--image-range auto: values are %s; %s are black and white.",
            _numbers(low, high, " to "),
            _numbers(*image_range, " and "),
        )
    return replace(options, image_range=image_range)


def refuse_little_used(options: ConvertOptions, source: Source) -> None:
    """Stop before hours of writing if a few samples already show that little of 16 bits is used.

    Raises:
        DataError: all images that were looked at have 16 bits and use few of their values.
    """
    if options.image_range is not None or not source.samples:
        return
    few = source.samples[:: -(-len(source.samples) // _LOOKED_AT)]
    found = _Job(source.reader, few).measure()
    if found.num_short == len(few):  # others are refused without a range, one by one
        problem = little_used(options, found.extremes, f"{len(few)} images that were looked at")
        if problem is not None:
            raise DataError(f"{problem.where}: {problem.detail}")


def little_used(options: ConvertOptions, extremes: tuple[float, float] | None, where: str) -> Problem | None:
    """A problem if no range was given and the 16-bit images use few of the values 0..65535."""
    if options.image_range is not None or extremes is None or not _is_little(extremes):
        return None
    return Problem(
        "little of 16 bits is used",
        where,
        f"{_levels(extremes)}; say which are black and white: --image-range "
        f"{_numbers(*suitable_range(*extremes), ' ')} (or --image-range auto; or --image-range 0 65535, if that is "
        "meant).",
    )


def warn_of_little_used(extremes: tuple[float, float] | None) -> None:
    """A warning for images that stay in their tars, where they are read by their high byte whatever they hold."""
    if extremes is not None and _is_little(extremes):
        logger.warning(
            "the images in these tars use little of their 16 bits and lose detail: %s; to keep it, unpack the tars and "
            "write shards with --images DIR --masks DIR --image-range %s.",
            _levels(extremes),
            _numbers(*suitable_range(*extremes), " "),
        )


def _is_little(extremes: tuple[float, float]) -> bool:
    return extremes[1] - extremes[0] < LITTLE_OF_SIXTEEN_BITS


def _levels(extremes: tuple[float, float]) -> str:
    levels = int((extremes[1] - extremes[0]) * 255 / 65535) + 1
    return f"values are {_numbers(*extremes, ' to ')} of 0 to 65535, which would become {levels} of 256 grey levels"


def suitable_range(low: float, high: float, *, is_integer: bool = True) -> ImageRange:
    """The bits that integers need, where these are well used; else the extremes."""
    if is_integer and low >= 0:
        top = float(2 ** int(high).bit_length() - 1)
        if 4 * (high - low) >= top > 0:
            return 0.0, top
    return (low, high) if high > low else (low, low + 1)


def _numbers(low: float, high: float, between: str) -> str:
    return f"{low:.10g}{between}{high:.10g}"
