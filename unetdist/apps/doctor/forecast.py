"""What the run will take, by what was measured."""

import datetime
from collections.abc import Iterator

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, duration, ok, size, warning
from unetdist.apps.doctor.training import if_stepped

GROUP = "forecast"


def nothing(_: Case) -> None:
    """All was measured before."""


def judge_time(case: Case, _: list[None]) -> Iterator[Finding]:
    """Hours."""
    assert case.trainer is not None
    measured, schedule = case.measured, case.trainer.schedule
    assert measured.step_s is not None
    steps_s = schedule.max_steps * measured.step_s
    number = -(-schedule.max_steps // schedule.eval_every) if measured.validation_s is not None else 0
    scores_s = number * (measured.validation_s or 0.0)
    measured.run_s = (measured.first_s or 0.0) + steps_s + scores_s
    parts = [f"{schedule.max_steps:,} steps {duration(steps_s)}"]
    if number:
        parts.append(f"{number:,} validation{'s' if number > 1 else ''} {duration(scores_s)}")
    ready = datetime.datetime.now() + datetime.timedelta(seconds=measured.run_s)
    fact = f"{duration(measured.run_s)} ({', '.join(parts)}): begun now, done on {ready:%d %B at %H:%M}"
    if case.trainer.validator is not None and measured.validation_s is None:
        yield warning("time", f"{fact}, without its validations")
    else:
        yield ok("time", fact)


def judge_checkpoints(case: Case, _: list[None]) -> Iterator[Finding]:
    """Each written before the next is due."""
    assert case.trainer is not None
    measured, schedule = case.measured, case.trainer.schedule
    assert measured.step_s is not None
    assert measured.checkpoint_bytes is not None
    assert measured.write_bytes_s is not None
    write_s = measured.checkpoint_bytes / measured.write_bytes_s
    every_s = schedule.save_every * measured.step_s
    fact = (
        f"one of {size(measured.checkpoint_bytes)} every {duration(every_s)}, written beside the training in "
    )
    fact += duration(write_s)
    if write_s > every_s:
        yield warning(
            "checkpoints", fact, f"--checkpoint.save_every {2 * schedule.save_every}, or a faster disk"
        )
    else:
        yield ok("checkpoints", f"{fact}: the most that a crash costs is {duration(every_s + write_s)}")


def _if_written(case: Case) -> str | None:
    return GO if case.measured.write_bytes_s is not None and if_stepped(case) is GO else ""


CHECKS = (
    Check(group=GROUP, what="time", measure=nothing, judge=judge_time, why_not=if_stepped),
    Check(group=GROUP, what="checkpoints", measure=nothing, judge=judge_checkpoints, why_not=_if_written),
)
