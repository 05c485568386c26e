"""Tables and progress notes for the terminal."""

import math
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from unetdist.evaluation.comparison import Comparison
from unetdist.evaluation.evaluate import Report

# Fraction of the time that training may wait for data before the progress line shows it.
WAIT_TO_SHOW = 0.1


def scores_table(report: Report, *, of: str, is_best: bool = False, loss_name: str = "loss") -> Table:
    """Return the table of a validation, in percent; `of` names the data."""
    scores, confusion, boundary = report.scores, report.confusion, report.boundary
    low, high = report.interval
    best = ", [green]best so far[/green]" if is_best else ""
    bounds = f"95 % interval {_percent(low)} .. {_percent(high)}"
    boundary_miou = "" if boundary is None else f", boundary mIoU {_percent(boundary.miou)} %"
    title = f"{escape(of)}: mIoU {_percent(scores.miou)} % ({bounds}){boundary_miou}{best}"
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
    """Return the table of two models that were scored on the same images, in percent; `of` names the data."""
    title = f"{escape(of)}: {comparison.num_samples} images, p = {comparison.p_value:.4f}"
    caption = "p: two-sided randomization test over images; it says nothing about other training seeds"
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


def train_note(values: Mapping[str, float]) -> str:
    """Return a short note for the right of the progress bar, from the values of `Meter.read`."""
    step_s, speed = values["time/step_s"], values["time/images_per_s"]
    parts = [f"loss {values['train/loss']:.4f}", f"{speed:.0f} images/s" if speed >= 100 else f"{speed:.1f} images/s"]
    wait = values["time/data_s"] / step_s if step_s > 0 else 0.0
    if wait >= WAIT_TO_SHOW:
        parts.append(f"data wait {100 * wait:.0f} %")
    counts = {"bad samples": values["train/bad_samples"], "skipped steps": values["train/bad_steps"]}
    return ", ".join([*parts, *(f"{count:.0f} {name}" for name, count in counts.items() if count)])


def _percent(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{100 * ratio:.1f}"
