"""Compares the records of two runs: how far they differ, from which step on, and whether rounding explains it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# One line per step, that of `record.write_step` joined with that of metrics.jsonl; the first is before training.
Record = Sequence[Mapping[str, Any]]

# A run may differ this many times as much as the nudged run, because both differences are random.
FACTOR = 10.0

# Always allowed, by whether the runs are in float64; relative for loss and gradient.
FLOORS = {False: 1e-3, True: 1e-12}

# Name of each quantity and its name in metrics.jsonl.
QUANTITIES = {"loss": "train/loss", "gradient": "train/grad_norm", "weights": ""}


@dataclass(frozen=True)
class Difference:
    """A difference from the reference in one step."""

    step: int
    """Steps done; 0 is before training."""
    amount: float
    """Largest absolute difference of a weight; relative difference of loss or gradient norm."""
    where: str
    """Name of the tensor, "loss" or "gradient"."""
    allowed: float


@dataclass(frozen=True)
class RunComparison:
    """A run compared with the reference."""

    other_samples: int | None
    """The first step with other samples, or other pixels of them."""
    ranks_part: int | None
    """The first step after which the processes of the run had different weights."""
    largest: Mapping[str, Difference]
    """The largest difference of loss, gradient and weights over all steps."""
    first: Mapping[str, Difference]
    """The first difference of each that is more than allowed."""

    @property
    def is_equal(self) -> bool:
        """Whether rounding explains all differences."""
        return self.other_samples is None and self.ranks_part is None and not self.first


def compare(reference: Record, other: Record, noise: Record, *, float64: bool) -> RunComparison:
    """Compare a run with the reference, step by step.

    Args:
        reference: record of the reference run.
        other: record of the run.
        noise: record of a run that differs from the reference only by rounding; it sets what is allowed.
        float64: whether the runs used double precision.
    """
    found = {what: _differences(what, reference, other, noise, float64=float64) for what in QUANTITIES}
    beyond = {what: [each for each in steps if each.amount > each.allowed] for what, steps in found.items()}
    pairs = zip(reference, other, strict=True)
    return RunComparison(
        other_samples=next((one["step"] for one, two in pairs if one["samples"] != two["samples"]), None),
        ranks_part=next((line["step"] for line in other if not line["ranks_agree"]), None),
        largest={what: max(steps, key=lambda each: each.amount) for what, steps in found.items()},
        first={what: steps[0] for what, steps in beyond.items() if steps},
    )


def _differences(what: str, reference: Record, other: Record, noise: Record, *, float64: bool) -> list[Difference]:
    differences, by_rounding, wandered = [], 0.0, 0.0
    for before, after, nudged in zip(reference, other, noise, strict=True):
        # A difference that rounding made once may stay, so it is allowed in all later steps.
        by_rounding = max(by_rounding, _amount(what, before, nudged)[0])
        # Adam moves a weight by the learning rate, however small its gradient is: if the gradient is only rounding, in
        # any direction.
        if what == "weights" and not float64:
            wandered += before.get("train/lr", 0.0)
        allowed = max(FLOORS[float64], FACTOR * by_rounding, wandered)
        differences.append(Difference(before["step"], *_amount(what, before, after), allowed))
    return differences


def _amount(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, str]:
    """Return the difference of a step's loss, gradient or weights, and the name of the tensor that differs most."""
    if what == "weights":
        amounts = {name: math.inf if math.isnan(value) else value for name, value in after["differences"].items()}
        return max(((amount, name) for name, amount in amounts.items()), default=(0.0, ""))
    one, two = before.get(QUANTITIES[what]), after.get(QUANTITIES[what])
    if one == two:
        return 0.0, what
    if one is None or two is None:  # metrics.jsonl has null for numbers that are not finite
        return math.inf, what
    return abs(one - two) / max(abs(one), abs(two)), what
