"""What an ablation says to the user: a table, and a picture of dots with error bars."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unetdist.apps.ablation.outcome import Summary

ROW_PX, SIDE_PX, TOP_PX, BOTTOM_PX = 44, 480, 64, 40
_PAPER, _INK, _FRAME, _DOT, _BAR = (255,) * 3, (25,) * 3, (200,) * 3, (70, 120, 180), (215, 90, 40)


def table_of(summaries: Sequence[Summary], *, title: str) -> Table:
    """A row per variant; mIoU and differences in percent and percentage points."""
    caption = (
        "mIoU of the last weights, mean and standard deviation over seeds; differences to the first variant, seed by "
        "seed, with p of a paired t-test, and over images, where neighbours in a film make interval and p too sure"
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("variant", no_wrap=True)
    has_images = any(summary.over_images for summary in summaries)
    headings = ["seeds", "mIoU %", "differs", "p\nseeds"]
    headings += ["95 %\nimages", "p\nimages"] if has_images else []
    for heading in [*headings, "time"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        spread = "" if math.isnan(summary.spread) else f" ± {100 * summary.spread:.2f}"
        cells = [
            f"{len(summary.mious)}/{summary.num_seeds}",
            _number(100 * summary.mean, ".2f") + spread,
            _number(100 * summary.difference, "+.2f"),
            _number(summary.p_over_seeds, ".3f"),
        ]
        if has_images:
            cells += _over_images(summary)
        table.add_row(escape(summary.variant), *cells, duration(summary.seconds))
    return table


def picture_of(summaries: Sequence[Summary], *, title: str) -> NDArray[np.uint8]:
    """A row per variant: a dot for each seed, and mean and standard deviation as a bar; (H, W, 3)."""
    font = ImageFont.load_default(15)
    names = [summary.variant for summary in summaries]
    left = math.ceil(max(font.getlength(name) for name in names)) + 28
    bottom = TOP_PX + ROW_PX * len(summaries)
    heading = (title, "mIoU % of the last weights: a dot per seed, mean and standard deviation")
    width = max(left + SIDE_PX + 40, *(math.ceil(font.getlength(line)) + 24 for line in heading))
    canvas = Image.new("RGB", (width, bottom + BOTTOM_PX), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(heading):
        draw.text((12, 10 + 22 * row), line, _INK, font)
    low, high = _span(summaries)
    step = _step(high - low)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)

    def x_of(percent: float) -> float:
        return left + (percent - low) / (high - low) * SIDE_PX

    for tick in range(round((high - low) / step) + 1):
        x = x_of(low + tick * step)
        draw.line((x, TOP_PX, x, bottom), _FRAME)
        draw.text((x, bottom + 8), f"{low + tick * step:.{_digits(step)}f}", _INK, font, anchor="ma")
    for row, summary in enumerate(summaries):
        y = TOP_PX + ROW_PX * row + ROW_PX // 2
        draw.text((left - 12, y), summary.variant, _INK, font, anchor="rm")
        for miou in summary.mious.values():
            x = x_of(100 * miou)
            draw.ellipse((x - 4, y - 12, x + 4, y - 4), _DOT)
        if summary.mious:
            mean, spread = 100 * summary.mean, 100 * (0 if math.isnan(summary.spread) else summary.spread)
            draw.line((x_of(mean - spread), y + 8, x_of(mean + spread), y + 8), _BAR, 2)
            for x in (x_of(mean - spread), x_of(mean + spread)):
                draw.line((x, y + 4, x, y + 12), _BAR, 2)
            draw.rectangle((x_of(mean) - 4, y + 4, x_of(mean) + 4, y + 12), _BAR)
    return np.asarray(canvas)


def duration(seconds: float | None) -> str:
    """7 s, 3:05 min, 2:05 h: of a training."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def _over_images(summary: Summary) -> list[str]:
    if summary.over_images is None:
        return ["-", "-"]
    low, high = summary.over_images.interval_difference
    return [f"{100 * low:+.1f}..{100 * high:+.1f}", _number(summary.over_images.p_value, ".4f")]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _span(summaries: Sequence[Summary]) -> tuple[float, float]:
    """Percent that the picture must show: all dots and bars; 0 to 100 without any."""
    ends = []
    for summary in summaries:
        spread = 0 if math.isnan(summary.spread) else summary.spread
        ends += [
            *summary.mious.values(),
            *((summary.mean - spread, summary.mean + spread) if summary.mious else ()),
        ]
    if not ends:
        return 0.0, 100.0
    low, high = 100 * min(ends), 100 * max(ends)
    return (low, high) if high - low >= 0.1 else (low - 0.05, high + 0.05)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, at most eight of which fit in."""
    power = 10.0 ** math.floor(math.log10(span / 8))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 8)


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
