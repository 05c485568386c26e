import numpy as np
import pytest
import torch

from tests.data.test_mix import sample
from tests.no_copies import NoCopies
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.device_mix import count_classes, mix, pack_mixes
from unetdist.data.mix import Mixer, mixed

NUM_CLASSES = 5
SHOWN = [(0, 1, 2, 3, 255), (1, 2, 4), (3,), (255,), (0, 1, 2, 3, 4)]
KEYS = [(0, number) for number in range(20)]


def drawn(**options):
    return Mixer(AugmentConfig(**options), seed=1, num_classes=NUM_CLASSES)(KEYS, KEYS)


def stacked(samples):
    return torch.from_numpy(np.stack([s.image for s in samples])), torch.from_numpy(
        np.stack([s.mask for s in samples])
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "options", [{"cutmix": 1}, {"classmix": 1}, {"cutmix": 0.3, "classmix": 0.3}, {}], ids=str
)
def test_samples_are_mixed_as_in_the_workers(options, channels):
    ones = [sample(0, channels=channels) for _ in KEYS]
    others = [sample(1, classes=SHOWN[k % len(SHOWN)], channels=channels) for k in range(len(KEYS))]
    mixes = drawn(**options) if options else [None] * len(KEYS)
    expected = [
        mixed(one, other, each) if each else one for one, other, each in zip(ones, others, mixes, strict=True)
    ]
    packed = pack_mixes(mixes, size=(30, 40), num_classes=NUM_CLASSES)
    found = mix(*stacked(ones + others), torch.from_numpy(packed))
    assert all(map(torch.equal, found, stacked(expected)))


def test_as_many_classes_as_there_may_be():
    rng = np.random.default_rng(2)
    masks = torch.from_numpy(rng.integers(0, 256, (2, 30, 40), dtype=np.uint8))
    counts = count_classes(masks, 255)
    assert counts.tolist() == [np.bincount(mask.ravel(), minlength=256)[:255].tolist() for mask in masks]
    mixer = Mixer(AugmentConfig(classmix=1), seed=0, num_classes=255)
    packed = pack_mixes(mixer([(0, 0)], [(0, 1)]), size=(30, 40), num_classes=255)
    image = torch.zeros((2, 30, 40, 1), dtype=torch.uint8)
    image[1] = 1
    taken, _ = mix(image, masks, torch.from_numpy(packed))
    classes = masks[1][taken[0, ..., 0] == 1].unique()
    assert len(classes) == (int((counts[1] > 0).sum()) + 1) // 2
    assert 255 not in classes


def test_nothing_waits_for_the_device():
    packed = pack_mixes(drawn(cutmix=0.5, classmix=0.5), size=(8, 9), num_classes=NUM_CLASSES)
    with NoCopies():
        image, mask = mix(
            torch.empty((40, 8, 9, 3), dtype=torch.uint8, device="meta"),
            torch.empty((40, 8, 9), dtype=torch.uint8, device="meta"),
            torch.empty(packed.shape, dtype=torch.float64, device="meta"),
        )
    assert image.shape == (20, 8, 9, 3)
    assert mask.shape == (20, 8, 9)
