import io
import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.shared_data import camvid
from unetdist.data import decode
from unetdist.data.decode import decode_image, decode_mask, refuse_pointer
from unetdist.data.jpeg import parse_header
from unetdist.data.labels.mask_file import decode_codes
from unetdist.data.shards import encode_mask
from unetdist.errors import DataError
from unetdist.sharding import convert

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(RGB[..., 0])
SMOOTH = cv2.resize(RGB, (80, 64), interpolation=cv2.INTER_CUBIC)
RGBA = RNG.integers(0, 256, (20, 31, 4), dtype=np.uint8)


def encode(image, kind="PNG", mode=None, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def luma(image):
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize(("channels", "expected"), [(1, luma(RGB)), (3, RGB), (4, np.dstack([RGB, GREY | 255]))])
def test_lossless_rgb(kind, channels, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encode(RGB, kind, **options), channels)
    if channels == 1:  # OpenCV and PIL round luma differently; ours is OpenCV's, whatever decoded the colours.
        assert abs(pixels.astype(int) - expected).max() <= 1
        expected = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)[..., None]
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_becomes_equal_channels(kind):
    data = encode(GREY, kind)
    np.testing.assert_array_equal(decode_image(data, 1), GREY[..., None])
    np.testing.assert_array_equal(decode_image(data, 3), np.dstack([GREY] * 3))
    np.testing.assert_array_equal(decode_image(data, 4), np.dstack([GREY] * 3 + [GREY | 255]))


def test_alpha_is_dropped_not_blended():
    data = encode(RGBA)
    np.testing.assert_array_equal(decode_image(data, 4), RGBA)
    np.testing.assert_array_equal(decode_image(data, 3), RGBA[..., :3])
    grey_alpha = encode(np.ascontiguousarray(RGBA[..., :2]))
    np.testing.assert_array_equal(decode_image(grey_alpha, 1)[..., 0], RGBA[..., 0])
    np.testing.assert_array_equal(decode_image(grey_alpha, 4)[..., 3], RGBA[..., 1])


def test_a_transparent_colour_of_png_is_alpha_only_where_asked():
    data = encode(RGB, transparency=tuple(RGB[3, 4].tolist()))
    np.testing.assert_array_equal(decode_image(data, 3), RGB)
    assert decode_image(data, 4)[3, 4].tolist() == [*RGB[3, 4], 0]
    assert decode_image(data, 4)[0, 0].tolist() == [*RGB[0, 0], 255]


def test_palette_becomes_its_colours():
    palette = Image.fromarray(RGB).quantize(50)
    np.testing.assert_array_equal(decode_image(encode(palette), 3), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(kind):
    values = RNG.integers(0, 65536, (9, 14), dtype=np.uint16)
    data = encode(values, kind)
    np.testing.assert_array_equal(decode_image(data, 1)[..., 0], values >> 8)
    np.testing.assert_array_equal(decode_image(data, 3)[..., 2], values >> 8)


def test_one_bit_is_black_and_white():
    np.testing.assert_array_equal(decode_image(encode(GREY > 99), 1)[..., 0], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_as_pil_decodes_it(mode, options, channels):
    data = encode(SMOOTH, "JPEG", mode, **options)
    by_pil = decode._decode_with_pillow(data, channels)
    # libjpeg leaves the last bit open; the builds in OpenCV's and PIL's wheels agree in practice.
    assert abs(decode_image(data, channels).astype(int) - by_pil).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_both_decoders_agree_on_real_pictures(channels):
    for path in sorted((camvid() / "train/images").iterdir())[::60]:
        data = path.read_bytes()
        header = parse_header(data)
        fast = decode._decode_jpeg(data, 3, channels) if header else decode._decode_png(data, channels)
        assert fast is not None
        assert abs(fast.astype(int) - decode._decode_with_pillow(data, channels)).max() <= 1


def test_exif_orientation_is_ignored_by_both_decoders():
    """The mask was drawn on the stored pixels; a turned image would no longer fit."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(SMOOTH, kind, exif=exif)
        for channels in (1, 3, 4):
            assert decode_image(data, channels).shape == (*SMOOTH.shape[:2], channels)
            assert decode._decode_with_pillow(data, channels).shape == (*SMOOTH.shape[:2], channels)


def test_zeros_after_a_jpeg_are_padding():
    data = encode(SMOOTH, "JPEG")
    np.testing.assert_array_equal(decode_image(data + bytes(100), 3), decode_image(data, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.95])
def test_truncated_image(kind, keep):
    """OpenCV fills up what is missing of a JPEG with grey, and says nothing."""
    data = encode(SMOOTH, kind)
    with pytest.raises(DataError, match=r"image cannot be read \(.+\); replace the file"):
        decode_image(data[: keep if isinstance(keep, int) else int(len(data) * keep)], 3)


def test_damaged_png():
    data = bytearray(encode(RGB))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match="image cannot be read"):
        decode_image(bytes(data), 3)


def test_damage_that_only_a_checksum_tells():
    """PIL overlooks checksums, so it would pass on what OpenCV has refused."""
    data = bytearray(encode_mask(np.arange(100, dtype=np.uint8).reshape(10, 10)))
    data[-13] ^= 1  # The last byte of the IDAT chunk's checksum.
    with pytest.raises(DataError, match="mask cannot be read .*; replace the file"):
        decode_mask(bytes(data))
    palette = bytearray(encode(RGB, mode="P"))
    palette[-13] ^= 1
    with pytest.raises(DataError, match="image cannot be read .*; replace the file"):
        decode_image(bytes(palette), 3)


VALUES = RNG.choice(np.array([0, 1, 2, 11, 254, 255], np.uint8), (13, 22))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_mask(kind):
    np.testing.assert_array_equal(decode_mask(encode(VALUES, kind)), VALUES)


def test_mask_of_our_own_shards():
    np.testing.assert_array_equal(decode_mask(encode_mask(VALUES)), VALUES)


def test_palette_mask_gives_the_indices():
    image = Image.fromarray(VALUES)
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert image.mode == "P"
    np.testing.assert_array_equal(decode_mask(encode(image)), VALUES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_mask_of_few_bits_gives_the_stored_values(bits):
    values = RNG.integers(0, 2**bits, (5, 9), dtype=np.uint8)
    encoded = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(decode_mask(encoded), values)
    packed = _few_bit_png(values, bits)
    np.testing.assert_array_equal(decode_mask(packed), values)


def _few_bit_png(values, bits):
    import struct
    import zlib

    height, width = values.shape
    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_sixteen_bit_mask():
    np.testing.assert_array_equal(decode_mask(encode(VALUES.astype(np.uint16))), VALUES)
    with pytest.raises(DataError, match=r"mask holds the value 300; class indices end at 255"):
        decode_mask(encode(np.full((3, 3), 300, np.uint16)))


def test_colour_mask():
    with pytest.raises(DataError, match=r"mask is RGB, not one value per pixel; write the shards with"):
        decode_mask(encode(RGB))


@pytest.mark.parametrize("data", [b"", b"no picture", encode_mask(VALUES)[:100], encode_mask(VALUES)[:50]])
def test_unreadable_mask(data):
    with pytest.raises(DataError, match=r"mask cannot be read \(.+\); replace the file"):
        decode_mask(data)


def test_our_own_limit_of_pixels_holds(monkeypatch):
    """Pillow's, which is smaller, is left to others."""
    assert decode.MAX_PIXELS == convert.MAX_PIXELS, "what is written can be read"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    picture, mask = Image.fromarray(RGB).convert("P"), Image.fromarray(VALUES).convert("P")
    assert decode_image(encode(picture), 3).shape == RGB.shape
    assert decode_mask(encode(mask)).shape == VALUES.shape
    assert Image.MAX_IMAGE_PIXELS == 1
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"image cannot be read \(\d+x\d+ are more than 100 pixels\); replace the"):
        decode_image(encode(picture), 3)
    with pytest.raises(DataError, match=r"mask cannot be read \(22x13 are more than 100 pixels\); replace the"):
        decode_mask(encode(mask))
    assert Image.MAX_IMAGE_PIXELS == 1


def chunk(name, body):
    return struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width, height, *before, body=b""):
    """A grey PNG that says of itself what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *before, chunk(b"IDAT", body), chunk(b"IEND", b"")))


def claiming(data, frame, width, height):
    """A JPEG with another size in its header."""
    at = data.index(frame) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("read", [partial(decode_image, channels=3), decode_mask])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_of(60000, 60000, body=zlib.compress(bytes(1000))), id="PNG"),
        pytest.param(png_of(2**31 - 1, 2**31 - 1), id="PNG-31-bits"),
        pytest.param(claiming(encode(RGB, "JPEG"), b"\xff\xc0", 65500, 65500), id="JPEG"),
        pytest.param(claiming(encode(RGB, "JPEG", progressive=True), b"\xff\xc2", 65500, 65500), id="progressive"),
    ],
)
def test_a_header_that_claims_more_than_the_bytes_can_hold_is_refused(read, data):
    with pytest.raises(DataError, match=r"claims to be \d+x\d+, more than its [\d,]+ bytes can hold"):
        read(data)


def test_what_may_be_packed_as_small_as_it_says_is_decoded():
    flat = np.full((2000, 3000), 7, np.uint8)
    for kind, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})):
        assert decode_image(encode(flat, kind, **options), 1)[0, 0, 0] == 7, kind


@pytest.mark.parametrize("read", [partial(decode_image, channels=3), decode_mask])
def test_data_that_no_pixel_needs_are_not_unpacked(read):
    with pytest.raises(DataError, match="of 8x8 holds far more data than its pixels need"):
        read(png_of(8, 8, body=zlib.compress(RNG.bytes(2**19))))


@pytest.mark.parametrize("read", [partial(decode_image, channels=3), decode_mask])
def test_no_room_is_made_for_a_chunk_that_is_longer_than_the_file(read):
    huge = struct.pack(">I4s", 2**31 - 1, b"teXt")
    with pytest.raises(DataError, match=r"cut off in a chunk of 2,147,483,647 bytes"):
        read(png_of(8, 8, huge, body=zlib.compress(bytes(72))))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def test_a_pointer_is_told_by_its_name_and_remedy():
    refuse_pointer(b"version 2 of the labels", "the label file")
    with pytest.raises(DataError, match=r"^the label file was not fetched, .* Git LFS pointer .* `git lfs pull`"):
        refuse_pointer(POINTER, "the label file")


@pytest.mark.parametrize("read", [lambda data: decode_image(data, 3), decode_mask, decode_codes])
def test_pictures_and_masks_that_are_pointers(read):
    with pytest.raises(DataError, match="git lfs pull"):
        read(POINTER)
