import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.data.augment import AugmentConfig, Augmenter, Draw, find

COLORS = np.zeros((256, 3), np.uint8)
COLORS[:4] = (30, 200, 90), (250, 10, 120), (0, 0, 255), (128, 255, 0)
MEAN = (101.4, 110.0, 120.0)
COLORS[255] = (101, 110, 120)


def blobs(seed=0, size=(90, 120)):
    """A mask of four classes in patches of about ten pixels."""
    noise = np.random.default_rng(seed).integers(0, 4, (size[0] // 10 + 1, size[1] // 10 + 1), dtype=np.uint8)
    return cv2.resize(noise, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def augmenter(*, seed=0, class_pixels=(1000, 1000, 1000, 1000), **options):
    return Augmenter(AugmentConfig(**options), seed=seed, class_pixels=class_pixels, mean=MEAN)


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
        corner = tuple(
            augment(image, mask, epoch=0, sample_id=number)[0][[0, 0], [0, 1], :2].ravel().tolist()
        )
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
    sides = [
        np.sqrt((augment(image, mask, epoch=0, sample_id=number)[1] == 1).sum()) / 40 for number in range(300)
    ]
    assert 0.49 < min(sides) < 0.56
    assert 1.85 < max(sides) < 2.02
    assert abs(np.mean(np.log2(sides))) < 5 * 0.58 / np.sqrt(300)


def test_rare_class_crops_show_the_rare_class():
    mask = np.zeros((200, 300), np.uint8)
    mask[150:, :] = 1
    mask[20:23, 280:283] = 2  # Nine pixels in a corner.
    image = COLORS[mask]

    def share(probability, class_pixels, **options):
        augment = augmenter(
            crop_size=(40, 40), rare_class_crop=probability, class_pixels=class_pixels, **options
        )
        return np.mean(
            [(augment(image, mask, epoch=0, sample_id=number)[1] == 2).any() for number in range(300)]
        )

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
    both = [
        augmenter(crop_size=(20, 20), rare_class_crop=p)(image, mask, epoch=0, sample_id=7)[0] for p in (0, 1)
    ]
    np.testing.assert_array_equal(*both)


def test_from_the_native_epochs_on_only_the_scale_is_gone():
    mask = blobs(3)
    config = AugmentConfig(
        crop_size=(30, 40), scale_min=0.5, scale_max=2, flip_horizontal=0.5, hue=0.1, cutmix=1
    )
    known = {"seed": 0, "class_pixels": (1000,) * 4, "mean": MEAN}
    whole, finished = Augmenter(config, **known), Augmenter(config, **known, native_from=3)
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
