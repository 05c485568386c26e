"""The result for the terminal: a table of the runs, where they differ, and the verdict."""

from collections.abc import Sequence
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
        has_same_samples = comparison.other_samples is None and comparison.ranks_part is None
        return comparison.is_equal or (has_same_samples and bool(self.broken_by))


def render(title: str, rows: Sequence[ComparisonRow], *, float64: bool) -> RenderableType:
    """Return the table of all runs, with the repeated and the nudged one first, and what follows from it."""
    allowed = (
        f"equal: differs by at most {FACTOR:.0f} times as much as the nudged run, whose first weights are changed in "
        f"their last digit, or by {FLOORS[float64]:.0e}; loss and gradient norm relative, weights absolute"
        + ("" if float64 else " and by the sum of the learning rates")
    )
    table = Table("processes", title=title, caption=allowed, title_justify="left", caption_justify="left")
    for heading in ("samples", "loss", "gradient", "weights"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in rows:
        amounts = [_number(row.comparison.largest[what].amount) for what in ("loss", "gradient", "weights")]
        samples = "same" if row.comparison.other_samples is None else "[red]OTHER[/red]"
        table.add_row(row.run.label, samples, *amounts, _word(row))
    return Group(table, *(_details(row) for row in rows if row.run.kind != "nudged"), "", *_verdict(rows, float64))


def _word(row: ComparisonRow) -> str:
    if row.run.kind == "nudged":
        return "[dim]rounding only[/dim]"
    if row.comparison.is_equal:
        is_exact = not any(difference.amount for difference in row.comparison.largest.values())
        return f"[green]equal{', bit by bit' if is_exact else ''}[/green]"
    return "[yellow]may differ[/yellow]" if row.is_as_promised else "[red]DIFFERS[/red]"


def _details(row: ComparisonRow) -> RenderableType:
    """Return the first differences beyond rounding, and the largest of the weights, each with its step."""
    lines = Table.grid(padding=(0, 1), pad_edge=True)
    comparison, largest = row.comparison, row.comparison.largest["weights"]
    if comparison.other_samples is not None:
        lines.add_row(f"step {comparison.other_samples}", "first with other samples or pixels")
    if comparison.ranks_part is not None:
        lines.add_row(f"step {comparison.ranks_part}", "its processes have different weights")
    for what, first in comparison.first.items():
        where = f": {first.where}" if what == "weights" else ""
        lines.add_row(
            f"step {first.step}",
            f"first difference of {what} beyond rounding: {_number(first.amount)}, "
            f"allowed {_number(first.allowed)}{where}",
        )
    if largest.amount:
        amount = f"largest difference of weights: {_number(largest.amount)}: {largest.where}"
        lines.add_row(f"step {largest.step}", amount)
    return Group(f"\n{row.run.title}:", lines) if lines.row_count else Group()


def _verdict(rows: Sequence[ComparisonRow], float64: bool) -> list[RenderableType]:
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.broken_by))
    if not all(row.is_as_promised for row in rows):
        text = "[bold red]The promise is broken:[/bold red] samples or weights depend on the number of processes" + (
            ", and not only because of:" if reasons else "."
        )
    elif reasons:
        text = "[bold yellow]Equal weights are not promised[/bold yellow] with these settings; samples are the same:"
    else:
        text = "[bold green]As promised:[/bold green] the same samples and the same weights on any number of processes."
        if not float64:
            text += "\n[dim]float32 tests loss and gradient, and weights only roughly; --float64 is much sharper.[/dim]"
    grid = Table.grid(padding=(0, 1), pad_edge=True)
    for reason in reasons:
        grid.add_row("-", escape(reason))
    return [text, grid]


def _number(amount: float) -> str:
    """Format as 0, or with two digits and an exponent."""
    return f"{amount:.1e}" if amount else "0"
