"""Reads the pages and bands of a TIFF, and corrects its tags so that Pillow and OpenCV keep all bands.

The format is TIFF 6.0 (Adobe 1992); BigTIFF has wider fields. Pillow drops the fourth band of RGB and infrared. OpenCV
drops all but the first band unless they are called RGB. Both misread planar bands of 16 bits.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from unetdist.errors import DataError

SUPPORTED = "supported are 1 (grey), 3 (RGB) and 4 (RGB and one more)"

_SUBFILE, _BITS, _PHOTOMETRIC, _ORIENTATION, _BANDS, _PLANES = 254, 258, 262, 274, 277, 284
# Pages below this one: raw files of cameras have the full image there, and a smaller copy as the first page.
_SUB_PAGES = 330
# A text that nobody reads, and the tag before `_EXTRA`: tags must be sorted.
_PRINTER = 337
_EXTRA, _FORMAT = 338, 339
# struct letter by integer type.
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TEXT, _SHORT = 2, 3
# Most values that are read of a tag.
_MANY = 64
_GREY, _RGB = (0, 1), 2
# Bits of a page's kind: a smaller copy of another, or its mask.
_REDUCED, _MASK = 1, 4
_SIGNED = 2
_ALPHA, _PLAIN_ALPHA = (1, 2), 2


class Tiff(NamedTuple):
    """The first page of a TIFF, as its tags describe it."""

    data: bytes
    """The file, with tags corrected so that no decoder drops a band."""
    bands: int
    bits: int
    """Bits per value in the widest band."""
    orientation: int
    """Orientation 1..8, which Pillow applies while it loads the image."""

    @property
    def is_deep_colors(self) -> bool:
        """Whether Pillow would keep only 8 bits of each colour, or cannot read the file at all."""
        return self.bits > 8 and (self.bands > 1 or self.bits > 32)

    @property
    def unturned(self) -> bytes:
        """The file with orientation 1, because OpenCV applies some orientations and fails at others."""
        return _replaced(self.data, next(_pages(self.data)), _ORIENTATION, 1)


class _Page(NamedTuple):
    order: str
    """Byte order for struct, `<` or `>`."""
    offset: str
    """struct letter of an offset: `I`, or `Q` in BigTIFF."""
    entries: dict[int, tuple[int, int, int]]
    """Tag -> offset of its entry, type and number of values."""

    def values(self, data: bytes, tag: int) -> tuple[int, ...]:
        """The integers of an entry; empty if the entry is absent."""
        where, kind, count = self.entries.get(tag, (0, 0, 0))
        if kind not in _INTEGERS or count > _MANY:
            return ()
        layout = f"{self.order}{count}{_INTEGERS[kind]}"
        room = struct.calcsize(self.order + self.offset)
        at = where + 4 + room
        # Values that do not fit into the entry are elsewhere, and the entry holds their offset.
        if struct.calcsize(layout) > room:
            (at,) = struct.unpack_from(self.order + self.offset, data, at)
        return struct.unpack_from(layout, data, at)

    def first(self, data: bytes, tag: int, default: int) -> int:
        """The first integer of an entry."""
        return (self.values(data, tag) or (default,))[0]


def read_tiff(data: bytes) -> Tiff | None:
    """Describe a TIFF by its tags; None for other files and damaged tags.

    Raises:
        DataError: several pages, a first page that is a copy of another, an unsupported number of bands, or a layout
            that no decoder reads.
    """
    if not is_tiff(data):
        return None
    try:
        every = list(_pages(data))
        first = every[0]
        num_pages = sum(not _is_of_another(page, data) for page in every)
        has_others = len(every) > 1 or _SUB_PAGES in first.entries
        bits = max(first.values(data, _BITS), default=1)
        bands = first.first(data, _BANDS, 1)
        photometric = first.first(data, _PHOTOMETRIC, 1)
        planes = first.first(data, _PLANES, 1)
        extra = first.values(data, _EXTRA)
        is_signed = _SIGNED in first.values(data, _FORMAT)
        orientation = first.first(data, _ORIENTATION, 1)
    except (struct.error, IndexError):
        return None
    if num_pages > 1:
        raise DataError(f"image holds {num_pages} frames or pages; save each as a file of its own.")
    if has_others and _is_of_another(first, data):
        raise DataError(
            "the first page of the image is a smaller copy or a mask of another; save the other page as its own file."
        )
    is_grey_with_alpha = bands == 2 and extra[:1] and extra[0] in _ALPHA and bits <= 8
    if bands not in (1, 3, 4) and not is_grey_with_alpha:
        raise DataError(f"image has {bands} bands; {SUPPORTED}: save the bands that matter as a file of their own.")
    if is_signed and bits == 8:
        raise DataError("image has signed values of 8 bits; save it with unsigned ones.")
    if bands > 1 and bits > 8 and (planes != 1 or photometric not in (*_GREY, _RGB)):
        what = "planar bands" if planes != 1 else "colours other than RGB"
        raise DataError(
            f"image has {bits} bits and {what}; save it as RGB, interleaved by pixel (gdal_translate -co "
            "INTERLEAVE=PIXEL -co PHOTOMETRIC=RGB)."
        )
    if bands >= 3 and photometric in (*_GREY, _RGB):
        data = _as_rgb(data, first, bands, extra)
    return Tiff(data, bands, bits, orientation if orientation in range(1, 9) else 1)


def is_tiff(data: bytes) -> bool:
    """Whether the data begin like a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _pages(data: bytes) -> Iterator[_Page]:
    order = "<" if data[:2] == b"II" else ">"
    is_big = b"+" in data[2:4]
    offset, number_kind = ("Q", f"{order}Q") if is_big else ("I", f"{order}H")
    entry_kind = f"{order}HH{offset}{8 if is_big else 4}x"
    size = struct.calcsize(entry_kind)
    seen: set[int] = set()
    (at,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    while at and at not in seen:
        seen.add(at)
        (number,) = struct.unpack_from(number_kind, data, at)
        at += struct.calcsize(number_kind)
        entries = {}
        for where in range(at, at + number * size, size):
            tag, kind, count = struct.unpack_from(entry_kind, data, where)
            entries[tag] = (where, kind, count)
        yield _Page(order, offset, entries)
        (at,) = struct.unpack_from(order + offset, data, at + number * size)


def _is_of_another(page: _Page, data: bytes) -> bool:
    return any(kind & (_REDUCED | _MASK) for kind in page.values(data, _SUBFILE))


def _as_rgb(data: bytes, page: _Page, bands: int, extra: tuple[int, ...]) -> bytes:
    """Declare three bands RGB and a fourth one alpha, which all decoders keep."""
    data = _replaced(data, page, _PHOTOMETRIC, _RGB)
    if bands == 4 and extra and (len(extra) > 1 or extra[0] not in _ALPHA):
        return _replaced(data, page, _EXTRA, _PLAIN_ALPHA)
    if bands == 3 and extra:
        return _replaced(data, page, _EXTRA, 0, as_tag=_PRINTER, kind=_TEXT)
    return data


def _replaced(
    data: bytes, page: _Page, tag: int, value: int, *, as_tag: int | None = None, kind: int = _SHORT
) -> bytes:
    """The file with a new entry in place of that of `tag`, if there is one."""
    if tag not in page.entries:
        return data
    where = page.entries[tag][0]
    entry = struct.pack(f"{page.order}HH{page.offset}HH", as_tag or tag, kind, 1, value, 0)
    return data[:where] + entry + data[where + len(entry) :]
