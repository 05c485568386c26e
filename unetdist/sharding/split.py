"""Training and validation samples, told apart by a list or by a hash."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.duplicates import Copies
from unetdist.sharding.listing import spellings
from unetdist.sharding.sources import Sample, read_lines

_FAR = 0.5
"""How far validation may be from its fraction without a word, as a part of the smaller side."""


def hash_key(key: str) -> int:
    """64 bits that depend on the key alone, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def split_by_hash(
    samples: Sequence[Sample], val_fraction: float, copies: Copies = MappingProxyType({})
) -> tuple[list[Sample], list[Sample]]:
    """(train, val): a sample's side depends on its key and the fraction alone, so other samples do not move it.

    Copies are on one side, which depends on what is in their file instead of on their keys: more copies do not move
    them, but an image that had none may move when its first copy comes.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction ({val_fraction:g}) must be between 0 and 1; use for example 0.2.")
    limit = val_fraction * 2.0**64
    train, val = list[Sample](), list[Sample]()
    for sample in samples:
        name = copies.get(sample.key, sample.key)
        (val if hash_key(f"val {name}") < limit else train).append(sample)
    for name, side in (("training", train), ("validation", val)):
        if samples and not side:
            raise DataError(
                f"none of {len(samples)} samples falls to {name} with --val-fraction {val_fraction:g}; choose "
                "another fraction, or name the samples with --val-list."
            )
    if samples and abs(len(val) / len(samples) - val_fraction) > _FAR * min(val_fraction, 1 - val_fraction):
        logger.warning(
            "--val-fraction %g puts %d samples into training and %d into validation, far from what it asks: few "
            "samples fall unevenly, and copies of an image stay together (%d samples share theirs with others); "
            "remove copies, or name the validation samples with --val-list.",
            val_fraction,
            len(train),
            len(val),
            sum(sample.key in copies for sample in samples),
        )
    return train, val


def split_by_list(samples: Sequence[Sample], path: str | Path) -> tuple[list[Sample], list[Sample]]:
    """(train, val): val is what the lines of the file at `path` name, by key or by the image's file name."""
    lines = [line.strip() for line in read_lines(Path(path))]
    named = {name for sample in samples for name in (sample.key, sample.image)}
    wanted = {
        next((each for each in spellings(line) if each in named), line)
        for line in lines
        if line and not line.startswith("#")
    }
    val = [sample for sample in samples if wanted & {sample.key, sample.image}]
    unknown = sorted(wanted - {name for sample in val for name in (sample.key, sample.image)})
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(wanted)} lines name no sample, the first is {unknown[0]!r}; write one "
            f"key a line, such as {samples[0].key if samples else 'folder/stem'}.",
            source=path,
        )
    chosen = {sample.key for sample in val}
    train = [sample for sample in samples if sample.key not in chosen]
    if samples and not (train and val):
        raise DataError(
            f"names {len(val)} of {len(samples)} samples, which leaves none for {'training' if val else 'validation'}; "
            "write the keys of the validation samples, one a line.",
            source=path,
        )
    return train, val
