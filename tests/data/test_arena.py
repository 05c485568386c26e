import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_batch import sample
from unetdist.data.batch import BatchPool, BatchSlot, batch_dtype, collate

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
