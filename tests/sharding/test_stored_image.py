"""Images stay as they are where anyone decodes them, and become upright 8-bit pictures where not."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.decode import decode_image
from unetdist.data.jpeg import parse_header
from unetdist.errors import DataError
from unetdist.sharding import stored_image as pictures
from unetdist.sharding.stored_image import encode, store_image

SIZE = (6, 9)
RGB = image_array(1, SIZE)
GREY = RGB[..., 0]
RGBA = np.dstack([RGB, GREY])
LARGE = image_array(2, (100, 160))


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("pixels", "kind", "channels"),
    [(RGB, "JPEG", 3), (GREY, "JPEG", 1), (RGB, "PNG", 3), (GREY, "PNG", 1), (RGBA, "PNG", 4), (GREY > 99, "PNG", 1)],
)
def test_what_anyone_decodes_keeps_its_bytes(pixels, kind, channels):
    data = encoded(pixels, kind)
    picture = store_image(data, SIZE)
    assert picture.data == data
    assert picture.is_kept
    assert picture.extension == {"JPEG": "jpg", "PNG": "png"}[kind]
    assert picture.channels == channels
    assert np.array_equal(picture.pixels, decode_image(data, 3))


PALETTE_IMAGE = Image.fromarray(RGB).quantize(8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(RGB, "TIFF"), RGB),
        (encoded(RGB, "BMP"), RGB),
        (encoded(RGB, "WEBP", lossless=True), RGB),
        (encoded(RGB, "PPM"), RGB),
        (save(PALETTE_IMAGE, "GIF"), np.asarray(PALETTE_IMAGE.convert("RGB"))),
        (save(PALETTE_IMAGE, "PNG", transparency=0), None),
        (save(Image.fromarray(RGB).convert("CMYK"), "JPEG"), None),
        (encoded(GREY.astype(np.uint16) * 257), GREY),
        (cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), RGB),
        (cv2.imencode(".tif", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), RGB),
        (cv2.imencode(".png", RGBA[..., [2, 1, 0, 3]].astype(np.uint16) * 257)[1].tobytes(), RGBA),
    ],
    ids=[
        "tiff",
        "bmp",
        "webp",
        "ppm",
        "gif",
        "transparent-palette",
        "cmyk",
        "grey16",
        "rgb16-png",
        "rgb16-tiff",
        "rgba16",
    ],
)
def test_the_others_become_png(data, expected):
    picture = store_image(data, SIZE)
    assert picture.extension == "png"
    assert not picture.is_kept
    image = Image.open(io.BytesIO(picture.data))
    assert image.format == "PNG"
    if expected is None:
        source = Image.open(io.BytesIO(data))
        expected = np.asarray(source.convert("RGBA" if source.format == "PNG" else "RGB"))
    assert np.array_equal(np.asarray(image), expected)
    assert picture.channels == (1 if expected.ndim == 2 else expected.shape[2])


def test_a_palette_without_transparency_is_kept():
    data = save(PALETTE_IMAGE, "PNG")
    assert store_image(data, SIZE).data == data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_is_turned_upright_where_the_mask_is(orientation, kind):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    data = save(image, kind, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    picture = store_image(data, shown.shape[:2], exif="upright")
    assert picture.is_kept == (orientation == 1)
    assert np.array_equal(pixels_of(picture.data), shown)
    assert np.array_equal(picture.pixels, decode_image(picture.data, 3))


def test_an_image_is_left_as_it_lies_where_the_mask_does():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "JPEG", exif=exif)
    assert store_image(data, SIZE).data == data


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize("resize", [None, (8, 6)])
def test_an_image_is_not_turned_by_guess(orientation, resize):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, "PNG", exif=exif)
    with pytest.raises(DataError, match=f"EXIF orientation {orientation}, .* add --exif raw or --exif upright"):
        store_image(data, SIZE, resize=resize)
    if resize is None:
        assert store_image(data, SIZE, exif="raw").data == data


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_is_left_alone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, "JPEG", exif=exif)
    assert store_image(data, SIZE).data == data


def test_a_turned_tiff_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "TIFF", exif=exif)
    assert np.array_equal(pixels_of(store_image(data, SIZE[::-1]).data), np.rot90(RGB, -1))


def test_resizing_is_by_area():
    flat = np.repeat(np.repeat(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 4, 0), 2, 1)
    picture = store_image(encoded(flat), (4, 4), resize=(1, 2))
    assert picture.data == encode(np.full((2, 1, 3), 128, np.uint8), "png")
    assert store_image(encoded(GREY), SIZE, resize=(3, 2)).pixels.shape == (2, 3, 3)
    assert store_image(encoded(GREY), SIZE, resize=(3, 2)).channels == 1


def test_a_format_that_is_asked_for_changes_only_the_others():
    png, jpg = encoded(RGB), encoded(RGB, "JPEG")
    assert store_image(jpg, SIZE, image_format="jpg").data == jpg
    assert store_image(png, SIZE, image_format="png").data == png
    assert np.array_equal(pixels_of(store_image(jpg, SIZE, image_format="png").data), decode_image(jpg, 3))
    assert store_image(encoded(RGBA), SIZE, image_format="jpg").extension == "jpg"
    progressive = encoded(RGB, "JPEG", progressive=True)
    assert store_image(progressive, SIZE).is_kept
    again = Image.open(io.BytesIO(store_image(progressive, SIZE, image_format="jpg").data))
    assert not again.info.get("progressive")


@pytest.mark.parametrize("pixels", [LARGE, LARGE[..., 0]], ids=["rgb", "grey"])
def test_a_jpeg_gets_restart_markers_and_keeps_its_pixels(pixels):
    data = encoded(pixels, "JPEG", comment=b"a comment")
    picture = store_image(data, (100, 160))
    assert picture.is_kept
    assert picture.data != data
    assert b"a comment" in picture.data
    assert parse_header(picture.data).is_sliceable
    assert np.array_equal(decode_image(picture.data, 3), decode_image(data, 3))
    assert np.array_equal(picture.pixels, decode_image(data, 3))
    assert store_image(data, (100, 160), seekable=False).data == data


def test_a_jpeg_written_anew_has_restart_markers():
    for pixels in (LARGE, LARGE[..., 0]):
        picture = store_image(encoded(pixels), (100, 160), image_format="jpg")
        assert parse_header(picture.data).is_sliceable
        assert not picture.is_kept
        plain = store_image(encoded(pixels), (100, 160), image_format="jpg", seekable=False)
        assert parse_header(plain.data).restart_interval == 0
        assert np.array_equal(picture.pixels, plain.pixels)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_without_need_or_way_keeps_its_bytes(options):
    data = encoded(LARGE, "JPEG", **options)
    assert store_image(data, (100, 160)).data == data


def test_an_mpo_keeps_its_further_pictures():
    data = save(Image.fromarray(LARGE), "MPO", save_all=True, append_images=[Image.fromarray(LARGE)])
    assert store_image(data, (100, 160)).data == data


def test_markers_that_changed_pixels_would_not_be_added(monkeypatch):
    other = encoded(LARGE[::-1], "JPEG")
    monkeypatch.setattr(pictures, "add_restart_markers", lambda data: other)
    data = encoded(LARGE, "JPEG")
    assert store_image(data, (100, 160)).data == data


def test_a_range_of_values_becomes_black_and_white():
    deep = np.linspace(-0.5, 1.5, 54, dtype=np.float32).reshape(SIZE)
    picture = store_image(encoded(deep, "TIFF"), SIZE, image_range=(0.0, 1.0))
    expected = np.rint(np.clip(deep.astype(np.float64), 0, 1) * 255)
    assert np.array_equal(picture.pixels[..., 0], expected)
    twelve_bits = encoded((GREY.astype(np.uint16)) * 16)
    assert store_image(twelve_bits, SIZE, image_range=(0, 4080)).pixels[..., 0].tolist() == GREY.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image cannot be read"),
        (b"no image", "image cannot be read"),
        (encoded(image_array(1, (60, 90)), "JPEG")[:-900], "cannot be read"),
        (encoded(image_array(1, (60, 90)), "PNG")[:-900], "cannot be read"),
        (encoded(image_array(1, (60, 90)), "BMP")[:-900], "cannot be read"),
        (encoded(RGB[:5]), r"image is 9x5, mask is 9x6 \(width x height\); export both at one size"),
        (encoded(GREY.astype(np.float32), "TIFF"), "image has float32 pixels of .*--image-range LOW HIGH"),
        (
            save(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]),
            "image holds 2 frames or pages; save each as a file of its own",
        ),
    ],
    ids=["empty", "text", "jpeg", "png", "bmp", "size", "float", "pages"],
)
def test_an_image_that_cannot_be_used_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        store_image(data, SIZE)


def test_deep_colours_that_cannot_be_decoded_are_refused(monkeypatch):
    data = cv2.imencode(".png", RGB.astype(np.uint16) * 257)[1].tobytes()
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    with pytest.raises(DataError, match="more than 8 bits cannot be read; save it as PNG"):
        store_image(data, SIZE)
