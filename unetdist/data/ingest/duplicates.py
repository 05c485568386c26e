"""Finds images that are equal byte by byte: copies and links, which a validation set must not share with training."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from unetdist.data.ingest.sources import FileReader, Sample, Source
from unetdist.logs import logger

_HEAD = 2**14
"""Bytes of files of equal size that are compared before whole files are read."""
_THREADS = 16
"""Threads that read side by side: on a network disk a file takes as long as its round trip."""
_NAMED = 3

Originals = Mapping[str, str]
"""Key of a duplicate -> key of the first sample whose image has the same bytes."""


def find_originals(source: Source) -> Originals:
    """Samples of files whose image is a copy of another one's; other sources are not compared.

    Only files of one size are opened, and only those that begin alike are read whole.
    """
    reader = source.reader
    if not isinstance(reader, FileReader):
        return {}
    paths = {sample.key: reader.images / sample.image for sample in source.samples}
    groups: list[list[str]] = [sorted(paths)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for attribute in (_size, _head, _digest):
            groups = [
                part
                for group in groups
                for part in _parts(group, pool.map(attribute, (paths[key] for key in group)))
            ]
    return {key: group[0] for group in groups for key in group[1:]}


def tell_copies(originals: Originals) -> None:
    """One warning that counts them and names the first."""
    if originals:
        named = ", ".join(f"{key} is {original}" for key, original in sorted(originals.items())[:_NAMED])
        logger.warning(
            "%d images have the same bytes as others (%s%s): each copy counts.",
            len(originals),
            named,
            " ..." if len(originals) > _NAMED else "",
        )


def tell_leaks(train: Sequence[Sample], val: Sequence[Sample], originals: Originals) -> None:
    """A warning where images of the validation set are in the training set as well."""
    known = {originals.get(sample.key, sample.key) for sample in train}
    leaked = [sample.key for sample in val if originals.get(sample.key, sample.key) in known]
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


def _digest(path: Path) -> bytes | None:
    with suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
    return None
