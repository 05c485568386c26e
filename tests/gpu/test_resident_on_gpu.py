"""Pictures kept for a GPU, and changed there, are those that workers make."""

from contextlib import contextmanager

import pytest
import torch

from tests.data.opencv import FOLLOWED, NOT_FOLLOWED
from tests.data.small_shards import write_small_shards
from tests.data.test_device_augment import KEYS, augmenter, check_equal, pictures
from tests.data.test_loader import open_train
from tests.data.test_resident import OPTIONS, SIZES, content, open_resident
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.kept import _room
from unetdist.feed import feed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not FOLLOWED, reason=NOT_FOLLOWED)]

JITTER = {"brightness": 0.5, "contrast": 0.4, "saturation": 0.6, "hue": 0.2}


@contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiler", [None, "inductor"])
@pytest.mark.parametrize("scale", [(1, 1), (0.5, 2), (1.5, 1.5)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_pixels_are_those_of_the_workers(compiler, scale, channels, caplog):
    scale_min, scale_max = scale
    augment = augmenter(
        crop_size=(120, 133),
        scale_min=scale_min,
        scale_max=scale_max,
        flip_horizontal=0.5,
        quarter_turns=0.75,
        **JITTER,
    )
    samples = pictures([(150, 190), (90, 300), (40, 30)] * (len(KEYS) // 3), channels)
    check_equal(augment, samples, device="cuda", compiler=compiler)
    assert "without the compiler" not in caplog.text


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("store", ["device", "host"])
def test_the_batches_are_those_of_the_workers_and_nothing_waits(tmp_path, store, kind):
    write_small_shards(tmp_path, [4, 0, 5, 2], sizes=SIZES)
    options = {"augment": AugmentConfig(crop_size=(8, 11), **OPTIONS[kind]), "micro_batch_size": 3}
    steps = feed(open_resident(tmp_path, store=store, device="cuda", **options), torch.device("cuda"))
    first = next(steps)  # the host's copy of the masks is made here
    with no_waiting():
        others = [next(steps) for _ in range(4)]
    assert first[0].image.device.type == "cuda"
    assert first[0].ids.device.type == "cpu"
    found = [[batch.to("cpu") for batch in step] for step in (first, *others)]
    assert content(iter(found), 5) == content(open_train(tmp_path, **options), 5)


def test_the_machines_memory_is_page_locked_as_long_as_it_is_in_use():
    for _ in range(3):
        room = _room((1 << 26,), torch.device("cuda"), "host")
        assert room.is_pinned()
        assert room[100:200].is_pinned()
        del room
