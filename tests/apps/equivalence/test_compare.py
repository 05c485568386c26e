"""Records as written by hand: what is beyond rounding, and where it is said to begin."""

import math
from typing import Any

from unetdist.apps.equivalence.compare import compare


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A line of a record that differs in nothing, but for `changes`."""
    numbers = {} if step == 0 else {"train/loss": 2.0, "train/grad_norm": 4.0}
    return {
        "step": step,
        "samples": [[7, 1]] if step else [],
        "ranks_agree": True,
        "differences": {},
        **numbers,
        **changes,
    }


REFERENCE = [line(step) for step in range(4)]


def changed(step: int, **changes: Any) -> list[dict[str, Any]]:
    return [line(number, **(changes if number == step else {})) for number in range(4)]


def test_equal_records_differ_in_nothing():
    comparison = compare(REFERENCE, REFERENCE, REFERENCE, float64=False)
    assert comparison.is_equal
    assert {difference.amount for difference in comparison.largest.values()} == {0}


def test_a_difference_below_the_floor_is_equal():
    comparison = compare(REFERENCE, changed(2, differences={"a": 1e-7}), REFERENCE, float64=False)
    assert comparison.is_equal
    assert (comparison.largest["weights"].step, comparison.largest["weights"].where) == (2, "a")
    assert not compare(REFERENCE, changed(2, differences={"a": 1e-7}), REFERENCE, float64=True).is_equal


def test_ten_times_of_what_rounding_did_up_to_the_step_is_allowed():
    noise = changed(2, differences={"other": 1e-3})
    for step, is_equal in ((1, False), (2, True), (3, True)):
        other = changed(step, differences={"a": 9e-3})
        assert compare(REFERENCE, other, noise, float64=False).is_equal is is_equal, step
    assert not compare(REFERENCE, changed(3, differences={"a": 1.1e-2}), noise, float64=False).is_equal


def test_the_first_step_and_the_tensor_that_is_furthest_apart_are_named():
    other = [*REFERENCE[:2], line(2, differences={"a": 0.1, "b": 0.2}), line(3, differences={"a": 0.9})]
    comparison = compare(REFERENCE, other, REFERENCE, float64=True)
    first, largest = comparison.first["weights"], comparison.largest["weights"]
    assert (first.step, first.where, first.amount, first.allowed) == (2, "b", 0.2, 1e-12)
    assert (largest.step, largest.where) == (3, "a")


def test_loss_and_gradient_are_relative():
    comparison = compare(REFERENCE, changed(1, **{"train/loss": 2.5, "train/grad_norm": 5.0}), REFERENCE, float64=False)
    assert {what: found.amount for what, found in comparison.first.items()} == {"loss": 0.2, "gradient": 0.2}


def test_numbers_that_are_not_finite_are_equal_only_to_themselves():
    lost = changed(1, **{"train/loss": None})
    assert compare(lost, lost, lost, float64=False).is_equal
    assert compare(REFERENCE, lost, REFERENCE, float64=False).first["loss"].amount == math.inf
    unknown = changed(1, differences={"a": math.nan})
    assert compare(REFERENCE, unknown, REFERENCE, float64=False).first["weights"].amount == math.inf


def test_other_samples_and_ranks_that_part_are_never_equal():
    other = compare(REFERENCE, changed(2, samples=[[8, 1]]), REFERENCE, float64=False)
    assert (other.other_samples, other.is_equal) == (2, False)
    parted = compare(REFERENCE, changed(3, ranks_agree=False), REFERENCE, float64=False)
    assert (parted.ranks_part, parted.is_equal) == (3, False)


def test_in_float32_a_weight_may_wander_by_the_learning_rates_so_far():
    """Adam's step does not shrink with the gradient: one flipped sign of a gradient near 0 is as long as any step."""
    learning = [line(step, **{"train/lr": 0.01} if step else {}) for step in range(4)]
    moved = [{**before, "differences": {"a": 0.015} if before["step"] >= 2 else {}} for before in learning]
    assert compare(learning, moved, learning, float64=False).is_equal
    assert compare(learning, moved, learning, float64=True).first["weights"].step == 2
    too_far = [{**before, "differences": {"a": 0.015}} for before in learning]
    assert [compare(learning, too_far, learning, float64=False).first["weights"].step] == [0]
