"""What a user sees of a finished data set: the table of `stats`, and the sheet of `show`."""

import dataclasses

import numpy as np
import pytest

from tests.synthetic import draw, write_shards
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.reader import ShardReader
from unetdist.errors import DataError
from unetdist.sharding.describe import PANEL_PX, choose_samples, describe_manifest, draw_samples, find_samples
from unetdist.storage.folders import open_folder


@pytest.fixture
def manifest(tmp_path):
    """Twelve samples in shards of five, five and two."""
    return write_shards(tmp_path, 12, sizes=((24, 32), (24, 32), (48, 20)))


@pytest.fixture
def reader(tmp_path, manifest):
    return ShardReader(tmp_path, Manifest.load(tmp_path))


def test_the_text_has_classes_sizes_and_shards(manifest):
    text = describe_manifest(manifest, open_folder("shards/train"))
    assert "shards/train: 12 samples in 3 shards, 0.1 MB" in text
    (tree,) = [line for line in text.splitlines() if "tree" in line]
    assert f"{100 * manifest.class_pixels[2] / manifest.num_pixels:.2f} %       4" in tree
    assert "ignored" in text
    assert f"20x24 to 32x48, RGB; mean {manifest.mean[0]:.1f} " in text


def test_a_class_that_does_not_occur_is_said(manifest):
    changed = dataclasses.replace(
        manifest, class_pixels=(9, 9, 0), class_images=(3, 3, 0), presence_pixels=(90, 90, 0), sizes=((24, 32, 5),)
    )
    (tree,) = [line for line in describe_manifest(changed, open_folder("x")).splitlines() if "tree" in line]
    assert "does not occur" in tree


def test_the_choice_is_what_a_training_sees_first(reader):
    ids = choose_samples(reader, 5, seed=3)
    assert ids == Order([5, 5, 2], seed=3).locate(np.arange(5)).sample_id.tolist()
    assert ids == choose_samples(reader, 5, seed=3) != choose_samples(reader, 5, seed=4)
    assert sorted(choose_samples(reader, 100, seed=0)) == list(range(12))


def test_samples_by_key(reader):
    assert find_samples(reader, ["pictures/007", "pictures/001", "pictures/007"]) == [7, 1, 7]
    with pytest.raises(DataError, match=r"no sample has the key a, b; keys look like pictures/000\."):
        find_samples(reader, ["pictures/001", "b", "a"])


@pytest.mark.parametrize("num", [1, 5])
def test_the_sheet_has_every_sample_as_it_is(reader, num):
    sheet = draw_samples(reader, range(num))
    assert sheet.dtype == np.uint8
    for number in range(num):
        image, _ = draw(number, [(24, 32), (24, 32), (48, 20)][number % 3])
        factor = -(-PANEL_PX // max(image.shape[:2]))
        assert contains(sheet, image.repeat(factor, axis=0).repeat(factor, axis=1)), number
    assert np.array_equal(sheet, draw_samples(reader, range(num)))


def contains(sheet, picture):
    """Whether the picture is a part of the sheet."""
    height, width = picture.shape[:2]
    tops, lefts = np.nonzero((sheet == picture[0, 0]).all(axis=2))
    return any(
        np.array_equal(sheet[top : top + height, left : left + width], picture)
        for top, left in zip(tops, lefts, strict=True)
    )
