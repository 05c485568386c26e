"""Decides what the masks of a data set were drawn on, where an EXIF orientation does not change the size of an image.

An image that is turned on its side, and not square, tells it by the size of its mask. Those of a data set that tell it
decide for the others: masks of one data set come from one tool.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from unetdist.cli.logs import logger
from unetdist.data.image_file import Drawn, drawn_by_size, orientation_of, shown_size
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.sources import FileReader, Sample, Source

_HEAD = 2**16
"""Bytes at the beginning of a JPEG or PNG in which its EXIF is."""
_THREADS = 16
"""Threads that read side by side: on a network disk an image takes as long as its round trip."""


@dataclass(frozen=True)
class _Turned:
    """A sample whose image has an orientation to undo."""

    sample: Sample
    size: tuple[int, int]
    """(height, width) as stored."""
    orientation: int


def decide_exif(options: ConvertOptions, source: Source) -> ConvertOptions:
    """Options that say what masks were drawn on, if some images leave it open and others of the source tell it.

    Looks at headers alone, and decides the same in every process that asks. Sources other than files are not looked
    at: their images are refused where the sizes cannot tell and `exif` is not given.
    """
    reader = source.reader
    if options.exif is not None or not isinstance(reader, FileReader):
        return options
    turned = find_turned(reader, source.samples)
    doubtful = [each for each in turned if shown_size(each.size, each.orientation) == each.size]
    if not doubtful:
        tell_raw(next(filter(None, (_drawn(reader, each) for each in turned)), None))
        return options
    votes = Counter(drawn for each in turned if (drawn := _drawn(reader, each)) is not None)
    if len(votes) != 1:
        return options
    ((drawn, number),) = votes.items()
    logger.info(
        "%d images have an EXIF orientation that does not change their size: their masks are taken to be drawn on %s, "
        "as %d others of this data set show by their sizes (--exif raw or --exif upright says it).",
        len(doubtful),
        "the pixels as stored" if drawn == "raw" else "the image as viewers show it",
        number,
    )
    return replace(options, exif=drawn)


def tell_raw(drawn: Drawn | None) -> None:
    """A warning where masks were drawn on stored pixels: models do not know it, and prediction turns images."""
    if drawn == "raw":
        logger.warning(
            "masks are drawn on the stored pixels of images that have an EXIF orientation, and a model learns from "
            "these pixels; but predict.py turns such images upright and may do worse on them: give it copies without "
            "the orientation (exiftool -Orientation= FILE removes it), or shards."
        )


def find_turned(reader: FileReader, samples: Sequence[Sample]) -> list[_Turned]:
    """The samples whose images have an orientation other than 1."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda sample: _turned(reader.images / sample.image, sample), samples)
        return [each for each in found if each is not None]


def _turned(path: Path, sample: Sample) -> _Turned | None:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if head[:2] == b"\xff\xd8" and b"Exif\0" not in head:
                return None  # spares most files Pillow's parser
            image = Image.open(file)
            orientation = orientation_of(image)
            return None if orientation == 1 else _Turned(sample, (image.height, image.width), orientation)
    except Exception:  # conversion reports what is unreadable
        return None


def _drawn(reader: FileReader, turned: _Turned) -> Drawn | None:
    try:
        with Image.open(reader.masks / turned.sample.mask) as mask:
            return drawn_by_size(turned.size, turned.orientation, (mask.height, mask.width))
    except Exception:  # conversion reports what is unreadable
        return None
