"""Counts are exact and do not depend on how samples are divided."""

import json

import numpy as np
import pytest

from tests.sharding.picture_folders import image_array
from unetdist.data.manifest import Shard
from unetdist.sharding.account import Statistics

SIZES = [(4, 5), (4, 5), (7, 3), (2, 9)]
IMAGES = [image_array(number, size) for number, size in enumerate(SIZES)]
MASKS = [
    np.random.default_rng(n).choice(np.array([0, 1, 2, 255], np.uint8), size) for n, size in enumerate(SIZES)
]
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
