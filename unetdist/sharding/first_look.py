"""The masks of a few samples, before all are read: whether they are masks, and whether the label file is theirs."""

from collections.abc import Sequence
from dataclasses import dataclass

from unetdist.data.labels import Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import CLOSE, MANY, MaskNotes, fault_of, resampled
from unetdist.data.labels.masks import MaskReading, read_mask
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions, read_sample
from unetdist.sharding.sources import Reader, Sample

NUM_SAMPLES = 8
_FEW = 64
"""Colours that a mask may have in addition to the listed ones; a photograph has more. Where unlisted ones are accepted,
a mask may have many."""
_COMMON = 0.005
"""Part of all pixels from which a colour is a class of its own, not an edge or an error."""

_EXCHANGE = "Exchange --images and --masks (or the columns of --list or --dataset), or name the masks with --mask-name."
_REMEDY = "Give --labels the file of these masks, or list there what is missing."


@dataclass(frozen=True)
class _Look:
    sample: Sample
    image: bytes
    reading: MaskReading
    fault: str | None

    @property
    def is_far(self) -> bool:
        """Whether most of the mask is listed by no label, not even nearly."""
        return _far(self.reading) > 0.5

    @property
    def num_colors(self) -> int:
        return sum(unknown.num_colors for unknown in self.reading.unknowns)


def look(reader: Reader, samples: Sequence[Sample], palette: Palette, options: ConvertOptions) -> None:
    """Read some samples, spread over all, and refuse at once what no other sample could mend.

    What single samples lack (a file, a size, a colour) is left to the pass over all, which tells it together.

    Raises:
        DataError: Images and masks are exchanged, the masks are photographs, lossy or resized, or the label file is
            that of other masks.
    """
    number = min(NUM_SAMPLES, len(samples))
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
            f"Nothing else was looked at.\n{census.report(remedy=_REMEDY)}",
            source=palette.path,
        )


def _look_at(reader: Reader, sample: Sample, palette: Palette, options: ConvertOptions) -> _Look | None:
    try:
        image, mask = read_sample(reader, sample, options.max_pixels)
        reading = _examine(mask, palette, options)
    except DataError:
        return None
    return _Look(sample, image, reading, fault_of(reading, palette, options.unknown_colors))


def _examine(data: bytes, palette: Palette, options: ConvertOptions) -> MaskReading:
    return read_mask(data, palette, mask_format=options.mask_format, unknown_colors=options.unknown_colors)


def _far(reading: MaskReading) -> float:
    """The part of the pixels that no label lists, nor has a colour that compression could make of a listed one."""
    far = (x.count for x in reading.unknowns if not reading.is_color or x.distance > CLOSE)
    return sum(far) / reading.mask.size


def _refuse_photographs(looks: Sequence[_Look], palette: Palette, options: ConvertOptions) -> None:
    images = list[MaskReading]()
    for seen in looks:
        try:
            images.append(_examine(seen.image, palette, options))
        except DataError:
            break
    if len(images) == len(looks) and all(_far(image) < 0.01 for image in images):
        raise DataError(
            f"is an image that has the colours of {palette.path}, and its mask {looks[0].sample.mask} has not (nor "
            f"have {len(looks) - 1} others): images and masks are exchanged. {_EXCHANGE}",
            source=looks[0].sample.image,
        )
    most = _FEW if options.unknown_colors == "error" else MANY
    if all(seen.num_colors > most for seen in looks):
        raise DataError(
            f"has {looks[0].num_colors:,} colours that {palette.path} does not list, as a photograph (so have "
            f"{len(looks) - 1} others): are images and masks exchanged? {_EXCHANGE}",
            source=looks[0].sample.mask,
        )


def _are_others(census: Census, notes: MaskNotes) -> bool:
    """Whether the masks have at least three classes that are not listed, and far fewer that are."""
    common = census.colors_over(_COMMON * notes.num_pixels, beyond=CLOSE)
    return common >= 3 and common > 2 * len(notes.classes)
