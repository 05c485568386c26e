"""Finds the start of every block in the Huffman code of a JPEG, without decoding the blocks.

numpy looks up the length of the code that would start at each bit; Python then follows the real codes.
"""

from array import array
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unetdist.data.jpeg import DHT, JpegHeader

Ints = npt.NDArray[np.int64]

# Added to the number of an AC table, as in the file.
_AC = 16
# Limit of the standard for an MCU.
_MAX_BLOCKS = 10
# Bytes that are looked up at a time, which limits the memory.
_CHUNK = 32 * 1024
# Bytes of at most 10 blocks of 64 codes of 31 bits.
_LONGEST_MCU = 3 * 1024
_BLOCK = 64
# Run of an end of block: the runs of a block sum to 64, or to less than 64 plus this.
_END = 128
_NO_CODE = 255
# Runs without a value, which decoders interpret differently.
_MEANINGLESS = np.arange(0x10, 0xF0, 0x10)
# Bits of the longest code.
_WINDOW = 16


class DamagedJpegError(Exception):
    """Data that contradict the header, or impossible tables; handled inside this folder."""


@dataclass(frozen=True)
class HuffmanTable:
    """A table in the form of the file."""

    counts: bytes
    """Number of codes of each length, 1 to 16 bits."""
    symbols: bytes

    def codes(self) -> dict[int, tuple[int, int]]:
        """(code, length) by symbol."""
        codes = {}
        code = at = 0
        for length, count in enumerate(self.counts, 1):
            if code + count > 1 << length:
                raise DamagedJpegError
            for symbol in self.symbols[at : at + count]:
                codes[symbol] = (code, length)
                code += 1
            at += count
            code <<= 1
        return codes

    def with_symbols(self, wanted: set[int]) -> "HuffmanTable":
        """The table with codes for these symbols too, longer than all others, which keep theirs."""
        missing = sorted(wanted - set(self.symbols))
        counts = self.counts.rstrip(b"\0")
        # The standard forbids a code of only ones, which leaves room after the last code; but files may break it.
        is_full = max(self.codes().values())[0] == (1 << len(counts)) - 1
        if missing and (is_full or len(counts) + len(missing) > _WINDOW):
            raise DamagedJpegError
        counts += b"\1" * len(missing)
        return HuffmanTable(counts.ljust(_WINDOW, b"\0"), self.symbols + bytes(missing))


@dataclass(frozen=True)
class Channel:
    """The coding of a channel."""

    num_blocks: int
    """Blocks in an MCU."""
    dc_number: int
    dc: HuffmanTable
    ac: HuffmanTable


def read_channels(data: bytes, header: JpegHeader) -> list[Channel]:
    """The channels of a baseline JPEG in the order of their blocks."""
    tables = _read_tables(data, header)
    _, scan, _ = header.segments[-1]
    channels = []
    for number in range(header.channels):
        name, factors = data[header.sof_offset + 10 + 3 * number :][:2]
        scan_name, numbers = data[scan + 5 + 2 * number :][:2]
        dc, ac = numbers >> 4, numbers & 15 | _AC
        if name != scan_name or dc not in tables or ac not in tables:
            raise DamagedJpegError
        num_blocks = 1 if header.channels == 1 else (factors >> 4) * (factors & 15)
        channels.append(Channel(num_blocks, dc, tables[dc], tables[ac]))
    if sum(channel.num_blocks for channel in channels) > _MAX_BLOCKS:
        raise DamagedJpegError
    return channels


def _read_tables(data: bytes, header: JpegHeader) -> dict[int, HuffmanTable]:
    """Tables by number; 16 is added to those of AC values, as in the file."""
    tables = {}
    for marker, start, end in header.segments:
        at = start + 4
        while marker == DHT and at < end:
            counts = data[at + 1 : at + 17]
            after = at + 17 + sum(counts)
            if after > end:
                raise DamagedJpegError
            tables[data[at]] = HuffmanTable(counts, data[at + 17 : after])
            at = after
    return tables


@lru_cache(maxsize=16)
def lengths_and_symbols(table: HuffmanTable) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Length and symbol of the code at the start of any 16 bits; length 0 if there is none."""
    lengths, symbols = np.zeros((2, 1 << _WINDOW), np.uint8)
    for symbol, (code, length) in table.codes().items():
        first, after = code << (_WINDOW - length), (code + 1) << (_WINDOW - length)
        lengths[first:after], symbols[first:after] = length, symbol
    return lengths, symbols


class _AcSteps:
    """Bits and runs of the AC codes at the start of any 16 bits: of the first code, and of all complete ones."""

    def __init__(self, table: HuffmanTable) -> None:
        lengths, symbols = lengths_and_symbols(table)
        bits = lengths + (symbols & 15)
        runs = (symbols >> 4) + np.uint8(1)
        runs[symbols == 0] = _END
        runs[(lengths == 0) | np.isin(symbols, _MEANINGLESS)] = _NO_CODE
        self.bits, self.runs = bits.copy(), runs.copy()
        self.one_bits, self.one_runs = bits.tobytes(), runs.tobytes()
        # Adds up as many codes as fit into 16 bits, so that Python takes one step for several codes.
        windows = open_ = np.flatnonzero((runs < _BLOCK) & (bits < _WINDOW))
        while len(open_):
            used = self.bits[open_].astype(np.intp)
            following = (open_ << used) & 0xFFFF
            runs_then = self.runs[open_] + (runs[following] & np.uint8(_END - 1))
            is_certain = (lengths[following] > 0) & (lengths[following] <= _WINDOW - used) & (runs_then < _BLOCK)
            windows, following = open_[is_certain], following[is_certain]
            self.bits[windows] += bits[following]
            self.runs[windows] += runs[following]
            open_ = windows[(self.runs[windows] < _BLOCK) & (self.bits[windows] < _WINDOW)]

    def walk_block(self, stream: bytes, at: int) -> int:
        """The bit after a block whose AC codes start at bit `at`, found code by code."""
        run = 1
        while run < _BLOCK:
            window = int.from_bytes(stream[at >> 3 : (at >> 3) + 3]) >> (8 - (at & 7)) & 0xFFFF
            run += self.one_runs[window]
            at += self.one_bits[window]
        if not _is_whole(run):
            raise DamagedJpegError
        return at


_ac_steps = lru_cache(maxsize=16)(_AcSteps)


def _is_whole(run: int) -> bool:
    return run == _BLOCK or _END < run < _END + _BLOCK


class _Lookup:
    """The codes of a few channels that would start at each bit of a piece of the data."""

    def __init__(self, piece: bytes, channels: list[Channel]) -> None:
        padded = np.frombuffer(piece + b"\0\0", np.uint8).astype(np.uint32)
        triples = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
        windows = (triples[:, None] >> np.arange(8, 0, -1, dtype=np.uint32)).astype(np.uint16).ravel()
        dc, ac = {}, {}
        for channel in channels:
            if channel.dc not in dc:
                lengths, symbols = lengths_and_symbols(channel.dc)
                dc[channel.dc] = (lengths + symbols)[windows].tobytes()
            if channel.ac not in ac:
                steps = _ac_steps(channel.ac)
                ac[channel.ac] = steps.bits[windows].tobytes(), steps.runs[windows].tobytes(), steps
        self.blocks = [(dc[channel.dc], *ac[channel.ac]) for channel in channels for _ in range(channel.num_blocks)]


def find_blocks(
    stream: bytes, bounds: list[int], channels: list[Channel], num_mcus: int, interval: int
) -> tuple[Ints, Ints]:
    """Find the blocks, in bits from the start.

    Args:
        stream: Entropy-coded data without stuffing and markers.
        bounds: Bits at which the intervals start, and the end.
        channels: Channels in the order of their blocks.
        num_mcus: MCUs of the whole image.
        interval: MCUs in each interval except the last.

    Returns:
        Starts of blocks (MCUs, blocks of an MCU), and ends of intervals, without the bits that pad the last byte.
    """
    padded = stream + bytes(_LONGEST_MCU)
    starts = array("q")
    ends = []
    base, limit, blocks, piece = 0, -1, [], b""
    for number, end in enumerate(bounds[1:]):
        at = bounds[number] - base
        for _ in range(min(interval, num_mcus - number * interval)):
            if at >= limit:
                skip = at >> 3
                base, at = base + 8 * skip, at & 7
                piece = padded[base >> 3 : (base >> 3) + _CHUNK + _LONGEST_MCU]
                blocks, limit = _Lookup(piece, channels).blocks, 8 * _CHUNK
            for dc_bits, ac_bits, ac_runs, steps in blocks:
                starts.append(base + at)
                at += dc_bits[at]
                first, run = at, 1
                while run < 64:
                    run += ac_runs[at]
                    at += ac_bits[at]
                # The steps of several codes went past the end of the block: follow single codes.
                if not (run == 64 or 128 < run < 192):
                    at = steps.walk_block(piece, first)
            if base + at > end:
                raise DamagedJpegError
        if end - (base + at) >= 8:
            raise DamagedJpegError
        ends.append(base + at)
    return np.frombuffer(starts, np.int64).reshape(num_mcus, -1), np.array(ends, np.int64)
