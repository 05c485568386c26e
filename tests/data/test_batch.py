import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.synthetic import PALETTE_RECORDS
from unetdist.data.batch import BatchPool, BatchSlot, Sample, batch_dtype, blank_sample, collate, count_values
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.evaluation.metrics import confusion_matrix
from unetdist.model.config import LossConfig
from unetdist.model.losses import build_loss


def sample(sample_id, channels=3):
    rng = np.random.default_rng(sample_id)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 7))
    image = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return Sample(sample_id, image, mask, count_values(mask))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_collate(channels):
    samples = [sample(number, channels) for number in (8, 3, 8)]
    batch = collate(samples, num_classes=3)
    assert len(batch) == 3
    assert batch.image.dtype == batch.mask.dtype == torch.uint8
    assert batch.image.shape == (3, channels, 5, 7)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.ids.tolist() == [8, 3, 8]
    assert batch.class_pixels.dtype == torch.int64
    for number, one in enumerate(samples):
        np.testing.assert_array_equal(batch.image[number].permute(1, 2, 0), one.image)
        np.testing.assert_array_equal(batch.mask[number], one.mask)
        assert batch.class_pixels[number].tolist() == [(one.mask == index).sum() for index in range(3)]
    assert batch.num_bad == 0


def test_views_are_copied_right():
    whole = sample(0)
    view = Sample(1, whole.image[::-1, 2:], whole.mask[::-1, 2:], whole.counts)
    batch = collate([view], num_classes=3)
    np.testing.assert_array_equal(batch.image[0].permute(1, 2, 0), view.image)
    np.testing.assert_array_equal(batch.mask[0], view.mask)


def test_a_blank_sample_counts_for_nothing():
    batch = collate([sample(0), blank_sample(7, (5, 7), 3)], num_classes=3)
    assert batch.num_bad == 1
    assert batch.ids.tolist() == [0, 7]
    assert batch.class_pixels[1].tolist() == [0, 0, 0]
    assert (batch.mask[1] == 255).all()
    assert (batch.image[1] == 0).all()


def test_to_keeps_everything_and_the_memory_layout():
    batch = collate([sample(0), blank_sample(1, (5, 7), 3)], num_classes=3)
    moved = batch.to("meta")
    assert moved.image.device.type == "meta"
    assert moved.image.is_contiguous(memory_format=torch.channels_last)
    assert moved.class_pixels.shape == (2, 3)
    assert moved.num_bad == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_and_on_the_gpu():
    batch = collate([sample(0), sample(1)], num_classes=3)
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() for tensor in (pinned.image, pinned.mask, pinned.ids, pinned.class_pixels))
    moved = pinned.to("cuda", non_blocking=True)
    assert moved.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.image.cpu(), batch.image)


@pytest.mark.parametrize("shape", [(3, 5), (4096, 4096)])
def test_counts_of_small_and_large_masks(shape):
    mask = np.zeros(shape, np.uint8)
    mask[0, :3] = 2, 255, 2
    counts = count_values(mask)
    assert counts.dtype == np.int64
    assert counts[[0, 2, 255]].tolist() == [mask.size - 3, 2, 1]
    assert counts.sum() == mask.size


def test_counts_of_a_view():
    mask = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.flatnonzero(count_values(mask[2:4, 5:7])).tolist() == [45, 46, 65, 66]


DTYPE = batch_dtype(2, (5, 7), 3, 3)


def fill(pool, slot, first=0):
    return collate([sample(first), sample(first + 1)], 3, into=pool.record(slot))


def test_a_batch_is_what_was_written_and_lies_where_it_was_written():
    pool = BatchPool(3, DTYPE)
    written = fill(pool, 1)
    batch = BatchSlot(pool.number, 1, num_bad=1).batch()
    assert batch.num_bad == 1
    for name in ("image", "mask", "ids", "class_pixels"):
        assert torch.equal(getattr(batch, name), getattr(written, name))
        assert getattr(batch, name).data_ptr() == getattr(written, name).data_ptr()
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kept", ["image", "mask", "ids", "class_pixels"])
def test_a_slot_is_free_again_when_nothing_refers_to_it(kept):
    pool = BatchPool(1, DTYPE)
    slot = pool.take()
    assert pool.take() is None
    fill(pool, slot)
    batch = pool.batch(slot, 0)
    tensor = getattr(batch, kept)[1:]  # a view of a part is enough
    del batch
    assert pool.take() is None
    del tensor
    assert pool.take() == slot


def test_a_batch_outlives_its_arena():
    pool = BatchPool(1, DTYPE)
    expected = fill(pool, pool.take()).image.clone()
    batch = pool.batch(0, 0)
    del pool
    gc.collect()
    assert torch.equal(batch.image, expected)


def test_a_forked_process_writes_to_the_same_memory():
    pool = BatchPool(2, DTYPE)
    child = os.fork()
    if child == 0:
        fill(pool, 1, first=5)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    arrived = pickle.loads(pickle.dumps(BatchSlot(pool.number, 1, 0))).batch()
    assert arrived.ids.tolist() == [5, 6]
    np.testing.assert_array_equal(arrived.mask[1], sample(6).mask)


def test_it_asks_nothing_of_dev_shm():
    before = set(Path("/dev/shm").iterdir())
    pool = BatchPool(4, batch_dtype(4, (256, 256), 3, 3))
    pool.record(0)["image"][:] = 1
    assert set(Path("/dev/shm").iterdir()) <= before


def test_ignored_pixels_count_for_nothing_anywhere():
    mask = np.full((1, 4, 5), IGNORE_INDEX, np.uint8)
    counts = torch.from_numpy(count_values(mask[0]))[None, :3]
    loss = build_loss(LossConfig(dice_weight=1.0, focal_weight=1.0, lovasz_weight=1.0), num_classes=3)
    denominators = loss.denominators(loss.counts(counts))
    logits = torch.randn(1, 3, 4, 5)
    assert denominators.tolist() == [0, 0]
    assert float(loss(logits, torch.from_numpy(mask), denominators)) == 0
    assert not confusion_matrix(logits.argmax(1), torch.from_numpy(mask), 3).any()
    palette = Palette.from_records(PALETTE_RECORDS)
    assert (palette.to_ids(mask) == IGNORE_INDEX).all()
    assert (palette.colorize(mask) == (0, 0, 255)).all(), "the colour of the ignored label"
