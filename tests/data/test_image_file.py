"""A picture gives the same pixels from its file, from Pillow and as an array, or is refused in the same words."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.tiff_files import RGB, tiff
from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.decode import decode_image
from unetdist.data.image_file import (
    HIGH_BYTE,
    ORIENTATION_TAG,
    SIXTEEN_BITS,
    as_values,
    drawn_by_size,
    eight_bit,
    eight_bit_of_model,
    extremes,
    is_to_be_turned,
    open_image,
    orientation_of,
    pixels_of_pillow,
    read_file,
    read_image,
    shown_size,
    upright,
    values_of_pillow,
    warn_of_other_range,
    with_channels,
)
from unetdist.errors import DataError

COLORS = image_array(1, (6, 9))
TWELVE_BITS = COLORS.astype(np.uint16) * 16
RANGE = (0.0, 4080.0)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_what_is_stored_as_it_is_is_read_as_the_training_reads_it(mode, channels):
    data = saved(Image.fromarray(COLORS).convert(mode))
    expected = decode_image(data, channels)
    assert open_image(data).is_plain
    assert np.array_equal(read_image(data, channels, None), expected)
    assert np.array_equal(with_channels(open_image(data).values(), channels), expected)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    for image in (Image.open(io.BytesIO(data)), loaded, loaded.copy()):
        assert np.array_equal(pixels_of_pillow(image, channels, None), expected)


@pytest.mark.parametrize(
    "data",
    [
        encoded(TWELVE_BITS[..., 0]),
        encoded(TWELVE_BITS[..., 0], "TIFF"),
        encoded(TWELVE_BITS[..., 0].astype(np.int32), "TIFF"),
        encoded(TWELVE_BITS[..., 0].astype(np.float32), "TIFF"),
    ],
    ids=["png", "tiff", "int32", "float"],
)
def test_grey_of_more_than_8_bits(data):
    values = open_image(data).values()
    pixels = read_image(data, 1, RANGE)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    for same in (
        pixels_of_pillow(Image.open(io.BytesIO(data)), 1, RANGE),
        pixels_of_pillow(loaded, 1, RANGE),
        pixels_of_pillow(loaded.copy(), 1, RANGE),
        eight_bit_of_model(as_values(values[..., 0]), RANGE),
    ):
        assert np.array_equal(same, pixels)
    expected = np.rint(np.clip(values / 4080 * 255, 0, 255))
    assert np.array_equal(pixels, expected)


def test_colours_of_more_than_8_bits_are_read_from_the_file_that_pillow_has_not_loaded_yet(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(cv2.imencode(".png", TWELVE_BITS[..., ::-1])[1].tobytes())
    assert np.array_equal(read_image(path.read_bytes(), 3, RANGE), COLORS)
    assert np.array_equal(pixels_of_pillow(Image.open(io.BytesIO(path.read_bytes())), 3, RANGE), COLORS)
    with Image.open(path) as image:
        assert np.array_equal(pixels_of_pillow(image, 3, RANGE), COLORS)
        image.load()
        with pytest.raises(DataError, match="loaded by Pillow, which keeps 8 bits .* pass its path"):
            pixels_of_pillow(image, 3, RANGE)


@pytest.mark.parametrize(
    ("data", "image_range", "refusal"),
    [
        (tiff(TWELVE_BITS, photometric=RGB), RANGE, "loaded by Pillow, which keeps 8 bits"),
        (tiff(np.dstack([COLORS, COLORS[..., 0]]), photometric=RGB, extra=(0,)), None, "drops further bands"),
        (tiff(COLORS[..., 0], COLORS[:3, :4, 0], subfiles=(0, 1)), None, "holds 2 frames or pages"),
        (tiff(np.array([[0, 2**31 + 2**30], [2**31, 2**32 - 1]], np.uint32)), (0.0, 2.0**32), None),
        (tiff(np.array([[0, -5], [2000, 5000]], np.int32)), RANGE, None),
    ],
    ids=["deep", "bands", "thumbnail", "unsigned", "signed"],
)
def test_a_tiff_that_pillow_opened_is_read_as_its_file_or_refused(data, image_range, refusal):
    expected = read_image(data, 4, image_range)
    assert expected[..., :3].max() > 200
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(pixels_of_pillow(image, 4, image_range), expected)
    image.load()
    if refusal is None:
        assert np.array_equal(pixels_of_pillow(image, 4, image_range), expected)
    else:
        with pytest.raises(DataError, match=refusal):
            pixels_of_pillow(image, 4, image_range)


def test_a_frame_that_was_sought_is_not_read_as_the_first():
    image = Image.open(io.BytesIO(tiff(COLORS[..., 0], COLORS[:3, :4, 0], subfiles=(0, 1))))
    image.seek(1)
    with pytest.raises(DataError, match="holds 2 frames or pages; pass a copy"):
        pixels_of_pillow(image, 1, None)
    assert np.array_equal(pixels_of_pillow(image.copy(), 1, None)[..., 0], COLORS[:3, :4, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pillow_image_is_turned_as_its_file(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(COLORS), exif=exif)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    expected = read_image(data, 3, None)
    assert expected.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))
    assert np.array_equal(pixels_of_pillow(loaded, 3, None), expected)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "PA", "RGBa"])
def test_further_modes_of_pillow(mode):
    base = Image.fromarray(COLORS)
    between = {"PA": "P", "RGBa": "RGBA"}.get(mode, "RGB")
    image = base.convert(between).convert(mode)
    expected = np.asarray(image.convert("RGBA" if mode in ("PA", "RGBa") else "RGB"))[..., :3]
    assert np.array_equal(pixels_of_pillow(image, 3, None), expected)


def test_a_mode_without_a_way_to_colours_is_refused():
    with pytest.raises(DataError, match="image cannot be read"):
        values_of_pillow(Image.new("La", (4, 4)))


def test_more_bits_than_the_model_knows_are_refused_by_every_door():
    data = encoded(TWELVE_BITS[..., 0])
    for door in (
        lambda: read_image(data, 3, None),
        lambda: pixels_of_pillow(Image.open(io.BytesIO(data)), 3, None),
        lambda: eight_bit_of_model(as_values(TWELVE_BITS[..., 0]), None),
    ):
        with pytest.raises(DataError, match="uint16 pixels of .*the model does not say .*--image-range LOW HIGH"):
            door()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_range_of_0_to_255_is_one_like_any_other(dtype):
    values = np.array([[[0], [7], [255], [300]]], dtype)
    assert eight_bit_of_model(values, (0.0, 255.0)).ravel().tolist() == [0, 7, 255, 255]


def test_the_high_byte_is_a_range():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(eight_bit(values, HIGH_BYTE, remedy="")[0], values >> 8)
    assert np.array_equal(eight_bit(values, SIXTEEN_BITS, remedy="")[0], np.rint(values / 257))


def test_an_image_of_fractions_is_told_and_not_refused(caplog):
    fractions = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3, 1)
    assert eight_bit_of_model(fractions, RANGE).max() == 0, "a flat part of a large picture"
    assert "values of 0 to 1, all alike in the model's range 0 to 4080" in caplog.text
    caplog.clear()
    assert eight_bit_of_model(fractions, (0.0, 1.0)).max() == 255
    assert not caplog.text


def test_values_that_are_no_numbers_are_counted():
    values = np.zeros((2, 3, 1), np.float32)
    values[0, 1], values[1, 2] = np.nan, np.inf
    with pytest.raises(DataError, match="2 values that are no finite numbers"):
        extremes(values)


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 6)])
def test_arrays_of_other_bands_are_refused(shape):
    with pytest.raises(DataError, match=rf"has {shape[2]} bands; supported are 1"):
        as_values(np.zeros(shape, np.uint8))


def test_shards_of_another_range_are_warned_of(caplog):
    warn_of_other_range("shards/val", SIXTEEN_BITS, RANGE)
    assert (
        "shards/val: its images have black and white at 0 and 65535, the training images at 0 and 4080" in caplog.text
    )
    caplog.clear()
    for theirs, ours in ((RANGE, RANGE), (None, RANGE), (RANGE, None)):
        warn_of_other_range("shards/val", theirs, ours)
    assert not caplog.text


def test_bytes_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        read_file(tmp_path / "gone.png")
    with pytest.raises(DataError, match="is a folder"):
        read_file(tmp_path)


PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def turned(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decoded_pixels_turned_upright_are_what_a_viewer_shows(kind, orientation):
    data = turned(kind, orientation)
    with Image.open(io.BytesIO(data)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    with Image.open(io.BytesIO(data)) as image:
        left = orientation_of(image)
    pixels = upright(decode_image(data, 3), left)
    assert np.array_equal(pixels, shown)
    assert left == 1 if kind == "TIFF" else shown_size((4, 6), left) == shown.shape[:2]


@pytest.mark.parametrize(
    ("raw", "orientation", "mask", "expected"),
    [
        ((4, 6), 6, (4, 6), "raw"),
        ((4, 6), 6, (6, 4), "upright"),
        ((4, 6), 1, (4, 6), "raw"),
        ((4, 6), 3, (4, 6), None),
        ((4, 4), 6, (4, 4), None),
        ((4, 6), 6, (5, 5), None),
    ],
)
def test_sizes_tell_what_a_mask_was_drawn_on_or_nothing_does(raw, orientation, mask, expected):
    assert drawn_by_size(raw, orientation, mask) == expected
    if expected is not None or mask == (5, 5):
        for drawn in ("raw", "upright", None):  # what is sure needs no choice
            assert is_to_be_turned(raw, orientation, mask, drawn) == (expected == "upright")
        return
    assert is_to_be_turned(raw, orientation, mask, "upright")
    assert not is_to_be_turned(raw, orientation, mask, "raw")
    with pytest.raises(DataError, match="--exif raw or --exif upright"):
        is_to_be_turned(raw, orientation, mask, None)
