"""The walk finds every block, by few codes at a time or one by one, and notices what cannot be."""

import numpy as np
import pytest

from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.jpeg import interval_ends, parse_header
from unetdist.sharding.huffman import DamagedJpegError, HuffmanTable, find_blocks, read_channels

TABLE = HuffmanTable(bytes([0, 1, 2, *bytes(13)]), b"\x05\x01\x02")


def walk(data: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Starts of blocks, ends of intervals, and bits of all data of a picture without restart markers."""
    header = parse_header(data)
    (end,) = interval_ends(data, header.scan_offset, 1)
    stream = data[header.scan_offset : end - 2].replace(b"\xff\0", b"\xff")
    num_mcus = header.mcus_per_row * header.num_mcu_rows
    bounds = [0, 8 * len(stream)]
    return *find_blocks(stream, bounds, read_channels(data, header), num_mcus, num_mcus), bounds[1]


@pytest.mark.parametrize("quality", [10, 75, 100])
@pytest.mark.parametrize(("subsampling", "blocks"), [(0, 3), (1, 4), (2, 6)])
def test_all_blocks_are_found(quality, subsampling, blocks):
    data = encoded(image_array(1, (50, 70)), "JPEG", quality=quality, subsampling=subsampling)
    header = parse_header(data)
    starts, ends, size = walk(data)
    assert starts.shape == (header.mcus_per_row * header.num_mcu_rows, blocks)
    assert (np.diff(starts.ravel()) >= 4).all()  # a DC value and an end of block at least
    assert 0 <= size - ends[0] < 8


def test_blocks_of_one_grey_all_have_the_same_code():
    starts, ends, _ = walk(encoded(np.full((16, 80), 128, np.uint8), "JPEG"))
    assert starts.ravel().tolist() == list(range(0, 120, 6))  # 00 for no difference, 1010 for end of block
    assert ends.tolist() == [120]


def test_codes_are_numbered_by_length():
    assert TABLE.codes() == {5: (0b00, 2), 1: (0b010, 3), 2: (0b011, 3)}


def test_further_symbols_get_longer_codes():
    extended = TABLE.with_symbols({1, 7, 9})
    assert extended.codes() == TABLE.codes() | {7: (0b1000, 4), 9: (0b10010, 5)}
    assert TABLE.with_symbols({1, 2}) == TABLE


@pytest.mark.parametrize(
    "table",
    [HuffmanTable(bytes([2, *bytes(15)]), b"\1\2"), HuffmanTable(bytes([*bytes(15), 1]), b"\1")],
    ids=["full", "long"],
)
def test_a_table_without_room_is_not_extended(table):
    assert table.with_symbols({1}) == table
    with pytest.raises(DamagedJpegError):
        table.with_symbols({3})


def test_more_codes_than_a_length_has_are_refused():
    with pytest.raises(DamagedJpegError):
        HuffmanTable(bytes([3, *bytes(15)]), b"\1\2\3").codes()


def test_channels_that_do_not_fit_the_scan_are_refused():
    data = encoded(image_array(1), "JPEG")
    header = parse_header(data)
    _, scan, _ = header.segments[-1]
    for at, value in ((scan + 5, 9), (scan + 6, 0x33), (header.sof_offset + 11, 0x44)):
        damaged = bytearray(data)
        damaged[at] = value
        with pytest.raises(DamagedJpegError):
            read_channels(bytes(damaged), header)


def test_too_little_or_too_much_data_is_refused():
    data = encoded(image_array(1, (50, 70)), "JPEG")
    for damaged in (data[:-40], data[:-2] + b"\0\0"):
        with pytest.raises(DamagedJpegError):
            walk(damaged + b"\xff\xd9")


def test_a_run_without_a_value_is_refused():
    data = bytearray(encoded(np.full((16, 80), 128, np.uint8), "JPEG"))
    _, start, _ = [segment for segment in parse_header(bytes(data)).segments if segment[0] == 0xC4][1]
    end_of_block = data.index(0, start + 21)
    data[end_of_block] = 0x10  # decoders go on as if it were the end of the block
    with pytest.raises(DamagedJpegError):
        walk(bytes(data))
