"""The result for the terminal: a table of the runs, where they differ, and the verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from unetdist.apps.equivalence.compare import FACTOR, FLOORS, RunComparison
from unetdist.apps.equivalence.worlds import ComparedRun


@dataclass(frozen=True)
class ComparisonRow:
    """One run, compared with the reference."""

    run: ComparedRun
    comparison: RunComparison
    broken_by: Sequence[str]
    """The settings because of which the weights may differ; empty if they must be equal."""

    @property
    def is_as_promised(self) -> bool:
        """Whether the run is equal, or may differ and has the same samples."""
        comparison = self.comparison
        if comparison.other_samples is not None or comparison.ranks_part is not None:
            return False
        return comparison.is_equal or bool(self.broken_by)


@dataclass(frozen=True, kw_only=True)
class EquivalenceReport:
    """All runs, with the repeated and the nudged one first."""

    title: str
    rows: Sequence[ComparisonRow]
    float64: bool

    @property
    def is_as_promised(self) -> bool:
        """Whether every run keeps what the settings promise."""
        return all(row.is_as_promised for row in self.rows)

    @property
    def broken_by(self) -> list[str]:
        """All settings because of which weights may differ, each once."""
        return list(dict.fromkeys(reason for row in self.rows for reason in row.broken_by))


def render(report: EquivalenceReport) -> RenderableType:
    """Return the report for the terminal."""
    allowed = (
        f"equal: differs by at most {FACTOR:.0f} times as much as the nudged run, whose first weights are changed in "
        f"their last digit, or by {FLOORS[report.float64]:.0e}; loss and gradient norm relative, weights absolute"
        + ("" if report.float64 else " and by the sum of the learning rates")
    )
    table = Table("processes", title=report.title, caption=allowed, title_justify="left", caption_justify="left")
    for heading in ("samples", "loss", "gradient", "weights"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in report.rows:
        largest = row.comparison.largest
        amounts = [number(largest[what].amount) for what in ("loss", "gradient", "weights")]
        samples = "same" if row.comparison.other_samples is None else "[red]OTHER[/red]"
        table.add_row(escape(row.run.label), samples, *amounts, word(row))
    parts = [table, *(describe(row) for row in report.rows if not row.run.is_nudged), "", *verdict(report)]
    return Group(*parts)


def word(row: ComparisonRow) -> str:
    """The verdict on one run, in colour."""
    if row.run.is_nudged:
        return "[dim]rounding only[/dim]"
    if row.comparison.is_equal_bit_by_bit:
        return "[green]equal, bit by bit[/green]"
    if row.comparison.is_equal:
        return "[green]equal[/green]"
    return "[yellow]may differ[/yellow]" if row.is_as_promised else "[red]DIFFERS[/red]"


def describe(row: ComparisonRow) -> RenderableType:
    """The step at which a run first differs from the reference, or where the difference is largest."""
    lines = Table.grid(padding=(0, 1), pad_edge=True)
    comparison, furthest = row.comparison, row.comparison.largest["weights"]
    if comparison.other_samples is not None:
        lines.add_row(f"step {comparison.other_samples}", "other samples or pixels")
    if comparison.ranks_part is not None:
        lines.add_row(f"step {comparison.ranks_part}", "its processes have different weights")
    for what, first in comparison.first.items():
        amounts = f"{what}: difference {number(first.amount)}, allowed {number(first.allowed)}"
        lines.add_row(f"step {first.step}", amounts + (f": {first.where}" if what == "weights" else ""))
    if comparison.first and "weights" not in comparison.first:
        there = comparison.weights[min(first.step for first in comparison.first.values())]
        lines.add_row(f"step {there.step}", f"largest difference of weights {number(there.amount)}: {there.where}")
    if lines.row_count:
        return Group(f"\n{row.run.title}: first difference beyond rounding:", lines)
    if furthest.amount:
        lines.add_row(f"step {furthest.step}", f"{number(furthest.amount)}: {furthest.where}")
        return Group(f"\n{row.run.title}: largest difference of weights:", lines)
    return Group()


def verdict(report: EquivalenceReport) -> Iterator[RenderableType]:
    """The verdict on all runs, with reasons."""
    reasons = Table.grid(padding=(0, 1), pad_edge=True)
    for reason in report.broken_by:
        reasons.add_row("-", escape(reason))
    if not report.is_as_promised:
        yield (
            "[bold red]The promise is broken:[/bold red] samples or weights depend on the number of processes"
            + (", and not only because of:" if report.broken_by else ".")
        )
    elif report.broken_by:
        yield "[bold yellow]Equal weights are not promised[/bold yellow] with these settings; samples are the same:"
    else:
        yield "[bold green]As promised:[/bold green] the same samples and the same weights on any number of processes."
        if not report.float64:
            yield "[dim]float32 tests loss and gradient, and weights only roughly; --float64 is much sharper.[/dim]"
    yield reasons


def number(amount: float) -> str:
    """Format as 0, or with two digits and an exponent."""
    return f"{amount:.1e}" if amount else "0"
