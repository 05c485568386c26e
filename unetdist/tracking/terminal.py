"""What a run looks like in the terminal."""

import math

import numpy as np
from rich.markup import escape
from rich.table import Table

from unetdist.meter import TrainStats
from unetdist.metrics import Scores


def scores_table(
    scores: Scores,
    confusion: np.ndarray,
    loss: float,
    interval: tuple[float, float],
    *,
    of: str,
    is_best: bool = False,
    loss_name: str = "loss",
) -> Table:
    """A validation as a table for the terminal, in percent; `of` says what was scored."""
    low, high = interval
    best = ", [green]best so far[/green]" if is_best else ""
    bounds = f"95 % interval {_percent(low)} .. {_percent(high)}"
    title = f"{of}: mIoU {_percent(scores.miou)} % ({bounds}){best}"
    absent = "; absent, not in mIoU: " + escape(", ".join(scores.absent)) if scores.absent else ""
    caption = f"{loss_name} {loss:.4f}, pixel accuracy {_percent(scores.pixel_accuracy)} %{absent}"
    table = Table("class", title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("IoU %", "Dice %", "precision %", "recall %", "pixels %"):
        table.add_column(heading, justify="right")
    share = confusion.sum(1) / max(1, confusion.sum())
    columns = (scores.iou, scores.dice, scores.precision, scores.recall, share)
    for name, *row in zip(scores.class_names, *columns, strict=True):
        table.add_row(escape(name), *map(_percent, row), style="dim" if name in scores.absent else None)
    return table


def train_note(stats: TrainStats) -> str:
    """What stands beside the progress bar; short, for the bar gets what is left of the line."""
    wait = stats.data_s / stats.step_s if stats.step_s > 0 else 0.0
    bad = f"  {stats.num_bad} bad samples" if stats.num_bad else ""
    bad += f"  {stats.bad_steps} bad steps" if stats.bad_steps else ""
    return f"loss {stats.loss:.4f}  {stats.images_per_s:.1f} img/s  data wait {100 * wait:.0f} %{bad}"


def _percent(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{100 * ratio:.1f}"
