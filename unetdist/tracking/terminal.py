"""What a run looks like in the terminal."""

import math

from rich.markup import escape
from rich.table import Table

from unetdist.evaluation.comparison import Comparison
from unetdist.tracking.meter import TrainStats
from unetdist.tracking.names import Validation


def scores_table(report: Validation, *, of: str, is_best: bool = False, loss_name: str = "loss") -> Table:
    """A validation as a table for the terminal, in percent; `of` says what was scored."""
    scores, confusion, boundary = report.scores, report.confusion, report.boundary
    low, high = report.interval
    best = ", [green]best so far[/green]" if is_best else ""
    bounds = f"95 % interval {_percent(low)} .. {_percent(high)}"
    outlines = "" if boundary is None else f", boundary mIoU {_percent(boundary.miou)} %"
    title = f"{escape(of)}: mIoU {_percent(scores.miou)} % ({bounds}){outlines}{best}"
    absent = "; absent, not in mIoU: " + escape(", ".join(scores.absent)) if scores.absent else ""
    caption = f"{loss_name} {report.loss:.4f}, pixel accuracy {_percent(scores.pixel_accuracy)} %"
    if report.reliability is not None:
        caption += f", expected calibration error {100 * report.reliability.error:.2f} %"
    caption += absent
    table = Table("class", title=title, caption=caption, title_justify="left", caption_justify="left")
    columns = {
        "IoU %": scores.iou,
        **({} if boundary is None else {"boundary IoU %": boundary.iou}),
        "Dice %": scores.dice,
        "precision %": scores.precision,
        "recall %": scores.recall,
        "pixels %": confusion.sum(1) / max(1, confusion.sum()),
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, *row in zip(scores.class_names, *columns.values(), strict=True):
        table.add_row(escape(name), *map(_percent, row), style="dim" if name in scores.absent else None)
    return table


def comparison_table(comparison: Comparison, names: tuple[str, str], *, of: str) -> Table:
    """Two models scored on the same images, in percent; `names` says which, A first."""
    title = f"{escape(of)}: {comparison.num_samples} images, p = {comparison.p_value:.4f}"
    caption = "p: two-sided randomization test over images; it knows nothing of other seeds of the training"
    table = Table("model", title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("mIoU %", "95 % interval"):
        table.add_column(heading, justify="right")
    rows = (
        (f"A: {names[0]}", _percent(comparison.miou_a), comparison.interval_a),
        (f"B: {names[1]}", _percent(comparison.miou_b), comparison.interval_b),
        ("B - A", f"{100 * comparison.difference:+.2f}", comparison.interval_difference),
    )
    for name, miou, (low, high) in rows:
        table.add_row(escape(name), miou, f"{100 * low:.2f} .. {100 * high:.2f}")
    return table


def train_note(stats: TrainStats) -> str:
    """What stands beside the progress bar; short, for the bar gets what is left of the line."""
    wait = stats.data_s / stats.step_s if stats.step_s > 0 else 0.0
    bad = f"  {stats.num_bad} bad samples" if stats.num_bad else ""
    bad += f"  {stats.bad_steps} bad steps" if stats.bad_steps else ""
    return f"loss {stats.loss:.4f}  {stats.images_per_s:.1f} img/s  data wait {100 * wait:.0f} %{bad}"


def _percent(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{100 * ratio:.1f}"
