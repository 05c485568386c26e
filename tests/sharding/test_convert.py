"""One shard's samples: what is stored, what is kept, what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.sharding.ingested import samples_of, write
from tests.sharding.picture_folders import (
    mask_array,
    write_folders,
)
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.sources import from_folders


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


def test_a_data_set_holds_the_images_bytes_and_the_masks_indices(root, tmp_path):
    account = write(root, tmp_path / "out", seekable=False)
    found = samples_of(tmp_path / "out")
    assert len(found) == 20
    for number in range(20):
        key = f"day{number % 2}/{number:02d}"
        image, mask, record = found[key]
        assert image == (root / "images" / f"{key}.jpg").read_bytes()
        assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(number)])
        names = {"image": f"{key}.jpg", "mask": f"{key}.png"}
        assert record == {"key": key, "height": 12, "width": 16, **names}
    assert f"{tmp_path / 'out'}: 20 samples in 4 shards" in account
    assert "16x12, RGB; original encoding" in account


def test_masks_and_images_are_resized_together(root, tmp_path):
    write(root, tmp_path / "out", resize=(8, 6))
    assert Manifest.load(tmp_path / "out").resize == (8, 6)
    image, mask, record = samples_of(tmp_path / "out")["day0/00"]
    assert (record["height"], record["width"]) == decode_mask(mask).shape == (6, 8)
    source = decode_image((root / "images/day0/00.jpg").read_bytes(), 3)
    assert np.array_equal(decode_image(image, 3), cv2.resize(source, (8, 6), interpolation=cv2.INTER_AREA))
    assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(0)][1::2, 1::2])


def test_a_file_that_may_not_be_read_is_a_bad_sample(root, tmp_path):
    source = from_folders(root / "images", root / "masks")
    (root / "images/day0/00.jpg").unlink()
    with pytest.raises(DataError, match=r"day0/00\.jpg, day0/00\.png: cannot be read: .*No such file"):
        write(root, tmp_path / "out", source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvertOptions(resize=(0, 5)), r"resize \(0x5\) must be at least 1x1"),
        (lambda: ConvertOptions(image_range=(5, 5)), r"image_range \(5 5\) must ascend"),
        (lambda: ConvertOptions(max_pixels=0), r"max_pixels \(0\) must be 1 or more; use 268435456"),
    ],
)
def test_options_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
