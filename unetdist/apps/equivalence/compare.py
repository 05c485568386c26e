"""Compares the records of two runs: how far they differ, from which step on, and whether rounding explains it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

# One step: the line of `record.write_step`, joined with that of metrics.jsonl.
Line = Mapping[str, Any]

# The lines of all steps; the first describes the weights before training.
Record = Sequence[Line]

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
    weights: Sequence[Difference]
    """The difference of weights after each step."""

    @property
    def is_equal(self) -> bool:
        """Whether rounding explains all differences."""
        return self.other_samples is None and self.ranks_part is None and not self.first

    @property
    def is_equal_bit_by_bit(self) -> bool:
        """Whether there is no difference at all."""
        return self.is_equal and not any(difference.amount for difference in self.largest.values())


def compare(reference: Record, other: Record, noise: Record, *, float64: bool) -> RunComparison:
    """Compare a run with the reference, step by step.

    Args:
        reference: record of the reference run.
        other: record of the run.
        noise: record of a run that differs from the reference only by rounding; it sets what is allowed.
        float64: whether the runs used double precision.
    """
    steps = list(zip(reference, other, noise, strict=True))
    found = {what: _differences(what, steps, float64=float64) for what in QUANTITIES}
    beyond = {
        what: [difference for difference in differences if difference.amount > difference.allowed]
        for what, differences in found.items()
    }
    return RunComparison(
        other_samples=_first(before["step"] for before, after, _ in steps if before["samples"] != after["samples"]),
        ranks_part=_first(line["step"] for line in other if not line["ranks_agree"]),
        largest={what: max(differences, key=lambda one: one.amount) for what, differences in found.items()},
        weights=found["weights"],
        first={what: differences[0] for what, differences in beyond.items() if differences},
    )


def _differences(what: str, steps: Sequence[tuple[Line, Line, Line]], *, float64: bool) -> list[Difference]:
    """Compare (reference, run, noise) step by step."""
    # A difference that rounding made once may stay, so it is allowed in all later steps.
    by_rounding = accumulate((_amount(what, before, noisy)[0] for before, _, noisy in steps), max)
    # Adam moves a weight by the learning rate, however small its gradient is: if the gradient is only rounding, in any
    # direction.
    wandered = accumulate(before.get("train/lr", 0.0) for before, _, _ in steps)
    return [
        Difference(
            before["step"],
            *_amount(what, before, after),
            max(FLOORS[float64], FACTOR * noise, 0.0 if float64 or what != "weights" else far),
        )
        for (before, after, _), noise, far in zip(steps, by_rounding, wandered, strict=True)
    ]


def _amount(what: str, before: Line, after: Line) -> tuple[float, str]:
    """The difference of a step's loss, gradient or weights, and the name of the tensor that differs most."""
    if what == "weights":
        amounts = {name: math.inf if math.isnan(value) else value for name, value in after["differences"].items()}
        name = max(amounts, key=amounts.__getitem__, default="")
        return amounts.get(name, 0.0), name
    one, other = (line.get(QUANTITIES[what]) for line in (before, after))
    if one == other:
        return 0.0, what
    if one is None or other is None:  # metrics.jsonl has null for numbers that are not finite
        return math.inf, what
    return abs(one - other) / max(abs(one), abs(other)), what


def _first(steps: Iterable[int]) -> int | None:
    return next(iter(steps), None)
