"""Ranges are measured over all images, and 16 bits of which little is used are told with the line to type."""

import numpy as np
import pytest

from tests.sharding.picture_folders import encoded, image_array
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.first_look import little_used, refuse_little_used, suitable_range, with_measured_range
from unetdist.sharding.sources import RawSample, SampleSource


class Pictures:
    def __init__(self, *images: bytes) -> None:
        self.images = images

    def read(self, sample):
        return self.images[sample.row], b""


def source(*images: bytes) -> SampleSource:
    samples = tuple(RawSample(key=str(row), image="", mask="", row=row) for row in range(len(images)))
    return SampleSource(samples, (), Pictures(*images))


def deep(highest, low=0, dtype=np.uint16):
    kind = "TIFF" if dtype != np.uint16 else "PNG"
    return encoded(np.linspace(low, highest, 12).reshape(3, 4).astype(dtype), kind)


PLAIN = encoded(image_array(1))


@pytest.mark.parametrize(
    ("low", "high", "is_integer", "expected"),
    [
        (0, 3600, True, (0, 4095)),
        (12, 300, True, (0, 511)),
        (0, 60000, True, (0, 65535)),
        (31744, 33000, True, (31744, 33000)),
        (-1024, 3071, True, (-1024, 3071)),
        (0.25, 0.75, False, (0.25, 0.75)),
        (7, 7, True, (7, 8)),
        (0, 0, True, (0, 1)),
    ],
)
def test_the_bits_that_are_used_or_the_extremes(low, high, is_integer, expected):
    assert suitable_range(low, high, is_integer=is_integer) == expected


def test_auto_is_the_range_of_all_images():
    options = with_measured_range(
        ConvertOptions(), source(deep(300), PLAIN, b"damaged", deep(3600)), workers=1
    )
    assert options.image_range == (0, 4095)
    floats = source(deep(0.5, dtype=np.float32), deep(1.5, -0.5, dtype=np.float32))
    assert with_measured_range(ConvertOptions(), floats, workers=1).image_range == (-0.5, 1.5)
    assert with_measured_range(ConvertOptions(), source(PLAIN), workers=1).image_range is None


def test_little_of_16_bits_is_told_before_anything_is_written():
    with pytest.raises(
        DataError, match=r"values are 0 to 3600 .* 15 of 256 .*--image-range 0 4095 \(or --image-range auto"
    ):
        refuse_little_used(ConvertOptions(), source(deep(3600), deep(300)))
    for good in (
        source(deep(3600), deep(60000)),
        source(deep(300), PLAIN),
        source(deep(300, dtype=np.int32)),
        source(),
    ):
        refuse_little_used(ConvertOptions(), good)
    refuse_little_used(ConvertOptions(image_range=(0, 65535)), source(deep(300)))


def test_values_far_from_zero_are_little_too():
    assert "--image-range 31744 33000" in little_used(ConvertOptions(), (31744, 33000), "all").detail
    assert little_used(ConvertOptions(), (0, 40000), "all") is None
    assert little_used(ConvertOptions(), None, "all") is None
