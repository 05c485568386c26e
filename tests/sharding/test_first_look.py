"""The look at a few samples before all are read; whole commands are in `tests/faults/test_labels.py`."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.sharding.picture_folders import COLORS, color_mask, encoded, image_array, mask_array, palette, write_folders
from unetdist.data.image_file import ORIENTATION_TAG
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.first_look import (
    NUM_SAMPLES,
    decide_exif,
    little_used,
    look,
    refuse_little_used,
    suitable_range,
    warn_of_raw_masks,
    with_measured_range,
)
from unetdist.sharding.sources import RawSample, SampleSource, from_folders

PHOTOGRAPH, LARGE = (
    encoded(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), "JPEG")
    for size in [(12, 16), (48, 64)]
)


class Reader:
    def __init__(self, mask_of, image=PHOTOGRAPH):
        self.mask_of, self.image, self.rows = mask_of, image, []

    def read(self, sample):
        self.rows.append(sample.row)
        return self.image, self.mask_of(sample.row)


def look_at(reader, labels, count=100, **options):
    samples = [RawSample(key=f"{n}", image=f"{n}.jpg", mask=f"{n}.png", row=n) for n in range(count)]
    look(reader, samples, labels, ConvertOptions(**options))


@pytest.fixture
def labels(tmp_path):
    return palette(write_folders(tmp_path, 1))


def test_a_few_samples_spread_over_all_are_read(labels):
    reader = Reader(lambda row: color_mask(mask_array(row)))
    look_at(reader, labels)
    assert reader.rows == [0, 12, 25, 37, 50, 62, 75, 87]
    look_at(reader, labels, count=0)
    look_at(reader, labels, count=3)
    assert len(reader.rows) == NUM_SAMPLES + 3


def test_one_good_mask_or_one_that_cannot_be_read_leaves_it_to_the_pass_over_all(labels):
    look_at(Reader(lambda row: color_mask(mask_array(row)) if row == 50 else PHOTOGRAPH), labels)
    look_at(Reader(lambda row: b"no picture"), labels)


@pytest.mark.parametrize("policy", ["error", "ignore", "nearest"])
def test_photographs_and_exchanged_folders_are_refused(labels, policy):
    with pytest.raises(DataError, match="like a photograph"):
        look_at(Reader(lambda row: LARGE), labels, unknown_colors=policy)
    with pytest.raises(DataError, match="are exchanged"):
        look_at(Reader(lambda row: PHOTOGRAPH, color_mask(mask_array(1))), labels, unknown_colors=policy)


@pytest.mark.parametrize("policy", ["ignore", "nearest"])
def test_some_hundred_unlisted_colours_are_taken_as_asked(labels, policy):
    look_at(Reader(lambda row: PHOTOGRAPH), labels, unknown_colors=policy)


def test_unlisted_colours_are_refused_only_where_they_would_be_anyway(labels):
    foreign = encoded(255 - COLORS[mask_array(1)] // 2)
    for policy in ("ignore", "nearest"):
        look_at(Reader(lambda row: foreign), labels, unknown_colors=policy)
    with pytest.raises(DataError, match="label file of other masks"):
        look_at(Reader(lambda row: foreign), labels)


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
    options = with_measured_range(ConvertOptions(), source(deep(300), PLAIN, b"damaged", deep(3600)), workers=1)
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
    assert "--image-range 31744 33000" in little_used((31744, 33000))
    assert little_used((0, 40000)) is None
    assert little_used(None) is None


def write_pair(root, name, *, drawn, orientation, size=(12, 12), kind="jpg"):
    """An image of two halves whose mask was drawn on the stored pixels, or on what viewers show."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 3, : size[1] // 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG"}.get(kind, kind.upper()), exif=exif, **options)
    seen = Image.open(file)
    mask = np.asarray((ImageOps.exif_transpose(seen) if drawn == "upright" else seen).convert("L")) > 128
    for folder, suffix in (("images", kind), ("masks", "png")):
        path = root / folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder == "images":
            path.write_bytes(file.getvalue())
        else:
            Image.fromarray(mask.astype(np.uint8)).save(path)


def decided(root, **options):
    return decide_exif(ConvertOptions(**options), from_folders(root / "images", root / "masks")).exif


@pytest.mark.parametrize("drawn", ["raw", "upright"])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_images_that_tell_it_decide_for_the_others(tmp_path, drawn, kind):
    write_pair(tmp_path, "square", drawn=drawn, orientation=6, kind=kind)
    assert decided(tmp_path) is None
    write_pair(tmp_path, "tall", drawn=drawn, orientation=6, size=(12, 16), kind=kind)
    assert decided(tmp_path) == drawn


def test_what_is_given_is_not_overruled(tmp_path):
    write_pair(tmp_path, "square", drawn="raw", orientation=3)
    write_pair(tmp_path, "tall", drawn="raw", orientation=8, size=(12, 16))
    assert decided(tmp_path, exif="upright") == "upright"


def test_images_that_contradict_each_other_decide_nothing(tmp_path):
    write_pair(tmp_path, "square", drawn="raw", orientation=3)
    for drawn in ("raw", "upright"):
        write_pair(tmp_path, drawn, drawn=drawn, orientation=8, size=(12, 16))
    assert decided(tmp_path) is None


def test_a_set_without_doubt_needs_no_decision(tmp_path):
    write_pair(tmp_path, "plain", drawn="raw", orientation=1)
    write_pair(tmp_path, "tall", drawn="upright", orientation=6, size=(12, 16))
    (tmp_path / "images/broken.jpg").write_bytes(b"\xff\xd8Exif\0")
    (tmp_path / "masks/broken.png").write_bytes(b"")
    assert decided(tmp_path) is None


@pytest.mark.parametrize("drawn", ["raw", "upright"])
def test_masks_on_stored_pixels_are_told_to_differ_from_what_prediction_sees(tmp_path, caplog, drawn):
    write_pair(tmp_path, "tall", drawn=drawn, orientation=6, size=(12, 16))
    assert decided(tmp_path) is None
    by_size = list(caplog.messages)
    caplog.clear()
    warn_of_raw_masks(drawn)
    assert caplog.messages == by_size
    assert ["predict.py turns such images upright" in told for told in by_size] == [True] * (drawn == "raw")
