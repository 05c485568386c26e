"""Interleaved rounds: everybody is measured in every round, so that a slow minute of the machine is slow for all."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.benchmarks.contenders import VoidError
from unetdist.cli.logs import progress

Round = dict[str, dict[str, float]]
"""By contender: samples, seconds and CPU seconds."""


class Timed(Protocol):
    """A contender's process, as far as rounds need it."""

    def ask(self, do: str, *, seconds: float) -> dict[str, float]:
        """`time` for so many seconds."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """All rounds of those who finished them, and why the others did not."""

    rounds: list[Round]
    void: dict[str, str] = field(default_factory=dict)

    def rates(self, name: str) -> list[float]:
        """Samples per second, round by round."""
        return [round_[name]["samples"] / round_[name]["seconds"] for round_ in self.rounds]

    def ratio(self, ours: str, theirs: str) -> Spread:
        """How many times as fast: of the ratios of each round, not the ratio of medians."""
        pairs = zip(self.rates(ours), self.rates(theirs), strict=True)
        return spread([our / their for our, their in pairs])


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def turn(names: Sequence[str], number: int) -> list[str]:
    """Order of a round: each round begins with the next one, every second round goes backwards.

    So nobody always runs after the same neighbour, whose traces in the caches it would find.
    """
    at = number % len(names)
    rotated = [*names[at:], *names[:at]]
    return rotated[::-1] if number % 2 else rotated


def run_rounds(
    processes: Mapping[str, Timed],
    *,
    num_rounds: int,
    seconds: float,
    label: str,
    warm_up: int = 1,
    after_round: Callable[[Measured], object] = lambda _: None,
) -> Measured:
    """Time `num_rounds` rounds of `seconds` each, after `warm_up` that are thrown away.

    `after_round` is called with what was measured so far, so that a run that is cut short has told it.
    """
    rounds: list[Round] = []
    void: dict[str, str] = {}
    with progress(label, warm_up + num_rounds) as bar:
        for number in range(-warm_up, num_rounds):
            measured: Round = {}
            for name in turn(list(processes), number):
                if name in void:
                    continue
                try:
                    measured[name] = processes[name].ask("time", seconds=seconds)
                except VoidError as error:
                    void[name] = str(error)
            if number >= 0:
                rounds.append(measured)
                after_round(_finished(rounds, void))
            bar.advance()
    return _finished(rounds, void)


def _finished(rounds: Sequence[Round], void: Mapping[str, str]) -> Measured:
    """The rounds of those who are not void."""
    kept = [{name: times for name, times in one.items() if name not in void} for one in rounds]
    return Measured(kept, dict(void))
