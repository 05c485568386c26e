"""Cuts a small JPEG out of a large one with restart markers, so that a crop costs only the decoding of its own pixels.

At a restart marker the entropy-coded data restart at a byte, so whole intervals can be joined to another image. If a
whole number of intervals fills each row of MCUs (the blocks that are coded together), the intervals that cover a box
form a JPEG of their own, whose pixels are bit for bit those of the whole image.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Part of the MCUs from which decoding the whole image takes no longer than cutting and decoding a part.
MOST_OF_PICTURE = 0.85

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOS, DRI, DHT = 0xDA, 0xDD, 0xC4
_FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
# Segments that do not affect pixels: comments and application data, except JFIF's and Adobe's colours.
_UNSEEN = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}
_WHOLE_SPECTRUM = b"\0\x3f\0"
_STUFFING = 0
_RESTARTS = bytes(range(0xD0, 0xD8))


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Header of a JPEG: everything before the entropy-coded data."""

    height: int
    width: int
    channels: int
    """1 grey, 3 colour, 4 CMYK."""
    is_baseline: bool
    """Whether it is sequential Huffman coding of 8 bits, 1 or 3 channels, in one scan; if not, only the fields above
    are valid."""
    mcu_height: int
    mcu_width: int
    """Width in pixels of the smallest coded unit."""
    restart_interval: int
    """MCUs between restart markers; 0 if there are none."""
    margin_y: int
    margin_x: int
    """Pixels beyond a box that decoders read when they enlarge halved colour."""
    segments: tuple[tuple[int, int, int], ...]
    """(marker, start, end) of all segments between SOI and the entropy-coded data."""
    sof_offset: int
    scan_offset: int
    """First byte of the entropy-coded data."""

    @property
    def mcus_per_row(self) -> int:
        """The last one may be cut by the edge."""
        return -(-self.width // self.mcu_width)

    @property
    def num_mcu_rows(self) -> int:
        """The last one may be cut by the edge."""
        return -(-self.height // self.mcu_height)

    @property
    def is_sliceable(self) -> bool:
        """Whether every row of MCUs begins at a restart marker."""
        return self.is_baseline and self.restart_interval > 0 and self.mcus_per_row % self.restart_interval == 0


def parse_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None for other files and if the data are damaged before the image size."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    segments: list[tuple[int, int, int]] = []
    sof_offset, interval, at, size = 0, 0, 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if end < at + 4 or end > size:
            break
        segments.append((marker, at, end))
        if marker == DRI and end == at + 6:
            interval = data[at + 4] << 8 | data[at + 5]
        elif marker in _FRAMES:
            if sof_offset:
                return None
            sof_offset = at
        elif marker == SOS:
            break
        at = end
    return _header(data, tuple(segments), sof_offset, interval) if sof_offset else None


def _header(data: bytes, segments: tuple[tuple[int, int, int], ...], sof: int, interval: int) -> JpegHeader | None:
    marker, start, end = segments[-1]
    length, bits, height, width, channels = struct.unpack_from(">HBHHB", data.ljust(sof + 10), sof + 2)
    if length != 8 + 3 * channels or not channels or not height or not width:
        return None
    factors = data[sof + 11 : sof + 10 + 3 * channels : 3]
    across, down = [factor >> 4 for factor in factors], [factor & 15 for factor in factors]
    most_across, most_down = max(across), max(down)
    is_baseline = (
        data[sof + 1] in _SEQUENTIAL
        and bits == 8
        and channels in (1, 3)
        and min(across) > 0
        and min(down) > 0
        and marker == SOS
        and end - start == 8 + 2 * channels
        and data[start + 4] == channels
        and data[end - 3 : end] == _WHOLE_SPECTRUM
    )
    return JpegHeader(
        height,
        width,
        channels,
        is_baseline,
        # The blocks of a single channel are in plain rows, whatever its factors.
        8 if channels == 1 else 8 * most_down,
        8 if channels == 1 else 8 * most_across,
        interval,
        int(any(2 * factor == most_down for factor in down)),
        int(any(2 * factor == most_across for factor in across)),
        segments,
        sof,
        end,
    )


def cut(data: bytes, header: JpegHeader, top: int, left: int, bottom: int, right: int) -> tuple[bytes, int, int] | None:
    """A smaller JPEG that holds a box of pixels, and the row and column of its first pixel in the whole image.

    Decoded, the box has the same pixels as in the whole image. None if nothing can be cut: the image is not
    `is_sliceable`, its restart markers are wrong, or the box is outside or covers nearly all of it.
    """
    if not (header.is_sliceable and 0 <= top < bottom <= header.height and 0 <= left < right <= header.width):
        return None
    per_row, num_rows = header.mcus_per_row // header.restart_interval, header.num_mcu_rows
    interval_width = header.restart_interval * header.mcu_width
    first_row = max(top - header.margin_y, 0) // header.mcu_height
    end_row = min(-(-(bottom + header.margin_y) // header.mcu_height), num_rows)
    # At least a whole MCU, because libjpeg enlarges colour of one or two columns differently.
    leftmost = min(left - header.margin_x, header.width - header.mcu_width)
    first = max(leftmost, 0) // interval_width
    end = min(-(-(right + header.margin_x) // interval_width), per_row)
    if (end_row - first_row) * (end - first) > MOST_OF_PICTURE * num_rows * per_row:
        return None
    ends = interval_ends(data, header.scan_offset, num_rows * per_row)
    if ends is None:
        return None
    starts = np.concatenate(([header.scan_offset], ends[:-1]))
    y, x = first_row * header.mcu_height, first * interval_width
    height = min(end_row * header.mcu_height, header.height) - y
    width = min(end * interval_width, header.width) - x
    part = _assemble(
        data,
        _resized_head(data, header, height, width),
        starts.reshape(num_rows, per_row)[first_row:end_row, first],
        ends.reshape(num_rows, per_row)[first_row:end_row, first:end],
    )
    return part, y, x


def interval_ends(data: bytes, scan_offset: int, num_intervals: int) -> npt.NDArray[np.intp] | None:
    """End of each interval, after its marker (EOI for the last); None if one is missing or out of order."""
    stream = np.frombuffer(data, np.uint8)[scan_offset:]
    escapes = np.flatnonzero(stream[:-1] == 0xFF)
    # A value of 255 is followed by a zero, so anything else after it is a marker.
    markers = escapes[stream[escapes + 1] != _STUFFING][:num_intervals]
    if len(markers) < num_intervals or stream[markers + 1].tobytes() != restarts(num_intervals - 1) + EOI[1:]:
        return None
    ends: npt.NDArray[np.intp] = markers + (scan_offset + 2)
    return ends


def restarts(count: int) -> bytes:
    """Second bytes of the first `count` restart markers of an image."""
    return (_RESTARTS * (count // 8 + 1))[:count]


def _resized_head(data: bytes, header: JpegHeader, height: int, width: int) -> bytes:
    """The header of an image like this one, but of another size."""
    head = bytearray(SOI)
    for marker, start, end in header.segments:
        if start == header.sof_offset:
            head += data[start : start + 5] + struct.pack(">HH", height, width) + data[start + 9 : end]
        elif marker not in _UNSEEN:
            head += data[start:end]
    return bytes(head)


def _assemble(data: bytes, head: bytes, row_starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]) -> bytes:
    """Join intervals that end at `ends` (rows, intervals) and are contiguous in each row into one image."""
    row_ends = ends[:, -1]
    rows = zip(row_starts.tolist(), row_ends.tolist(), strict=True)
    part = bytearray().join([head, *(data[start:end] for start, end in rows)])
    moved = len(head) + np.cumsum(row_ends - row_starts) - row_ends
    numbers = (ends + moved[:, None] - 1).ravel()
    np.frombuffer(part, np.uint8)[numbers] = np.frombuffer(restarts(len(numbers) - 1) + EOI[1:], np.uint8)
    return bytes(part)
