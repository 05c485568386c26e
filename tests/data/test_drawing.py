import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.data import drawing
from unetdist.data.labels import IGNORE_INDEX

COLORS = np.array([(0, 0, 0), (200, 10, 10), (10, 200, 10), (10, 10, 200)], np.uint8)
NAMES = ("background", "cell", "membrane", "nucleus")


def random_image(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def has_color(picture, color):
    return bool((picture == color).all(axis=-1).any())


def halves(height, width, left, right):
    mask = np.full((height, width), left)
    mask[:, width // 2 :] = right
    return mask


def test_overlay_mixes_the_image_with_its_classes():
    image, mask = random_image(300, 280), halves(300, 280, 1, 2)
    drawn = drawing.overlay(image, mask, COLORS, NAMES)
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    expected = 0.5 * grey + 0.5 * COLORS[mask]
    np.testing.assert_allclose(drawn[:300, :280], expected, atol=2)


def test_only_the_classes_have_colour():
    image, mask = random_image(300, 280), np.full((300, 280), 3)
    drawn = drawing.overlay(image, mask, COLORS, NAMES)[:300, :280].astype(int)
    red, green, blue = np.moveaxis(drawn, 2, 0)
    assert (abs(red - green) <= 1).all()
    assert (abs(blue - red - (200 - 10) / 2) <= 1).all()


def test_legend_shows_the_classes_present_and_no_others():
    legend = drawing.overlay(random_image(300, 280), halves(300, 280, 1, 3), COLORS, NAMES)[300:]
    assert has_color(legend, COLORS[1])
    assert has_color(legend, COLORS[3])
    assert not has_color(legend, COLORS[2])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 3, 4, 6]))
def test_overlay_has_room_for_its_legend_at_any_size(height, width, channels):
    mask = halves(height, width, 3, 2)
    drawn = drawing.overlay(random_image(height, width, channels), mask, COLORS, NAMES)
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert max(drawn.shape[:2]) >= drawing.SMALLEST_PX
    for index in np.unique(mask):
        swatch = (drawn == COLORS[index]).all(axis=-1)
        assert swatch.sum() >= 12 * 12  # within its frame


def test_small_images_are_enlarged_by_a_whole_factor():
    image, mask = random_image(24, 24), halves(24, 24, 1, 2)
    factor = 11  # 24 * 11 = 264, the first above 256
    drawn = drawing.overlay(image, mask, COLORS, NAMES)[: 24 * factor, : 24 * factor]
    assert np.array_equal(drawn, drawn[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    np.testing.assert_allclose(drawn[::factor, ::factor], 0.5 * grey + 0.5 * COLORS[mask], atol=2)


def test_legend_wraps_where_there_are_many_classes():
    names = [f"class {index}" for index in range(100)]
    colors = np.random.default_rng(1).integers(0, 256, (100, 3), dtype=np.uint8)
    mask = np.arange(100).repeat(900).reshape(300, 300)
    drawn = drawing.overlay(random_image(300, 300), mask, colors, names)
    assert drawn.shape[1] == 300
    assert all(has_color(drawn[300:], color) for color in colors)


def test_ignored_pixels_are_stripes_of_no_class_color():
    painted = drawing.paint(np.full((16, 16), IGNORE_INDEX), COLORS)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 2
    assert not any(has_color(painted, color) for color in COLORS)


def test_paint_is_the_color_of_each_class():
    mask = np.random.default_rng(0).integers(0, 4, (9, 13))
    assert np.array_equal(drawing.paint(mask, COLORS), COLORS[mask])


def test_panels_stand_side_by_side():
    image, target, pred = random_image(300, 260), halves(300, 260, 0, 1), halves(300, 260, 2, 255)
    drawn = drawing.gallery([("", image, target, pred)], COLORS, NAMES)
    top = int(np.argmax((drawn[:, :260] == image[0]).all(axis=(1, 2))))
    gap = (drawn.shape[1] - 3 * 260) // 2
    columns = [drawn[top : top + 300, start : start + 260] for start in (0, 260 + gap, 2 * (260 + gap))]
    assert np.array_equal(columns[0], image)
    assert np.array_equal(columns[1], drawing.paint(target, COLORS))
    assert np.array_equal(columns[2], drawing.paint(pred, COLORS))
    assert all(has_color(drawn[top + 300 :], COLORS[index]) for index in (0, 1, 2))
    assert drawing.gallery([("", image, target)], COLORS, NAMES).shape[1] == 2 * 260 + gap


def test_a_gallery_has_a_row_for_each_and_one_legend():
    masks = [halves(300, 260, 0, 1), halves(260, 300, 2, 2)]
    rows = [(f"row {n}", random_image(*mask.shape), mask, np.zeros_like(mask)) for n, mask in enumerate(masks)]
    drawn = drawing.gallery(rows, COLORS, NAMES)
    assert drawn.shape[0] > 300 + 260
    assert drawn.shape[1] >= 3 * 300
    for _, image, _, _ in rows:
        starts = (drawn[:, : image.shape[1]] == image[0]).all(axis=(1, 2))
        top = int(np.argmax(starts))
        assert np.array_equal(drawn[top : top + image.shape[0], : image.shape[1]], image)
    assert all(has_color(drawn[-60:], COLORS[index]) for index in (0, 1, 2))


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (24, 24), (900, 700)])
def test_panels_of_any_size(size):
    mask = np.zeros(size, np.int64)
    drawn = drawing.gallery([("", random_image(*size, 1), mask, mask)], COLORS, NAMES, largest_px=128)
    assert drawn.shape[1] < 3 * 264 + 100


def test_shrink_makes_up_no_classes():
    mask = np.random.default_rng(0).choice([0, 3, 255], (700, 900))
    image, small = drawing.shrink(90, random_image(700, 900, 4), mask)
    assert image.shape == (70, 90, 3)
    assert small.shape == (70, 90)
    assert set(np.unique(small)) == {0, 3, 255}


def test_shrink_does_not_enlarge():
    image = random_image(30, 20)
    assert np.array_equal(drawing.shrink(90, image)[0], image)


def test_pad_alike_extends_to_the_largest():
    wide, high = random_image(2, 9), random_image(7, 3)
    padded = drawing.pad_alike([wide, high], 255)
    assert [array.shape for array in padded] == [(7, 9, 3)] * 2
    assert np.array_equal(padded[0][:2], wide)
    assert (padded[0][2:] == 255).all()
    assert np.array_equal(padded[1][:, :3], high)


def test_heat_map_is_dark_where_the_pixels_are():
    names = ["sky", "road", "tree"]
    confusion = np.array([[90, 10, 0], [0, 0, 0], [50, 0, 50]])
    drawn = drawing.heat_map(confusion, names).astype(int)
    cell = 44
    margin = drawn.shape[0] - 3 * cell - 10
    corners = drawn[margin + 3 :: cell, margin + 3 :: cell].sum(axis=-1)[:3, :3]  # beside the number, inside the frame
    assert corners[0, 0] < corners[2, 0] == corners[2, 2] < corners[0, 1] < corners[0, 2] == 3 * 255
    assert (corners[1] == 3 * 255).all()


@pytest.mark.parametrize("num_classes", [1, 2, 40, 200])
def test_heat_map_of_any_number_of_classes(num_classes):
    names = [f"class {index}" for index in range(num_classes)]
    drawn = drawing.heat_map(np.eye(num_classes, dtype=np.int64), names)
    assert drawn.shape[0] == drawn.shape[1] < 2000
