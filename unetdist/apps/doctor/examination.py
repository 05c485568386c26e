"""Makes checks one after the other on all processes; what goes wrong in one is a finding, and the next is made."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.findings import Finding, by_rank, problem, warning
from unetdist.cli.logs import BACKENDS, logger
from unetdist.errors import UnetdistError

GO = None
"""What a check's `why_not` says where it is to be made."""


def always(_: Case) -> str | None:
    """For checks that can always be made."""
    return GO


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at."""

    group: str
    """Heading of its findings."""
    what: str
    """Its name, for where it fails itself."""
    measure: Callable[[Case], Any]
    """On every rank, at the same time: what it finds, as JSON types. It may raise."""
    judge: Callable[[Case, list[Any]], Iterable[Finding]]
    """On rank 0, from what was measured, by rank; not called where any rank failed."""
    why_not: Callable[[Case], str | None] = always
    """On rank 0: None: make it. A text: why it is left out. An empty one: it is left out silently."""
    is_collective: bool = False
    """Ranks wait for each other in it: where one fails, the others may not meet any more."""


@dataclass
class Examination:
    """All checks of a case, in order."""

    case: Case
    tell: Callable[[Finding], object] = lambda _: None
    """Called on rank 0 with each finding as it is made."""
    at: Callable[[str], object] = lambda _: None
    """Called on rank 0 with the name of the check that begins."""
    findings: list[Finding] = field(default_factory=list)
    """On rank 0."""

    def make(self, checks: Iterable[Check]) -> bool:
        """Make all checks, on every rank in the same order; whether there is no problem, on every rank.

        Raises:
            LaunchError: another process does not answer any more.
        """
        lost = ""
        for check in checks:
            if self.case.world.is_main:
                self.at(check.what)
            lost = self._make(check, lost)
        is_well = not any(finding.level == "problem" for finding in self.findings)
        told: bool = self.case.board.tell(is_well)
        self.case.board.gather(None)  # rank 0 may hold what the others read it from
        return told

    def note(self, finding: Finding, group: str) -> None:
        """Add a finding; on rank 0."""
        finding = replace(finding, group=group)
        self.findings.append(finding)
        self.case.levels[group, finding.level] += 1
        self.tell(finding)

    def _make(self, check: Check, lost: str) -> str:
        """One check; why no further collective one can be made, if so."""
        case, board = self.case, self.case.board
        why_not = check.why_not(case) if case.world.is_main else GO
        if why_not is GO and lost and check.is_collective:
            why_not = lost
        why_not = board.tell(why_not)
        if why_not is not GO:
            if why_not and case.world.is_main:
                self.note(warning(check.what, f"not tried: {why_not}"), check.group)
            return lost
        with ExitStack() as case.undo:
            answers = board.gather(_answer(check, case))
            if not case.world.is_main:
                board.tell(None)
                return lost
            try:
                for finding in self._judged(check, answers):
                    self.note(finding, check.group)
            finally:
                board.tell(None)
        failed = any(answer["error"] for answer in answers)
        is_lost = failed and check.is_collective and case.world.world_size > 1
        return f"the processes parted in {check.what}" if is_lost else lost

    def _judged(self, check: Check, answers: list[dict[str, Any]]) -> Iterator[Finding]:
        """The findings from all ranks' answers; a failure to judge is one too."""
        for text in dict.fromkeys(text for answer in answers for text in answer["said"]):
            yield warning(
                check.what, by_rank([text if text in answer["said"] else None for answer in answers])
            )
        if any(answer["error"] for answer in answers):
            # Who only waited for another has nothing to say of the cause.
            causes = [answer["error"] if not answer["lost"] else None for answer in answers]
            texts = causes if any(causes) else [answer["error"] for answer in answers]
            yield problem(check.what, by_rank([text or None for text in texts]))
            return
        try:
            yield from check.judge(self.case, [answer["value"] for answer in answers])
        except Exception as error:
            yield problem(check.what, describe(error))


def describe(error: BaseException) -> str:
    """An error on one line: what a user is meant to read as it is, others with the place in the code."""
    text = " ".join(str(error).split())
    if isinstance(error, UnetdistError):
        return text
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"memory ran out ({text}): use a smaller trainer.micro_batch_size or augment.crop_size"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if is_loss_of_others(error):
        return f"another process did not come along, or is gone ({text[:200]})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"the check itself failed: {type(error).__name__}: {text}{place}"


def is_loss_of_others(error: BaseException) -> bool:
    """Whether a collective failed because of another process."""
    return isinstance(error, RuntimeError) and any(backend in str(error) for backend in BACKENDS)


def _answer(check: Check, case: Case) -> dict[str, Any]:
    answer: dict[str, Any] = {"value": None, "error": "", "lost": False}
    with overheard() as said:
        try:
            answer["value"] = check.measure(case)
        except Exception as error:
            answer |= {"error": describe(error) or type(error).__name__, "lost": is_loss_of_others(error)}
    return {**answer, "said": said}


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Keep the package's log lines from the screen; yields a list that its warnings are added to."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)
