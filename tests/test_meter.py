import time

import pytest
import torch

from unetdist.distributed import World
from unetdist.meter import Meter


def test_shares_are_summed_and_divided_by_steps():
    meter = Meter(World())
    for share in (1.0, 2.0, 3.0, 4.0):  # two steps of two micro-batches
        meter.add(torch.tensor(share), num_bad=1)
    meter.count_step()
    meter.count_step()
    stats = meter.read(lr=0.1, grad_norm=torch.tensor(2.0), global_batch_size=8, epoch=1.5)
    assert (stats.loss, stats.num_bad, stats.lr, stats.grad_norm, stats.epoch) == (5.0, 4, 0.1, 2.0, 1.5)
    assert stats.images_per_s == pytest.approx(8 / stats.step_s)


def test_reading_starts_anew():
    meter = Meter(World())
    meter.add(torch.tensor(7.0), num_bad=0)
    meter.count_step()
    meter.read(lr=0, grad_norm=torch.tensor(0.0), global_batch_size=1, epoch=0)
    meter.add(torch.tensor(1.0), num_bad=0)
    meter.count_step()
    assert meter.read(lr=0, grad_norm=torch.tensor(0.0), global_batch_size=1, epoch=0).loss == 1.0


def test_only_the_wait_for_an_item_is_data_time():
    def slow():
        for item in range(2):
            time.sleep(0.02)
            yield item

    meter = Meter(World())
    for _ in meter.timed(slow()):
        time.sleep(0.05)
        meter.count_step()
    stats = meter.read(lr=0, grad_norm=torch.tensor(0.0), global_batch_size=1, epoch=0)
    assert 0.02 <= stats.data_s < stats.step_s - 0.04
