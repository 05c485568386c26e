"""Running statistics of batch norm, in one copy per micro-batch of the global batch."""

import copy

import pytest
import torch
from torch import nn

from tests.distributed.launcher import run_ranks
from unetdist.distributed.collectives import World, make_accelerator, world_of
from unetdist.train.norm_statistics import NormStatistics
from unetdist.train.optim import Ema

NUM_MICRO_BATCHES = 4
STEPS = 3
DECAY = 0.5
GOOD = torch.tensor(False)
ALONE = World()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def images(step, micro_batch):
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(100 * step + micro_batch))


def tracked(world=ALONE, steps=range(STEPS)):
    """Steps without an optimizer, whose micro-batches are shared by the ranks."""
    model = network().train()
    ema = Ema(model, DECAY)
    statistics = NormStatistics(model, ema, num_micro_batches=NUM_MICRO_BATCHES, world=world)
    for step in steps:
        run_step(statistics, world, step)
    statistics.settle(len(steps))
    return statistics


def run_step(statistics, world, step, is_skipped=GOOD):
    mine = NUM_MICRO_BATCHES // world.world_size
    for index in range(mine):
        statistics.load(index)
        statistics.models[0](images(step, world.rank * mine + index))
        statistics.store(index)
    statistics.step(is_skipped, DECAY)


def states(statistics):
    return [model.state_dict() for model in statistics.models], statistics.settled


def on_a_rank():
    return states(tracked(world_of(make_accelerator())))


@pytest.fixture(scope="module")
def alone():
    """Found by one thread, because a kernel's sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield states(tracked())
    torch.set_num_threads(before)


@pytest.mark.parametrize("world_size", [2, 4])
def test_statistics_do_not_depend_on_the_number_of_processes(alone, world_size):
    for models, settled in run_ranks(on_a_rank, world_size):
        for expected, found in zip(alone[0], models, strict=True):
            assert all(found[name].equal(value) for name, value in expected.items())
        assert all(map(torch.equal, settled, alone[1]))


def test_each_copy_saw_its_own_micro_batches_and_predictions_use_the_mean(alone):
    means = []
    for micro_batch in range(NUM_MICRO_BATCHES):
        model = network().train()
        average = copy.deepcopy(model[1].running_mean)
        for step in range(STEPS):
            model(images(step, micro_batch))
            average = DECAY * average + (1 - DECAY) * model[1].running_mean
        means.append(torch.stack([model[1].running_mean, average]))
    for state, expected in zip(alone[0], torch.stack(means).mean(dim=0), strict=True):
        torch.testing.assert_close(state["1.running_mean"], expected, rtol=1e-6, atol=0)
        assert state["1.num_batches_tracked"] == STEPS


def test_copies_differ(alone):
    """Else the tests above could not fail."""
    assert len(alone[1][0].unique(dim=0)) == NUM_MICRO_BATCHES


def test_a_skipped_step_leaves_no_trace():
    statistics = tracked(steps=range(1))
    before = statistics.settled[0].clone()
    run_step(statistics, ALONE, 1, is_skipped=~GOOD)
    statistics.settle(1)
    assert statistics.settled[0].equal(before)
    run_step(statistics, ALONE, 1)
    statistics.settle(2)
    assert not statistics.settled[0].equal(before)


def test_settling_between_steps_changes_nothing_that_follows(alone):
    statistics = tracked(steps=range(1))
    for step in range(1, STEPS):
        run_step(statistics, ALONE, step)
        statistics.settle(step + 1)
    assert all(map(torch.equal, statistics.settled, alone[1]))


def test_saved_copies_continue_and_those_of_other_micro_batches_do_not(alone):
    half = tracked(steps=range(2))
    whole = tracked(steps=range(0))
    whole.begin(half.settled)
    run_step(whole, ALONE, 2)
    whole.settle(STEPS)
    assert all(map(torch.equal, whole.settled, alone[1]))
    whole.begin([copies[:2] for copies in half.settled])
    whole.settle(STEPS)
    mean = alone[0][0]["1.running_mean"]
    assert all(row.equal(mean) for row in whole.settled[0][:, :4])


def test_a_network_without_batch_norm_has_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    statistics = NormStatistics(model, None, num_micro_batches=2, world=ALONE)
    statistics.load(1)
    statistics.store(1)
    statistics.step(GOOD, 0.0)
    statistics.settle(1)
    assert [copies.numel() for copies in statistics.settled] == [0]
