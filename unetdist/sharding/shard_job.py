"""One shard to be made by a worker, and the record of a finished one, by which an interrupted run continues.

Records are in the folder `.ingest` inside the folder of the shards. With several processes, they also tell the last
one what the others have finished.
"""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unetdist.cli import json_records
from unetdist.data.labels import Palette
from unetdist.data.labels.mask_report import MaskNotes
from unetdist.data.manifest import MANIFEST_NAME, Shard
from unetdist.data.shards import INDEX_COLUMNS, encode_index, encode_mask, index_path, open_shard, save_index
from unetdist.data.tar_index import index_tar
from unetdist.sharding.account import Account, Statistics, UnlistedColor
from unetdist.sharding.convert import POLICY, Converter, ConvertOptions
from unetdist.sharding.sources import Problem, RawSample, Reader
from unetdist.sharding.stored_image import store_image
from unetdist.storage.files import file_sha256
from unetdist.storage.folders import Folder

RECORDS = ".ingest"


@dataclass(frozen=True)
class FinishedShard:
    """The result of a job; `shard` is None if problems kept it from being finished."""

    number: int
    num_samples: int
    """Samples of the job, including bad ones."""
    shard: Shard | None
    account: Account = field(default_factory=Account)
    has_index_masks: bool = True
    """All masks are grey PNGs of class indices, which need no labels to be read."""
    is_kept: bool = False
    """It existed already and is intact."""


@dataclass(frozen=True, kw_only=True)
class ShardJob(ABC):
    """One shard to be made or indexed; goes to a worker process."""

    folder: Folder
    """Folder of index, records and manifest."""
    number: int
    palette: Palette
    options: ConvertOptions

    @property
    @abstractmethod
    def inputs(self) -> list[Any]:
        """Names and versions of the input, as JSON types."""

    @abstractmethod
    def has_sizes(self, shard: Shard) -> bool:
        """Whether the shard exists with the right sizes: a cheap check of what other processes made."""

    @abstractmethod
    def is_intact(self, shard: Shard) -> bool:
        """Whether the shard still has its contents, as far as these can be checked."""

    @abstractmethod
    def make(self) -> FinishedShard:
        """Do the work; `OSError` if the results cannot be written."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the result if all samples are good (otherwise `POLICY` matters too)."""
        text = json.dumps([self.inputs, self.palette.to_records(), self.options.deciding()])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class WriteJob(ShardJob):
    """A shard of our own, made from samples of a source."""

    samples: tuple[RawSample, ...]
    reader: Reader

    @property
    def name(self) -> str:
        """File name of the tar."""
        return f"{self.number:06d}.tar"

    @property
    def inputs(self) -> list[Any]:
        """Names and stamps of the samples."""
        return [[sample.key, sample.image, sample.mask, sample.row, sample.stamp] for sample in self.samples]

    def has_sizes(self, shard: Shard) -> bool:
        """Whether tar and index exist with the right sizes."""
        return has_size(self.folder, shard.name, shard.num_bytes) and has_index(self.folder, shard)

    def is_intact(self, shard: Shard) -> bool:
        """Check a local tar by its hash and repair its index; check a remote one by its size."""
        if not self.folder.is_local:
            return self.has_sizes(shard)
        path = self.folder.path(self.name)
        try:
            if file_sha256(path) != shard.sha256:
                return False
        except OSError:
            return False
        # The index is cheap to rebuild from the intact tar, so a damaged one costs no conversion.
        save_index(path, index_tar(path))
        return True

    def make(self) -> FinishedShard:
        """Write the shard, unless a sample is bad and bad ones are not to be skipped."""
        options = self.options
        to_stored = partial(
            store_image,
            resize=options.resize,
            image_format=options.image_format,
            image_range=options.image_range,
            seekable=options.seekable,
            exif=options.exif,
        )
        converter = Converter(self.reader, self.palette, options, to_stored)
        return FinishedShard(self.number, len(self.samples), self._write(converter), converter.account)

    def _write(self, converter: Converter) -> Shard | None:
        def is_refused() -> bool:
            return bool(converter.account.problems) and not self.options.skip_bad

        # A remote shard is uploaded when it is whole.
        with tempfile.TemporaryDirectory(prefix="unetdist-") as temporary:
            path = self.folder.path(self.name) if self.folder.is_local else Path(temporary) / self.name
            try:
                with open_shard(path) as writer:
                    for sample in self.samples:
                        # After the first problem, only look for others: the user gets all problems in one run.
                        good = converter.convert(sample)
                        if good is None or is_refused():
                            continue
                        record = {
                            "key": sample.key,
                            "height": good.mask.shape[0],
                            "width": good.mask.shape[1],
                            "image": sample.image,
                            "mask": sample.mask,
                        }
                        mask = encode_mask(good.mask)
                        writer.add(sample.key, good.image.data, good.image.extension, mask, record)
                    if is_refused():
                        raise _BadShardError
            except _BadShardError:
                return None
            if not self.folder.is_local:
                # The index first: a tar that exists is complete.
                self.folder.upload(index_path(self.name).name, index_path(path))
                self.folder.upload(self.name, path)
        return writer.shard


class _BadShardError(Exception):
    """Leaves `open_shard` so that it discards the tar."""


def finish(job: ShardJob) -> FinishedShard:
    """Keep the shard if it exists and is intact; otherwise make it and record it."""
    old = load_record(job, record_name(job.number))
    if old is not None and old.shard is not None and job.is_intact(old.shard):
        return replace(old, is_kept=True)
    # The manifest goes first: it must never describe shards that it was not written for.
    for name in (MANIFEST_NAME, record_name(job.number), record_name(job.number, is_bad=True)):
        job.folder.remove(name)
    finished = job.make()
    account = finished.account
    record = {
        "number": finished.number,
        "num_samples": finished.num_samples,
        "shard": finished.shard and asdict(finished.shard),
        "statistics": account.statistics.to_record(),
        "problems": [asdict(problem) for problem in account.problems],
        "found": [asdict(color) for color in account.found],
        "has_index_masks": finished.has_index_masks,
        "notes": asdict(account.notes),
        "fingerprint": job.fingerprint,
        "policy": _policy(job),
    }
    # File names that are not UTF-8 hold surrogates, which JSON can only escape.
    text = json.dumps(json_records.sealed(record), indent=1, ensure_ascii=False)
    is_bad = finished.shard is None
    job.folder.write(record_name(job.number, is_bad=is_bad), text.encode("utf-8", "backslashreplace"))
    return finished


def _policy(job: ShardJob) -> list[Any]:
    return [getattr(job.options, name) for name in POLICY]


def record_name(number: int, *, is_bad: bool = False) -> str:
    """File name of a shard's record; the name also tells whether problems kept the shard from being finished."""
    return f"{RECORDS}/{number:06d}{'.bad' if is_bad else ''}.json"


def load_record(job: ShardJob, name: str) -> FinishedShard | None:
    """The record of this name if it belongs to this job; None if it is absent or damaged."""
    try:
        data = job.folder.read(name)
    except OSError:
        return None
    try:
        record = json_records.unsealed(json_records.parse(data))
        # Options such as --skip-bad may change without redoing shards in which nothing was bad.
        is_clean = not record["problems"] and not record["found"]
        if record["fingerprint"] != job.fingerprint or not (is_clean or record["policy"] == _policy(job)):
            return None
        build = json_records.build
        return FinishedShard(
            job.number,
            build(int, record["num_samples"]),
            None if record["shard"] is None else build(Shard, record["shard"]),
            Account(
                Statistics.from_record(record["statistics"]),
                list(build(tuple[Problem, ...], record["problems"])),
                list(build(tuple[UnlistedColor, ...], record["found"])),
                MaskNotes(**record.get("notes", {})),  # older versions kept no notes
            ),
            build(bool, record["has_index_masks"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError):  # damaged
        return None


def has_size(folder: Folder, name: str, num_bytes: int) -> bool:
    """Whether a file exists with this size (or with one that the server does not tell)."""
    try:
        return folder.size(name) in (num_bytes, None)
    except OSError:
        return False


def has_index(folder: Folder, shard: Shard) -> bool:
    """Whether the shard's index exists with the right size."""
    # The size of an index file depends on its shape alone.
    empty = np.zeros((shard.num_samples, len(INDEX_COLUMNS)), np.int64)
    return has_size(folder, shard.index_name, len(encode_index(empty)))
