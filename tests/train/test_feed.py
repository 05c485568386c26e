"""Batches arrive on the device as they were."""

import torch

from unetdist.data.batch import Batch
from unetdist.train.prefetch import feed


def batch(number):
    return Batch(
        image=torch.full((1, 3, 2, 2), number, dtype=torch.uint8),
        mask=torch.full((1, 2, 2), number, dtype=torch.uint8),
        ids=torch.tensor([number]),
        class_pixels=torch.tensor([[4, number]]),
        num_bad=number,
    )


def test_every_step_arrives_in_order_with_its_micro_batches():
    steps = [[batch(1), batch(2)], [batch(3), batch(4)]]
    there = list(feed(iter(steps), torch.device("cpu")))
    assert [[int(b.ids) for b in step] for step in there] == [[1, 2], [3, 4]]
    assert [[b.num_bad for b in step] for step in there] == [[1, 2], [3, 4]]


def test_pixels_go_to_the_device_and_ids_stay():
    ((there,),) = feed([[batch(1)]], torch.device("meta"))
    assert {there.image.device.type, there.mask.device.type, there.class_pixels.device.type} == {"meta"}
    assert there.ids.tolist() == [1]


def test_nothing_is_taken_ahead():
    taken = []

    def steps():
        for number in range(3):
            taken.append(number)
            yield [batch(number)]

    fed = feed(steps(), torch.device("cpu"))
    next(fed)
    assert taken == [0]
