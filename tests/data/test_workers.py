import multiprocessing
import platform
import resource

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from unetdist.data.workers import items, work
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
    with pytest.raises(
        DataError, match=r"was killed \(DataLoader worker .*\), as .* fewer data.num_workers or"
    ):
        for _ in arrived:
            pass
