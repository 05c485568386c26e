from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetdist.data.augment import Window
from unetdist.data.decode import Box

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
MASK = RNG.integers(0, 256, (23, 31), dtype=np.uint8)

windows = st.builds(
    Window,
    top=st.integers(-30, 30),
    left=st.integers(-40, 40),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    flip_horizontal=st.booleans(),
    flip_vertical=st.booleans(),
    quarter_turns=st.integers(0, 3),
)


def by_numpy(pixels, window, fill):
    far = 100
    edges = [(far, far), (far, far)] + [(0, 0)] * (pixels.ndim - 2)
    inside = np.pad(np.ones(pixels.shape[:2], bool), far)
    padded = np.where(inside if pixels.ndim == 2 else inside[..., None], np.pad(pixels, edges), fill)
    top, left = window.top + far, window.left + far
    taken = padded[top : top + window.height, left : left + window.width]
    taken = taken[:, ::-1] if window.flip_horizontal else taken
    taken = taken[::-1] if window.flip_vertical else taken
    return np.rot90(taken, window.quarter_turns)


@given(windows)
def test_without_scale_it_is_exactly_slice_flip_and_rot90(window):
    image = window.apply(COLOR, fill=(1, 2, 3), interpolation=cv2.INTER_LINEAR)
    mask = window.apply(MASK, fill=(255,), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(image, by_numpy(COLOR, window, (1, 2, 3)))
    np.testing.assert_array_equal(mask, by_numpy(MASK, window, 255))


@given(windows)
def test_the_warp_at_scale_one_is_exact_too(window):
    """So its matrix has the flips, turns and offsets right, to the pixel."""
    for pixels, fill, interpolation in [
        (COLOR, (1, 2, 3), cv2.INTER_LINEAR),
        (MASK, (255,), cv2.INTER_NEAREST),
    ]:
        box = Box(0, 0, *MASK.shape)
        warped = window._warp(pixels, box, fill, interpolation)
        np.testing.assert_array_equal(warped, by_numpy(pixels, window, fill if len(fill) == 3 else 255))


@given(windows, st.sampled_from([1.0, 0.4, 0.9, 1.3, 2.5]))
def test_the_box_is_all_that_is_looked_at(window, scale):
    """What lies outside of it may be anything, and need not be decoded."""
    window = replace(window, scale=scale)
    size = MASK.shape
    box = window.box(size)
    assert 0 <= box.top <= box.bottom <= size[0]
    assert 0 <= box.left <= box.right <= size[1]
    other = 255 - COLOR
    other[box.slices] = COLOR[box.slices]
    whole = window.apply(COLOR, fill=(1, 2, 3), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(whole, window.apply(other, fill=(1, 2, 3), interpolation=cv2.INTER_LINEAR))
    part = window.apply_to_box(COLOR[box.slices], size, fill=(1, 2, 3), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(whole, part)


@pytest.mark.parametrize("scale", [0.37, 0.5, 0.83, 1.27, 1.9, 2.0, 3.3])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_pixel_centres_do_not_shift(scale, turns, flip):
    """On a ramp the colour is the coordinate: linear and nearest sampling show where each pixel comes from."""
    size = 250
    ramp_x = np.repeat(np.arange(size, dtype=np.uint8)[None], size, 0)
    scaled = int(size * scale)
    margin = 6
    window = Window(
        top=margin,
        left=margin + 1,
        height=scaled - 2 * margin,
        width=scaled - 2 * margin - 3,
        scale=scale,
        flip_horizontal=flip,
        quarter_turns=turns,
    )
    centres = (np.arange(window.width) + window.left + 0.5) / scale - 0.5
    expected = np.rot90(np.repeat((centres[::-1] if flip else centres)[None], window.height, 0), turns)
    image = window.apply(ramp_x[..., None], fill=(0,), interpolation=cv2.INTER_LINEAR)[..., 0]
    mask = window.apply(ramp_x, fill=(255,), interpolation=cv2.INTER_NEAREST)
    for pixels in (image, mask):
        error = pixels - expected
        assert (
            abs(error).max() <= 0.5 + 1 / 32
        )  # Half a grey value, and OpenCV's table of 32 steps per pixel.
        if scale not in (0.5, 2.0):  # There all centres are ties, or quarters.
            assert abs(error.mean()) < 0.03


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_whole_picture_enlarged_is_cv2_resize(scale):
    smooth = cv2.GaussianBlur(COLOR, (7, 7), 2)
    window = Window(top=0, left=0, height=int(23 * scale), width=int(31 * scale), scale=scale)
    warped = window.apply(smooth, fill=(0, 0, 0), interpolation=cv2.INTER_LINEAR)
    resized = cv2.resize(smooth, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    inside = (slice(3, -3), slice(3, -3))
    assert abs(warped[inside].astype(int) - resized[inside]).max() <= 2


@given(windows, st.floats(0.3, 3))
def test_at_any_scale_the_outside_is_filled(window, scale):
    window = Window(**{**window.__dict__, "scale": scale})
    white = np.full((23, 31), 7, np.uint8)
    mask = window.apply(white, fill=(255,), interpolation=cv2.INTER_NEAREST)
    matrix = window.matrix()
    rows, columns = np.indices(mask.shape)
    x, y = np.tensordot(matrix, np.stack([columns, rows, np.ones_like(rows)]), 1)
    slack = 1e-2  # OpenCV rounds coordinates to 1/1024 pixel.
    inside = (x > -0.5 + slack) & (x < 30.5 - slack) & (y > -0.5 + slack) & (y < 22.5 - slack)
    outside = (x < -0.5 - slack) | (x > 30.5 + slack) | (y < -0.5 - slack) | (y > 22.5 + slack)
    assert (mask[inside] == 7).all()
    assert (mask[outside] == 255).all()


def test_pictures_beyond_opencvs_limit():
    wide = np.zeros((2, 40_000), np.uint8)
    wide[:, 38_000:] = 9
    window = Window(top=0, left=2 * 38_000 - 4, height=4, width=8, scale=2.0)
    assert window.apply(wide, fill=(255,), interpolation=cv2.INTER_NEAREST)[2].tolist() == [0] * 4 + [9] * 4
