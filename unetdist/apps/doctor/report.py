"""An examination for people, line by line as it is made, and for programs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from unetdist.apps.doctor.case import Measured
from unetdist.apps.doctor.findings import Finding
from unetdist.cli.logs import PlainConsole
from unetdist.errors import one_line

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
LEVEL_WIDTH, WHAT_WIDTH = 7, 17


class Screen:
    """Headings and lines: coloured and wrapped in their column on a terminal, else one line each."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole(soft_wrap=True)
        self._group = ""
        self._status: Status | None = None

    def working(self) -> AbstractContextManager[object]:
        """While this lasts, a terminal shows which check is being made."""
        if not self.console.is_terminal:
            return nullcontext()
        self._status = self.console.status("")
        return self._status

    def at(self, what: str) -> None:
        """A check begins."""
        if self._status is not None:
            self._status.update(f"{what} ...")

    def show(self, finding: Finding) -> None:
        """A line, below its heading where that is new."""
        if finding.group != self._group:
            self._group = finding.group
            self.console.print(Text(f"\n{finding.group}", style="bold"))
        level = Text(finding.level, style=STYLES[finding.level])
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        fact = Text.assemble(one_line(finding.fact), (one_line(remedy), "italic"))
        if not self.console.is_terminal:
            self.console.print(
                f"  {finding.level:{LEVEL_WIDTH}}  {finding.what:{WHAT_WIDTH}}  ", fact, sep=""
            )
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        for width in (0, LEVEL_WIDTH, WHAT_WIDTH):
            table.add_column(width=width)
        table.add_column(ratio=1, overflow="fold")
        table.add_row("", level, finding.what, fact)
        self.console.print(table, soft_wrap=False)

    def end(self, findings: Sequence[Finding]) -> None:
        """How many of what."""
        self.console.print(Text(f"\n{verdict(findings)}", style="bold"))


def verdict(findings: Sequence[Finding]) -> str:
    """`2 problems, 1 warning, 31 ok: ...`."""
    counts = {level: sum(finding.level == level for finding in findings) for level in STYLES}
    words = [
        f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}"
        for level in ("problem", "warning")
        if counts[level]
    ]
    text = ", ".join([*words, f"{counts['ok']} ok"])
    return f"{text}: mend the problems first" if counts["problem"] else f"{text}: the run can begin"


def to_mapping(
    findings: Sequence[Finding], measured: Measured, *, run: str | None, world_size: int
) -> dict[str, Any]:
    """All of it as JSON types."""
    return {
        "run": run,
        "processes": world_size,
        "verdict": verdict(findings),
        "problems": sum(finding.level == "problem" for finding in findings),
        "warnings": sum(finding.level == "warning" for finding in findings),
        "findings": [finding.to_mapping() for finding in findings],
        "measured": measured.to_mapping(),
    }
