import cv2
import numpy as np
import pytest

from unetdist.data.augment import AugmentConfig, Augmenter

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
MEAN = (100.0, 110.0, 120.0)
MIDDLE, MOST = 0.5, 1 - 2**-40


def jitter(**strengths):
    return Augmenter(AugmentConfig(**strengths), seed=0, class_pixels=[1], mean=MEAN).jittered


def grey_of(image):
    return image @ np.array([0.299, 0.587, 0.114])


def test_off_is_the_image_itself():
    assert jitter()(IMAGE, np.full(4, MOST)) is IMAGE
    grey = np.ascontiguousarray(IMAGE[..., :1])
    assert jitter(saturation=1, hue=0.5)(grey, np.full(4, MOST)) is grey


def test_the_middle_of_each_range_changes_nothing():
    changed = jitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)(IMAGE, np.full(4, MIDDLE))
    assert abs(changed.astype(int) - IMAGE).max() <= 1


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.7), (MOST, 1.3)])
def test_brightness_multiplies(draw, factor):
    changed = jitter(brightness=0.3)(IMAGE, np.array([draw, 0, 0, 0]))
    assert abs(changed - np.clip(IMAGE * factor, 0, 255)).max() <= 1.01


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.6), (MOST, 1.4)])
def test_contrast_is_about_the_mean_grey(draw, factor):
    changed = jitter(contrast=0.4)(IMAGE, np.array([0, draw, 0, 0]))
    mean_grey = grey_of(np.array(MEAN))
    assert abs(changed - np.clip((IMAGE - mean_grey) * factor + mean_grey, 0, 255)).max() <= 1.01


def test_no_saturation_is_grey():
    changed = jitter(saturation=1)(IMAGE, np.zeros(4))
    assert abs(changed - grey_of(IMAGE)[..., None]).max() <= 1.01


@pytest.mark.parametrize("turn", [0.0, 0.25, MOST])
def test_hue_keeps_luma_and_grey(turn):
    pale = (IMAGE // 8 + 112).astype(np.uint8)  # Far from black and white, so that nothing is clipped.
    changed = jitter(hue=0.5)(pale, np.array([0, 0, 0, turn]))
    assert abs(grey_of(changed) - grey_of(pale)).max() <= 1.1
    flat = np.repeat(IMAGE[..., :1], 3, axis=2)
    assert abs(jitter(hue=0.5)(flat, np.array([0, 0, 0, turn])).astype(int) - flat).max() <= 1


def test_hue_counts_in_turns_of_the_circle():
    """A third of a turn makes red into roughly green or blue, as in HSV."""
    red = np.full((1, 1, 3), (160, 90, 90), np.uint8)
    draw = (1 / 3 / 0.5 + 1) / 2
    turned = jitter(hue=0.5)(red, np.array([0, 0, 0, draw]))
    hue = cv2.cvtColor(turned, cv2.COLOR_RGB2HSV)[0, 0, 0] / 180
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.06
    half = jitter(hue=0.5)(red, np.array([0, 0, 0, 0.0]))
    assert abs(cv2.cvtColor(half, cv2.COLOR_RGB2HSV)[0, 0, 0] / 180 - 0.5) < 0.06


def test_grey_images_change_as_grey_colours_do():
    options = jitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    draws = np.array([0.9, 0.2, 0.8, 0.7])
    grey = np.ascontiguousarray(IMAGE[..., :1])
    as_color = options(np.repeat(grey, 3, axis=2), draws)
    changed = options(grey, draws)
    assert changed.shape == grey.shape
    assert abs(changed - as_color.astype(int)).max() <= 1
    assert abs(changed.astype(int) - grey).max() > 10


def test_alpha_is_kept():
    rgba = np.dstack([IMAGE, IMAGE[..., 0]])
    options = jitter(brightness=0.4, hue=0.1)
    changed = options(rgba, np.full(4, 0.9))
    np.testing.assert_array_equal(changed[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(changed[..., :3], options(IMAGE, np.full(4, 0.9)))


def test_views_are_taken_too():
    options = jitter(brightness=0.4)
    view = IMAGE[3:30, 5:40]
    draws = np.full(4, 0.9)
    np.testing.assert_array_equal(options(view, draws), options(view.copy(), draws))
