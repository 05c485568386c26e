import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetdist.data.batch import Sample, blank_sample, count_values
from unetdist.data.mix import Mix, Mixer, mixed

NUM_CLASSES = 5
KEYS = [(epoch, number) for epoch in range(20) for number in range(50)]
PARTNERS = [(epoch, number ^ 1) for epoch, number in KEYS]


def mixer_of(*, cutmix=0.0, classmix=0.0, seed=0):
    return Mixer(cutmix=cutmix, classmix=classmix, seed=seed, num_classes=NUM_CLASSES)


def mixes(**options):
    return mixer_of(**options)(KEYS, PARTNERS)


def sample(number, size=(30, 40), classes=(0, 1, 2, 3, 255), channels=3):
    """Noise; its images have colours of their own."""
    rng = np.random.default_rng(number)
    mask = rng.choice(np.array(classes, np.uint8), size)
    image = rng.integers(100 * number, 100 * number + 100, (*size, channels), dtype=np.uint8)
    return Sample(number, image, mask, count_values(mask))


def test_each_kind_is_as_frequent_as_asked_for():
    drawn = mixes(cutmix=0.3, classmix=0.5)
    kinds = ["no" if mix is None else "cut" if mix.is_cut else "class" for mix in drawn]
    for kind, share in (("cut", 0.3), ("class", 0.5), ("no", 0.2)):
        assert abs(kinds.count(kind) / len(KEYS) - share) < 0.05
    assert all(mix.partner == partner for mix, partner in zip(drawn, PARTNERS, strict=True) if mix)


def test_nothing_is_mixed_without_partners_or_a_probability():
    assert mixes() == [None] * len(KEYS)
    assert not mixer_of().is_on
    mixer = mixer_of(classmix=1)
    assert mixer.is_on
    assert mixer(KEYS, []) == [None] * len(KEYS)


def test_the_draws_are_a_function_of_seed_epoch_and_id():
    together = mixes(cutmix=1)
    mixer = mixer_of(cutmix=1)
    for number in (0, 7, 999):
        (alone,) = mixer(KEYS[number : number + 1], PARTNERS[number : number + 1])
        np.testing.assert_array_equal(alone.draws, together[number].draws)
    assert len({mix.draws.tobytes() for mix in together + mixes(seed=1, cutmix=1)}) == 2 * len(KEYS)


def test_rectangles_lie_inside_and_every_share_of_the_area_is_equally_likely():
    boxes = np.array([mix.box((300, 400)) for mix in mixes(cutmix=1)])
    top, left, bottom, right = boxes.T
    assert boxes.min() >= 0
    assert (bottom.max(), right.max()) == (300, 400)
    assert abs((bottom - top) / 300 - (right - left) / 400).max() < 0.005
    shares = (bottom - top) * (right - left) / (300 * 400)
    np.testing.assert_allclose(np.quantile(shares, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)
    centres = (top + bottom) / 600, (left + right) / 800
    np.testing.assert_allclose(np.mean(centres, axis=1), [0.5, 0.5], atol=0.02)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cutmix_replaces_a_rectangle_of_image_and_mask(channels):
    one, other = sample(0, channels=channels), sample(1, channels=channels)
    for mix in mixes(cutmix=1)[:20]:
        found = mixed(one, other, mix)
        is_taken = np.zeros(one.mask.shape, bool)
        is_taken[mix.box(one.mask.shape).slices] = True
        np.testing.assert_array_equal(found.mask, np.where(is_taken, other.mask, one.mask))
        np.testing.assert_array_equal(found.image, np.where(is_taken[..., None], other.image, one.image))
        np.testing.assert_array_equal(found.counts, np.bincount(found.mask.ravel(), minlength=256))
        assert found.sample_id == one.sample_id


@pytest.mark.parametrize(("classes", "taken"), [((0, 1, 2, 3, 255), 2), ((1, 2, 4), 2), ((3,), 1), ((255,), 0)])
def test_classmix_replaces_what_half_of_the_classes_of_the_partner_cover(classes, taken):
    one, other = sample(0), sample(1, classes=classes)
    chosen = set()
    for mix in mixes(classmix=1)[:50]:
        found = mixed(one, other, mix)
        pasted = found.image[..., 0] >= 100
        indices = set(np.unique(other.mask[pasted]).tolist())
        assert len(indices - {255}) == len(indices) == taken
        np.testing.assert_array_equal(pasted, np.isin(other.mask, list(indices)))
        np.testing.assert_array_equal(found.mask, np.where(pasted, other.mask, one.mask))
        chosen.add(tuple(sorted(indices)))
    halves = itertools.combinations(sorted(set(classes) - {255}), taken)
    assert chosen == set(halves)  # Each half comes up.


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4 + NUM_CLASSES, max_size=4 + NUM_CLASSES),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_whatever_is_drawn_the_rectangle_is_one_of_the_picture(draws, size):
    top, left, bottom, right = Mix((0, 0), True, np.array(draws)).box(size)
    assert 0 <= top <= bottom <= size[0]
    assert 0 <= left <= right <= size[1]


@pytest.mark.parametrize("options", [{"cutmix": 1}, {"classmix": 1}])
def test_both_partners_get_of_the_other_as_it_was_before(options):
    one, other = sample(0), sample(1)
    before = one.image.copy(), one.mask.copy()
    mixed(one, other, mixes(**options)[0])
    np.testing.assert_array_equal(one.image, before[0])
    np.testing.assert_array_equal(one.mask, before[1])


def test_a_bad_sample_gives_and_gets_nothing():
    one, bad = sample(0), blank_sample(1, (30, 40), 3)
    for mix in mixes(cutmix=0.5, classmix=0.5)[:10]:
        assert mixed(one, bad, mix) is one
        assert mixed(bad, one, mix) is bad
