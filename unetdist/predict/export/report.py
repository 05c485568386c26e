"""What a comparison says to the user."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from unetdist.predict.export.agreement import MIOU_LOSS, OTHER_CLASS, TOLERANCE, Agreement
from unetdist.predict.export.trace import Precision


def render(agreements: Sequence[Agreement], *, precision: Precision, of: str) -> Table:
    """One line for each size of the pictures `of` some place."""
    table = Table(
        "pictures",
        title=f"exported ({precision}) beside the trained model, {agreements[0].num_images} pictures: {escape(of)}",
        caption="apart: two logits at most; other: pixels of another class; ties: those of them " + _meaning(precision),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for heading in ("pixels", "apart", "other", "ties", "mIoU", "exported"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in agreements:
        mious = row.mious()
        table.add_row(
            row.label,
            f"{row.num_pixels:,}",
            "" if row.largest is None else f"{row.largest:.1e}",
            f"{row.num_other:,}",
            f"{row.num_ties:,}" if precision == "fp32" else "",
            *(("", "") if mious is None else (f"{miou:.4f}" for miou in mious)),
            "[green]agrees[/green]" if row.holds(precision) else "[red]DIFFERS[/red]",
        )
    return table


def _meaning(precision: Precision) -> str:
    if precision == "fp32":
        return (
            f"whose two classes the trained model holds for equal within {2 * TOLERANCE:g} of the largest logit; "
            f"agrees: no logits further apart than {TOLERANCE:g} of it, no other pixels but ties"
        )
    return (
        f"(not counted); agrees: mIoU lower by {MIOU_LOSS[precision]:g} at most, or, without masks, "
        f"{100 * OTHER_CLASS[precision]:g} % of pixels"
    )
