"""Records of runs beside each other: how far they differ, from where on, and whether rounding explains it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Line = Mapping[str, Any]
"""Of a step: what `record.write_step` writes and what metrics.jsonl has."""

Record = Sequence[Line]
"""By step; the first line is of the weights before training."""

FACTOR = 10.0
"""How many times as far as by rounding alone a run may differ: both are draws of chance."""

FLOORS = {False: 1e-3, True: 1e-12}
"""What is always allowed, by whether runs are in float64; of loss and gradient, relative to them."""

QUANTITIES = {"loss": "train/loss", "gradient": "train/grad_norm", "weights": ""}
"""Name -> what metrics.jsonl calls it."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as in the reference."""

    step: int
    """Steps done; 0: before training."""

    amount: float
    """Absolute, of the weight that is furthest apart; of loss and gradient norm, relative."""

    where: str
    """Name of the tensor; of loss and gradient, the same as what differs."""

    allowed: float


@dataclass(frozen=True)
class Comparison:
    """A run beside the reference."""

    other_samples: int | None
    """The first step that saw other samples, or other pixels of them."""

    ranks_part: int | None
    """The first step after which processes of the run had different weights."""

    largest: Mapping[str, Difference]
    """Of loss, gradient and weights, over all steps."""

    first: Mapping[str, Difference]
    """Likewise, where it first is more than allowed; only what ever is."""

    weights: Sequence[Difference]
    """After each step, allowed or not."""

    @property
    def is_equal(self) -> bool:
        """Whether all differences are what rounding does."""
        return self.other_samples is None and self.ranks_part is None and not self.first

    @property
    def is_equal_bit_by_bit(self) -> bool:
        """Whether there are none."""
        return self.is_equal and not any(difference.amount for difference in self.largest.values())


def compare(reference: Record, other: Record, noise: Record, *, float64: bool) -> Comparison:
    """Compare a run with the reference, step by step.

    Args:
        reference: what it is compared with.
        other: the run.
        noise: a run that differs from the reference by rounding alone; sets what is allowed.
        float64: whether the runs were in double precision.
    """
    steps = list(zip(reference, other, noise, strict=True))
    found = {what: _differences(what, steps, float64=float64) for what in QUANTITIES}
    beyond = {
        what: [difference for difference in differences if difference.amount > difference.allowed]
        for what, differences in found.items()
    }
    return Comparison(
        other_samples=_first(
            before["step"] for before, after, _ in steps if before["samples"] != after["samples"]
        ),
        ranks_part=_first(line["step"] for line in other if not line["ranks_agree"]),
        largest={what: max(differences, key=lambda one: one.amount) for what, differences in found.items()},
        weights=found["weights"],
        first={what: differences[0] for what, differences in beyond.items() if differences},
    )


def _differences(what: str, steps: Sequence[tuple[Line, Line, Line]], *, float64: bool) -> list[Difference]:
    """Of reference, run and noise, step by step; what rounding did once is allowed from there on."""
    by_rounding = accumulate((_amount(what, before, noisy)[0] for before, _, noisy in steps), max)
    # Adam moves a weight by the learning rate however small its gradient is: if that is all rounding, anywhere.
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
    """How far a step's loss, gradient or weights are apart, and which tensor is the furthest."""
    if what == "weights":
        amounts = {
            name: math.inf if math.isnan(value) else value for name, value in after["differences"].items()
        }
        name = max(amounts, key=amounts.__getitem__, default="")
        return amounts.get(name, 0.0), name
    one, other = (line.get(QUANTITIES[what]) for line in (before, after))
    if one == other:
        return 0.0, what
    if one is None or other is None:  # not finite, in metrics.jsonl
        return math.inf, what
    return abs(one - other) / max(abs(one), abs(other)), what


def _first(steps: Iterable[int]) -> int | None:
    return next(iter(steps), None)
