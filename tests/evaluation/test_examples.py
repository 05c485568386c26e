import math

import numpy as np
import pytest
import torch

from tests.distributed.launcher import run_ranks
from unetdist.evaluation.examples import LARGEST_PX, Examples

MIOUS = (0.5, 0.25, 1.0, math.nan, 0.0, 0.25, 1.0, 0.75)
"""Of the images, by id."""


def offer(examples, sample_id):
    """An image whose planes hold its id, and whose mIoU is that of `MIOUS`."""
    miou = MIOUS[sample_id]
    confusion = torch.zeros(2, 2, dtype=torch.int64)
    if not math.isnan(miou):
        confusion[0] = torch.tensor([round(12 * miou), 12 - round(12 * miou)])
        confusion[1, 1] = 0
    planes = torch.full((3, 4 + sample_id, 5), sample_id, dtype=torch.uint8)
    examples.add(sample_id, confusion, planes, planes[0], planes[0].long())


def expected_miou(sample_id):
    """The class that is only predicted counts too, with nothing in common."""
    return MIOUS[sample_id] if MIOUS[sample_id] in (1.0,) else MIOUS[sample_id] / 2


def shown(num_examples, ids, batch=2):
    examples = Examples(num_examples)
    for number, sample_id in enumerate(ids):
        offer(examples, sample_id)
        if number % batch:
            examples.read()
    return [(each.id, each.miou, each.is_worst) for each in examples.gather(torch.device("cpu"))]


@pytest.mark.parametrize(
    ("num_examples", "ids"),
    [
        (0, []),
        (1, [4]),
        (2, [0, 4]),
        (4, [0, 1, 4, 5]),  # 1 is a first one, so the worst are 4, 5
        (5, [0, 1, 4, 5, 7]),
        (16, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_half_are_the_first_and_half_the_worst_of_the_others(num_examples, ids):
    for order in (range(8), (7, 3, 4, 0, 6, 2, 5, 1)):
        chosen = shown(num_examples, order)
        assert sorted(each[0] for each in chosen) == ids
        first = [each[0] for each in chosen if not each[2]]
        assert first == ids[: num_examples // 2][: len(first)]
        worst = [each for each in chosen if each[2]]
        assert worst == sorted(worst, key=lambda each: (each[1], each[0]))
        for sample_id, miou, _ in chosen:
            assert miou == pytest.approx(expected_miou(sample_id), nan_ok=True)


def test_one_of_which_nothing_counts_is_worst_of_none():
    assert [each[0] for each in shown(14, range(8))][-1] == 7
    assert 3 in [each[0] for each in shown(14, range(8)) if not each[2]]


def test_large_ones_are_shrunk():
    examples = Examples(1)
    plane = torch.zeros(2 * LARGEST_PX, LARGEST_PX, dtype=torch.uint8)
    examples.add(0, torch.eye(2, dtype=torch.int64), plane.expand(4, -1, -1), plane, plane)
    (each,) = examples.gather(torch.device("cpu"))
    assert each.image.shape == (LARGEST_PX, LARGEST_PX // 2, 3)  # in RGB, whatever the network sees
    assert each.mask.shape == each.pred.shape == (LARGEST_PX, LARGEST_PX // 2)


def gathered(rank_of):
    rank = torch.distributed.get_rank()
    examples = Examples(5)
    for sample_id in range(8):
        if rank_of[sample_id] == rank:
            offer(examples, sample_id)
    return [
        (each.id, each.miou, each.is_worst, each.image.tolist(), each.mask.tolist(), each.pred.tolist())
        for each in examples.gather(torch.device("cpu"))
    ]


@pytest.mark.parametrize("rank_of", [(0, 1, 2) * 3, (2,) * 8, (1, 1, 0, 0, 1, 2, 2, 0)])
def test_they_are_the_same_on_every_rank_whoever_scored_which(rank_of):
    (alone,) = run_ranks(gathered, 1, (0,) * 8)
    assert [each[0] for each in alone] == [0, 1, 4, 5, 7]
    assert np.unique(alone[2][3]).tolist() == [4]
    assert run_ranks(gathered, 3, rank_of) == [alone] * 3
