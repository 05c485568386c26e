"""A hundred million samples in a hundred thousand shards: what starts with a run needs seconds and little memory."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_shards import NUM_CLASSES, write_small_shards
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.data.loader import train_loader, val_loader
from unetdist.data.order import Order

ROOT = Path(__file__).parents[2]

PEAK = """
def peak_mib():
    # Not getrusage: its peak begins with the size of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
"""

START = (
    PEAK
    + """
import dataclasses, itertools, json, sys
import numpy as np
from unetdist.data.manifest import Manifest, Shard
from unetdist.data.order import Order
from unetdist.data.reader import ShardReader

imported = peak_mib()
folder, (num_shards, per_shard) = sys.argv[1], map(int, sys.argv[2:])
small = Manifest.load(folder)
shards = tuple(Shard(f"{n:06d}.tar", per_shard, 10**8 + n, f"{n:064x}") for n in range(num_shards))
dataclasses.replace(small, shards=shards, num_samples=num_shards * per_shard).save(folder)
manifest = Manifest.load(folder)
reader = ShardReader(folder, manifest)
last = reader.source(manifest.num_samples - 1)
order = Order(manifest.shard_sizes, seed=0)
first = order.rank_slice(0, 1024, 3, 8)[1]
later = order.rank_slice(int(3.5 * order.num_samples) // 1024 * 1024, 1024, 3, 8)
upcoming = order.upcoming(0, global_batch_size=1024, rank=3, world_size=8)
told = list(itertools.islice(upcoming, 1000))
print(json.dumps({
    "imported_mib": imported,
    "peak_mib": peak_mib(),
    "num_samples": manifest.num_samples,
    "last": last,
    "first_is_told": set((first // per_shard).tolist()) <= {shard for at, shard in told if at == 0},
    "later_epochs": np.unique(later[0]).tolist(),
    "told_shards": len({shard for _, shard in told}),
}))
"""
)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")


@needs_proc
def test_a_hundred_million_samples_start_under_a_gibibyte(tmp_path):
    """Everything at once, in a process of its own: manifest written and read, reader, order, a jump, what is next."""
    write_small_shards(tmp_path, [1])
    command = [sys.executable, "-c", START, str(tmp_path), "100000", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_samples"] == 100_000_000
    assert found["last"].endswith("099999.tar, sample 999")
    assert found["first_is_told"]
    assert found["later_epochs"] == [3]
    assert found["told_shards"] > 800
    assert found["peak_mib"] < 1024
    assert found["peak_mib"] - found["imported_mib"] < 300


ORDER = (
    PEAK
    + """
import itertools
import numpy as np
from unetdist.data.order import Order
order = Order(np.full(1_000_000, 1000), seed=0)
for epoch in range(5):
    order.rank_slice(int((epoch + 0.5) * order.num_samples), 4096, 0, 1)
assert len(list(itertools.islice(order.upcoming(0, global_batch_size=4096), 1000))) == 1000
print(peak_mib())
"""
)


@needs_proc
def test_an_order_of_a_billion_samples():
    """In a million shards; the numbers of the samples alone would be eight gigabytes."""
    done = subprocess.run([sys.executable, "-c", ORDER], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 512


@pytest.mark.parametrize("sizes", [[0, 1, 0], [1, 1, 1], [600], [0, 300, 0, 1, 0, 3], [1] * 100])
@pytest.mark.parametrize("world_size", [1, 64])
def test_any_shape_of_data_set_is_dealt_once_to_any_number_of_ranks(sizes, world_size):
    """One sample, more ranks than shards, empty shards, a huge one, shards of one sample."""
    order = Order(sizes, seed=1, lanes=64, window=256)
    batch = 2 * world_size
    first_epochs = range(0, 2 * order.num_samples, batch)
    taken = [order.rank_slice(first, batch, rank, world_size) for first in first_epochs for rank in range(world_size)]
    epoch, sample_id = np.concatenate(taken, axis=1)
    for number in (0, 1):
        assert sorted(sample_id[epoch == number].tolist()) == list(range(order.num_samples))
    for rank in range(world_size):
        upcoming = order.upcoming(0, global_batch_size=batch, rank=rank, world_size=world_size)
        assert all(sizes[shard] > 0 for _, shard in itertools.islice(upcoming, 20))


def open_loaders(folder, manifest, rank, world_size):
    cfg = DataConfig(train=str(folder), num_workers=0)
    fixed = {"channels": 3, "num_classes": NUM_CLASSES, "rank": rank, "world_size": world_size}
    batches = {"global_batch_size": 2 * world_size, "micro_batch_size": 1}
    train = train_loader(cfg, AugmentConfig(), manifest, folder, seed=0, **batches, **fixed)
    return train, val_loader(cfg, manifest, folder, batch_size=3, **fixed)


@pytest.mark.parametrize(("sizes", "world_size"), [([0, 1, 0, 2], 8), ([40], 3), ([1] * 5, 16)])
def test_loaders_of_any_shape_give_each_sample_once(sizes, world_size, tmp_path):
    manifest = write_small_shards(tmp_path, sizes)
    num_samples = sum(sizes)
    trained, scored = [], []
    for rank in range(world_size):
        train, val = open_loaders(tmp_path, manifest, rank, world_size)
        steps = list(itertools.islice(train, num_samples))
        trained += [number for step in steps for batch in step for number in batch.ids.tolist()]
        scored += [number for batch in val for number in batch.ids.tolist()]
    assert np.bincount(trained).tolist() == [2 * world_size] * num_samples, "steps of a whole number of epochs"
    assert sorted(scored) == list(range(num_samples))
