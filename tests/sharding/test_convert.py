"""One shard's samples: what is stored, what is kept, what is refused."""

import json

import cv2
import numpy as np
import pytest

from tests.sharding.ingested import samples_of, write
from tests.sharding.picture_folders import image_array, mask_array
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.manifest import Manifest, Shard
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.account import Statistics
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.sources import from_folders


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


SIZES = [(4, 5), (4, 5), (7, 3), (2, 9)]
IMAGES = [image_array(number, size) for number, size in enumerate(SIZES)]
MASKS = [np.random.default_rng(n).choice(np.array([0, 1, 2, 255], np.uint8), size) for n, size in enumerate(SIZES)]
MASKS[3][:] = 1


def count(numbers) -> Statistics:
    statistics = Statistics()
    for number in numbers:
        statistics.add(IMAGES[number], MASKS[number], 1 if number == 3 else 3, is_kept=number > 0)
    return statistics


def manifest(statistics: Statistics):
    return statistics.to_manifest([Shard("0.tar", 4, 1, "")], [], 3, None, (0.0, 4095.0))


def test_the_manifest_says_what_numpy_says():
    result = manifest(count(range(4)))
    pixels = np.concatenate([image.reshape(-1, 3) for image in IMAGES]).astype(np.float64)
    values = np.concatenate([mask.ravel() for mask in MASKS])
    assert result.mean == pytest.approx(pixels.mean(0), rel=1e-15)
    assert result.std == pytest.approx(pixels.std(0), rel=1e-13)
    assert result.class_pixels == tuple((values == index).sum() for index in range(3))
    assert result.ignored_pixels == (values == 255).sum()
    assert result.class_images == tuple(sum((mask == index).any() for mask in MASKS) for index in range(3))
    assert result.presence_pixels == tuple(
        sum((mask != 255).sum() for mask in MASKS if (mask == index).any()) for index in range(3)
    )
    assert (result.num_samples, result.num_pixels, result.channels) == (4, 79, 3)
    assert (result.min_size, result.max_size) == ((2, 3), (7, 9))
    assert result.sizes == ((4, 5, 2), (2, 9, 1), (7, 3, 1))


def test_sums_do_not_depend_on_how_samples_are_divided():
    whole = count(range(4))
    parts = Statistics()
    for part in (count([3, 1]), count([]), count([0, 2])):
        parts.merge(Statistics.from_record(json.loads(json.dumps(part.to_record()))))
    assert parts.to_record() == whole.to_record()
    assert manifest(parts) == manifest(whole)


def test_a_flat_colour_has_no_deviation_at_all():
    statistics = Statistics()
    for _ in range(3):
        statistics.add(np.full((30, 31, 3), 77, np.uint8), np.zeros((30, 31), np.uint8), 3, is_kept=True)
    assert manifest(statistics).std == (0.0, 0.0, 0.0)
