"""What a comparison says to the user: a table of the runs, where they part, and the verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from unetdist.apps.equivalence.compare import FACTOR, FLOORS, Comparison
from unetdist.apps.equivalence.worlds import Run


@dataclass(frozen=True)
class Row:
    """One run beside the reference."""

    run: Run
    comparison: Comparison
    broken_by: Sequence[str]
    """Why the settings do not promise equal weights of the two; empty: they do."""

    @property
    def is_as_promised(self) -> bool:
        """Whether it is equal, or may differ and does in its numbers alone: samples are always the same."""
        comparison = self.comparison
        if comparison.other_samples is not None or comparison.ranks_part is not None:
            return False
        return comparison.is_equal or bool(self.broken_by)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All runs, the repeat and the nudged one first."""

    title: str
    rows: Sequence[Row]
    float64: bool

    @property
    def is_as_promised(self) -> bool:
        """Whether no run breaks what the settings promise."""
        return all(row.is_as_promised for row in self.rows)

    @property
    def broken_by(self) -> list[str]:
        """Why the settings do not promise equal weights of all worlds."""
        return list(dict.fromkeys(reason for row in self.rows for reason in row.broken_by))


def render(report: Report) -> RenderableType:
    """For the terminal."""
    allowed = (
        f"equal: no further apart than {FACTOR:.0f} times what a change of the first weights in their last digit "
        f"does by the same step ('nudged'), or {FLOORS[report.float64]:.0e}; loss and gradient norm relative, "
        "weights absolute"
        + ("" if report.float64 else ", to them the sum of the learning rates is allowed too")
    )
    table = Table(
        "processes", title=report.title, caption=allowed, title_justify="left", caption_justify="left"
    )
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


def word(row: Row) -> str:
    """The verdict on one run, coloured."""
    if row.run.is_nudged:
        return "[dim]rounding alone[/dim]"
    if row.comparison.is_equal_bit_by_bit:
        return "[green]equal, bit by bit[/green]"
    if row.comparison.is_equal:
        return "[green]equal[/green]"
    return "[yellow]differs, as it may[/yellow]" if row.is_as_promised else "[red]DIFFERS[/red]"


def describe(row: Row) -> RenderableType:
    """Where a run parts from the reference, or else is furthest from it."""
    lines = Table.grid(padding=(0, 1), pad_edge=True)
    comparison, furthest = row.comparison, row.comparison.largest["weights"]
    if comparison.other_samples is not None:
        lines.add_row(f"step {comparison.other_samples}", "other samples, or other pixels of them")
    if comparison.ranks_part is not None:
        lines.add_row(f"step {comparison.ranks_part}", "its processes have different weights")
    for what, first in comparison.first.items():
        amounts = f"{what} apart by {number(first.amount)}, {number(first.allowed)} allowed"
        lines.add_row(f"step {first.step}", amounts + (f": {first.where}" if what == "weights" else ""))
    if comparison.first and "weights" not in comparison.first:
        there = comparison.weights[min(first.step for first in comparison.first.values())]
        lines.add_row(
            f"step {there.step}", f"weights furthest apart by {number(there.amount)}: {there.where}"
        )
    if lines.row_count:
        return Group(f"\n{row.run.title}, where it first is beyond rounding:", lines)
    if furthest.amount:
        lines.add_row(f"step {furthest.step}", f"{number(furthest.amount)}: {furthest.where}")
        return Group(f"\n{row.run.title}, where weights are furthest apart:", lines)
    return Group()


def verdict(report: Report) -> Iterator[RenderableType]:
    """What all this says of the promise."""
    reasons = Table.grid(padding=(0, 1), pad_edge=True)
    for reason in report.broken_by:
        reasons.add_row("-", escape(reason))
    if not report.is_as_promised:
        yield (
            "[bold red]The promise is broken:[/bold red] the same samples and the same weights on any number of "
            "processes"
            + (", but for what these settings let differ:" if report.broken_by else " with these settings.")
        )
    elif report.broken_by:
        yield "[bold yellow]Equal weights are not promised[/bold yellow] with these settings; samples are the same:"
    else:
        yield "[bold green]As promised:[/bold green] the same samples and the same weights on any number of processes."
        if not report.float64:
            yield "[dim]In float32 loss and gradient decide, weights only roughly; --float64 looks far closer.[/dim]"
    yield reasons


def number(amount: float) -> str:
    """0, or two digits and an exponent."""
    return f"{amount:.1e}" if amount else "0"
