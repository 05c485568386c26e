"""Where the bytes of every sample of a tar lie, and their checksums: headers are hopped over.

Reads what ustar, GNU and PAX writers leave; agrees with `tarfile` and is five times faster. Unlike the stock
readers it notices a tar that was cut at a member's end, whose lost samples would otherwise go unmissed.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.shards import BLOCK, INDEX_COLUMNS, checksum, unescape_key
from unetdist.errors import ConfigError, DataError
from unetdist.storage.files import open_file

DATA_TYPES = b"0\0" + b"7"
LINK_TYPES = b"123456"
"""Links, devices, folders: a name without bytes, whatever their size field says."""

MAX_EXTENDED = 2**24
"""Bytes of an extended header, which is read into memory."""

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class MemberNames:
    """How a tar's members are named: a key ends at the first dot, the extension follows, as webdataset has it."""

    mask: str = "{stem}.mask.png"
    """Template of a mask, without its folder."""
    image: str | None = None
    """Template of an image; None: the other picture of the key."""

    def __post_init__(self) -> None:
        for option, template in (("mask", self.mask), ("image", self.image)):
            if template is not None and template.count("{stem}") != 1:
                raise ConfigError(
                    f'--{option}-name ({template}) must hold {{stem}} once; use for example "{{stem}}.seg.png".'
                )

    def split(self, name: str) -> tuple[str, str] | None:
        """(key, part) of a member, the part being "mask", "image" or an extension; None: not of a sample."""
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
    """Of its first header: an extended one (long name) where there is one."""
    offset: int
    size: int


def index_tar(path: str | Path, names: MemberNames = OURS, *, source: object = None) -> np.ndarray:
    """The index of a tar, int64 (n, 6), columns as in `INDEX_COLUMNS`.

    Args:
        path: A tar in which a sample's members lie side by side.
        names: Which members are the masks, and which the images.
        source: What errors call the tar; None: its path.

    Raises:
        DataError: The tar is cut off or damaged, or a sample lacks its image or mask, has two images, or is
            spread over the tar.
    """
    source = path if source is None else source
    rows: list[tuple[int, ...]] = []
    seen: set[str] = set()
    last, members = "", dict[str, Member]()
    with open_file(path) as file:
        for member in read_members(file, source):
            if (found := names.split(member.name)) is None:
                continue
            key, part = found
            if key != last and members:
                rows.append(_row(file, members, last, source, names))
                members = {}
            if not members and key in seen:
                raise DataError(
                    f"the members of key {key} do not lie side by side; pack the tar anew with "
                    "`tar --sort=name -cf`.",
                    source=source,
                )
            last = key
            seen.add(key)
            if part in members:
                what = f"members {part}" if part.startswith(".") else f"{part}s"
                raise DataError(f"key {key} has two {what}; remove one.", source=source)
            members[part] = member
        if members:
            rows.append(_row(file, members, last, source, names))
    return np.array(rows, dtype=np.int64).reshape(-1, len(INDEX_COLUMNS))


def read_key(path: str | Path, header_offset: int) -> str:
    """The key of the sample whose first header lies at `header_offset` of the tar, as its source had it."""
    with open_file(path) as file:
        file.seek(header_offset)
        return key_at(file, path)


def key_at(file: BinaryIO, source: object) -> str:
    """The key of the sample whose first header the file stands at; of its data nothing need be there."""
    member = next(_members(file, source, end=2**63), None)
    if member is None:
        raise DataError("no sample begins here; index the tar again.", source=source)
    match = _KEY_AND_EXTENSION.fullmatch(member.name)
    return unescape_key(match[1] if match else member.name)


def _row(
    file: BinaryIO, members: dict[str, Member], key: str, source: object, names: MemberNames
) -> tuple[int, ...]:
    mask = members.get("mask")
    images = [
        member
        for part, member in members.items()
        if (part == "image" if names.image else part in PICTURE_SUFFIXES)
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
    position = file.tell()
    crc32 = checksum(_content(file, image), _content(file, mask))
    file.seek(position)
    return first, image.offset, image.size, mask.offset, mask.size, crc32


def _content(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def read_members(file: BinaryIO, source: object) -> Iterator[Member]:
    """The regular files from the file's position on, up to the end-of-archive blocks; only zeros may follow."""
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(position)
    yield from _members(file, source, end)
    while rest := file.read(2**20):
        if rest.count(0) != len(rest):
            raise DataError(
                "has data after its end-of-archive blocks, like two tars joined by `cat`: readers would not see the "
                "second; unpack it with `tar --ignore-zeros -xf`, and pack it again.",
                source=source,
            )


def _members(file: BinaryIO, source: object, end: int) -> Iterator[Member]:
    """The regular files up to the end-of-archive blocks; no member may reach beyond byte `end`."""
    extended: dict[str, str] = {}
    first = None
    while True:
        position = file.tell()
        header = file.read(BLOCK)
        if header == bytes(BLOCK) and file.read(BLOCK) == bytes(BLOCK):
            return
        if len(header) < BLOCK or header == bytes(BLOCK):
            raise DataError(
                "cut off: the end-of-archive blocks are missing; copy or write this tar again.", source=source
            )
        first = position if first is None else first
        _check(header, position, source)
        kind = header[156:157]
        size = 0 if kind in LINK_TYPES else _size(header, extended, position, source)
        offset = position + BLOCK
        after = offset + size + -size % BLOCK
        if after > end:
            raise DataError(
                f"cut off inside the member at byte {position}; copy or write this tar again.", source=source
            )
        if kind in b"xL" and size > MAX_EXTENDED:
            raise DataError(
                f"the header at byte {position} says that it is {size} bytes long; pack the tar again.",
                source=source,
            )
        if kind == b"x":
            extended |= _pax_records(file.read(size), source)
        elif kind == b"L":
            extended["path"] = _text(file.read(size))
        elif kind in DATA_TYPES:
            yield Member(extended.get("path") or _name(header), first, offset, size)
            extended, first = {}, None
        elif kind in LINK_TYPES:
            extended, first = {}, None
        elif kind not in b"gK":
            raise DataError(
                f"member at byte {position} is of type {kind!r} (a sparse file?); pack the tar anew.",
                source=source,
            )
        file.seek(after)


def _check(header: bytes, position: int, source: object) -> None:
    """Compare the checksum: the sum of the header's bytes with its own field taken as spaces."""
    if _number(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise DataError(
            f"damaged, or no tar: the header at byte {position} is wrong; copy or write it again.",
            source=source,
        )


def _size(header: bytes, extended: Mapping[str, str], position: int, source: object) -> int:
    """Bytes of a member; its extended header knows better."""
    if "size" in extended:
        text = extended["size"]
        size = int(text) if re.fullmatch("[0-9]{1,19}", text) else None
    else:
        size = _number(header[124:136])
    if size is None or size >= 2**63:
        raise DataError(
            f"the header at byte {position} gives no size for its member; pack the tar again.", source=source
        )
    return size


def _number(field: bytes) -> int | None:
    """Octal digits between blanks up to a NUL, or base 256 behind a byte 0x80 (8 GiB and more); None: neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    # int() would take signs and underscores too: a negative size leads back, and so round and round.
    digits = field.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(b"[0-7]*", digits) else None


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _pax_records(data: bytes, source: object) -> dict[str, str]:
    """Records of "LENGTH key=value" and a line feed; LENGTH counts all of it."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = int(digits) if re.fullmatch(b"[0-9]{1,9}", digits) else 0
        key, equals, value = data[len(digits) + 1 : length].partition(b"=")
        if not equals or length > len(data) or value[-1:] != b"\n" or key.startswith(b"GNU.sparse"):
            raise DataError("damaged or sparse (PAX header); pack the tar anew.", source=source)
        records[_text(key)] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return records
