"""One shard's samples from source to tar: the work of one worker process."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from unetdist.data.ingest.pictures import ImageFormat, Picture, store_image
from unetdist.data.ingest.sources import Problem, Reader, Sample
from unetdist.data.ingest.statistics import Statistics
from unetdist.data.labels import Palette
from unetdist.data.labels.census import UnknownColor
from unetdist.data.labels.masks import MaskFormat, UnknownColors, read_mask
from unetdist.data.manifest import Shard
from unetdist.data.shards import ShardWriter, encode_mask, load_index, open_shard, save_index
from unetdist.data.tar_index import index_tar
from unetdist.errors import ConfigError, DataError
from unetdist.storage import write_json

RECORDS = ".ingest"
"""Folder of what is known of each finished shard: by it an interrupted run goes on."""

BAD_SAMPLE = "bad sample"
UNKNOWN_COLORS = "mask with unknown colours"
"""Kinds of `Problem`."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What decides the bytes of a shard, besides the samples and the palette."""

    resize: tuple[int, int] | None = None
    """(width, height) of every image (by area) and mask (nearest); None: as they come."""
    image_format: ImageFormat | None = None
    """Re-encode images of other formats; None: only those that not everyone can decode (to PNG)."""
    image_range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; None: 0 and 65535."""
    mask_format: MaskFormat = "auto"
    unknown_colors: UnknownColors = "error"
    skip_bad: bool = False
    """Leave bad samples out instead of refusing the data set."""

    def __post_init__(self) -> None:
        if self.resize and min(self.resize) < 1:
            width, height = self.resize
            raise ConfigError(f"resize ({width}x{height}) must be at least 1x1; use for example 480x360.")
        if self.image_range and self.image_range[0] >= self.image_range[1]:
            low, high = self.image_range
            raise ConfigError(f"image_range ({low:g} {high:g}) must ascend; use for example 0 4095.")


POLICY = ("unknown_colors", "skip_bad")
"""Options that matter to a shard only if something in it is bad."""


@dataclass(frozen=True)
class Found:
    """What a sample's mask held that the label file does not list."""

    file: str
    unknown: UnknownColor


@dataclass(frozen=True)
class Finished:
    """What a worker tells of its shard; `shard` is None where problems kept it from being written."""

    number: int
    num_samples: int
    """Of the job, bad ones too."""
    shard: Shard | None
    statistics: Statistics
    problems: tuple[Problem, ...]
    found: tuple[Found, ...]
    is_kept: bool = False
    """It was there already, and is whole."""


@dataclass(frozen=True)
class Job:
    """One shard to be made; goes to a worker process."""

    folder: Path
    number: int
    samples: tuple[Sample, ...]
    reader: Reader
    palette: Palette
    options: ConvertOptions
    is_rehearsal: bool = False
    """Look for problems only, write nothing."""

    @property
    def path(self) -> Path:
        """Of the tar."""
        return self.folder / f"{self.number:06d}.tar"

    @property
    def record_path(self) -> Path:
        """Of what is known of the finished shard."""
        return self.folder / RECORDS / f"{self.number:06d}.json"

    @property
    def fingerprint(self) -> str:
        """Of all that decides the bytes of a shard whose samples are all good (if not, `POLICY` matters too)."""
        samples = [
            [sample.key, sample.image, sample.mask, sample.row, sample.stamp] for sample in self.samples
        ]
        options = {name: value for name, value in asdict(self.options).items() if name not in POLICY}
        text = json.dumps([samples, self.palette.to_records(), options])
        return hashlib.sha256(text.encode()).hexdigest()


def finish_shard(job: Job) -> Finished:
    """Keep the shard if it is there and whole, else write it. `OSError` where it cannot be written."""
    return _keep(job) or _write(job)


def _keep(job: Job) -> Finished | None:
    try:
        record = json.loads(job.record_path.read_text(encoding="utf-8"))
        is_clean = not record["problems"] and not record["found"]
        if record["fingerprint"] != job.fingerprint or not (is_clean or record["policy"] == _policy(job)):
            return None
        if _sha256(job.path) != record["shard"]["sha256"]:
            return None
        finished = _from_record(job, record)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: written anew
        return None
    index = index_tar(job.path)
    try:
        is_indexed = np.array_equal(load_index(job.path), index)
    except (OSError, ValueError):
        is_indexed = False
    if not is_indexed:
        save_index(job.path, index)
    return finished


def _write(job: Job) -> Finished:
    statistics, problems, found = Statistics(), list[Problem](), list[Found]()
    job.record_path.unlink(missing_ok=True)
    if job.is_rehearsal:
        _convert_all(job, None, statistics, problems, found)
        return Finished(job.number, len(job.samples), None, statistics, tuple(problems), tuple(found))
    try:
        with open_shard(job.path) as writer:
            _convert_all(job, writer, statistics, problems, found)
            if problems and not job.options.skip_bad:
                raise _BadShardError
    except _BadShardError:
        return Finished(job.number, len(job.samples), None, statistics, tuple(problems), tuple(found))
    finished = Finished(job.number, len(job.samples), writer.shard, statistics, tuple(problems), tuple(found))
    write_json(job.record_path, _to_record(job, finished))
    return finished


class _BadShardError(Exception):
    """Leaves `open_shard` so that it discards the tar."""


def _convert_all(
    job: Job, writer: ShardWriter | None, statistics: Statistics, problems: list[Problem], found: list[Found]
) -> None:
    for sample in job.samples:
        try:
            picture, mask, unknowns = _convert(job, sample)
        except DataError as error:
            problems.append(Problem(BAD_SAMPLE, f"{sample.image}, {sample.mask}", str(error)))
            continue
        found += [Found(sample.mask, unknown) for unknown in unknowns]
        if unknowns and job.options.unknown_colors == "error":
            problems.append(Problem(UNKNOWN_COLORS, sample.mask, f"{len(unknowns)} not in the label file"))
            continue
        statistics.add(picture.pixels, mask, picture.channels, picture.is_kept)
        if writer and (job.options.skip_bad or not problems):
            record = {"key": sample.key, "height": mask.shape[0], "width": mask.shape[1]}
            names = {"image": sample.image, "mask": sample.mask}
            writer.add(sample.key, picture.data, picture.extension, encode_mask(mask), record | names)


def _convert(job: Job, sample: Sample) -> tuple[Picture, npt.NDArray[np.uint8], Sequence[UnknownColor]]:
    options = job.options
    try:
        image, mask_file = job.reader.read(sample)
    except OSError as error:
        raise DataError(f"cannot be read: {error}") from None
    mask, unknowns = read_mask(
        mask_file, job.palette, mask_format=options.mask_format, unknown_colors=options.unknown_colors
    )
    picture = store_image(
        image,
        (mask.shape[0], mask.shape[1]),
        resize=options.resize,
        image_format=options.image_format,
        image_range=options.image_range,
    )
    if options.resize:
        # The exact one takes pixel centres, as resizing by area does; the other is off by half a pixel.
        mask = cv2.resize(mask, options.resize, interpolation=cv2.INTER_NEAREST_EXACT).astype(
            np.uint8, copy=False
        )
    return picture, mask, unknowns


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _policy(job: Job) -> list[Any]:
    return [getattr(job.options, name) for name in POLICY]


def _to_record(job: Job, finished: Finished) -> dict[str, Any]:
    return {
        "fingerprint": job.fingerprint,
        "policy": _policy(job),
        "shard": asdict(finished.shard) if finished.shard else None,
        "statistics": finished.statistics.to_record(),
        "problems": [asdict(problem) for problem in finished.problems],
        "found": [{"file": item.file, "unknown": asdict(item.unknown)} for item in finished.found],
    }


def _from_record(job: Job, record: dict[str, Any]) -> Finished:
    return Finished(
        number=job.number,
        num_samples=len(job.samples),
        shard=Shard(**record["shard"]),
        statistics=Statistics.from_record(record["statistics"]),
        problems=tuple(Problem(**problem) for problem in record["problems"]),
        found=tuple(Found(item["file"], _unknown_color(item["unknown"])) for item in record["found"]),
        is_kept=True,
    )


def _unknown_color(record: dict[str, Any]) -> UnknownColor:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    return UnknownColor(**values)
