import itertools
import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.opencv import FOLLOWED, NOT_FOLLOWED
from tests.data.small_shards import NUM_CLASSES, write_small_shards
from tests.data.test_loader import BAD, open_train
from tests.distributed.launcher import run_ranks
from unetdist.data.access import DataConfig
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.manifest import Manifest
from unetdist.data.resident import resident_loader
from unetdist.errors import ConfigError, DataError

SIZES = [(12, 16), (20, 9), (7, 31)]
OPTIONS = {
    "moved": {"flip_horizontal": 0.5, "quarter_turns": 0.75, "rare_class_crop": 0.5},
    "mixed": {"flip_horizontal": 0.5, "cutmix": 0.4, "classmix": 0.4},
    "scaled and recoloured": {"scale_min": 0.7, "scale_max": 1.5, "brightness": 0.3, "hue": 0.1},
}
IMAGES_ARE_EXACT = {"moved": True, "mixed": True, "scaled and recoloured": FOLLOWED}


@pytest.fixture
def folder(tmp_path):
    write_small_shards(tmp_path, [4, 0, 5, 2], sizes=SIZES)
    return tmp_path


def open_resident(folder, *, data=None, augment, store="device", **options):
    options = {"global_batch_size": 6, "micro_batch_size": 1, **options}
    cfg = DataConfig(train=str(folder), **{"num_workers": 0, "lanes": 3, "window": 4, **(data or {})})
    fixed = {"seed": 5, "channels": 3, "num_classes": NUM_CLASSES, "device": "cpu", "store": store}
    return resident_loader(cfg, augment, Manifest.load(folder), folder, **{**fixed, **options})


def content(steps, number):
    """Ids and pixels of the micro-batches of `number` steps."""
    tensors = ("ids", "image", "mask", "class_pixels")
    return [
        [[getattr(batch, name).numpy().tobytes() for name in tensors] + [batch.num_bad] for batch in step]
        for step in itertools.islice(steps, number)
    ]


@pytest.mark.parametrize("store", ["device", "host"])
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_batches_are_those_of_the_workers(folder, store, kind, micro_batch_size):
    if not IMAGES_ARE_EXACT[kind]:
        pytest.skip(NOT_FOLLOWED)
    augment = AugmentConfig(crop_size=(8, 11), **OPTIONS[kind])
    options = {"augment": augment, "micro_batch_size": micro_batch_size}
    expected = content(open_train(folder, **options), 5)
    assert content(open_resident(folder, store=store, **options), 5) == expected
    assert content(open_resident(folder, store=store, from_sample=18, **options), 2) == expected[3:]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_small_shards(folder, [4, 0, 5, 2], sizes=SIZES)
    return folder


@settings(deadline=None, max_examples=40)
@given(
    augment=st.fixed_dictionaries(
        {
            "crop_size": st.tuples(st.integers(1, 40), st.integers(1, 40)),
            "flip_horizontal": st.sampled_from([0, 0.5]),
            "flip_vertical": st.sampled_from([0, 0.5]),
            "quarter_turns": st.sampled_from([0, 0.75]),
            "rare_class_crop": st.sampled_from([0, 0.5, 1]),
            "cutmix": st.sampled_from([0, 0.5]),
            "classmix": st.sampled_from([0, 0.5]),
        }
    ),
    native_from=st.sampled_from([None, 0, 1, 2]),
    change=st.sampled_from([{}, *([OPTIONS["scaled and recoloured"]] if FOLLOWED else [])]),
    order=st.fixed_dictionaries({"lanes": st.integers(1, 4), "window": st.integers(1, 20)}),
    batch=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    from_sample=st.integers(0, 40),
    store=st.sampled_from(["device", "host"]),
    channels=st.sampled_from([1, 3, 4]),
)
def test_whatever_is_set_and_wherever_it_begins(
    shards, augment, native_from, change, order, batch, from_sample, store, channels
):
    micro_batch_size, accumulation = batch
    options = {
        "data": order,
        "augment": AugmentConfig(**augment, **change),
        "micro_batch_size": micro_batch_size,
        "global_batch_size": micro_batch_size * accumulation,
        "from_sample": from_sample,
        "native_from": native_from,
        "channels": channels,
    }
    assert content(open_resident(shards, store=store, **options), 2) == content(
        open_train(shards, **options), 2
    )


def test_whole_pictures(tmp_path):
    write_small_shards(tmp_path, [5])
    augment = AugmentConfig(flip_vertical=0.5)
    assert content(open_resident(tmp_path, augment=augment), 3) == content(
        open_train(tmp_path, augment=augment), 3
    )


def rank_content(folder, store):
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    augment = AugmentConfig(crop_size=(8, 11), **OPTIONS["mixed"], rare_class_crop=0.5)
    world = {"rank": rank, "world_size": world_size}
    return (
        content(open_resident(folder, augment=augment, store=store, **world), 3),
        content(open_train(folder, augment=augment, **world), 3),
    )


@pytest.mark.parametrize("store", ["device", "host"])
def test_each_process_decodes_its_part_for_all(folder, store):
    for found, expected in run_ranks(rank_content, 2, folder, store):
        assert found == expected


def test_processes_decode_and_are_gone_then(folder):
    others = set(multiprocessing.active_children())
    augment = AugmentConfig(crop_size=(8, 11))
    steps = open_resident(folder, augment=augment, data={"num_workers": 2})
    assert set(multiprocessing.active_children()) <= others
    assert content(steps, 3) == content(open_train(folder, augment=augment), 3)


def test_a_bad_sample_ends_it_before_the_first_step(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    with pytest.raises(DataError, match=r"frame 1: image cannot be read .* set data.on_bad_sample: blank"):
        open_resident(tmp_path, augment=AugmentConfig(crop_size=(8, 8)))


def test_bad_samples_left_blank_until_there_are_too_many(tmp_path):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    options = {
        "augment": AugmentConfig(crop_size=(8, 8), rare_class_crop=0.5, cutmix=0.5, classmix=0.5),
        "data": {"on_bad_sample": "blank", "max_bad_samples": 3},
        "global_batch_size": 3,
        "micro_batch_size": 3,
    }
    expected = content(open_train(tmp_path, **options), 3)
    for store in ("device", "host"):
        steps = open_resident(tmp_path, store=store, **options)
        assert content(steps, 3) == expected
        with pytest.raises(DataError, match=r"4 samples could not be used, more than data.max_bad_samples"):
            next(steps)


def test_settings_that_cannot_work_are_refused_before_anything_is_decoded(folder):
    with pytest.raises(ConfigError, match="augment.crop_size"):
        open_resident(folder, augment=AugmentConfig())
    with pytest.raises(ConfigError, match="must be divisible by the processes"):
        open_resident(folder, augment=AugmentConfig(crop_size=(8, 8)), micro_batch_size=4)
