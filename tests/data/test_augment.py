from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.whole_augmenter import WholeAugmenter
from unetdist.data.augment import Draw, Window, find
from unetdist.data.config import AugmentConfig
from unetdist.data.decode import Box
from unetdist.errors import ConfigError

COLORS = np.zeros((256, 3), np.uint8)
COLORS[:4] = (30, 200, 90), (250, 10, 120), (0, 0, 255), (128, 255, 0)
MEAN = (101.4, 110.0, 120.0)
COLORS[255] = (101, 110, 120)


def blobs(seed=0, size=(90, 120)):
    """A mask of four classes in patches of about ten pixels."""
    noise = np.random.default_rng(seed).integers(0, 4, (size[0] // 10 + 1, size[1] // 10 + 1), dtype=np.uint8)
    return cv2.resize(noise, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def augmenter(*, seed=0, class_pixels=(1000, 1000, 1000, 1000), **options):
    return WholeAugmenter(AugmentConfig(**options), seed=seed, class_pixels=class_pixels, mean=MEAN)


options = st.fixed_dictionaries(
    {
        "crop_size": st.tuples(st.integers(1, 160), st.integers(1, 160)),
        "flip_horizontal": st.sampled_from([0, 0.5, 1]),
        "flip_vertical": st.sampled_from([0, 0.5, 1]),
        "quarter_turns": st.sampled_from([0, 0.75, 1]),
        "rare_class_crop": st.sampled_from([0, 0.5, 1]),
    }
)


@given(options, st.integers(0, 1000), st.integers(0, 5))
def test_image_and_mask_move_together(options, sample_id, epoch):
    """The image is the mask's colours; padding is the mean colour where the mask is ignored."""
    mask = blobs()
    image, moved = augmenter(**options)(COLORS[mask], mask, epoch=epoch, sample_id=sample_id)
    assert moved.shape == options["crop_size"]
    np.testing.assert_array_equal(image, COLORS[moved])


@settings(deadline=None)
@given(options, st.floats(0.4, 1), st.floats(1, 2.5), st.integers(0, 1000))
def test_image_and_mask_move_together_under_scale(options, scale_min, scale_max, sample_id):
    mask = blobs()
    augment = augmenter(scale_min=scale_min, scale_max=scale_max, **options)
    image, moved = augment(COLORS[mask], mask, epoch=0, sample_id=sample_id)
    assert moved.shape == options["crop_size"]
    # Linear sampling mixes colours next to a border between classes; elsewhere each pixel must agree.
    ring = np.ones((5, 5), np.uint8)
    flat = cv2.erode(moved, ring) == cv2.dilate(moved, ring)
    flat[:2] = flat[-2:] = flat[:, :2] = flat[:, -2:] = False  # Their neighbours are unknown.
    np.testing.assert_array_equal(image[flat], COLORS[moved[flat]])


def test_a_flip_that_forgot_the_mask_would_be_noticed():
    mask = blobs()
    image, moved = augmenter(crop_size=(60, 60), flip_horizontal=1)(COLORS[mask], mask, epoch=0, sample_id=0)
    assert (image != COLORS[moved[:, ::-1]]).any()


def test_switched_off_it_gives_back_the_sample():
    mask = blobs()
    image, same = augmenter()(COLORS[mask], mask, epoch=3, sample_id=4)
    np.testing.assert_array_equal(image, COLORS[mask])
    np.testing.assert_array_equal(same, mask)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_padding_has_the_mean_colour(channels):
    image = np.zeros((4, 5, channels), np.uint8)
    out, mask = augmenter(crop_size=(9, 9))(image, np.zeros((4, 5), np.uint8), epoch=0, sample_id=1)
    expected = {1: [109], 3: [101, 110, 120], 4: [101, 110, 120, 255]}[channels]
    assert out.shape == (9, 9, channels)
    assert (out[mask == 255] == expected).all()
    assert (mask == 255).sum() == 81 - 20
    assert (out[mask == 0] == 0).all()


def test_the_same_key_gives_the_same_pixels_and_another_key_others():
    mask = blobs()
    options = {
        "crop_size": (40, 40),
        "scale_min": 0.5,
        "scale_max": 2,
        "flip_horizontal": 0.5,
        "hue": 0.2,
        "brightness": 0.4,
    }

    def pixels(seed, epoch, sample_id):
        image, _ = augmenter(seed=seed, **options)(COLORS[mask], mask, epoch=epoch, sample_id=sample_id)
        return image.tobytes()

    assert pixels(1, 2, 3) == pixels(1, 2, 3)
    assert len({pixels(1, 2, 3), pixels(9, 2, 3), pixels(1, 9, 3), pixels(1, 2, 9)}) == 4


def test_an_option_leaves_the_draws_of_others_alone():
    """Switching one on must not change the crops of a run, or no two runs could be compared."""
    mask = blobs()
    plain = augmenter(crop_size=(40, 40))(COLORS[mask], mask, epoch=0, sample_id=5)[1]
    flipped = augmenter(crop_size=(40, 40), flip_horizontal=1, hue=0.3)
    np.testing.assert_array_equal(flipped(COLORS[mask], mask, epoch=0, sample_id=5)[1][:, ::-1], plain)


def test_the_numbers_of_draws_never_change():
    assert [draw.name for draw in Draw] == [
        "SCALE",
        "CROP_TOP",
        "CROP_LEFT",
        "FLIP_HORIZONTAL",
        "FLIP_VERTICAL",
        "TURN",
        "RARE",
        "RARE_CLASS",
        "RARE_PIXEL",
        "BRIGHTNESS",
        "CONTRAST",
        "SATURATION",
        "HUE",
    ]


def _coordinates(size):
    """Image whose red is the row and green the column."""
    rows, columns = np.indices(size, dtype=np.uint8)
    return np.dstack([rows, columns, np.zeros(size, np.uint8)])


def test_crops_are_uniform_over_all_places():
    image, mask = _coordinates((20, 30)), np.zeros((20, 30), np.uint8)
    augment = augmenter(crop_size=(16, 26))
    corners = [augment(image, mask, epoch=0, sample_id=n)[0][0, 0, :2] for n in range(2500)]
    counts = np.bincount(np.dot(corners, [5, 1]), minlength=25)
    assert len(counts) == 25
    assert abs(counts - 100).max() < 5 * 10


def test_flips_and_turns_are_as_likely_as_asked():
    image, mask = _coordinates((9, 9)), np.zeros((9, 9), np.uint8)
    augment = augmenter(crop_size=(9, 9), flip_horizontal=0.2, quarter_turns=0.75)
    seen = {}
    for number in range(2000):
        corner = tuple(augment(image, mask, epoch=0, sample_id=number)[0][[0, 0], [0, 1], :2].ravel().tolist())
        seen[corner] = seen.get(corner, 0) + 1
    counts = sorted(seen.values())
    assert len(counts) == 8
    assert all(abs(count - 100) < 45 for count in counts[:4])  # Flipped: 0.2 / 4 of 2000.
    assert all(abs(count - 400) < 90 for count in counts[4:])


def test_scale_is_log_uniform_and_shows_things_at_its_size():
    mask = np.zeros((100, 100), np.uint8)
    mask[30:70, 30:70] = 1
    image = COLORS[mask]
    augment = augmenter(crop_size=(220, 220), scale_min=0.5, scale_max=2)
    sides = [np.sqrt((augment(image, mask, epoch=0, sample_id=number)[1] == 1).sum()) / 40 for number in range(300)]
    assert 0.49 < min(sides) < 0.56
    assert 1.85 < max(sides) < 2.02
    assert abs(np.mean(np.log2(sides))) < 5 * 0.58 / np.sqrt(300)


def test_rare_class_crops_show_the_rare_class():
    mask = np.zeros((200, 300), np.uint8)
    mask[150:, :] = 1
    mask[20:23, 280:283] = 2  # Nine pixels in a corner.
    image = COLORS[mask]

    def share(probability, class_pixels, **options):
        augment = augmenter(crop_size=(40, 40), rare_class_crop=probability, class_pixels=class_pixels, **options)
        return np.mean([(augment(image, mask, epoch=0, sample_id=number)[1] == 2).any() for number in range(300)])

    assert share(0, (45_000, 15_000, 9, 0)) < 0.05
    assert share(1, (45_000, 15_000, 9, 0)) == 1  # 9 pixels against thousands: practically always drawn.
    assert share(1, (45_000, 15_000, 9, 0), scale_min=0.7, scale_max=2, quarter_turns=0.75) == 1
    assert abs(share(0.5, (45_000, 15_000, 9, 0)) - 0.5) < 0.15
    assert abs(share(1, (100, 100, 100, 100)) - 1 / 3) < 0.15  # Equally rare: each present class in turn.


def test_rare_class_crops_stay_inside_the_picture():
    mask = np.zeros((50, 60), np.uint8)
    mask[0, 0] = 2
    _, crop = augmenter(crop_size=(30, 30), rare_class_crop=1, class_pixels=(3000, 1, 1))(
        COLORS[mask], mask, epoch=0, sample_id=0
    )
    assert crop[0, 0] == 2
    assert (crop != 255).all()


def test_rare_class_crop_of_a_wholly_ignored_mask_is_an_ordinary_crop():
    mask = np.full((50, 60), 255, np.uint8)
    image = _coordinates((50, 60))
    both = [augmenter(crop_size=(20, 20), rare_class_crop=p)(image, mask, epoch=0, sample_id=7)[0] for p in (0, 1)]
    np.testing.assert_array_equal(*both)


def test_from_the_native_epochs_on_only_the_scale_is_gone():
    mask = blobs(3)
    config = AugmentConfig(crop_size=(30, 40), scale_min=0.5, scale_max=2, flip_horizontal=0.5, hue=0.1, cutmix=1)
    known = {"seed": 0, "class_pixels": (1000,) * 4, "mean": MEAN}
    whole, finished = WholeAugmenter(config, **known), WholeAugmenter(config, **known, native_from=3)
    draws = whole.draws([(0, number) for number in range(20)])
    np.testing.assert_array_equal(finished.draws([(0, number) for number in range(20)]), draws)
    for row in draws:
        assert finished.params(mask, row, epoch=2).window == whole.params(mask, row, epoch=2).window
        before, after = (augment.params(mask, row, epoch=3) for augment in (whole, finished))
        assert before.window.scale != after.window.scale == 1
        assert after.window.flip_horizontal == before.window.flip_horizontal
        np.testing.assert_array_equal(after.jitter, before.jitter)
    assert finished.mixer([(3, 1), (2, 1)], [(2, 0), (3, 0)])[0] is None
    assert finished.mixer([(3, 1), (2, 1)], [(2, 0), (3, 0)])[1] is not None


@pytest.mark.parametrize("density", [0.001, 0.2, 1.0])
def test_a_place_is_found_as_in_the_list_of_all(density):
    is_there = np.random.default_rng(1).random(60_000) < density
    places = np.flatnonzero(is_there)
    for number in (0, 1, len(places) // 2, len(places) - 1):
        assert find(is_there, number) == places[number]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 9)}, r"augment.crop_size \(\[0, 9\]\) must be a height and a width over 0; use \[256"),
        ({"flip_vertical": 1.5}, r"augment.flip_vertical \(1.5\) must be from 0 to 1; use 0.1"),
        ({"classmix": 1.5}, r"augment.classmix \(1.5\) must be from 0 to 1; use 0.1"),
        (
            {"cutmix": 0.6, "classmix": 0.5},
            r"augment.cutmix \(0.6\) and augment.classmix \(0.5\) must add up to at most 1",
        ),
        ({"native_epochs": -1}, r"augment.native_epochs \(-1\) must be at least 0; use 0 for none"),
        ({"hue": 0.7}, r"augment.hue \(0.7\) must be from 0 to 0.5; use 0.1"),
        ({"contrast": -1}, r"augment.contrast \(-1\) must be from 0 to 1; use 0.1"),
        (
            {"scale_min": 2.0, "crop_size": (9, 9)},
            r"scale_min \(2.0\) must be over 0 and at most augment.scale_max \(1.0\); use 0.5 and 2",
        ),
        ({"scale_min": 0.0, "crop_size": (9, 9)}, r"scale_min \(0.0\) must be over 0"),
        ({"scale_max": 2.0}, r"scale_max \(2.0\) must be 1 without augment.crop_size; set"),
        ({"quarter_turns": 0.5}, r"quarter_turns \(0.5\) must be 0 without augment.crop_size; set"),
        ({"rare_class_crop": 0.5}, r"rare_class_crop \(0.5\) must be 0 without augment.crop_size; set"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**options)


RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
COLOR_MEAN = (100.0, 110.0, 120.0)
MIDDLE, MOST = 0.5, 1 - 2**-40


def jitter(**strengths):
    return WholeAugmenter(AugmentConfig(**strengths), seed=0, class_pixels=[1], mean=COLOR_MEAN).jittered


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
    mean_grey = grey_of(np.array(COLOR_MEAN))
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


GEOMETRY_RNG = np.random.default_rng(0)
COLOR = GEOMETRY_RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
MASK = GEOMETRY_RNG.integers(0, 256, (23, 31), dtype=np.uint8)

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
    for pixels, fill, interpolation in [(COLOR, (1, 2, 3), cv2.INTER_LINEAR), (MASK, (255,), cv2.INTER_NEAREST)]:
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
        assert abs(error).max() <= 0.5 + 1 / 32  # Half a grey value, and OpenCV's table of 32 steps per pixel.
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
