"""Which samples are copies of each other, which go to training or validation, and which shard holds them."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import FileReader, RawSample, SampleSource, read_lines, spellings

# Threads that read files concurrently: on a network disk a small file takes one round trip.
READ_THREADS = 16
# Shards of a small data set, as long as each has `MIN_SAMPLES`: ranks and caches work with whole shards.
MIN_SHARDS, MIN_SAMPLES = 16, 8

_HEAD = 2**14
_NUM_NAMED = 3

# Key of a sample whose image occurs more than once -> SHA-256 of the image file.
Copies = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How samples are distributed over shards."""

    samples_per_shard: int | None = None
    """Most samples per shard; None: by size."""
    shard_size_mb: float = 256.0
    """Megabytes of source files per shard, if `samples_per_shard` is None."""
    keep_order: bool = False
    """Samples in the order of their keys; else shuffled by a hash of the key, which separates video neighbours."""

    def __post_init__(self) -> None:
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard ({self.samples_per_shard}) must be 1 or more; use 1000.")
        if self.shard_size_mb <= 0:
            raise ConfigError(f"shard_size_mb ({self.shard_size_mb:g}) must be over 0; use 256.")

    def divide(self, samples: Sequence[RawSample]) -> list[tuple[RawSample, ...]]:
        """The samples of each shard, in order; shard sizes differ by at most one."""
        ordered = sorted(samples, key=lambda sample: sample.key)
        if not self.keep_order:
            ordered.sort(key=lambda sample: hash_key(sample.key))
        if self.samples_per_shard:
            count = max(1, -(-len(ordered) // self.samples_per_shard))
        else:
            by_size = round(sum(sample.num_bytes for sample in ordered) / (self.shard_size_mb * 1e6))
            count = max(1, by_size, min(MIN_SHARDS, len(ordered) // MIN_SAMPLES))
        # Equal shards: a small last one would leave some ranks with less to read.
        bounds = [len(ordered) * number // count for number in range(count + 1)]
        return [tuple(ordered[bounds[number] : bounds[number + 1]]) for number in range(count)]


def hash_key(key: str) -> int:
    """64 bits that depend on the key alone, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def split_by_hash(
    samples: Sequence[RawSample], val_fraction: float, copies: Copies = MappingProxyType({})
) -> tuple[list[RawSample], list[RawSample]]:
    """(train, val), decided by each sample's key and the fraction alone, so that other samples do not move it.

    Copies of an image go to one side, decided by the contents of the file: adding more copies does not move them, but
    an image may move when its first copy is added.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction ({val_fraction:g}) must be between 0 and 1; use for example 0.2.")
    # A threshold on a hash instead of a shuffle: adding samples moves no other sample to the other side.
    limit = val_fraction * 2.0**64
    train, val = list[RawSample](), list[RawSample]()
    for sample in samples:
        name = copies.get(sample.key, sample.key)
        (val if hash_key(f"val {name}") < limit else train).append(sample)
    for name, side in (("training", train), ("validation", val)):
        if samples and not side:
            raise DataError(
                f"none of {len(samples)} samples goes to {name} with --val-fraction {val_fraction:g}; choose "
                "another fraction, or list the validation samples with --val-list."
            )
    return train, val


def split_by_list(samples: Sequence[RawSample], path: str | Path) -> tuple[list[RawSample], list[RawSample]]:
    """(train, val): the lines of the file at `path` list the validation samples by key or image file name."""
    lines = [line.strip() for line in read_lines(Path(path))]
    named = {name for sample in samples for name in (sample.key, sample.image)}
    wanted = {
        next((each for each in spellings(line) if each in named), line)
        for line in lines
        if line and not line.startswith("#")
    }
    if unknown := sorted(wanted - named):
        raise DataError(
            f"{len(unknown)} of {len(wanted)} lines match no sample, the first is {unknown[0]!r}; write one "
            f"key per line, such as {samples[0].key if samples else 'folder/stem'}.",
            source=path,
        )
    val = [sample for sample in samples if wanted & {sample.key, sample.image}]
    chosen = {sample.key for sample in val}
    train = [sample for sample in samples if sample.key not in chosen]
    if samples and not (train and val):
        raise DataError(
            f"lists {len(val)} of {len(samples)} samples, which leaves none for {'training' if val else 'validation'}; "
            "write the keys of the validation samples, one per line.",
            source=path,
        )
    return train, val


def find_copies(source: SampleSource) -> Copies:
    """All samples whose image file equals another one byte by byte; sources other than files are not compared."""
    reader = source.reader
    if not isinstance(reader, FileReader):
        return {}
    paths = {sample.key: reader.images / sample.image for sample in source.samples}
    groups = [sorted(paths)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        # Cheap comparisons first: most files are never opened, and only those that begin alike are read whole.
        for attribute in (_size, _head, _digest):
            keys = [key for group in groups for key in group]
            values = dict(zip(keys, pool.map(attribute, (paths[key] for key in keys)), strict=True))
            groups = [part for group in groups for part in _repeated(group, values)]
    return {key: str(values[key]) for group in groups for key in group}


def log_copies(copies: Copies) -> None:
    """Log one warning with the number of copies, not counting the first image of each group."""
    # The first key of each group is the original, so a group of three counts as two copies.
    firsts: dict[str, str] = {}
    others = [(key, first) for key in sorted(copies) if (first := firsts.setdefault(copies[key], key)) != key]
    if others:
        logger.warning(
            "%d images have the same bytes as others (%s): each copy counts as a sample.",
            len(others),
            _some([f"{key} is {first}" for key, first in others]),
        )


def log_leaks(train: Sequence[RawSample], val: Sequence[RawSample], copies: Copies) -> None:
    """Log a warning if validation images are also in the training set."""
    known = {copies.get(sample.key) for sample in train} - {None}
    leaked = [sample.key for sample in val if copies.get(sample.key) in known]
    if leaked:
        logger.warning(
            "%d of %d validation images are also in the training set, byte by byte (%s): scores will be too good; "
            "put all copies of an image on one side with --val-list.",
            len(leaked),
            len(val),
            _some(leaked),
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (" ..." if len(names) > _NUM_NAMED else "")


def _repeated(keys: Sequence[str], values: Mapping[str, Hashable]) -> list[list[str]]:
    """Groups of keys that share a value; None marks an unreadable file."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for key in keys:
        if values[key] is not None:
            groups[values[key]].append(key)
    return [group for group in groups.values() if len(group) > 1]


# Unreadable files give None here; conversion reports them.
def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size or None
    return None


def _head(path: Path) -> bytes | None:
    with suppress(OSError), open(path, "rb") as file:
        return file.read(_HEAD)
    return None


def _digest(path: Path) -> str | None:
    with suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None
