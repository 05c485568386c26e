"""Each layer as a point under the roofs of the device (Williams et al. 2009, "Roofline"), as a picture."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.layers import PASSES, PassTime
from unetdist.model.limit import Peaks

_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (25, 25, 25), (130, 130, 130), (228, 228, 228)
_COLORS = {"forward": (31, 119, 180), "dgrad": (214, 96, 20), "wgrad": (44, 140, 60)}
_SIZE_PX, _MARGIN_PX, _DOT_PX = (980, 640), (90, 70, 70, 70), 5
"""(width, height); left, top, right, bottom; radius."""

_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw_roofline(times: Sequence[PassTime], peaks: Peaks, title: str, caption: str) -> np.ndarray:
    """(H, W, 3) uint8: FLOPs per byte against FLOP/s, both logarithmic; `caption` says what it was measured on."""
    ridge = peaks.flops / peaks.bandwidth
    across = _Axis(
        [each.intensity for each in times] + [ridge / 2, ridge * 2],
        _MARGIN_PX[0],
        _SIZE_PX[0] - _MARGIN_PX[2],
    )
    up = _Axis(
        [each.flops_per_s for each in times] + [1.3 * peaks.flops], _SIZE_PX[1] - _MARGIN_PX[3], _MARGIN_PX[1]
    )
    sheet = Image.new("RGB", _SIZE_PX, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for value in across.ticks():
        x = across.at(value)
        pen.line((x, up.begin, x, up.end), _GRID)
        pen.text((x, up.begin + 8), f"{value:g}", _FAINT, font, anchor="ma")
    for value in up.ticks():
        y = up.at(value)
        pen.line((across.begin, y, across.end, y), _GRID)
        pen.text((across.begin - 8, y), _flops(value), _FAINT, font, anchor="rm")
    begin = max(across.low, up.low / peaks.bandwidth)
    roof = [(each, min(peaks.flops, each * peaks.bandwidth)) for each in (begin, ridge, across.high)]
    pen.line([(across.at(x), up.at(y)) for x, y in roof], _INK, 2)
    slope = (across.at(ridge) - 12, up.at(peaks.flops))
    pen.text(slope, f"{peaks.bandwidth / 1e9:.0f} GB/s", _INK, font, anchor="rm")
    pen.text(
        (across.end + 4, up.at(peaks.flops)),
        f"{_flops(peaks.flops)}/s".replace(" ", "\n"),
        _INK,
        font,
        anchor="lm",
    )
    dots = []
    for each in times:
        x, y = across.at(each.intensity), up.at(each.flops_per_s)
        dots.append((x - _DOT_PX, y - _DOT_PX, x + _DOT_PX, y + _DOT_PX))
        pen.ellipse(dots[-1], _COLORS[each.name], _PAPER)
    names: list[_Box] = []
    for each in _worst(times, peaks):
        label = f"{each.layer.name.removesuffix('.conv')} {each.name}"
        _write_beside(pen, label, (across.at(each.intensity), up.at(each.flops_per_s)), dots, names)
    pen.text((_MARGIN_PX[0], 16), title, _INK, ImageFont.load_default(17))
    for number, name in enumerate(PASSES):
        x = _MARGIN_PX[0] + 110 * number
        pen.ellipse((x, 46, x + 2 * _DOT_PX, 46 + 2 * _DOT_PX), _COLORS[name])
        pen.text((x + 18, 51), name, _INK, font, anchor="lm")
    pen.text(((across.begin + across.end) / 2, up.begin + 28), "FLOPs per byte", _INK, font, anchor="ma")
    pen.text((_MARGIN_PX[0], _SIZE_PX[1] - 22), caption, _FAINT, font)
    return np.asarray(sheet)


def _worst(times: Sequence[PassTime], peaks: Peaks, count: int = 5) -> list[PassTime]:
    """Where the most seconds are lost: the only points that are named."""
    return sorted(times, key=lambda each: each.work.seconds(peaks) - each.seconds)[:count]


def _write_beside(
    pen: ImageDraw.ImageDraw, label: str, at: tuple[float, float], dots: Sequence[_Box], names: list[_Box]
) -> None:
    """Beside, over or under a point, wherever there is room; over other points if need be, but over no other name."""
    font, gap = ImageFont.load_default(13), _DOT_PX + 4
    places = [("lm", gap, 0), ("rm", -gap, 0), ("mb", 0, -gap), ("mt", 0, gap)]
    for obstacles in ([*dots, *names], list(names)):
        for anchor, right, down in places:
            place = (at[0] + right, at[1] + down)
            box = pen.textbbox(place, label, font, anchor=anchor)
            is_inside = box[0] >= 0 and box[2] <= _SIZE_PX[0]
            if is_inside and not any(_overlap(box, other) for other in obstacles):
                pen.text(place, label, _FAINT, font, anchor=anchor)
                names.append(box)
                return


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _flops(value: float) -> str:
    scale, unit = next(
        (s, u) for s, u in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP")) if value >= s
    )
    return f"{value / scale:.3g} {unit}"


class _Axis:
    """Values to pixels, logarithmic."""

    def __init__(self, values: Sequence[float], begin: int, end: int) -> None:
        self.low, self.high = min(values) / 1.5, max(values) * 1.2
        self.begin, self.end = begin, end

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> Iterator[float]:
        for exponent in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
            for step in (1, 3):
                if self.low <= (value := step * 10.0**exponent) <= self.high:
                    yield value
