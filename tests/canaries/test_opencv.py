"""How OpenCV rounds: the device's copy of its arithmetic is exact only where this holds."""

import cv2
import numpy as np
import pytest

from tests.data.opencv import FOLLOWED, NOT_FOLLOWED
from unetdist.data.device_warp import IS_FIXED_POINT

floats = pytest.mark.skipif(not FOLLOWED or IS_FIXED_POINT, reason=NOT_FOLLOWED)

INVERSE = cv2.WARP_INVERSE_MAP


def warp(pixels, matrix, size, interpolation):
    return cv2.warpAffine(
        pixels, matrix, size, flags=interpolation | INVERSE, borderMode=cv2.BORDER_CONSTANT, borderValue=255
    )


@floats
def test_a_tie_goes_to_the_even_pixel():
    row = np.arange(200, dtype=np.uint8)[None]
    found = warp(row, np.array([[1, 0, 0.5], [0, 1, 0.0]]), (160, 1), cv2.INTER_NEAREST)[0]
    np.testing.assert_array_equal(found, np.rint(np.arange(160) + 0.5))


@floats
def test_places_are_of_float32_and_rounded_once_in_whole_vectors_of_16_columns_and_twice_in_the_rest():
    row = np.arange(200, dtype=np.uint8)[None]
    column = np.arange(61, dtype=np.float32)
    differs = np.zeros(61, bool)
    for scale in (0.6, 0.75, 1.5):
        for left in range(20):
            step = np.float32(1 / scale)
            shift = np.float32((left + 0.5) / scale - 0.5)
            once = np.rint((column.astype(np.float64) * step + shift).astype(np.float32))
            twice = np.rint(column * step + shift)
            differs |= once != twice
            matrix = np.array([[step, 0, shift], [0, 1, 0]], np.float64)
            found = warp(row, matrix, (61, 1), cv2.INTER_NEAREST)[0]
            np.testing.assert_array_equal(found, np.where(column < 48, once, twice))
    assert differs[:48].any()
    assert differs[48:].any()


@floats
def test_shares_of_neighbours_are_not_rounded():
    pair = np.array([[0, 200]], np.uint8)
    for share in (0.101, 0.2524, 0.7476):
        found = warp(pair, np.array([[1, 0, share], [0, 1, 0.0]]), (1, 1), cv2.INTER_LINEAR)[0, 0]
        assert found == round(200 * share)


def test_colours_are_changed_in_fixed_point_of_ten_bits_and_grey_in_float():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    rows = rng.uniform(-1, 2, (3, 4)).astype(np.float32)
    fixed = np.rint(rows * 1024).astype(int)
    expected = (image @ fixed[:, :3].T + fixed[:, 3] + 512 >> 10).clip(0, 255)
    np.testing.assert_array_equal(cv2.transform(image, rows), expected)
    grey = np.ascontiguousarray(image[..., :1])
    expected = np.rint((grey.astype(np.float64) * rows[0, 0] + rows[0, 3]).astype(np.float32)).clip(0, 255)
    np.testing.assert_array_equal(cv2.transform(grey, rows[:1, [0, 3]])[..., None], expected)


@pytest.mark.skipif(not IS_FIXED_POINT, reason="OpenCV 4 computes in fixed point")
def test_shares_of_neighbours_are_32ths():
    pair = np.array([[0, 200]], np.uint8)
    for share in (0.101, 0.2524, 0.7476):
        found = warp(pair, np.array([[1, 0, share], [0, 1, 0.0]]), (1, 1), cv2.INTER_LINEAR)[0, 0]
        assert found == round(200 * round(share * 32) / 32)
