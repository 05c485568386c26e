import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.opencv import FOLLOWED, NOT_FOLLOWED
from tests.no_copies import NoCopies
from unetdist.data.augment import Augmenter
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.batch import count_values
from unetdist.data.device_augment import DeviceAugmenter, Place

NUM_CLASSES = 3
KEYS = [(0, number) for number in range(6)]

exactly = pytest.mark.skipif(not FOLLOWED, reason=NOT_FOLLOWED)

jitters = st.sampled_from([{}, {"brightness": 0.5, "contrast": 0.4, "saturation": 0.6, "hue": 0.2}])
moves = st.fixed_dictionaries(
    {
        "crop_size": st.tuples(st.integers(1, 70), st.integers(1, 70)),
        "flip_horizontal": st.sampled_from([0, 0.5]),
        "flip_vertical": st.sampled_from([0, 0.5]),
        "quarter_turns": st.sampled_from([0, 0.75]),
        "rare_class_crop": st.sampled_from([0, 0.5]),
    }
)
# At the single ones many places are ties.
scales = st.sampled_from(
    [(0.5, 2.0), (0.2, 0.9), (0.5, 0.5), (0.6, 0.6), (0.75, 0.75), (1.5, 1.5), (2.0, 2.0)]
)
sizes = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=len(KEYS), max_size=len(KEYS))


def pictures(sizes, channels, seed=0):
    rng = np.random.default_rng(seed)
    values = np.array([*range(NUM_CLASSES), 255], np.uint8)
    return [
        (rng.integers(0, 256, (*size, channels), dtype=np.uint8), rng.choice(values, size)) for size in sizes
    ]


def augmenter(**options):
    return Augmenter(
        AugmentConfig(**options), seed=3, class_pixels=(1000, 500, 10), mean=(100.4, 200.0, 50.0)
    )


def storage(samples):
    images = np.concatenate([image.reshape(-1, image.shape[2]) for image, _ in samples])
    masks = np.concatenate([mask.ravel() for _, mask in samples])
    ends = np.cumsum([mask.size for _, mask in samples])
    places = [Place(int(end) - mask.size, *mask.shape) for end, (_, mask) in zip(ends, samples, strict=True)]
    return torch.from_numpy(images), torch.from_numpy(masks), places


def on_device(augment, samples, *, device="cpu", compiler=None):
    """image, mask and class_pixels of all samples, on the CPU."""
    channels = samples[0][0].shape[2]
    size = augment.config.crop_size or samples[0][1].shape
    twin = DeviceAugmenter(augment, size=size, channels=channels, num_classes=NUM_CLASSES, compiler=compiler)
    images, masks, places = storage(samples)
    drawn = zip(samples, augment.draws(KEYS), strict=True)
    packed = twin.pack([augment.change(mask, draws, epoch=0) for (_, mask), draws in drawn], places)
    there = twin(images.to(device), masks.to(device), torch.from_numpy(packed).to(device))
    return [tensor.cpu() for tensor in there]


def check_equal(augment, samples, **options):
    image, mask, class_pixels = on_device(augment, samples, **options)
    for number, (pixels, indices) in enumerate(samples):
        epoch, sample_id = KEYS[number]
        expected_image, expected_mask = augment(pixels, indices, epoch=epoch, sample_id=sample_id)
        np.testing.assert_array_equal(image[number].permute(1, 2, 0), expected_image)
        np.testing.assert_array_equal(mask[number], expected_mask)
        counts = count_values(np.ascontiguousarray(expected_mask))[:NUM_CLASSES]
        assert class_pixels[number].tolist() == counts.tolist()


@settings(deadline=None, max_examples=40)
@given(moves, sizes, st.sampled_from([1, 3, 4]))
def test_moved_pixels_are_those_of_the_workers(moves, sizes, channels):
    check_equal(augmenter(**moves), pictures(sizes, channels))


@exactly
@settings(deadline=None, max_examples=60)
@given(moves, sizes, st.sampled_from([1, 3, 4]), scales, jitters)
def test_scaled_and_recoloured_pixels_are_those_of_the_workers(moves, sizes, channels, scale, jitter):
    scale_min, scale_max = scale
    augment = augmenter(**moves, scale_min=scale_min, scale_max=scale_max, **jitter)
    check_equal(augment, pictures(sizes, channels))


def test_whole_pictures_are_flipped():
    check_equal(augmenter(flip_horizontal=0.5, flip_vertical=0.5), pictures([(20, 30)] * len(KEYS), 3))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_strides_and_types_are_those_of_a_batch(channels):
    augment = augmenter(crop_size=(20, 30), scale_min=0.5, scale_max=2, brightness=0.1)
    image, mask, class_pixels = on_device(augment, pictures([(40, 50)] * len(KEYS), channels))
    assert image.shape == (len(KEYS), channels, 20, 30)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert (image.dtype, mask.dtype, class_pixels.dtype) == (torch.uint8, torch.uint8, torch.int64)


@pytest.mark.parametrize("jitter", [{}, {"brightness": 0.5, "contrast": 0.5, "hue": 0.1}])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_sample_without_a_change_is_blank(channels, jitter):
    augment = augmenter(crop_size=(8, 9), scale_min=0.5, scale_max=2, **jitter)
    samples = pictures([(20, 20)], channels)
    images, masks, places = storage(samples)
    twin = DeviceAugmenter(augment, size=(8, 9), channels=channels, num_classes=NUM_CLASSES)
    change = augment.change(samples[0][1], augment.draws(KEYS)[0], epoch=0)
    for changes in ([None, change], [None, None]):
        packed = twin.pack(changes, places * 2)
        image, mask, class_pixels = twin(images, masks, torch.from_numpy(packed))
        assert image[0].eq(0).all()
        assert mask[0].eq(255).all()
        assert class_pixels[0].eq(0).all()
        assert image[1].any() == (changes[1] is not None)


@pytest.mark.parametrize("num_classes", [1, 16, 17, 255])
def test_any_number_of_classes_is_counted(num_classes):
    values = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    values[values >= num_classes] = 255
    augment = augmenter(crop_size=(40, 50))
    twin = DeviceAugmenter(augment, size=(40, 50), channels=1, num_classes=num_classes)
    images, masks, places = storage([(values[..., None], values)])
    packed = twin.pack([augment.change(values, augment.draws(KEYS)[0], epoch=0)], places)
    *_, class_pixels = twin(images, masks, torch.from_numpy(packed))
    assert class_pixels.tolist() == [np.bincount(values.ravel(), minlength=256)[:num_classes].tolist()]


def test_nothing_waits_for_the_device():
    augment = augmenter(crop_size=(8, 9), scale_min=0.5, scale_max=2, rare_class_crop=1, hue=0.1)
    samples = pictures([(20, 30)] * len(KEYS), 4)
    with NoCopies():
        twin = DeviceAugmenter(augment, size=(8, 9), channels=4, num_classes=NUM_CLASSES)
        images, masks, places = (
            torch.empty((3600, 4), dtype=torch.uint8, device="meta"),
            torch.empty(3600, dtype=torch.uint8, device="meta"),
            storage(samples)[2],
        )
        packed = twin.pack([augment.change(samples[0][1], augment.draws(KEYS)[0], epoch=0)] * 6, places)
        image, *_ = twin(images, masks, torch.empty(packed.shape, dtype=torch.float64, device="meta"))
    assert image.device.type == "meta"


def twin_compiled_by(compiler):
    augment = augmenter(
        crop_size=(40, 53),
        scale_min=1.5,
        scale_max=1.5,
        flip_horizontal=0.5,
        quarter_turns=0.75,
        hue=0.1,
        cutmix=0.5,
        classmix=0.5,
    )
    samples = pictures([(60, 50), (30, 70), (9, 9)] * 2, 3)
    images, masks, places = storage(samples)
    changes = [
        augment.change(mask, draws, epoch=0)
        for (_, mask), draws in zip(samples, augment.draws(KEYS), strict=True)
    ]
    options = {"size": (40, 53), "channels": 3, "num_classes": NUM_CLASSES}
    plain, twin = DeviceAugmenter(augment, **options), DeviceAugmenter(augment, **options, compiler=compiler)
    packed = torch.from_numpy(plain.pack(changes, places, augment.mixer(KEYS[:3], KEYS[3:])))
    expected = plain(images, masks, packed)
    for _ in range(2):
        assert all(map(torch.equal, twin(images, masks, packed), expected))
    return twin


def told(caplog):
    return [record.message for record in caplog.records if record.name == "unetdist"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, which makes them errors as it compiles
def test_compiled_it_is_the_same(caplog):
    assert isinstance(twin_compiled_by("inductor")._change, type(torch.compile(lambda: None)))
    assert not told(caplog)


def test_a_compiler_that_fails_or_errs_is_told_of_and_done_without(caplog):
    def failing(graph, inputs):
        raise RuntimeError("no such kernel")

    def erring(graph, inputs):
        return lambda *inputs: [torch.zeros_like(result) for result in graph(*inputs)]

    for compiler, reason in ((failing, "no such kernel"), (erring, "not that of the plain path")):
        twin_compiled_by(compiler)
        (warning,) = told(caplog)
        assert "without the compiler: " in warning
        assert reason in warning
        caplog.clear()
