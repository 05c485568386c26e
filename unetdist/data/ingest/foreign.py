"""Index and manifest for WebDataset tars that others wrote; the tars stay as they are."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.ingest.convert import BAD_SAMPLE, RECORDS, Finished
from unetdist.data.ingest.folder import Outcome, gather, refusal
from unetdist.data.ingest.pictures import channels_of
from unetdist.data.ingest.pool import run_jobs
from unetdist.data.ingest.sources import Problem
from unetdist.data.ingest.statistics import Statistics
from unetdist.data.labels import Palette
from unetdist.data.manifest import Shard
from unetdist.data.shards import save_index
from unetdist.data.tar_index import index_tar, read_key
from unetdist.errors import DataError
from unetdist.ignore_index import IGNORE_INDEX
from unetdist.logs import progress


@dataclass(frozen=True)
class _Tar:
    number: int
    path: Path
    mask_ext: str
    num_classes: int


def index_folder(
    folder: str | Path, palette: Palette, *, mask_ext: str = "mask.png", workers: int = 1
) -> Outcome:
    """Write `NAME.tar.idx` beside every tar, and, where all samples are good, the manifest.

    Args:
        folder: Of tars whose masks hold class indices 0..C-1, and 255 where they are ignored.
        palette: Their classes.
        mask_ext: Extension of the masks in the tars, without the first dot.
        workers: Processes.

    Raises:
        DataError: No tars, shards of our own, labels whose ids are no indices, or a folder that takes no files.
    """
    folder = Path(folder)
    if (folder / RECORDS).is_dir():
        raise DataError("was written by this program, and has index and manifest already.", source=folder)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError("no .tar files here; give the folder that holds the shards.", source=folder)
    if any(label.index is not None and label.index != label.id for label in palette.labels):
        raise DataError(
            "the masks of the tars are taken as class indices, but the ids of the labels are not 0, 1, 2 ... "
            "without gaps; number the labels so, or unpack the tars and write shards from the files."
        )
    jobs = [_Tar(number, path, mask_ext, palette.num_classes) for number, path in enumerate(paths)]
    finished: list[Finished] = []
    with progress(f"indexing {folder}", len(jobs)) as bar:

        def done(item: Finished) -> None:
            finished.append(item)
            bar.advance()

        with _written(folder):
            run_jobs(_index, jobs, workers=workers, done=done)
    finished.sort(key=lambda item: item.number)
    outcome = gather(folder, finished)
    if outcome.problems:
        return outcome
    if not outcome.statistics.sizes:
        raise DataError("the tars hold no samples.", source=folder)
    shards = [item.shard for item in finished if item.shard]
    manifest = outcome.statistics.to_manifest(shards, palette.to_records(), palette.num_classes, None)
    with _written(folder):
        manifest.save(folder)
    return gather(folder, finished, manifest)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a tar that cannot be read is among the problems
        raise refusal(folder, error, "no manifest is written", "run the same command again") from error


def _index(job: _Tar) -> Finished:
    statistics, problems = Statistics(), list[Problem]()
    try:
        index = index_tar(job.path, mask_ext=job.mask_ext)
        shard = _read(job, index, statistics, problems)
    except (DataError, OSError) as error:
        reason = f"cannot be read: {error}" if isinstance(error, OSError) else str(error)
        return Finished(job.number, 0, None, Statistics(), (Problem("bad tar", str(job.path), reason),), ())
    if not problems:
        save_index(job.path, index)
    return Finished(job.number, len(index), shard, statistics, tuple(problems), ())


def _read(job: _Tar, index: np.ndarray, statistics: Statistics, problems: list[Problem]) -> Shard:
    with open(job.path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for header_offset, *rest, _ in index.tolist():
            try:
                image_offset, image_size, mask_offset, mask_size = rest
                file.seek(image_offset)
                image = file.read(image_size)
                file.seek(mask_offset)
                _count(job, image, file.read(mask_size), statistics)
            except DataError as error:
                where = f"{job.path}, key {read_key(job.path, header_offset)}"
                problems.append(Problem(BAD_SAMPLE, where, str(error)))
    return Shard(job.path.name, len(index), job.path.stat().st_size, sha256)


def _count(job: _Tar, image: bytes, mask: bytes, statistics: Statistics) -> None:
    values, pixels = decode_mask(mask), decode_image(image, 3)
    if values.shape != pixels.shape[:2]:
        raise DataError(
            f"image is {pixels.shape[1]}x{pixels.shape[0]}, mask is {values.shape[1]}x{values.shape[0]} "
            "(width x height); pack the sample anew."
        )
    wrong = values[(values >= job.num_classes) & (values != IGNORE_INDEX)]
    if wrong.size:
        raise DataError(
            f"mask holds {np.unique(wrong).tolist()}, class indices are 0..{job.num_classes - 1} and "
            f"{IGNORE_INDEX} (ignored); complete the labels."
        )
    statistics.add(pixels, values, channels_of(image), is_kept=True)
