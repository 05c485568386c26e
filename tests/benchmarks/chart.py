"""Bars with their spread, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.contenders import OURS
from tests.benchmarks.data import Result
from tests.benchmarks.report import is_measured
from tests.benchmarks.rounds import Spread, spread

_PAPER, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (150, 150, 150)
_OURS, _THEIRS, _WHISKER = (31, 119, 180), (176, 190, 205), (60, 60, 60)
_LINE_PX, _BAR_PX, _LENGTH_PX, _GAP_PX = 34, 20, 460, 16


@dataclass(frozen=True)
class Bar:
    """One line of a chart."""

    label: str
    spread: Spread | None
    """None: void."""
    note: str
    is_ours: bool


def draw_chart(results: Sequence[Result], caption: str) -> np.ndarray:
    """(H, W, 3) uint8: one panel of bars per result, below one another; `caption` says what it was measured on."""
    return draw_sheet([draw_bars(_title(result), bars_of(result)) for result in results], caption)


def draw_sheet(panels: Sequence[Image.Image], caption: str) -> np.ndarray:
    """(H, W, 3) uint8: panels below one another, and the caption."""
    font = ImageFont.load_default(13)
    width = max(*(panel.width for panel in panels), round(font.getlength(caption)) + 2 * _GAP_PX)
    height = sum(panel.height for panel in panels) + 2 * _GAP_PX + 4
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    ImageDraw.Draw(sheet).text((_GAP_PX, top + 4), caption, _FAINT, font)
    return np.asarray(sheet)


def bars_of(result: Result) -> list[Bar]:
    """Samples per second of everybody, and beside it how many times as fast ours is."""
    bars = []
    for name, title in result.titles.items():
        if not is_measured(result, name):
            bars.append(Bar(title, None, "void", is_ours=False))
            continue
        rates = spread(result.measured.rates(name))
        note = f"{rates.median:.0f}"
        if name != OURS.name and is_measured(result, OURS.name):
            note += f"   ours is {result.measured.ratio(OURS.name, name).median:.2f} x"
        bars.append(Bar(title, rates, note, is_ours=name in (OURS.name, "foreign")))
    return bars


def draw_bars(title: str, bars: Sequence[Bar]) -> Image.Image:
    """One panel: title, bars from the median, whiskers from the quartiles."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(17)
    left = 2 * _GAP_PX + round(max(font.getlength(bar.label) for bar in bars))
    note_px = round(max(font.getlength(bar.note) for bar in bars))
    width = max(left + _LENGTH_PX + 2 * _GAP_PX + note_px, round(bold.getlength(title)) + 2 * _GAP_PX)
    canvas = Image.new("RGB", (width, 3 * _GAP_PX + _LINE_PX * len(bars) + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP_PX, _GAP_PX), title, _INK, bold)
    longest = max((bar.spread.high for bar in bars if bar.spread), default=1.0)
    for number, bar in enumerate(bars):
        top = 3 * _GAP_PX + number * _LINE_PX
        middle = top + _LINE_PX // 2
        pen.text((left - _GAP_PX // 2, middle), bar.label, _INK, font, anchor="rm")
        if bar.spread is None:
            pen.text((left, middle), bar.note, _FAINT, font, anchor="lm")
            continue
        low, end, high = (
            left + round(_LENGTH_PX * value / longest)
            for value in (bar.spread.low, bar.spread.median, bar.spread.high)
        )
        half = _BAR_PX // 2
        pen.rectangle((left, middle - half, end, middle + half), _OURS if bar.is_ours else _THEIRS)
        pen.line((low, middle, high, middle), _WHISKER, 2)
        for x in (low, high):
            pen.line((x, middle - 4, x, middle + 4), _WHISKER, 2)
        pen.text((max(end, high) + _GAP_PX // 2, middle), bar.note, _INK, font, anchor="lm")
    return canvas


def _title(result: Result) -> str:
    case = result.case
    crop = f"random {case.crop}x{case.crop} crop and flip"
    return f"{case.width}x{case.height} JPEG and mask, {crop}: samples/s on one core"
