import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unetdist.data import decode as decode_module
from unetdist.data.labels.mask_file import decode_codes as decode
from unetdist.errors import DataError

GREY = np.array([[0, 7, 7], [20, 0, 255]], np.uint8)


def encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "numbers", "colors"),
    [
        (encode(GREY), "grey", [0, 7, 20, 255], [0, 7, 20, 255]),
        (encode(GREY > 0), "grey", [0, 1], [0, 255]),
        (encode(GREY * np.uint16(257)), "grey", [0, 1799, 5140, 65535], [0, 7, 20, 255]),
        (encode(GREY.astype(np.float32), "TIFF"), "grey", [0, 7, 20, 255], [0, 7, 20, 255]),
        (encode(np.dstack([GREY] * 3)), "color", [0, 7, 20, 255], [0, 7, 20, 255]),
        (encode(Image.fromarray(GREY).convert("P")), "table", [0, 7, 20, 255], [0, 7, 20, 255]),
        (encode(GREY, "GIF"), "color", [-1] * 4, [0, 7, 20, 255]),
    ],
)
def test_what_occurs_is_told_as_numbers_and_as_colours(data, kind, numbers, colors):
    pixels = decode(data)
    assert pixels.kind == kind
    assert pixels.numbers.tolist() == numbers
    assert pixels.colors.tolist() == [[grey] * 3 for grey in colors]
    assert pixels.is_color.all()
    assert pixels.is_number.all() == (numbers[0] >= 0)
    places = np.searchsorted(pixels.used, pixels.codes)
    expected = GREY if len(colors) == 4 else (GREY > 0) * 255
    assert np.array_equal(pixels.colors[places, 0], expected)


def test_deep_grey_between_two_colours_is_none():
    pixels = decode(encode(np.array([[0, 1000]], np.uint16)))
    assert pixels.is_color.tolist() == [True, False]
    assert pixels.colors.tolist() == [[0, 0, 0], [3, 3, 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    data = encode(pixels, kind)
    assert decode(data).codes.shape == (64, 64)
    with pytest.raises(
        DataError, match=r"the mask is damaged or no image \(.*\); export it again|mask cannot be read \(cut off"
    ):
        decode(data[: int(share * len(data))])


def test_bytes_that_are_no_picture():
    with pytest.raises(
        DataError, match=r"^the mask is damaged or no image \(no known image format\); export it again$"
    ):
        decode(b"no picture")


def test_our_own_limit_of_pixels_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    data = encode(GREY)
    assert decode(data).codes.shape == GREY.shape
    assert Image.MAX_IMAGE_PIXELS == 1
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 3)
    with pytest.raises(DataError, match=r"the mask is damaged or no image \(.* are more than 3 pixels\)"):
        decode(data)


@given(st.data())
def test_a_cut_png_is_never_read_as_whole(data):
    whole = encode(GREY)
    with pytest.raises(DataError, match="damaged or no image|cannot be read|more than its"):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_flipped_bit_in_a_png_is_seen():
    data = bytearray(encode(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)))
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match="damaged or no image"):
        decode(bytes(data))


def test_other_unusable_files_are_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    for kind in ("TIFF", "GIF", "PNG"):
        stack = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="the mask file holds 2 images"):
            decode(stack)
    with pytest.raises(DataError, match="the mask holds fractions; save its classes as whole numbers"):
        decode(encode(np.array([[0.5, 1]], np.float32), "TIFF"))


def test_a_picture_without_its_table_of_colours_is_refused():
    whole = encode(Image.fromarray(GREY).convert("P"))
    start = whole.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    with pytest.raises(DataError, match="table of colours is empty"):
        decode(whole[:start] + whole[end:])


def test_a_mask_that_claims_more_than_its_bytes_hold_is_not_decoded():
    whole = bytearray(encode(GREY))
    struct.pack_into(">II", whole, 16, 16000, 16000)
    with pytest.raises(DataError, match="16000x16000, more than its"):
        decode(bytes(whole))
