"""The findings that all checks share, and a way to ask every rank the same question."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.text import Text

from unetdist.cli.logs import BACKENDS, logger
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import World
from unetdist.distributed.rendezvous import Store
from unetdist.errors import LaunchError, UnetdistError, one_line
from unetdist.storage.folders import Folder
from unetdist.train.config import Config

Level = Literal["ok", "warning", "problem"]

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}

# Problems of one kind that are listed; the others are counted.
MAX_LISTED = 3

# Seconds to wait for another rank, whose machine may read its data more slowly.
WAIT_S = 1800.0
POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    group: str = ""
    """Heading that it stands under."""
    level: Level = "ok"
    """`warning`: the run would work, but worse or slower than it could. `problem`: it would fail or be useless."""
    what: str
    """Subject, in a word or two."""
    fact: str
    remedy: str = ""

    def to_text(self) -> Text:
        """Level, subject, fact and remedy on one line."""
        remedy = f" ({one_line(self.remedy)})" if self.remedy else ""
        line = f"{self.what:17}  {one_line(self.fact)}"
        return Text.assemble((f"  {self.level:7}  ", STYLES[self.level]), line, (remedy, "italic"))


@dataclass
class Examination:
    """The checks of one process. Findings are equal on all ranks: each judges the answers of all."""

    config: Config
    """Settings of the run."""
    world: World
    store: Store | None = None
    """Shared by the ranks; None with one process."""
    budget_s: float = 8.0
    """Rough limit on the seconds of each measurement."""
    console: Console | None = None
    """Where findings are shown; None on other ranks than 0."""
    findings: list[Finding] = field(default_factory=list)
    data: dict[str, tuple[Folder, Manifest]] = field(default_factory=dict)
    """Data sets ("train", "val") that every rank could open."""
    measured: dict[str, float] = field(default_factory=dict)
    """Measurements and the predictions from them, as far as the checks came."""
    group: str = ""
    """Heading of the findings to come."""
    _round: int = 0

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.config.runs_dir) / self.config.name

    def note(self, level: Level, what: str, fact: str, remedy: str = "") -> None:
        """Add a finding and show it; if all is well, the remedy is left out."""
        remedy = "" if level == "ok" else remedy
        finding = Finding(group=self.group, level=level, what=what, fact=fact, remedy=remedy)
        if not self.findings or self.findings[-1].group != self.group:
            self.show_heading(self.group)
        self.findings.append(finding)
        if self.console is not None:
            self.console.print(finding.to_text())

    def show_heading(self, text: str) -> None:
        """Print a line in bold after an empty one."""
        if self.console is not None:
            self.console.print(Text(f"\n{text}", style="bold"))

    def count(self, level: Level, group: str | None = None) -> int:
        """Number of findings of a level, of all groups or of one."""
        return sum(each.level == level and group in (None, each.group) for each in self.findings)

    def ask(self, what: str, measure: Callable[[], Any], *, is_collective: bool = False) -> list[Any] | None:
        """Collective. Call `measure` on every rank and return the values (JSON types) of all, by rank.

        Warnings that it logs become findings. If it raises on any rank, that is a problem and the result is None.
        """
        value, error = None, ""
        with overheard() as warnings:
            try:
                value = measure()
            except Exception as caught:
                error = describe(caught)
        if error and is_collective and not self.world.is_main:
            # The other ranks may wait for this one until the time limit ends them without another word from here.
            print(f"[rank {self.world.rank}] {what}: {error}", file=sys.stderr, flush=True)
        answers = self.gather({"value": value, "error": error or None, "warnings": warnings})
        for text in dict.fromkeys(text for each in answers for text in each["warnings"]):
            self.note("warning", what, by_rank([text if text in each["warnings"] else None for each in answers]))
        errors = [each["error"] for each in answers]
        if not any(errors):
            return [each["value"] for each in answers]
        self.note("problem", what, by_rank(errors))
        return None

    def ask_main(self, what: str, examine: Callable[[], tuple[Level, str, str]]) -> None:
        """Collective. Note what rank 0 finds: level, fact and remedy."""
        if answers := self.ask(what, lambda: examine() if self.world.is_main else None):
            level, fact, remedy = answers[0]
            self.note(level, what, fact, remedy)

    def gather(self, value: Any) -> list[Any]:
        """Collective. The values (JSON types) of all ranks, by rank, on every rank.

        Raises:
            LaunchError: a rank does not answer.
        """
        text = json.dumps(value)
        if self.store is None:
            return [json.loads(text)]
        # Not a collective of torch: after one that failed on some rank the next would hang or mix up the data.
        self._round += 1
        self.store.set(f"{self._round}/{self.world.rank}", text)
        return [json.loads(self._read(f"{self._round}/{rank}", rank)) for rank in range(self.world.world_size)]

    def leave(self) -> None:
        """Collective. End the exchange; rank 0, whose process may hold the store, leaves last."""
        if self.store is not None and not self.world.is_main:
            self.store.set(f"left/{self.world.rank}", "")
        for rank in range(1, self.world.world_size if self.world.is_main else 1):
            self._read(f"left/{rank}", rank)

    def _read(self, key: str, rank: int) -> bytes:
        assert self.store is not None
        deadline = time.monotonic() + WAIT_S
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"rank {rank} has not answered for {WAIT_S:.0f} s: it hangs or has ended; read its machine's log."
                )
            time.sleep(POLL_S)
        return self.store.get(key)

    def to_mapping(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {
            "run": self.config.name,
            "processes": self.world.world_size,
            "verdict": self.verdict(),
            "problems": self.count("problem"),
            "warnings": self.count("warning"),
            "findings": [asdict(finding) for finding in self.findings],
            "measured": self.measured,
        }

    def verdict(self) -> str:
        """`2 problem(s), 1 warning(s), 31 ok: ...`."""
        problems, warnings = self.count("problem"), self.count("warning")
        advice = "fix the problems first" if problems else "the run can start"
        return f"{problems} problem(s), {warnings} warning(s), {self.count('ok')} ok: {advice}"


def by_rank(texts: Sequence[str | None]) -> str:
    """The texts of the ranks as one: a single time if all are equal, else `rank 0, 2: ...; rank 1: ...`.

    Ranks without a text (None) are left out.
    """
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text is not None:
            ranks.setdefault(text, []).append(rank)
    if len(ranks) == 1 and None not in texts:
        return next(iter(ranks))
    return "; ".join(f"rank {', '.join(map(str, found))}: {text}" for text, found in ranks.items())


def listed(texts: Sequence[str]) -> str | None:
    """The first problems of a list and the number of the others; None for an empty list."""
    more = [f"and {len(texts) - MAX_LISTED} more"] if len(texts) > MAX_LISTED else []
    return "; ".join([*texts[:MAX_LISTED], *more]) or None


def duration(seconds: float) -> str:
    """Seconds for people: `12 ms`, `3.4 s`, `12.0 min`, `5.2 h`, `3.1 days`."""
    for unit, factor, least_s in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90), ("s", 1, 1)):
        if seconds >= least_s:
            return f"{seconds / factor:.1f} {unit}"
    return f"{1e3 * seconds:.3g} ms"


def describe(error: BaseException) -> str:
    """An error on one line; if it was not written for users, with its place in the code."""
    text = " ".join(str(error).split())
    if isinstance(error, (UnetdistError, OSError)):
        return text
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"out of memory ({text}): use a smaller trainer.micro_batch_size or augment.crop_size"
    if isinstance(error, RuntimeError) and any(backend in text for backend in BACKENDS):
        return f"the connection to another process is lost ({text[:200]})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"the check itself failed: {type(error).__name__}: {text}{place}"


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Keep the package's log off the screen; yields a list that receives its warnings."""
    warnings: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield warnings
    finally:
        logger.removeFilter(keep)
