"""No band of a TIFF is dropped, whoever wrote it, and what cannot be read is said with its number of bands."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.tiff_files import GREY, RGB, tiff
from unetdist.data.image_file import open_image
from unetdist.data.tiff import read_tiff
from unetdist.errors import DataError

TYPES = ("uint8", "uint16", "int16", "int32", "uint32", "float32", "float64")


def ramp(bands, dtype="uint8"):
    values = np.arange(7 * 9 * bands).reshape(7, 9, bands) * (1 if dtype == "uint8" else 211)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("bands", "photometric", "extra"),
    [
        (1, GREY, ()),
        (3, RGB, ()),
        (3, GREY, (0, 0)),
        (4, RGB, (0,)),
        (4, RGB, (2,)),
        (4, RGB, ()),
        (4, GREY, (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("form", [{}, {"order": ">"}, {"big": True}], ids=["little", "big-endian", "bigtiff"])
def test_every_band_has_its_values(dtype, bands, photometric, extra, form):
    pixels = ramp(bands, dtype)
    opened = open_image(tiff(pixels, photometric=photometric, extra=extra, **form))
    assert np.array_equal(opened.values(), pixels)
    assert opened.channels == bands


@pytest.mark.parametrize("bands", [2, 5, 6])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_other_numbers_of_bands_are_refused(bands, dtype):
    for photometric in (GREY, RGB)[: 1 if bands == 2 else 2]:
        extra = (0,) * (bands - (1 if photometric == GREY else 3))
        with pytest.raises(DataError, match=rf"image has {bands} bands; supported are 1 .*, 3 .* and 4"):
            read_tiff(tiff(ramp(bands, dtype), photometric=photometric, extra=extra))


def test_grey_with_alpha_is_grey():
    opened = open_image(tiff(ramp(2), extra=(2,)))
    assert np.array_equal(opened.values()[..., 0], ramp(2)[..., 0])


@pytest.mark.parametrize("photometric", [GREY, RGB])
def test_bands_one_behind_the_other(photometric):
    pixels = ramp(3)
    assert np.array_equal(open_image(tiff(pixels, photometric=RGB, planar=True)).values(), pixels)
    with pytest.raises(DataError, match="16 bits and planar bands; .*INTERLEAVE=PIXEL"):
        open_image(tiff(ramp(3, "uint16"), photometric=photometric, planar=True))


def test_colours_other_than_rgb_and_signed_bytes_are_refused():
    with pytest.raises(DataError, match="16 bits and colours other than RGB"):
        open_image(tiff(ramp(4, "uint16"), photometric=5))
    with pytest.raises(DataError, match="signed values of 8 bits"):
        open_image(tiff(ramp(1).astype(np.int8)))


def test_pages_are_refused_unless_they_are_copies_of_the_first():
    pages = [ramp(1), ramp(1)[:3, :4]]
    with pytest.raises(DataError, match="image holds 2 frames or pages"):
        open_image(tiff(*pages))
    assert np.array_equal(open_image(tiff(*pages, subfiles=(0, 1))).values(), pages[0])
    assert np.array_equal(open_image(tiff(*pages, subfiles=(0, 4))).values(), pages[0])
    copy_first = tiff(*pages[::-1], subfiles=(1, 0))
    with pytest.raises(DataError, match="the first page of the image is a smaller copy"):
        open_image(copy_first)
    assert np.array_equal(open_image(tiff(pages[0], subfiles=(1,))).values(), pages[0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_deep_colours_are_turned_as_pillow_turns_others(orientation, dtype):
    pixels = ramp(3)
    shown = Image.open(io.BytesIO(tiff(pixels, photometric=RGB, orientation=orientation)))
    shown.load()
    data = tiff(pixels.astype(dtype), photometric=RGB, orientation=orientation)
    assert np.array_equal(open_image(data).values(), np.asarray(shown))


def test_other_files_and_damaged_ones_are_left_to_their_decoders():
    assert read_tiff(b"no image") is None
    whole = tiff(ramp(1))
    for end in range(4, len(whole), 5):
        assert read_tiff(whole[:end]) is None or end > 100
