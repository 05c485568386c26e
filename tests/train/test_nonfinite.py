"""Skipped steps; what a whole run does about them is in tests/train/test_trainer.py."""

import math
import re
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.distributed.launcher import run_ranks
from unetdist.distributed.collectives import World
from unetdist.train.nonfinite import SAMPLES_NAMED, NonFiniteGuard, SkippedSteps, finite_or_nan

IDS = [torch.tensor([4, 5]), torch.tensor([6, 7])]


def parts(fused=None, kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, kind(model.parameters(), lr=0.1, fused=fused, **options)


@contextmanager
def leftovers_in_new_memory():
    """Uninitialised memory holds old values, as on a busy GPU."""
    made = torch.empty_like
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "empty_like", lambda *args, **kwargs: made(*args, **kwargs).fill_(1e28))
        yield


def step(model, optimizer, guard, number, spoil=1.0, ids=IDS, grad_spoil=1.0):
    image = torch.randn(5, 3, generator=torch.Generator().manual_seed(number)) * spoil
    loss = model(image).square().mean()
    optimizer.zero_grad()
    (loss * finite_or_nan(loss)).backward()
    for parameter in model.parameters():
        parameter.grad *= grad_spoil
    norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    return guard.step(number, norm, [loss, torch.zeros(())], ids)


def states(model, optimizer):
    of_model = {name: value.detach().clone() for name, value in model.named_parameters()}
    of_optimizer = {
        (index, name): value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return of_model | of_optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("spoil", [{"spoil": math.inf}, {"grad_spoil": math.nan}])
def test_a_skipped_step_changes_nothing_and_the_next_one_works(kind, fused, spoil):
    """Fused optimizers skip on the device, as on a GPU; others are not called."""
    model, optimizer = parts(fused, kind)
    guard = NonFiniteGuard(optimizer, World())
    assert not step(model, optimizer, guard, 0)
    before = states(model, optimizer)
    assert step(model, optimizer, guard, 1, **spoil)
    after = states(model, optimizer)
    assert all(value.equal(before[name]) for name, value in after.items())
    assert not step(model, optimizer, guard, 2)
    assert not states(model, optimizer)["0.weight"].equal(before["0.weight"])

    other_model, other_optimizer = parts(fused, kind)  # that never saw the skipped step
    other_guard = NonFiniteGuard(other_optimizer, World())
    step(other_model, other_optimizer, other_guard, 0)
    step(other_model, other_optimizer, other_guard, 2)
    expected = states(other_model, other_optimizer)
    assert all(value.equal(expected[name]) for name, value in states(model, optimizer).items())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("num_bad", [1, 2])
def test_skipped_first_steps_leave_no_trace(kind, fused, num_bad):
    """Fused SGD would create its momenta in such a step and leave them uninitialised."""
    options = {"momentum": 0.9, "weight_decay": 0.01} if kind is torch.optim.SGD else {}
    seen, unseen = parts(fused, kind, **options), parts(fused, kind, **options)
    guard = NonFiniteGuard(seen[1], World())
    with leftovers_in_new_memory():
        for number in range(num_bad):
            assert step(*seen, guard, number, grad_spoil=math.inf)
    assert all(not value.any() for key, value in states(*seen).items() if isinstance(key, tuple))
    other_guard = NonFiniteGuard(unseen[1], World())
    for number in (5, 6, 7):
        assert not step(*seen, guard, number)
        assert not step(*unseen, other_guard, number)
    expected = states(*unseen)
    assert states(*seen).keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in states(*seen).items())


def test_loaded_momenta_are_kept():
    model, optimizer = parts(True, torch.optim.SGD, momentum=0.9)
    step(model, optimizer, NonFiniteGuard(optimizer, World()), 0)
    saved = optimizer.state_dict()
    before = [each["momentum_buffer"].clone() for each in saved["state"].values()]
    model, optimizer = parts(True, torch.optim.SGD, momentum=0.9)
    optimizer.load_state_dict(saved)
    step(model, optimizer, NonFiniteGuard(optimizer, World()), 1, grad_spoil=math.nan)
    after = [each["momentum_buffer"] for each in optimizer.state_dict()["state"].values()]
    assert all(map(torch.equal, after, before))


def test_a_good_step_is_the_optimizers_own():
    (model, optimizer), (other, plain) = parts(), parts()
    guard = NonFiniteGuard(optimizer, World())
    step(model, optimizer, guard, 0)
    other(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    plain.step()
    assert all(value.equal(states(other, plain)[name]) for name, value in states(model, optimizer).items())


def test_a_row_of_skipped_steps_is_counted_across_reports():
    model, optimizer = parts()
    guard = NonFiniteGuard(optimizer, World())
    assert guard.report() == SkippedSteps(0, 0)
    for number, is_bad in enumerate([False, True, True]):
        step(model, optimizer, guard, number, spoil=math.nan if is_bad else 1.0)
    assert guard.report() == SkippedSteps(total=2, longest_row=2)
    for number, is_bad in enumerate([True, False, True]):
        step(model, optimizer, guard, number, spoil=math.nan if is_bad else 1.0)
    assert guard.report() == SkippedSteps(total=2, longest_row=3)
    assert guard.report() == SkippedSteps(total=0, longest_row=0)


@pytest.mark.parametrize(
    ("spoil", "logged"),
    [
        ({"spoil": math.nan}, r"step 8: its loss is not finite.* sample 4, sample 5$"),
        ({"grad_spoil": math.inf}, r"step 8: its gradient is not finite.* sample 4, sample 5, sample 6, sample 7$"),
    ],
)
def test_the_log_names_the_samples_of_a_skipped_step(spoil, logged, caplog):
    """Those of the micro-batch whose loss is not finite, or all of the step if only its gradient is not."""
    model, optimizer = parts()
    guard = NonFiniteGuard(optimizer, World())
    step(model, optimizer, guard, 7, **spoil)
    guard.report()
    (message,) = caplog.messages
    assert re.search(logged, message)


def test_the_log_names_only_the_first_of_many_samples(caplog):
    model, optimizer = parts()
    guard = NonFiniteGuard(optimizer, World(), source_of="{}.png".format)
    step(model, optimizer, guard, 0, grad_spoil=math.nan, ids=[torch.arange(20), torch.arange(20, 40)])
    guard.report()
    assert caplog.messages[0].endswith(f", 7.png and {40 - SAMPLES_NAMED} more")


def bad_on_one_rank():
    rank, told = torch.distributed.get_rank(), []
    _, optimizer = parts()
    world = World(rank=rank, world_size=2)
    guard = NonFiniteGuard(optimizer, world, source_of=lambda number: told.append(number) or str(number))
    norm = torch.tensor(math.nan)  # the same on all ranks, because gradients are summed
    ids = [torch.tensor([10 * rank + 1]), torch.tensor([10 * rank + 2])]
    guard.step(0, norm, [torch.tensor(math.inf if rank == 1 else 0.0), torch.tensor(0.0)], ids)
    return guard.report(), told


def test_rank_0_names_the_samples_of_every_rank():
    assert run_ranks(bad_on_one_rank, 2) == [(SkippedSteps(1, 1), [11]), (SkippedSteps(1, 1), [])]


def test_the_factor_of_the_loss_is_one_or_nan():
    assert finite_or_nan(torch.tensor(3.0)) == 1
    for value in (math.nan, math.inf, -math.inf):
        assert finite_or_nan(torch.tensor(value)).isnan()
