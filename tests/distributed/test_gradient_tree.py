"""Sums of gradients whose last digits do not depend on the number of processes."""

import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launcher import run_ranks
from unetdist.distributed import gradient_tree
from unetdist.distributed.collectives import all_reduce_sum, make_accelerator, world_of
from unetdist.distributed.gradient_tree import GradientTree, is_whole_subtree, odd_part, reduce_along_tree, tree_sum


def along_the_tree(parts):
    """The definition, written down another way: halves as long as they are whole, then from left to right."""
    if len(parts) % 2 == 0:
        half = len(parts) // 2
        return along_the_tree(parts[:half]) + along_the_tree(parts[half:])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def numbers(seed, *shape):
    """Of such different sizes that any other order of a sum is rounded otherwise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-3, 4, shape, generator=generator)


@pytest.mark.parametrize("count", range(1, 25))
def test_the_sum_is_that_of_the_tree(count):
    parts = numbers(count, count, 1000)
    assert tree_sum(parts).equal(along_the_tree(parts))


def test_other_orders_give_other_digits():
    """Else no test here could fail."""
    parts = numbers(0, 8, 1000)
    one_after_another = parts[0]
    for part in parts[1:]:
        one_after_another = one_after_another + part
    assert not one_after_another.equal(along_the_tree(parts))


class Products(nn.Module):
    """A loss whose gradient is its input, in weights of many layouts."""

    def __init__(self, shapes):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        for weight in self.weights:
            if weight.ndim == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)

    def forward(self, gradients):
        return sum((weight * gradient).sum() for weight, gradient in zip(self.weights, gradients, strict=True))


def gradients_of(case, micro_batch, step):
    seeds = range(len(case["shapes"]))
    return [numbers(10_000 * step + 100 * micro_batch + seed, *case["shapes"][seed]) for seed in seeds]


def sums(case):
    """The gradients of two steps; DDP changes the layout of its buckets after the first."""
    world = world_of(make_accelerator())
    found = []
    model = Products(case["shapes"])
    if case["has_ddp"]:
        model = DistributedDataParallel(model, bucket_cap_mb=case["bucket_mb"], gradient_as_bucket_view=True)
    mine = case["micro_batches"] // world.world_size
    tree = GradientTree(model, mine)
    for step in range(2):
        for index in range(mine):
            with tree.add(is_last=index == mine - 1):
                model(gradients_of(case, world.rank * mine + index, step)).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        model.zero_grad()
    return found


def random_case(seed):
    draw = random.Random(seed)
    shapes = [[draw.randint(1, 40) for _ in range(draw.choice([1, 1, 4]))] for _ in range(draw.randint(1, 6))]
    shapes = [[min(side, 7) for side in shape] if len(shape) == 4 else shape for shape in shapes]
    world_size = draw.choice([1, 2, 4])
    micro_batches = world_size * draw.randint(1, 6)
    return {
        "shapes": shapes,
        "bucket_mb": draw.choice([1e-4, 1e-3, 25]),
        "world_size": world_size,
        "has_ddp": world_size > 1 or draw.random() < 0.5,
        "micro_batches": micro_batches,
    }


@pytest.mark.parametrize("seed", range(12))
def test_gradients_are_added_along_the_tree_on_any_number_of_processes(seed):
    case = random_case(seed)
    for rank in run_ranks(sums, case["world_size"], case):
        for step, found in enumerate(rank):
            parts = [gradients_of(case, micro_batch, step) for micro_batch in range(case["micro_batches"])]
            for grad, *of_weight in zip(found, *parts, strict=True):
                assert grad.equal(along_the_tree(torch.stack(of_weight)))


def reduced(size):
    world = world_of(make_accelerator())
    mine = numbers(world.rank, size)
    other = mine.clone()
    reduce_along_tree(mine)
    return mine, all_reduce_sum(other)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_ranks_are_added_along_the_tree(size):
    expected = along_the_tree(torch.stack([numbers(rank, size) for rank in range(4)]))
    assert all(mine.equal(expected) for mine, _ in run_ranks(reduced, 4, size))


def test_an_ordinary_all_reduce_adds_in_another_order():
    expected = along_the_tree(torch.stack([numbers(rank, 4096) for rank in range(4)]))
    for _, ordinary in run_ranks(reduced, 4, 4096):
        torch.testing.assert_close(ordinary, expected, rtol=1e-3, atol=1e-2)
        assert not ordinary.equal(expected)


def sent(size):
    """Bytes that each collective sends to other ranks."""
    world, told = world_of(make_accelerator()), []
    to_others = (world.world_size - 1) / world.world_size
    all_to_all, gather = dist.all_to_all_single, gradient_tree.all_gather

    def count_all_to_all(received, given):
        told.append(given.nbytes * to_others)
        all_to_all(received, given)

    def count_gather(mine):
        told.append(mine.nbytes * (world.world_size - 1))
        return gather(mine)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dist, "all_to_all_single", count_all_to_all)
        patched.setattr(gradient_tree, "all_gather", count_gather)
        reduce_along_tree(torch.zeros(size))
    return sum(told)


def test_a_rank_sends_as_many_bytes_as_in_a_ring():
    """A ring sends (W - 1) / W of the buffer twice: Patarasuk & Yuan 2009, section 3."""
    size = 4096
    assert run_ranks(sent, 4, size) == [2 * 3 / 4 * size * 4] * 4


@pytest.mark.parametrize(
    ("micro_batches", "world_size", "expected"),
    [(8, 1, True), (8, 8, True), (12, 2, True), (12, 4, True), (12, 3, False), (12, 12, True), (6, 6, True)],
)
def test_which_processes_hold_a_subtree(micro_batches, world_size, expected):
    assert is_whole_subtree(micro_batches, world_size) is expected
    mine = micro_batches // world_size
    if expected:
        parts = numbers(1, micro_batches, 500)
        roots = torch.stack([along_the_tree(part) for part in parts.split(mine)])
        assert along_the_tree(roots).equal(along_the_tree(parts))


def test_odd_parts():
    assert [odd_part(number) for number in (1, 2, 3, 6, 12, 40)] == [1, 1, 3, 3, 3, 5]
