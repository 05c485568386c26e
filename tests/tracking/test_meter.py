import math
import time

import pytest
import torch

from unetdist.distributed.collectives import World
from unetdist.tracking.meter import Meter

GOOD = torch.tensor(False)
"""What `is_bad` says of a good step."""


def read(meter, **given):
    values = {"lr": 0.0, "grad_norm": torch.tensor(0.0), "global_batch_size": 1, "epoch": 0.0, "bad_steps": 0}
    return meter.read(**{**values, **given})


def test_shares_are_summed_and_divided_by_steps():
    meter = Meter(World())
    for shares in ((1.0, 2.0), (3.0, 4.0)):  # two steps of two micro-batches
        meter.add(map(torch.tensor, shares), GOOD, num_bad=2)
    stats = read(meter, lr=0.1, grad_norm=torch.tensor(2.0), global_batch_size=8, epoch=1.5)
    assert (stats.loss, stats.num_bad, stats.lr, stats.grad_norm, stats.epoch) == (5.0, 4, 0.1, 2.0, 1.5)
    assert stats.images_per_s == pytest.approx(8 / stats.step_s)


def test_reading_starts_anew():
    meter = Meter(World())
    meter.add([torch.tensor(7.0)], GOOD, num_bad=0)
    read(meter)
    meter.add([torch.tensor(1.0)], GOOD, num_bad=0)
    assert read(meter).loss == 1.0


def test_skipped_steps_are_no_part_of_the_loss():
    meter = Meter(World())
    meter.add([torch.tensor(3.0)], GOOD, num_bad=0)
    meter.add([torch.tensor(math.nan), torch.tensor(1.0)], ~GOOD, num_bad=0)
    assert read(meter, bad_steps=7).loss == 3.0
    meter.add([torch.tensor(math.inf)], ~GOOD, num_bad=0)
    stats = read(meter, bad_steps=8)
    assert math.isnan(stats.loss)
    assert stats.bad_steps == 8


def test_only_the_wait_for_an_item_is_data_time():
    def slow():
        for item in range(2):
            time.sleep(0.02)
            yield item

    meter = Meter(World())
    for _ in meter.timed(slow()):
        time.sleep(0.05)
        meter.add([], GOOD, num_bad=0)
    stats = read(meter)
    assert 0.02 <= stats.data_s < stats.step_s - 0.04
