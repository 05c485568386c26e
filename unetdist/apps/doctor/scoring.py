"""A part of a validation, by the way that the run takes: whether it works, how long all of it takes, what memory."""

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, duration, ok, warning
from unetdist.apps.doctor.memory import Peak
from unetdist.apps.doctor.training import judge_memory, memory_of
from unetdist.cli.logs import console
from unetdist.data.workers import part_of
from unetdist.evaluation.evaluate import LeftEarlyError
from unetdist.evaluation.validation import Validator, shares_windows

GROUP = "training"
LONG = 1.0
"""Time of all validations beside that of all steps, from which on they are worth a warning."""


class Laps:
    """Asked before each batch whether to leave; notes when."""

    def __init__(self, budget_s: float, device: torch.device) -> None:
        self.times: list[float] = []
        self._budget_s, self._device = budget_s, device

    def __call__(self) -> bool:
        """Whether the time is over, after one batch at the least."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter())
        return len(self.times) > 1 and self.times[-1] - self.times[0] > self._budget_s

    def seconds_of(self, num_batches: int) -> float:
        """What so many batches take; the first, which warms up, counts if it is the only one."""
        laps = [after - before for before, after in pairwise(self.times)]
        laps = laps[1:] or laps
        return num_batches * sum(laps) / max(1, len(laps))


def validate(case: Case) -> dict[str, Any]:
    """Collective. Score as long as there is time; seconds that all of it takes this rank."""
    assert case.trainer is not None
    validator = case.trainer.validator
    assert validator is not None
    laps = Laps(case.budget_s, case.world.device)
    before, console.quiet = console.quiet, True
    began = time.perf_counter()
    try:
        with Peak(case.world.device) as peak:
            _score(validator, case.trainer.evaluated_model, laps)
    finally:
        console.quiet = before
    ended = time.perf_counter()
    num_samples, world = validator.expected.num_samples, case.world
    together = shares_windows(validator.cfg.inference, num_samples, world)
    mine = (
        num_samples if together else len(part_of(num_samples, rank=world.rank, world_size=world.world_size))
    )
    num_batches = -(-mine // validator.cfg.batch_size)
    is_whole = len(laps.times) >= num_batches and ended - began < case.budget_s
    starting = laps.times[0] - began if laps.times else 0.0
    return {
        "seconds": ended - began if is_whole else starting + laps.seconds_of(num_batches),
        "batches": len(laps.times),
        "samples": num_samples,
        "memory": memory_of(case, peak),
    }


def _score(validator: Validator, model: nn.Module, laps: Laps) -> None:
    """Collective. To the end, or as far as there is time."""
    with suppress(LeftEarlyError):
        validator.score(model, is_over=laps)


def judge_validation(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """How long, and with what memory."""
    assert case.trainer is not None
    measured, schedule = case.measured, case.trainer.schedule
    measured.validation_s = max(rank["seconds"] for rank in ranks)
    samples = ranks[0]["samples"]
    fact = f"{duration(measured.validation_s)} for {samples:,} images, {samples / measured.validation_s:.1f} images/s"
    if measured.step_s and measured.validation_s > LONG * schedule.eval_every * measured.step_s:
        fact += f"; longer than the {schedule.eval_every:,} steps between two"
        yield warning("validation", fact, "a larger trainer.eval_every, or validation.batch_size")
    else:
        yield ok("validation", fact)
    yield from judge_memory("validation memory", [rank["memory"] for rank in ranks], "validation.batch_size")


def _if_any(case: Case) -> str | None:
    has_validator = case.trainer is not None and case.trainer.validator is not None
    return GO if has_validator and case.measured.parameters is not None else ""


CHECKS = (
    Check(
        group=GROUP,
        what="validation",
        measure=validate,
        judge=judge_validation,
        why_not=_if_any,
        is_collective=True,
    ),
)
