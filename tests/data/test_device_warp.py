import cv2
import numpy as np
import pytest
import torch

from unetdist.data.device_warp import find_places, fma, interpolated, nearest
from unetdist.data.geometry import Window

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def warped(window, *, is_fixed_point):
    """The window of PICTURE by both ways of interpolation, where all of it lies inside."""
    x, y = window.axes()
    row, column = (y, x) if window.quarter_turns % 2 else (x, y)
    size = (window.width, window.height) if window.quarter_turns % 2 else (window.height, window.width)
    axes = torch.tensor([[*row, *column]], dtype=torch.float64)[:, :, None, None]
    is_turned = torch.tensor(bool(window.quarter_turns % 2))[None, None, None]
    x, y = find_places(axes, is_turned, size, is_fixed_point=is_fixed_point)
    pixels = torch.from_numpy(PICTURE)

    def look(row, column):
        return pixels[row, column]

    return interpolated(look, x, y)[0].numpy(), look(nearest(y), nearest(x))[0].numpy()


@pytest.mark.parametrize("is_fixed_point", [False, True])
@pytest.mark.parametrize("scale", [0.6317, 1.0, 1.3713, 2.9371])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_both_ways_to_compute_are_those_of_opencv_but_for_a_few_levels(scale, turns, is_fixed_point):
    """Which of them is that of the OpenCV at hand, to the last bit, is shown with `DeviceAugmenter`."""
    height, width = int(36 * scale) - 2, int(46 * scale) - 2
    window = Window(
        top=int(2 * scale),
        left=int(2 * scale),
        height=height,
        width=width,
        scale=scale,
        flip_horizontal=turns == 1,
        quarter_turns=turns,
    )
    linear, near = warped(window, is_fixed_point=is_fixed_point)
    expected = window.apply(PICTURE, fill=(0, 0, 0), interpolation=cv2.INTER_LINEAR)
    assert abs(linear - expected.astype(int)).max() <= 10  # white noise; a share of 1/64 of 255 in x and in y
    expected = window.apply(PICTURE, fill=(0, 0, 0), interpolation=cv2.INTER_NEAREST)
    assert (near != expected).mean() < 0.02


def test_a_product_and_a_sum_are_rounded_once():
    rng = np.random.default_rng(1)
    a, b, c = (torch.from_numpy(rng.normal(size=1000).astype(np.float32)) for _ in range(3))
    exact = a.numpy().astype(np.longdouble) * b.numpy() + c.numpy()
    np.testing.assert_array_equal(fma(a, b, c).numpy(), exact.astype(np.float32))
    assert (fma(a, b, c) != a * b + c).any()
