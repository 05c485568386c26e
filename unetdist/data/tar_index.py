"""Where the bytes of every sample of a tar are, and their checksums.

`tarfile` reads the headers. It ends quietly at a header that is damaged or missing, so that the samples behind it would
be lost unnoticed; here that is an error.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np

from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.shards import BLOCK, INDEX_COLUMNS, checksum
from unetdist.errors import ConfigError, DataError
from unetdist.storage.files import open_file

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class MemberNames:
    """How a tar's members are named: as in WebDataset, a key ends at the first dot, where its extension begins."""

    mask: str = "{stem}.mask.png"
    """Template of a mask, without its folder."""
    image: str | None = None
    """Template of an image; None: the other picture with the same key."""

    def __post_init__(self) -> None:
        for option, template in (("mask", self.mask), ("image", self.image)):
            if template is not None and template.count("{stem}") != 1:
                raise ConfigError(
                    f'--{option}-name ({template}) must hold {{stem}} once; use for example "{{stem}}.seg.png".'
                )

    def split(self, name: str) -> tuple[str, str] | None:
        """(key, part) of a member; the part is "mask", "image" or an extension. None: it belongs to no sample."""
        if re.match(r"__[^/]*__($|/)", name):
            return None
        for part, template in (("mask", self.mask), ("image", self.image)):
            if template is not None and (match := _pattern(template).fullmatch(name)):
                return match[1] + match[2], part
        match = _KEY_AND_EXTENSION.fullmatch(name)
        return None if match is None or self.image is not None else (match[1], f".{match[2].lower()}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    before, after = map(re.escape, template.split("{stem}"))
    return re.compile(f"((?:.*/|)){before}([^./]+){after}", re.DOTALL | re.IGNORECASE)


OURS = MemberNames()


@dataclass(frozen=True)
class Member:
    """A regular file in a tar."""

    name: str
    header_offset: int
    """Offset of its first header: the extended one if it has a long name."""
    offset: int
    size: int


def index_tar(path: str | Path, names: MemberNames = OURS, *, source: object = None) -> np.ndarray:
    """The index of a tar, int64 (n, 6), with the columns of `INDEX_COLUMNS`.

    `DataError`, with the `source` instead of the path if given, if the tar is cut off or damaged, or a sample lacks
    its image or mask, has two images, or is spread over the tar.
    """
    source = path if source is None else source
    rows: list[tuple[int, ...]] = []
    seen: set[str] = set()
    with open_file(path) as file:
        split = ((names.split(member.name), member) for member in read_members(file, source))
        of_samples = ((*found, member) for found, member in split if found is not None)
        for key, group in groupby(of_samples, key=itemgetter(0)):
            # WebDataset groups neighbours only, and would make two samples of them.
            if key in seen:
                raise DataError(
                    f"the members of key {key} are not side by side; pack the tar again with `tar --sort=name -cf`.",
                    source=source,
                )
            seen.add(key)
            members: dict[str, Member] = {}
            for _, part, member in group:
                if part in members:
                    what = f"members {part}" if part.startswith(".") else f"{part}s"
                    raise DataError(f"key {key} has two {what}; remove one.", source=source)
                members[part] = member
            rows.append(_row(file, members, key, source, names))
    return np.array(rows, dtype=np.int64).reshape(-1, len(INDEX_COLUMNS))


def read_key(path: str | Path, header_offset: int) -> str:
    """The key of the sample whose first header is at `header_offset` of the tar, as its source had it."""
    with open_file(path) as file:
        file.seek(header_offset)
        return key_at(file, path)


def key_at(file: BinaryIO, source: object) -> str:
    """The key of the sample whose first header is at the file's position; its data need not be there."""
    member = next(_members(file, source, end=2**63), None)
    if member is None:
        raise DataError("no sample begins here; index the tar again.", source=source)
    match = _KEY_AND_EXTENSION.fullmatch(member.name)
    return unquote(match[1] if match else member.name)  # undoes `escape_key`


def _row(file: BinaryIO, members: dict[str, Member], key: str, source: object, names: MemberNames) -> tuple[int, ...]:
    mask = members.get("mask")
    images = [
        member for part, member in members.items() if (part == "image" if names.image else part in PICTURE_SUFFIXES)
    ]
    have = ", ".join(members[part].name.removeprefix(key) for part in members)
    if mask is None:
        wanted = names.mask.replace("{stem}", key.rpartition("/")[2])
        raise DataError(
            f"key {key} has no mask {wanted} (it has {have}); name the masks with --mask-ext or --mask-name.",
            source=source,
        )
    if len(images) != 1:
        wanted = names.image or "one of " + ", ".join(PICTURE_SUFFIXES)
        raise DataError(
            f"key {key} has {len(images)} images besides its mask (it has {have}); {wanted} is expected"
            + ("." if names.image else ", or say which with --image-name."),
            source=source,
        )
    image = images[0]
    first = min(member.header_offset for member in members.values())
    # pread leaves the position to the reader of the headers.
    crc32 = checksum(*(os.pread(file.fileno(), part.size, part.offset) for part in (image, mask)))
    return first, image.offset, image.size, mask.offset, mask.size, crc32


def read_members(file: BinaryIO, source: object) -> Iterator[Member]:
    """The regular files of a tar; `DataError` where it is cut off or damaged, or anything follows its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    yield from _members(file, source, end)
    # tarfile stops without an error at a wrong header, and at the end of a file that was cut.
    position = file.tell()
    start = file.read(2 * BLOCK)
    if start[:BLOCK].strip(b"\0"):
        raise DataError(
            f"damaged: the header at byte {position} is wrong; copy or write this tar again.", source=source
        )
    if start != bytes(2 * BLOCK):
        raise DataError("cut off: the end-of-archive blocks are missing; copy or write this tar again.", source=source)
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise DataError(
                "has data after its end-of-archive blocks, like two tars joined by `cat`: readers would not see the "
                "second; unpack it with `tar --ignore-zeros -xf`, and pack it again.",
                source=source,
            )


def _members(file: BinaryIO, source: object, end: int) -> Iterator[Member]:
    """The regular files from the file's position on, up to what is no header; no member may reach beyond `end`."""
    position = file.tell()
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if info.type not in tarfile.SUPPORTED_TYPES or info.issparse():
                raise DataError(
                    f"the member at byte {position} is of type {info.type!r} or sparse; pack the tar again.",
                    source=source,
                )
            # A negative size would lead back, and so round and round.
            if info.size < 0 or tar.offset > end:
                raise DataError(
                    f"cut off inside the member at byte {position}; copy or write this tar again.", source=source
                )
            position = tar.offset
            if info.isreg():
                yield Member(info.name, info.offset, info.offset_data, info.size)
        file.seek(tar.offset)
    except DataError:
        raise
    except Exception as error:  # tarfile lets errors of Python's types through
        raise DataError(
            f"damaged, or no tar: the header at byte {position} is wrong ({error or 'too large'}); copy or write this "
            "tar again.",
            source=source,
        ) from None
