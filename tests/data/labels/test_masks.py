import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.shared_data import camvid, isbi
from unetdist.data.labels import IGNORE_INDEX, Label, Palette
from unetdist.data.labels.masks import MAX_LISTED, UnknownColor, read_listed_mask, read_mask
from unetdist.errors import DataError

VOID = Label(255, "void", (9, 9, 9), None)
STREET = Palette(
    (Label(7, "road", (128, 64, 128), 1), Label(2, "sky", (0, 0, 0), 0), Label(20, "car", (0, 0, 250), 2), VOID)
)
CELLS = Palette((Label(0, "membrane", (0, 0, 0), 0), Label(1, "cell", (255, 255, 255), 1)))
MASK = np.array([[1, 1, 0, 2], [0, 255, 2, 2]], np.uint8)
IDS = STREET.to_ids(MASK)


def mask_and_unknowns(*arguments, **options):
    reading = read_mask(*arguments, **options)
    return reading.mask, reading.unknowns


def encode(pixels, kind="PNG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def with_table(codes, table):
    image = Image.fromarray(codes.astype(np.uint8))
    image.putpalette(np.asarray(table, np.uint8).reshape(-1).tolist())
    return image


def png(values, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write."""
    rows = [b"\0" + np.packbits(_bits(row, bits)).tobytes() for row in values]
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in chunks
    )


def _bits(row, bits):
    return np.array([[v >> (bits - 1 - i) & 1 for i in range(bits)] for v in row], np.uint8).ravel()


def assert_reads(data, palette, expected, **options):
    mask, unknowns = mask_and_unknowns(data, palette, **options)
    assert unknowns == []
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


COLORS = STREET.colorize(MASK)


@pytest.mark.parametrize("mask_format", ["auto", "color"])
@pytest.mark.parametrize(
    "data",
    [
        encode(COLORS),
        encode(COLORS, mode="RGBA"),
        encode(np.dstack([COLORS, np.arange(8, dtype=np.uint8).reshape(2, 4)])),
        encode(COLORS, "TIFF"),
        encode(COLORS, "TIFF", compression="tiff_lzw"),
        encode(COLORS, "TIFF", mode="RGBX"),
        encode(COLORS, "BMP"),
        encode(Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE)),
        encode(Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        encode(Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE), "BMP"),
        encode(Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE), transparency=0),
    ],
)
def test_colours_of_every_kind_of_file(data, mask_format):
    assert_reads(data, STREET, MASK, mask_format=mask_format)


@pytest.mark.parametrize("mask_format", ["auto", "ids"])
@pytest.mark.parametrize(
    "data",
    [
        encode(IDS),
        encode(IDS, "TIFF"),
        encode(IDS, "BMP"),
        encode(Image.merge("LA", [Image.fromarray(IDS)] * 2)),
        encode(IDS.astype(np.uint16)),
        encode(IDS.astype(np.uint16), "TIFF"),
        encode(IDS.astype(np.int32), "TIFF"),
        encode(IDS.astype(np.float32), "TIFF"),
        encode(with_table(IDS, np.random.default_rng(0).integers(130, 250, (256, 3)))),
        encode(with_table(IDS, np.repeat(np.arange(256), 3)), "TIFF"),
    ],
)
def test_ids_of_every_kind_of_file(data, mask_format):
    assert_reads(data, STREET, MASK, mask_format=mask_format)


def test_jpeg_of_flat_colours():
    flat = np.full((16, 16, 3), 0, np.uint8)
    assert_reads(encode(flat, "JPEG"), STREET, np.zeros((16, 16)))


def test_grey_rgb_is_ids_only_when_told():
    assert_reads(encode(np.dstack([IDS] * 3)), STREET, MASK, mask_format="ids")
    _, unknowns = mask_and_unknowns(encode(np.dstack([IDS] * 3)), STREET)
    assert {unknown.color for unknown in unknowns} == {(7, 7, 7), (2, 2, 2), (20, 20, 20), (255, 255, 255)}
    assert {unknown.fits for unknown in unknowns} == {"ids"}


BITS = np.array([[0, 1, 1, 0, 1]], np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        encode(BITS * 255),
        encode(BITS > 0),
        encode(BITS > 0, "TIFF", compression="group4"),
        encode(BITS > 0, "BMP"),
        encode(BITS * 255, "GIF"),
        encode(BITS * np.uint16(65535)),
        encode(BITS * np.uint16(255)),
        encode(np.dstack([BITS * 255] * 3)),
        png(BITS * 3, 2),
        png(BITS * 15, 4),
        encode(Image.merge("LA", [Image.fromarray(BITS * 255)] * 2)),
    ],
)
def test_black_and_white_of_every_kind_of_file(data):
    assert_reads(data, CELLS, BITS)


@pytest.mark.parametrize("bits", [2, 4])
def test_ids_of_few_bits_are_not_stretched(bits):
    """Pillow gives 2-bit grey as 0, 85, 170, 255."""
    palette = Palette(tuple(Label(i, f"c{i}", (i, 0, 0), i) for i in range(4)))
    assert_reads(png([[0, 1, 2, 3], [3, 2, 1, 0]], bits), palette, [[0, 1, 2, 3], [3, 2, 1, 0]])


def test_one_bit_read_as_ids():
    assert_reads(encode(BITS > 0), CELLS, BITS, mask_format="ids")
    palette = Palette((Label(0, "a", (0, 0, 0), 0), Label(1, "b", (255, 0, 0), 1)))
    assert_reads(encode(BITS > 0), palette, BITS)


class TestTableOfColours:
    """The rule for files whose numbers point into their own table of colours."""

    VOC = Palette((Label(0, "bg", (0, 0, 0), 0), Label(1, "plane", (128, 0, 0), 1)))
    BORDER = np.array([[0, 1, 255]], np.uint8)

    def table(self, *colors):
        table = np.zeros((256, 3), np.uint8)
        table[: len(colors)] = colors
        table[255] = (224, 224, 192)
        return table

    def test_ids_if_the_table_agrees_with_them(self):
        data = encode(with_table(self.BORDER, self.table((0, 0, 0), (128, 0, 0))))
        assert_reads(data, self.VOC, [[0, 1, IGNORE_INDEX]])

    def test_colours_if_the_table_contradicts_the_ids(self):
        data = encode(with_table(self.BORDER, self.table((128, 0, 0), (0, 0, 0))))
        mask, unknowns = mask_and_unknowns(data, self.VOC)
        assert mask.tolist() == [[1, 0, IGNORE_INDEX]]
        assert [unknown.color for unknown in unknowns] == [(224, 224, 192)]

    def test_colours_if_all_are_listed(self):
        data = encode(with_table(np.array([[0, 1]]), self.table((128, 0, 0), (0, 0, 0))))
        assert_reads(data, self.VOC, [[1, 0]])

    def test_the_table_may_be_shorter_than_the_numbers(self):
        image = with_table(np.array([[0, 1, 0]]), [(0, 0, 0)])
        data = encode(image, "TIFF")
        assert_reads(data, self.VOC, [[0, 1, 0]], mask_format="ids")

    def test_renumbered_greys_of_a_gif_are_no_ids(self):
        data = encode(np.array([[0, 1, 7]], np.uint8), "GIF")
        with pytest.raises(DataError, match="the mask has colours, not ids; use --mask-format color, or save"):
            read_mask(data, self.VOC, mask_format="ids")


def test_sixteen_bit_grey_that_is_no_colour_is_told_as_its_value():
    mask, unknowns = mask_and_unknowns(encode(np.array([[0, 65535, 1000]], np.uint16)), CELLS)
    assert mask.tolist() == [[0, 1, IGNORE_INDEX]]
    assert [(unknown.color, unknown.first_pixel) for unknown in unknowns] == [(1000, (2, 0))]


def test_a_negative_id_is_an_ignored_label_only():
    palette = Palette((Label(0, "a", (0, 0, 1), 0), Label(-1, "plate", (3, 3, 3), None)))
    assert_reads(encode(np.array([[0, -1]], np.int32), "TIFF"), palette, [[0, IGNORE_INDEX]])


def test_unknown_colours_are_told_with_count_place_and_nearest():
    pixels = COLORS.copy()
    pixels[0, 3] = pixels[1, 0] = (0, 0, 246)
    pixels[1, 1] = (1, 0, 0)
    mask, unknowns = mask_and_unknowns(encode(pixels), STREET)
    assert mask.tolist() == [[1, 1, 0, 255], [255, 255, 2, 2]]
    assert unknowns == [
        UnknownColor((0, 0, 246), 2, (3, 0), "car", 4.0),
        UnknownColor((1, 0, 0), 1, (1, 1), "sky", 1.0),
    ]
    assert np.array_equal(read_mask(encode(pixels), STREET, unknown_colors="ignore").mask, mask)
    nearest, again = mask_and_unknowns(encode(pixels), STREET, unknown_colors="nearest")
    assert nearest.tolist() == [[1, 1, 0, 2], [2, 0, 2, 2]]
    assert again == unknowns


def test_the_nearest_label_may_be_an_ignored_one():
    mask, unknowns = mask_and_unknowns(encode(np.full((1, 1, 3), 10, np.uint8)), STREET, unknown_colors="nearest")
    assert mask.tolist() == [[IGNORE_INDEX]]
    assert unknowns[0].nearest == "void"


def test_unknown_ids_have_no_nearness():
    mask, unknowns = mask_and_unknowns(encode(np.array([[2, 21]], np.uint8)), STREET, unknown_colors="nearest")
    assert mask.tolist() == [[0, IGNORE_INDEX]]
    assert unknowns == [UnknownColor(21, 1, (1, 0), "car", 1.0)]


def test_values_that_would_fit_the_other_format_say_so():
    _, unknowns = mask_and_unknowns(encode(BITS), CELLS)
    assert [(unknown.color, unknown.fits) for unknown in unknowns] == [((1, 1, 1), "ids")]
    _, unknowns = mask_and_unknowns(encode(BITS * 200), CELLS)
    assert [unknown.fits for unknown in unknowns] == [None]
    _, unknowns = mask_and_unknowns(encode(np.array([[0, 9]], np.uint8)), STREET)
    assert {(unknown.color, unknown.fits) for unknown in unknowns} == {(0, "color"), (9, "color")}


def test_the_rarest_of_very_many_colours_are_one_entry():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[100:140, 100:140]
    pixels[:20] = 50
    _, unknowns = mask_and_unknowns(encode(pixels), STREET)
    assert len(unknowns) == MAX_LISTED + 1
    assert unknowns[0].count == 800
    assert unknowns[-1].color is None
    assert unknowns[-1].num_colors == 801 - MAX_LISTED
    assert sum(unknown.count for unknown in unknowns) == 1600
    assert sum(unknown.num_colors for unknown in unknowns) == 801


@given(st.data())
def test_colour_masks_agree_with_the_plain_definition(data):
    """Every pixel by itself: its label's index, or the nearest label's."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    known = np.array([label.color for label in STREET.labels])
    pixels = known[rng.integers(0, len(known), shape)]
    noise = rng.integers(0, 256, (*shape, 3))
    pixels = np.where(rng.random((*shape, 1)) < 0.3, noise, pixels).astype(np.uint8)
    mask, unknowns = mask_and_unknowns(encode(pixels), STREET, unknown_colors="nearest")
    distances = ((pixels[:, :, None].astype(int) - known) ** 2).sum(-1)
    classes = np.array([1, 0, 2, IGNORE_INDEX])
    assert np.array_equal(mask, classes[distances.argmin(-1)])
    assert sum(unknown.count for unknown in unknowns) == (distances.min(-1) > 0).sum()
    for unknown in unknowns:
        equal = (pixels == unknown.color).all(-1)
        assert unknown.count == equal.sum()
        y, x = np.argwhere(equal)[0]
        assert unknown.first_pixel == (x, y)


@pytest.mark.parametrize("ignore", [[], ["Void"]])
def test_camvid_has_no_unknown_colour_and_survives_the_round_trip(ignore):
    palette = Palette.read(camvid() / "Labels.txt", ignore=ignore)
    files = sorted(camvid().glob("*/masks/*.png"))
    assert len(files) == 468
    for file in files[::6] if ignore else files[::40]:
        mask, unknowns = mask_and_unknowns(file.read_bytes(), palette)
        assert unknowns == [], file
        assert np.array_equal(palette.colorize(mask), np.asarray(Image.open(file))), file


def test_isbi_has_no_unknown_value():
    palette = Palette.read(isbi() / "Labels.txt")
    for file in sorted((isbi() / "masks").glob("*.png")):
        mask, unknowns = mask_and_unknowns(file.read_bytes(), palette)
        assert unknowns == []
        assert np.array_equal(palette.colorize(mask)[..., 0], np.asarray(Image.open(file))), file


def test_a_large_mask_takes_no_pass_for_each_colour():
    """2048x1024 takes about 15 ms beside the decoding; the limit leaves room for a busy machine."""
    palette = Palette(tuple(Label(i, f"c{i}", (i, 255 - i, 7), i) for i in range(200)))
    mask = np.random.default_rng(0).integers(0, 200, (1024, 2048), dtype=np.uint8)
    data = encode(palette.colorize(mask), "BMP")
    start = time.process_time()
    assert_reads(data, palette, mask)
    assert time.process_time() - start < 0.5


def test_what_is_not_listed_is_refused_with_place_and_remedy():
    pixels = STREET.colorize(MASK)
    assert read_listed_mask(STREET, "color", "error", encode(pixels)).tolist() == MASK.tolist()
    pixels[1, 3] = (1, 2, 3)
    with pytest.raises(DataError, match=r"mask holds \(1, 2, 3\) at x 3, y 1, which the labels do not list.*index it"):
        read_listed_mask(STREET, "color", "error", encode(pixels))
    assert read_listed_mask(STREET, "color", "ignore", encode(pixels))[1, 3] == IGNORE_INDEX


def test_as_many_classes_as_a_mask_may_hold():
    labels = tuple(Label(number, str(number), (number, 1, 2), number) for number in range(255))
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert_reads(encode(every), Palette(labels), every)
