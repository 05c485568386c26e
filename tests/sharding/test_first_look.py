"""The look at a few samples before all are read; whole commands are in `tests/faults/test_labels.py`."""

import numpy as np
import pytest

from tests.sharding.picture_folders import COLORS, color_mask, encoded, mask_array, palette, write_folders
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.first_look import NUM_SAMPLES, look
from unetdist.sharding.sources import RawSample

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
