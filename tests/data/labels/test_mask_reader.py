"""The same classes as `read_mask`, whatever the file; and refusal of what was not there when it was indexed."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from unetdist.data.labels import Label, Palette, mask_reader
from unetdist.data.labels.mask_reader import MaskReader
from unetdist.data.labels.masks import read_mask
from unetdist.errors import DataError

COLORFUL = Palette(
    (
        Label(3, "road", (128, 64, 128), 0),
        Label(7, "tree", (0, 128, 0), 1),
        Label(9, "dusk", (9, 9, 9), 2),
        Label(0, "void", (0, 0, 0), None),
    )
)
GREY = Palette((Label(0, "cell", (255, 255, 255), 0), Label(1, "wall", (0, 0, 0), 1)))
RAISE = ("error", "ignore", "nearest")


def saved(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(bytes(range(9)) + bytes([128, 64, 128]) * 4 + bytes([0, 128, 0]) * 3)
    elif mode:
        image = image.convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def grey_png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")))


def expected(data: bytes, palette: Palette, mask_format: str, unknown_colors: str):
    """The classes, or None where it is to be refused."""
    try:
        reading = read_mask(data, palette, mask_format=mask_format, unknown_colors=unknown_colors)
        mask, unknown = reading.mask, reading.unknowns
    except DataError:
        return None
    return None if unknown and unknown_colors == "error" else mask


def check(data: bytes, palette: Palette = COLORFUL) -> None:
    for mask_format in ("auto", "color", "ids"):
        for unknown_colors in RAISE:
            reader = MaskReader(palette, mask_format, unknown_colors)
            wanted = expected(data, palette, mask_format, unknown_colors)
            for _ in range(2):  # once to learn, once by the table
                if wanted is None:
                    with pytest.raises(DataError):
                        reader(data)
                else:
                    found = reader(data)
                    assert found.dtype == np.uint8
                    assert np.array_equal(found, wanted)


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.sampled_from([(128, 64, 128), (0, 128, 0), (9, 9, 9), (0, 0, 0), (1, 2, 3)]), min_size=1),
    st.sampled_from(["RGB", "RGBA", "PNG bmp", "L", "LA"]),
)
def test_colours_as_read_mask_gives_them(colors, mode):
    pixels = np.array([colors, colors[::-1]], np.uint8)
    check(saved(pixels, kind="BMP") if mode == "PNG bmp" else saved(pixels, mode))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([1, 2, 4, 8]))
def test_tables_of_colours_as_read_mask_gives_them(numbers, bits):
    check(saved(np.array([numbers, numbers[::-1]], np.uint8) & (1 << bits) - 1, "P", bits=bits))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.sampled_from([0, 1, 3, 7, 9, 5, 254, 255]), min_size=1), st.sampled_from([COLORFUL, GREY]))
def test_grey_values_as_read_mask_gives_them(numbers, palette):
    check(saved(np.array([numbers, numbers[::-1]], np.uint8)), palette)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("palette", [COLORFUL, GREY])
def test_grey_values_of_few_bits(bits, palette):
    values = np.arange(2**bits, dtype=np.uint8)
    packed = np.packbits(np.unpackbits(values[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
    check(grey_png(len(values), 1, bits, b"\0" + packed), palette)


@pytest.mark.parametrize(
    "data",
    [
        saved(np.full((3, 4), 3 * 257, np.uint16)),
        saved(np.full((3, 4, 3), 9, np.uint8), kind="JPEG"),
        saved(np.full((3, 4), 3, np.uint8), kind="TIFF"),
        saved(np.full((3, 4), 3, np.uint8), "1"),
        b"no picture",
        b"",
    ],
    ids=["16 bits", "JPEG", "TIFF", "1 bit", "nonsense", "empty"],
)
def test_other_files_as_read_mask_gives_them(data):
    check(data)


@pytest.mark.parametrize("mode", [None, "P", "RGB"])
def test_every_cut_and_every_flipped_byte_is_judged_as_by_read_mask(mode):
    data = saved(np.array([[3, 7, 9], [0, 3, 9]], np.uint8), mode)
    for place in range(8, len(data)):
        check(data[:place])
    for place in range(8, len(data), 3):
        check(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_contents_that_are_too_short_are_refused():
    check(grey_png(50, 40, 8, bytes(51 * 20)))


def test_transparency_remarks_and_several_pictures():
    grey = np.array([[3, 7, 9], [0, 3, 9]], np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("by", "hand")
    check(saved(grey, transparency=3, pnginfo=text, gamma=0.5))
    check(saved(grey, "P", transparency=3))
    check(saved(np.repeat(grey[..., None], 3, axis=2), transparency=(3, 3, 3)))
    check(saved(grey, save_all=True, append_images=[Image.fromarray(grey + 1)]))


def test_what_is_not_listed_is_refused_with_place_and_remedy():
    pixels = np.zeros((4, 6, 3), np.uint8)
    reader = MaskReader(COLORFUL, "color", "error")
    assert (reader(saved(pixels)) == 255).all()
    pixels[2, 5] = (1, 2, 3)
    message = r"mask holds \(1, 2, 3\) at x 5, y 2, which the labels do not list.*index it again"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            reader(saved(pixels))


def test_a_reader_goes_to_a_worker_and_many_tables_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(mask_reader, "_MAX_TABLES", 2)
    reader = pickle.loads(pickle.dumps(MaskReader(COLORFUL, "auto", "ignore")))
    for number in range(9):
        reader(saved(np.array([[number, 3]], np.uint8), "P"))
    assert len(reader._tables) <= 3


def test_as_many_classes_as_a_mask_may_hold():
    labels = tuple(Label(number, str(number), (number, 1, 2), number) for number in range(255))
    check(saved(np.arange(256, dtype=np.uint8).reshape(16, 16)), Palette(labels))
    check(saved(np.arange(256, dtype=np.uint8).reshape(16, 16)), Palette(labels[:254]))
