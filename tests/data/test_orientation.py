import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from unetdist.data.decode import decode_image
from unetdist.data.image_file import (
    ORIENTATION_TAG,
    drawn_by_size,
    is_to_be_turned,
    orientation_of,
    shown_size,
    upright,
)
from unetdist.errors import DataError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def encoded(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decoded_pixels_turned_upright_are_what_a_viewer_shows(kind, orientation):
    data = encoded(kind, orientation)
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
