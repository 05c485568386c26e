"""The built-in shapes come out of a source as `draw` made them."""

import io

import numpy as np
import pytest
from PIL import Image

from unetdist.data.labels.masks import read_mask
from unetdist.data.shapes import PALETTE, draw
from unetdist.errors import ConfigError
from unetdist.sharding.sources import from_shapes


def test_pictures_are_those_that_are_drawn():
    source = from_shapes(3, seed=5)
    assert [sample.key for sample in source.samples] == ["00000", "00001", "00002"]
    image, mask = draw(2, seed=5)
    image_bytes, mask_bytes = source.reader.read(source.samples[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image_bytes))), image)
    reading = read_mask(mask_bytes, PALETTE)
    read, unknowns = reading.mask, reading.unknowns
    assert np.array_equal(read, mask)
    assert unknowns == []


def test_no_pictures_are_refused():
    with pytest.raises(ConfigError, match=r"shapes \(0\) must be 1 or more; use 400"):
        from_shapes(0, seed=0)
