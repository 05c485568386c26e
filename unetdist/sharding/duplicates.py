"""Finds images that are equal byte by byte: copies and links, which a validation set must not share with training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from unetdist.cli.logs import logger
from unetdist.sharding.sources import FileReader, Sample, Source

_HEAD = 2**14
"""Bytes of files of equal size that are compared before whole files are read."""
_THREADS = 16
"""Threads that read side by side: on a network disk a file takes as long as its round trip."""
_NAMED = 3

Copies = Mapping[str, str]
"""Key of a sample whose image others have, too -> SHA-256 of the image's file, by which they are known as one."""


def find_copies(source: Source) -> Copies:
    """Samples of files whose images are equal, all of each group; other sources are not compared.

    Only files of one size are opened, and only those that begin alike are read whole.
    """
    reader = source.reader
    if not isinstance(reader, FileReader):
        return {}
    paths = {sample.key: reader.images / sample.image for sample in source.samples}
    groups: list[list[str]] = [sorted(paths)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for attribute in (_size, _head):
            groups = [
                part
                for group in groups
                for part in _parts(group, pool.map(attribute, (paths[key] for key in group)))
            ]
        keys = [key for group in groups for key in group]
        digests = dict(zip(keys, pool.map(_digest, (paths[key] for key in keys)), strict=True))
    numbers = Counter(digests.values())
    return {key: digest for key, digest in digests.items() if digest is not None and numbers[digest] > 1}


def tell_copies(copies: Copies) -> None:
    """One warning that counts the copies, without the first image of each group, and names some."""
    firsts: dict[str, str] = {}
    others = [(key, first) for key in sorted(copies) if (first := firsts.setdefault(copies[key], key)) != key]
    if others:
        logger.warning(
            "%d images have the same bytes as others (%s%s): each copy counts.",
            len(others),
            ", ".join(f"{key} is {first}" for key, first in others[:_NAMED]),
            " ..." if len(others) > _NAMED else "",
        )


def tell_leaks(train: Sequence[Sample], val: Sequence[Sample], copies: Copies) -> None:
    """A warning where images of the validation set are in the training set as well."""
    known = {copies.get(sample.key) for sample in train} - {None}
    leaked = [sample.key for sample in val if copies.get(sample.key) in known]
    if leaked:
        logger.warning(
            "%d of %d validation images are in the training set too, byte by byte (%s%s): scores will be too good; "
            "name the copies of an image on one side of --val-list.",
            len(leaked),
            len(val),
            ", ".join(leaked[:_NAMED]),
            " ..." if len(leaked) > _NAMED else "",
        )


def _parts(keys: Sequence[str], attributes: Iterable[Hashable]) -> list[list[str]]:
    """Those with one attribute together, without the only ones of their kind and those that cannot be read."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for key, attribute in zip(keys, attributes, strict=True):
        if attribute is not None:
            groups[attribute].append(key)
    return [group for group in groups.values() if len(group) > 1]


def _size(path: Path) -> int | None:
    with suppress(OSError):  # an unreadable file is reported where it is converted
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
