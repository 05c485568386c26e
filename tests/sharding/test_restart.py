"""The walk finds every block, by few codes at a time or one by one, and notices what cannot be."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import shared_data
from tests.data.test_jpeg import BIG, assert_exact, decoders, jpeg
from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.jpeg import interval_ends, parse_header
from unetdist.sharding.huffman import DamagedJpegError, HuffmanTable, find_blocks, read_channels
from unetdist.sharding.restart import add_restart_markers, best_interval

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


PLAIN = jpeg(interval=0)


def smooth(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(H, W, 3) that differs little from block to block, so that few codes are needed."""
    few = Image.fromarray(image_array(seed, (3, 3)))
    return np.asarray(few.resize(size[::-1], Image.Resampling.BICUBIC))


def coefficients_and_metadata(data: bytes) -> tuple[list[np.ndarray], bytes]:
    """What must not change: all pixels, and the segments that describe the picture."""
    described = b"".join(
        data[start:end] for marker, start, end in parse_header(data).segments if marker not in (0xDD, 0xC4)
    )
    return decoders(data), described


def assert_lossless(data: bytes) -> bytes:
    marked = add_restart_markers(data)
    (pixels, described), (expected, description) = map(coefficients_and_metadata, (marked, data))
    assert all(map(np.array_equal, pixels, expected))
    assert described == description
    header = parse_header(marked)
    assert header.is_sliceable
    assert header.restart_interval == best_interval(header.mcus_per_row, header.mcu_width)
    assert add_restart_markers(marked) is marked
    return marked


def assert_cuttable(data: bytes) -> None:
    height, width = BIG
    boxes = [(0, 0, 40, 40), (50, 70, 90, 100), (height - 30, width - 40, height, width)]
    assert sum([assert_exact(data, box) for box in boxes]) > 0


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("quality", [30, 75, 100])
def test_every_subsampling(sampling, quality):
    pixels = image_array(3, BIG)
    kind = "rgb"
    if sampling == "Gray":
        pixels, kind = pixels[..., :1].copy(), "Gray"
    data = simplejpeg.encode_jpeg(pixels, quality, kind, sampling)
    assert_cuttable(assert_lossless(data))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_picture(draw):
    size = draw.draw(st.integers(9, 140)), draw.draw(st.integers(33, 140))
    seed, quality = draw.draw(st.integers(0, 9)), draw.draw(st.integers(1, 100))
    pixels = draw.draw(st.sampled_from([smooth, lambda size, seed: image_array(seed, size)]))(size, seed)
    data = encoded(
        pixels[..., 0] if draw.draw(st.booleans()) else pixels,
        "JPEG",
        quality=quality,
        subsampling=draw.draw(st.integers(0, 2)),
        optimize=draw.draw(st.booleans()),
        restart_marker_blocks=draw.draw(st.integers(0, 40)),
    )
    if add_restart_markers(data) is not data:
        assert_lossless(data)


def test_tables_without_the_new_codes_are_extended():
    width = BIG[1]
    wave = 128 + 100 * np.sin(np.arange(width) * (2 * np.pi / width))  # rows begin as the last one ends
    data = encoded(np.tile(wave.astype(np.uint8), (BIG[0], 1)), "JPEG", optimize=True)
    marked = assert_lossless(data)
    assert marked.count(b"\xff\xc4") == data.count(b"\xff\xc4") + 1
    assert_cuttable(marked)


@pytest.mark.parametrize("interval", [1, 2, 5, 7, 13, 26, 200])
def test_markers_at_other_places_are_moved(interval):
    data = jpeg(interval=interval, sampling="4:4:4")  # 25 MCUs in a row, five of them are best
    marked = add_restart_markers(data)
    assert (marked is data) == (interval in (1, 5))
    assert all(map(np.array_equal, decoders(marked), decoders(data)))
    assert_cuttable(marked)
    assert marked.count(b"\xff\xdd\0\4") == 1


def test_segments_stay():
    data = jpeg(interval=0, exif=b"Exif\0\0" + bytes(99), comment=b"a comment", icc_profile=bytes(999))
    assert_lossless(data)


def test_a_picture_that_nothing_can_be_cut_from_stays():
    for size in ((16, 16), (8, 40)):
        data = encoded(image_array(1, size), "JPEG")
        assert add_restart_markers(data) is data


@pytest.mark.parametrize(
    ("mcus", "width", "interval"),
    [
        (30, 16, 3),
        (128, 16, 4),
        (120, 16, 4),
        (25, 8, 5),
        (60, 8, 6),
        (37, 16, 37),
        (121, 16, 11),
        (1, 8, 1),
        (2, 16, 2),
    ],
)
def test_intervals_are_some_56_pixels_wide(mcus, width, interval):
    assert best_interval(mcus, width) == interval


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        encoded(image_array(1)),
        jpeg(interval=0, progressive=True),
        PLAIN[:-2],
        PLAIN[:-500],
        PLAIN + b"more",
        PLAIN + PLAIN,
        PLAIN[:-3] + bytes(9) + b"\xff\xd9",
        PLAIN[:-30] + b"\xff\xd9",
    ],
    ids=["empty", "start", "png", "progressive", "no-end", "short", "tail", "second", "filled", "too-little"],
)
def test_what_cannot_be_marked_is_left(data):
    assert add_restart_markers(data) is None


def test_zeros_behind_the_end_are_no_further_data():
    marked = add_restart_markers(PLAIN + bytes(7))
    assert marked == add_restart_markers(PLAIN) + bytes(7)


def test_tables_that_are_missing_or_impossible_are_noticed():
    _, start, end = next(segment for segment in parse_header(PLAIN).segments if segment[0] == 0xC4)
    assert add_restart_markers(PLAIN[:start] + PLAIN[end:]) is None
    for at, value in ((5, 9), (6, 255), (4, 3)):
        data = bytearray(PLAIN)
        data[start + at] = value
        assert add_restart_markers(bytes(data)) is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_never_raises(draw):
    at = draw.draw(st.integers(2, len(PLAIN) - 1) | st.integers(2, 700))
    damage = draw.draw(st.binary(min_size=1, max_size=4))
    add_restart_markers(PLAIN[:at] + damage + PLAIN[at + len(damage) :])
    add_restart_markers(PLAIN[:at] + damage)


def test_damage_in_a_picture_with_markers_never_raises():
    data = jpeg(interval=7)
    for at in range(600, len(data), 397):
        add_restart_markers(data[:at] + b"\x5a" + data[at + 1 :])


def test_a_long_picture_is_walked_piece_by_piece():
    data = encoded(image_array(5, (400, 640)), "JPEG", quality=97)
    assert len(data) > 250_000
    assert_lossless(data)


def test_real_pictures_grow_by_less_than_two_percent():
    before = after = 0
    for path in sorted((shared_data.camvid() / "val" / "images").iterdir())[::10]:
        data = path.read_bytes()
        marked = assert_lossless(data)
        assert Image.open(io.BytesIO(marked)).size == (480, 360)
        before, after = before + len(data), after + len(marked)
        assert assert_exact(marked, (50, 130, 306, 386))
    assert before < after < 1.02 * before
