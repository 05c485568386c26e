import itertools
import multiprocessing
import platform
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from unetdist.data.batch import BatchPool, batch_dtype
from unetdist.data.order import Order
from unetdist.data.workers import ValBatches, items, micro_batches, part_of, shards_of, work
from unetdist.errors import DataError


class Squares(Dataset):
    def __getitem__(self, number):
        if number < 0:
            return DataError("is negative; give another.", source=f"number {number}")
        return number**2, torch.get_num_threads()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_items_come_in_the_order_of_the_requests(num_workers):
    items = list(work(Squares(), range(20), num_workers=num_workers, prefetch=2, pin_memory=False))
    assert [square for square, _ in items] == [number**2 for number in range(20)]
    if num_workers:
        assert {threads for _, threads in items} == {1}


class Faults(Dataset):
    """Page faults while arrays as large as pictures come and go."""

    def __getitem__(self, number):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            arrays = [np.full(8 << 20, number, np.uint8) for _ in range(2)]
            del arrays
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_workers_keep_the_memory_of_pictures():
    *_, last = work(Faults(), range(3), num_workers=1, prefetch=1, pin_memory=False)
    assert last < 100


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    list(work(Squares(), range(3), num_workers=1, prefetch=1, pin_memory=False))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_stay_for_the_next_iteration_and_end_with_the_loader():
    others = set(multiprocessing.active_children())
    loader = work(Squares(), range(4), num_workers=1, prefetch=1, pin_memory=False)
    list(loader)
    (first,) = set(multiprocessing.active_children()) - others
    list(loader)
    assert set(multiprocessing.active_children()) - others == {first}
    del loader
    first.join(10)
    assert not first.is_alive()


def test_an_error_is_raised_where_it_arrives():
    arrived = items(work(Squares(), [3, -3, 4], num_workers=1, prefetch=1, pin_memory=False))
    assert next(arrived)[0] == 9
    with pytest.raises(DataError, match=r"^number -3: is negative; give another\.$"):
        next(arrived)


def test_a_worker_that_is_killed():
    others = set(multiprocessing.active_children())
    arrived = items(work(Squares(), range(10**6), num_workers=1, prefetch=1, pin_memory=False))
    next(arrived)
    (worker,) = set(multiprocessing.active_children()) - others
    worker.kill()
    with pytest.raises(DataError, match=r"was killed \(DataLoader worker .*\), as .* fewer data.num_workers or"):
        for _ in arrived:
            pass


def take(steps, **options):
    order = Order([5, 0, 6], seed=1, lanes=3, window=4)
    fixed = {"global_batch_size": 6, "micro_batch_size": 2, "rank": 0, "world_size": 1, "from_sample": 0}
    return list(itertools.islice(micro_batches(order, **(fixed | options)), steps))


def test_the_micro_batches_of_all_ranks_are_the_steps():
    whole = take(4, micro_batch_size=6)
    for step in range(4):
        keys = [
            key
            for rank in range(3)
            for request in take(4, rank=rank, world_size=3)[step : step + 1]
            for key in request.keys
        ]
        assert keys == whole[step].keys


def test_an_epoch_has_each_sample_once_and_any_start_continues():
    requests = take(33)
    keys = [key for request in requests for key in request.keys]
    assert sorted(keys) == [(epoch, number) for epoch in range(6) for number in range(11)]
    assert take(3, from_sample=12) == requests[6:9]


def test_slots_are_taken_while_there_are_any():
    pool = BatchPool(2, batch_dtype(2, (4, 4), 3, 3))
    assert [request.slot for request in take(4, pool=pool)] == [0, 1, None, None]
    assert [request.slot for request in take(2)] == [None, None]


@pytest.mark.parametrize("world_size", [1, 3])
def test_partners_are_neighbours_of_the_endless_order(world_size):
    order = Order([5, 0, 6], seed=1, lanes=3, window=4)
    epoch, number = order.locate(np.arange(24))
    keys = list(zip(epoch.tolist(), number.tolist(), strict=True))
    expected = {key: keys[position ^ 1] for position, key in enumerate(keys)}
    for rank in range(world_size):
        share = {"rank": rank, "world_size": world_size}
        requests = take(12 // world_size, has_partners=True, **share)
        assert [expected[key] for request in requests for key in request.keys] == [
            partner for request in requests for partner in request.partners
        ]
        alone = take(12 // world_size, **share)
        assert [request.keys for request in alone] == [request.keys for request in requests]
        assert not any(request.partners for request in alone)


def test_progress_tells_the_first_sample_of_the_step():
    progress = SimpleNamespace(value=-1)
    take(4, from_sample=6, progress=progress)
    assert progress.value == 12  # four micro-batches: the second step has begun


@pytest.mark.parametrize(("num_samples", "batch_size", "world_size"), [(11, 3, 1), (11, 2, 3), (1, 4, 2), (8, 4, 2)])
def test_validation_has_each_sample_once(num_samples, batch_size, world_size):
    ranks = [
        ValBatches(part_of(num_samples, rank=rank, world_size=world_size), batch_size=batch_size)
        for rank in range(world_size)
    ]
    ids = [number for batches in ranks for group in batches for number in group]
    assert ids == list(range(num_samples))
    for batches in ranks:
        assert all(len(group) == batch_size for group in list(batches)[:-1])


def test_the_parts_of_the_ranks_are_equal():
    sizes = [len(part_of(11, rank=rank, world_size=4)) for rank in range(4)]
    assert max(sizes) - min(sizes) == 1


def test_a_billion_validation_samples_cost_nothing():
    progress = SimpleNamespace(value=-1)
    ids = part_of(10**9, rank=3, world_size=7)
    group = next(iter(ValBatches(ids, batch_size=8, progress=progress)))
    assert group == ids[:8]
    assert progress.value == ids[0]


def test_progress_tells_each_validation_apart():
    progress = SimpleNamespace(value=-1)
    batches = ValBatches(range(4, 7), batch_size=8, progress=progress)
    for _ in range(2):
        groups = iter(batches)
        assert next(groups) == range(4, 7)
        assert progress.value == 4
        assert list(groups) == []
        assert progress.value == 7


def test_shards_of_a_part():
    sizes = np.array([4, 0, 5, 2])
    assert list(shards_of(sizes, range(11))) == [(0, 0), (4, 2), (9, 3)]
    assert list(shards_of(sizes, range(4))) == [(0, 0)]
    assert list(shards_of(sizes, range(5, 10))) == [(4, 2), (9, 3)]
    assert list(shards_of(sizes, range(3, 3))) == []
