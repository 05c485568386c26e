"""Adds restart markers to a JPEG without decoding its pixels; the loader can then decode crops of it.

All coefficients stay the same. Only the first DC value of each channel in each interval gets a new code, because it is
no longer stored as the difference from the previous one.
"""

import math
import struct

import numpy as np
import numpy.typing as npt

from unetdist.data.jpeg import DHT, DRI, EOI, SOI, JpegHeader, interval_ends, parse_header, restarts
from unetdist.sharding.huffman import (
    Channel,
    DamagedJpegError,
    HuffmanTable,
    Ints,
    find_blocks,
    lengths_and_symbols,
    read_channels,
)

# Width of an interval in pixels: narrow ones fit a crop well, wide ones cost fewer bytes.
IDEAL_WIDTH, LEAST_WIDTH = 56, 32
# Maximum number of bits of a DC value or difference.
_MAX_CATEGORY = 11


def add_restart_markers(data: bytes) -> bytes | None:
    """The same JPEG with restart markers at equal steps of each row of MCUs, about `IDEAL_WIDTH` pixels wide.

    A JPEG that has such markers, or is too small for two intervals, is returned unchanged. None if they cannot be
    added: the data are not a baseline JPEG, are damaged, or continue after the image (as in an MPO of several images).
    """
    header = parse_header(data)
    if header is None or not header.is_baseline:
        return None
    interval = best_interval(header.mcus_per_row, header.mcu_width)
    is_small = header.mcus_per_row * header.num_mcu_rows == interval
    if is_small or (header.is_sliceable and header.restart_interval <= interval):
        return data
    try:
        return _with_intervals(data, header, interval)
    except DamagedJpegError:
        return None


def best_interval(mcus_per_row: int, mcu_width: int) -> int:
    """MCUs between restart markers: a divisor of a row's, or the whole row if all others are tiny."""
    divisors = (n for n in range(1, mcus_per_row) if mcus_per_row % n == 0 and n * mcu_width >= LEAST_WIDTH)
    return min((*divisors, mcus_per_row), key=lambda n: abs(math.log(n * mcu_width / IDEAL_WIDTH)))


def _with_intervals(data: bytes, header: JpegHeader, interval: int) -> bytes:
    channels = read_channels(data, header)
    num_mcus = header.mcus_per_row * header.num_mcu_rows
    old = header.restart_interval or num_mcus
    ends = interval_ends(data, header.scan_offset, -(-num_mcus // old))
    if ends is None or data[ends[-1] :].strip(b"\0"):
        raise DamagedJpegError
    starts = [header.scan_offset, *ends[:-1].tolist()]
    parts = [data[start : end - 2] for start, end in zip(starts, ends.tolist(), strict=True)]
    # Zero bytes after 0xFF are stuffing of the file format, not data.
    parts = [part.replace(b"\xff\0", b"\xff") for part in parts]
    stream = b"".join(parts)
    bounds = np.cumsum([0, *map(len, parts)]) * 8
    blocks, part_ends = find_blocks(stream, bounds.tolist(), channels, num_mcus, old)
    edits, tables = _edits(stream, blocks, part_ends, channels, old, interval)
    intervals = _apply(stream, edits, int(part_ends[-1]))
    return _head(data, header, interval, tables) + _joined(intervals) + data[ends[-1] :]


def _edits(
    stream: bytes, blocks: Ints, part_ends: Ints, channels: list[Channel], old: int, new: int
) -> tuple[list[list[int]], dict[int, HuffmanTable]]:
    """The new codes of DC values that are first in an interval, old or new.

    Returns:
        Rows in the order of the stream: first bit to replace, first bit to keep, the new code, its length, whether an
        interval starts there; and the extended tables by number.
    """
    mcus = np.arange(len(blocks))
    edited = np.flatnonzero((mcus % old == 0) | (mcus % new == 0))
    first_columns = np.cumsum([0, *(channel.num_blocks for channel in channels)])
    lefts = blocks[edited][:, first_columns[:-1]]
    lefts[edited % old == 0, 0] = np.concatenate(([0], part_ends[:-1]))
    padded = np.frombuffer(stream + bytes(4), np.uint8)
    afters, differences = np.empty_like(lefts), np.empty_like(lefts)
    for number, channel in enumerate(channels):
        places = blocks[:, first_columns[number] : first_columns[number + 1]]
        bits, old_differences = _read_dc(padded, places.ravel(), channel.dc)
        afters[:, number] = (places + bits.reshape(places.shape))[edited, 0]
        differences[:, number] = _new_differences(old_differences.reshape(places.shape), edited, old, new)
    codes, sizes, tables = _encode_dc(differences, channels)
    begins = np.zeros_like(lefts)
    begins[edited % new == 0, 0] = 1
    return np.stack((lefts, afters, codes, sizes, begins), -1).reshape(-1, 5).tolist(), tables


def _read_dc(padded: npt.NDArray[np.uint8], places: Ints, table: HuffmanTable) -> tuple[Ints, Ints]:
    """Lengths of the codes of DC differences, including their bits, and the differences."""
    word = np.zeros_like(places)
    for offset in range(5):
        word = word << 8 | padded[(places >> 3) + offset]
    word = word >> (8 - (places & 7)) & 0xFFFFFFFF
    lengths, categories = (array[word >> 16].astype(np.int64) for array in lengths_and_symbols(table))
    # A window without a code means that the data are damaged.
    if not lengths.all() or categories.max() > _MAX_CATEGORY:
        raise DamagedJpegError
    bits, span = lengths + categories, 1 << categories
    value = word >> (32 - bits) & (span - 1)
    return bits, np.where(value < span >> 1, value - span + 1, value)


def _new_differences(differences: Ints, edited: Ints, old: int, new: int) -> Ints:
    """Differences for the first blocks of `edited` MCUs, from the old differences (MCUs, blocks)."""
    sums = np.cumsum(differences).reshape(differences.shape)
    before = np.concatenate(([0], sums[:-1, -1]))
    values: Ints = sums[edited, 0] - before[edited // old * old]
    last = np.maximum(edited - 1, 0)
    previous = before[edited] - before[last // old * old]
    return np.where(edited % new == 0, values, values - previous)


def _encode_dc(differences: Ints, channels: list[Channel]) -> tuple[Ints, Ints, dict[int, HuffmanTable]]:
    """Codes and lengths of differences (n, channels), and the extended tables by number."""
    categories = np.frexp(np.abs(differences))[1].astype(np.int64)
    if categories.max() > _MAX_CATEGORY:
        raise DamagedJpegError
    tables = {channel.dc_number: channel.dc for channel in channels}
    for number, channel in enumerate(channels):
        tables[channel.dc_number] = tables[channel.dc_number].with_symbols(set(categories[:, number].tolist()))
    codes, lengths = np.zeros((2, len(channels), 256), np.int64)
    for number, channel in enumerate(channels):
        for symbol, (code, length) in tables[channel.dc_number].codes().items():
            codes[number, symbol], lengths[number, symbol] = code, length
    columns = np.arange(len(channels))
    values = differences + np.where(differences < 0, (1 << categories) - 1, 0)
    changed = {number: table for number, table in tables.items() if table not in [one.dc for one in channels]}
    return (codes[columns, categories] << categories | values, lengths[columns, categories] + categories, changed)


def _apply(stream: bytes, edits: list[list[int]], end: int) -> list[bytes]:
    """The entropy-coded data of each interval, up to bit `end`."""
    intervals = []
    value = length = 0
    for (_, start, code, size, begins), (stop, *_) in zip(edits, [*edits[1:], [end]], strict=True):
        if begins and length:
            intervals.append(_filled(value, length))
            value = length = 0
        kept = stop - start
        bits = int.from_bytes(stream[start >> 3 : (stop + 7) >> 3]) >> (-stop & 7) & ((1 << kept) - 1)
        value = (value << size | code) << kept | bits
        length += size + kept
    return [*intervals, _filled(value, length)]


def _filled(value: int, length: int) -> bytes:
    """Bits as whole bytes, padded with ones and stuffed so that nothing looks like a marker."""
    missing = -length % 8
    return (((value + 1) << missing) - 1).to_bytes((length + missing) // 8).replace(b"\xff", b"\xff\0")


def _joined(intervals: list[bytes]) -> bytes:
    markers = [b"\xff%c" % number for number in restarts(len(intervals) - 1)]
    return b"".join(map(bytes.__add__, intervals, [*markers, EOI]))


def _head(data: bytes, header: JpegHeader, interval: int, tables: dict[int, HuffmanTable]) -> bytes:
    """All segments of the file, followed by the interval and the extended tables."""
    *segments, scan = [data[start:end] for marker, start, end in header.segments if marker != DRI]
    segments.append(struct.pack(">BBHH", 0xFF, DRI, 4, interval))
    for number, table in tables.items():
        size = 19 + len(table.symbols)
        segments.append(struct.pack(">BBHB", 0xFF, DHT, size, number) + table.counts + table.symbols)
    return b"".join((SOI, *segments, scan))
