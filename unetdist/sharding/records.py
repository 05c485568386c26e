"""What is known of each finished shard, in the folder's `.ingest`: by it runs go on, and processes are added up."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from unetdist.cli import json_records
from unetdist.data.labels.mask_report import MaskNotes
from unetdist.data.labels.masks import UnknownColor
from unetdist.data.manifest import MANIFEST_NAME, Shard
from unetdist.data.shards import INDEX_COLUMNS, encode_index
from unetdist.sharding.sources import Problem
from unetdist.sharding.statistics import Statistics
from unetdist.storage.folders import Folder

RECORDS = ".ingest"
"""Folder of the records, in the folder of the shards."""


@dataclass(frozen=True)
class Found:
    """What a sample's mask held that the label file does not list."""

    file: str
    unknown: UnknownColor


@dataclass(frozen=True)
class Finished:
    """What a worker tells of its shard; `shard` is None where problems kept it from being finished."""

    number: int
    num_samples: int
    """Bad ones too."""
    shard: Shard | None
    statistics: Statistics
    problems: tuple[Problem, ...]
    found: tuple[Found, ...]
    has_index_masks: bool = True
    """All masks are grey PNGs of class indices, which need no labels to be read."""
    is_kept: bool = False
    """It was there already, and is whole."""
    is_replaced: bool = False
    """A record of it was there already, but it was not whole: it was made anew."""
    notes: MaskNotes = field(default_factory=MaskNotes)
    """How the masks were read."""


class Job(Protocol):
    """One shard to be made, or to be indexed; goes to a worker process."""

    @property
    def folder(self) -> Folder:
        """Of the records."""

    @property
    def number(self) -> int:
        """Place of the shard among all."""

    @property
    def num_samples(self) -> int:
        """What progress counts."""

    @property
    def fingerprint(self) -> str:
        """Of all that decides the outcome where all samples are good (if not, `policy` matters too)."""

    @property
    def policy(self) -> Sequence[Any]:
        """What matters only if something is bad."""

    def has_sizes(self, shard: Shard) -> bool:
        """Whether what was made is there, by its sizes alone: for those who did not make it."""

    def is_whole(self, shard: Shard) -> bool:
        """Whether what was made is still there, by its contents as far as they can be had."""

    def make(self) -> Finished:
        """Do the work; `OSError` where its results cannot be written."""


def finish(job: Job) -> Finished:
    """Keep what is there and whole, else make it and record it."""
    old = load(job, record_name(job.number))
    if old is not None and old.shard is not None and job.is_whole(old.shard):
        return replace(old, is_kept=True)
    # First the manifest: it must never stand over indexes that it was not written for.
    former = [MANIFEST_NAME, *(record_name(job.number, is_bad=is_bad) for is_bad in (False, True))]
    for name in former:
        job.folder.remove(name)
    finished = job.make()
    record = {
        **asdict(finished),
        "fingerprint": job.fingerprint,
        "policy": list(job.policy),
        "statistics": finished.statistics.to_record(),
    }
    # File names that are not UTF-8 hold half characters, which JSON can only escape.
    text = json.dumps(json_records.sealed(record), indent=1, ensure_ascii=False).encode(
        "utf-8", "backslashreplace"
    )
    job.folder.write(record_name(job.number, is_bad=finished.shard is None), text)
    return replace(finished, is_replaced=old is not None)


def has_size(folder: Folder, name: str, num_bytes: int) -> bool:
    """Whether a file is there and of this size (or of one that the server does not say)."""
    try:
        return folder.size(name) in (num_bytes, None)
    except OSError:
        return False


def has_index(folder: Folder, shard: Shard) -> bool:
    """Whether the shard's index is there, by its size."""
    empty = np.zeros((shard.num_samples, len(INDEX_COLUMNS)), np.int64)
    return has_size(folder, shard.index_name, len(encode_index(empty)))


def record_name(number: int, *, is_bad: bool = False) -> str:
    """Of what is known of a shard; one that problems kept from being finished is told by its name."""
    return f"{RECORDS}/{number:06d}{'.bad' if is_bad else ''}.json"


def load(job: Job, name: str) -> Finished | None:
    """The record of this name, if it is of this job; None where it is absent or damaged."""
    try:
        data = job.folder.read(name)
    except OSError:
        return None
    try:
        record = json_records.unsealed(json_records.parse(data))
        is_clean = not record["problems"] and not record["found"]
        if record["fingerprint"] != job.fingerprint or not (is_clean or record["policy"] == list(job.policy)):
            return None
        return Finished(
            number=job.number,
            num_samples=json_records.build(int, record["num_samples"]),
            shard=None if record["shard"] is None else json_records.build(Shard, record["shard"]),
            statistics=Statistics.from_record(record["statistics"]),
            problems=json_records.build(tuple[Problem, ...], record["problems"]),
            found=json_records.build(tuple[Found, ...], record["found"]),
            has_index_masks=json_records.build(bool, record["has_index_masks"]),
            notes=MaskNotes.from_record(record.get("notes", {})),  # earlier versions noted nothing
        )
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError):  # damaged
        return None
