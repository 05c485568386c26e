import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from unetdist.data.decode import decode_image
from unetdist.data.orientation import ORIENTATION_TAG, orientation_of, shown_size, upright

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
