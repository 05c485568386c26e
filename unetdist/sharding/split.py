"""Which samples are copies of each other, which go to training or validation, and which shard holds them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import FileReader, RawSample, SampleSource, read_lines

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
    samples: Sequence[RawSample], val_fraction: float, copies: Copies
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
    if samples and not (train and val):
        raise DataError(
            f"none of {len(samples)} samples goes to {'training' if val else 'validation'} with --val-fraction "
            f"{val_fraction:g}; choose another fraction, or list the validation samples with --val-list."
        )
    return train, val


def split_by_list(samples: Sequence[RawSample], path: str | Path) -> tuple[list[RawSample], list[RawSample]]:
    """(train, val): the lines of the file at `path` list the validation samples by key or image file name."""
    lines = [line.strip() for line in read_lines(Path(path))]
    named = {name for sample in samples for name in (sample.key, sample.image)}
    wanted = {line for line in lines if line and not line.startswith("#")}
    if unknown := sorted(wanted - named):
        raise DataError(
            f"{len(unknown)} of {len(wanted)} lines match no sample, the first is {unknown[0]!r}; write one "
            f"key per line, such as {samples[0].key if samples else 'folder/stem'}.",
            source=path,
        )
    train, val = list[RawSample](), list[RawSample]()
    for sample in samples:
        (val if wanted & {sample.key, sample.image} else train).append(sample)
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
    # Cheap comparisons first: the size, which a stamp begins with, and the first bytes. Few files are read whole.
    sizes = {sample.key: sample.stamp.partition(":")[0] for sample in source.samples}
    # Empty files are no images, and conversion reports each of them.
    values = {key: size for key, size in sizes.items() if size != "0"}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for num_bytes in (_HEAD, -1):
            alike = _repeated(values)
            hashes = pool.map(partial(_sha256, num_bytes=num_bytes), (paths[key] for key in alike))
            values = dict(zip(alike, hashes, strict=True))
    return {key: values[key] for key in _repeated(values)}


def _repeated(values: Mapping[str, str]) -> list[str]:
    """Keys whose value occurs more than once; those of unreadable files have none."""
    counts = Counter(values.values())
    return [key for key, value in values.items() if value and counts[value] > 1]


def _sha256(path: Path, *, num_bytes: int) -> str:
    with suppress(OSError), open(path, "rb") as file:  # conversion reports unreadable files
        return hashlib.sha256(file.read(num_bytes)).hexdigest()
    return ""


def log_copies(copies: Copies, val: Sequence[RawSample] = ()) -> None:
    """Log a warning of images that occur more than once, and of those in `val` that are in the training set too."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(copies):
        groups[copies[key]].append(key)
    # The first key of each group is the original, so a group of three counts as two copies.
    others = [f"{key} is {first}" for first, *rest in groups.values() for key in rest]
    if others:
        shown = ", ".join(others[:_NUM_NAMED])
        logger.warning("%d images have the same bytes as others (%s): each counts as a sample.", len(others), shown)
    val_keys = {sample.key for sample in val}
    leaked = [key for group in groups.values() if not val_keys.issuperset(group) for key in group if key in val_keys]
    if leaked:
        logger.warning(
            "%d of %d validation images are also in the training set, byte by byte (%s): scores will be too good; "
            "put all copies of an image on one side with --val-list.",
            len(leaked),
            len(val_keys),
            ", ".join(leaked[:_NUM_NAMED]),
        )
