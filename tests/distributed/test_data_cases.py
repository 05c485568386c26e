"""Real ranks with real workers over awkward data sets: each sample once in each epoch, and nobody waits for ever."""

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.data.small_shards import NUM_CLASSES, numbered_sample, write_small_shards
from tests.distributed.launcher import run_ranks
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.data.loader import train_loader, val_loader
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order

MICRO_BATCH_SIZE, SEED, LANES, WINDOW = 2, 3, 4, 16


def read_all(folder: str, num_workers: int, num_steps: int) -> tuple[list[list[int]], list[int]]:
    """Ids of this rank: of each training step, in step with the other ranks, and of two validations."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than there are cores
    rank, world_size = dist.get_rank(), dist.get_world_size()
    cfg = DataConfig(train=folder, num_workers=num_workers, lanes=LANES, window=WINDOW)
    manifest = Manifest.load(folder)
    fixed = {"channels": 3, "num_classes": NUM_CLASSES, "rank": rank, "world_size": world_size}
    batches = {"global_batch_size": world_size * MICRO_BATCH_SIZE, "micro_batch_size": MICRO_BATCH_SIZE}
    trained = []
    train = train_loader(cfg, AugmentConfig(), manifest, Path(folder), seed=SEED, **batches, **fixed)
    for step in itertools.islice(train, num_steps):
        trained.append([number for batch in step for number in checked_ids(batch)])
        seen = torch.tensor([len(trained[-1])])
        dist.all_reduce(seen)  # as the gradients are: a rank without a batch would leave the others waiting
        assert int(seen) == world_size * MICRO_BATCH_SIZE
    val = val_loader(cfg, manifest, Path(folder), batch_size=3, **fixed)
    scored = [number for _ in range(2) for batch in val for number in checked_ids(batch)]
    dist.barrier()
    return trained, scored


def checked_ids(batch) -> list[int]:
    """The ids of a batch, whose pixels are theirs."""
    ids = batch.ids.tolist()
    for place, number in enumerate(ids):
        image, mask = numbered_sample(number)
        np.testing.assert_array_equal(batch.image[place].permute(1, 2, 0), image)
        np.testing.assert_array_equal(batch.mask[place], mask)
    return ids


@pytest.mark.parametrize(
    ("shard_sizes", "world_size", "num_workers"),
    [
        pytest.param([5, 3], 4, 1, id="more ranks than shards"),
        pytest.param([2, 2], 3, 2, id="more workers than samples"),
        pytest.param([9, 1, 0, 23, 4], 2, 2, id="uneven shards"),
        pytest.param([1], 3, 2, id="one sample"),
        pytest.param([130], 2, 3, id="one huge shard"),
    ],
)
def test_each_sample_once_on_every_kind_of_data_set(shard_sizes, world_size, num_workers, tmp_path):
    write_small_shards(tmp_path, shard_sizes)
    num_samples, batch = sum(shard_sizes), world_size * MICRO_BATCH_SIZE
    num_epochs = max(2, math.lcm(num_samples, batch) // num_samples)
    num_steps = num_epochs * num_samples // batch
    ranks = run_ranks(read_all, world_size, str(tmp_path), num_workers, num_steps)
    order = Order(shard_sizes, seed=SEED, lanes=LANES, window=WINDOW)
    firsts = range(0, num_steps * batch, batch)
    together = [list(itertools.chain(*parts)) for parts in zip(*(steps for steps, _ in ranks), strict=True)]
    assert together == [order.rank_slice(first, batch, 0, 1)[1].tolist() for first in firsts]
    assert np.bincount(list(itertools.chain(*together))).tolist() == [num_epochs] * num_samples
    scored = [number for _, ids in ranks for number in ids]
    assert np.bincount(scored).tolist() == [2] * num_samples
