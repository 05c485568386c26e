"""A part of a JPEG with restart markers has the pixels of the whole, whichever decoder reads it."""

import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.jpeg import cut, parse_header

MCU = {"4:4:4": (8, 8), "4:2:2": (8, 16), "4:2:0": (16, 16), "grey": (8, 8)}
"""(height, width) by subsampling."""
BIG = (130, 200)


def jpeg(size=BIG, sampling="4:2:0", interval=1, seed=0, **options) -> bytes:
    pixels = image_array(seed, size)
    if sampling == "grey":
        pixels = pixels[..., 0]
    else:
        options["subsampling"] = sampling
    return encoded(pixels, "JPEG", restart_marker_blocks=interval, **options)


def decoders(data: bytes) -> list[np.ndarray]:
    """The pixels by libjpeg-turbo's own interface, and by OpenCV."""
    kind = "GRAY" if parse_header(data).channels == 1 else "RGB"
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return [simplejpeg.decode_jpeg(data, kind), pixels.reshape(*pixels.shape[:2], -1)]


def assert_exact(data: bytes, box: tuple[int, int, int, int]) -> bool:
    """Whether the box could be cut; if so, it has the pixels of the whole picture."""
    part = cut(data, parse_header(data), *box)
    if part is None:
        return False
    piece, y, x = part
    top, left, bottom, right = box
    for whole, pixels in zip(decoders(data), decoders(piece), strict=True):
        assert np.array_equal(pixels[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right])
    return True


@pytest.mark.parametrize("sampling", MCU)
@pytest.mark.parametrize("size", [(130, 200), (97, 161), (64, 96), (65, 99), (33, 240)])
@pytest.mark.parametrize("quality", [40, 98])
def test_a_part_has_the_pixels_of_the_whole(sampling, size, quality):
    height, width = size
    per_row = -(-width // MCU[sampling][1])
    for interval in (n for n in range(1, per_row) if per_row % n == 0):
        data = jpeg(size, sampling, interval, quality=quality)
        assert parse_header(data).is_sliceable
        for top, bottom in ((0, 7), (16, 32), (15, 33), (height - 3, height)):
            for left, right in ((0, 16), (31, 33), (48, 64), (width - 1, width), (width - 20, width - 2)):
                could = assert_exact(data, (top, left, bottom, right))
                assert could or 2 * interval >= per_row  # a box over an edge may need all of few intervals


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_box_of_any_picture_is_exact(draw):
    height, width = draw.draw(st.integers(1, 120)), draw.draw(st.integers(1, 120))
    sampling = draw.draw(st.sampled_from(sorted(MCU)))
    per_row = -(-width // MCU[sampling][1])
    interval = draw.draw(st.sampled_from([n for n in range(1, per_row + 1) if per_row % n == 0]))
    data = jpeg(
        (height, width), sampling, interval, draw.draw(st.integers(0, 9)), quality=draw.draw(st.integers(5, 100))
    )
    top, left = draw.draw(st.integers(0, height - 1)), draw.draw(st.integers(0, width - 1))
    assert_exact(data, (top, left, draw.draw(st.integers(top + 1, height)), draw.draw(st.integers(left + 1, width))))


def test_a_part_is_small():
    data = jpeg((512, 512), interval=2)
    part, y, x = cut(data, parse_header(data), 100, 100, 228, 228)
    assert (y, x) == (96, 96)
    header = parse_header(part)
    assert (header.height, header.width) == (144, 160)
    assert header.is_sliceable
    assert len(part) < len(data) * 0.1


def test_a_part_of_a_part_is_exact():
    data = jpeg(interval=1)
    part, y, x = cut(data, parse_header(data), 30, 30, 120, 190)
    assert_exact(part, (40 - y, 50 - x, 70 - y, 90 - x))


def test_the_header_tells_size_and_blocks():
    header = parse_header(jpeg((130, 200), "4:2:2", 13))
    assert (header.height, header.width, header.channels) == (130, 200, 3)
    assert (header.mcu_height, header.mcu_width, header.restart_interval) == (8, 16, 13)
    assert (header.num_mcu_rows, header.mcus_per_row) == (17, 13)
    assert header.is_baseline
    assert header.is_sliceable


def test_a_grey_picture_has_small_blocks_whatever_its_factors():
    data = bytearray(jpeg((64, 96), "grey", 3))
    data[parse_header(data).sof_offset + 11] = 0x22
    header = parse_header(bytes(data))
    assert (header.mcu_height, header.mcu_width) == (8, 8)
    assert assert_exact(bytes(data), (20, 30, 40, 60))


@pytest.mark.parametrize(
    ("data", "channels"),
    [
        (jpeg(progressive=True), 3),
        (encoded(np.dstack([image_array(1), image_array(2)[..., :1]]), "PNG"), None),
        (simplejpeg.encode_jpeg(np.dstack([image_array(1)] * 2)[..., :4].copy(), colorspace="CMYK"), 4),
        (jpeg()[:100], None),
        (b"", None),
        (b"\xff\xd8\xff", None),
        (b"\xff\xd8\xff\xe0\0\0", None),
    ],
    ids=["progressive", "png", "cmyk", "head", "empty", "start", "no-length"],
)
def test_other_pictures_cannot_be_cut(data, channels):
    header = parse_header(data)
    if channels is None:
        assert header is None
    else:
        assert header.channels == channels
        assert not header.is_baseline
        assert cut(data, header, 0, 0, 1, 1) is None


def test_scans_of_single_channels_are_not_baseline_here():
    data = jpeg()
    header = parse_header(data)
    _, start, end = header.segments[-1]
    single = data[:start] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + data[end:]
    assert not parse_header(single).is_baseline


def test_twelve_bits_are_not_baseline_here():
    data = bytearray(jpeg())
    data[parse_header(data).sof_offset + 4] = 12
    assert not parse_header(bytes(data)).is_baseline


def test_what_decoders_do_not_need_is_left_out():
    plain, described = (jpeg(), jpeg(exif=b"Exif\0\0" + bytes(5000), comment=b"a comment", icc_profile=bytes(70000)))
    box = (50, 50, 60, 60)
    assert cut(plain, parse_header(plain), *box) == cut(described, parse_header(described), *box)


def test_adobe_colours_are_kept():
    data = jpeg(sampling="4:4:4", keep_rgb=True)
    assert b"Adobe" in data
    assert assert_exact(data, (50, 50, 90, 90))


def test_nothing_is_cut_where_it_does_not_pay_or_cannot_be():
    data = jpeg()
    header = parse_header(data)
    height, width = BIG
    assert cut(data, header, 0, 0, height, width) is None
    assert cut(data, header, 2, 2, height - 2, width - 2) is None
    for box in ((0, 0, height + 1, 9), (0, 0, 9, width + 1), (-1, 0, 9, 9), (9, 9, 9, 20), (9, 9, 20, 9)):
        assert cut(data, header, *box) is None
    for interval in (0, 2, 26):
        other = jpeg(interval=interval)
        assert not parse_header(other).is_sliceable
        assert cut(other, parse_header(other), 50, 50, 60, 60) is None


def test_markers_out_of_turn_are_noticed():
    data = jpeg()
    header, box = parse_header(data), (50, 50, 60, 60)
    first = data.index(b"\xff\xd0", header.scan_offset)
    second = data.index(b"\xff\xd1", first)
    for damaged in (
        data[:first] + data[second:],
        data[: first + 1] + b"\xd3" + data[first + 2 :],
        data[:second],
        data[:-2],
        data[: first + 1],
        data[: header.scan_offset],
    ):
        assert cut(damaged, parse_header(damaged), *box) is None
    assert cut(data, replace(header, scan_offset=len(data)), *box) is None
    assert cut(data + data, header, *box) == cut(data, header, *box)  # further pictures behind the first


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 1200), st.binary(min_size=1, max_size=4), st.booleans())
def test_damage_never_raises(at, damage, cuts_short):
    whole = jpeg()
    data = whole[:at] + damage + (b"" if cuts_short else whole[at + len(damage) :])
    header = parse_header(data)
    if header is not None:
        cut(data, header, 50, 50, 60, 60)


@pytest.mark.parametrize("channels", [0, 1, 4, 255])
def test_a_frame_of_wrong_length_is_no_picture(channels):
    data = bytearray(jpeg())
    data[parse_header(data).sof_offset + 9] = channels
    assert parse_header(bytes(data)) is None


def test_a_picture_without_height_is_none():
    data = bytearray(jpeg())
    struct.pack_into(">H", data, parse_header(data).sof_offset + 5, 0)
    assert parse_header(bytes(data)) is None


def test_fill_before_a_marker_is_passed_over():
    data = jpeg()
    header = parse_header(data)
    filled = data[: header.sof_offset] + b"\xff\xff" + data[header.sof_offset :]
    assert parse_header(filled).is_sliceable
    assert assert_exact(filled, (50, 50, 60, 60))
