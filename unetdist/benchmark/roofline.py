"""Each layer as a point under the roofs of the device (Williams et al. 2009, "Roofline"), as a picture."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unetdist.benchmark.layers import PASSES, PassTime
from unetdist.model.limit import Peaks

_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (25, 25, 25), (130, 130, 130), (228, 228, 228)
_COLORS = {"forward": (31, 119, 180), "dgrad": (214, 96, 20), "wgrad": (44, 140, 60)}
_SIZE_PX, _MARGIN_PX, _DOT_PX = (980, 640), (90, 70, 40, 70), 5
"""(width, height); left, top, right, bottom; radius."""


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
    low, high = across.low, across.high
    roof = [(each, min(peaks.flops, each * peaks.bandwidth)) for each in (low, ridge, high)]
    pen.line([(across.at(x), up.at(max(y, up.low))) for x, y in roof if y >= up.low], _INK, 2)
    pen.text((across.end, up.at(peaks.flops) - 6), f"{_flops(peaks.flops)}/s", _INK, font, anchor="rb")
    slope = (across.at(ridge) - 12, up.at(peaks.flops))
    pen.text(slope, f"{peaks.bandwidth / 1e9:.0f} GB/s", _INK, font, anchor="rm")
    for each in times:
        x, y = across.at(each.intensity), up.at(each.flops_per_s)
        pen.ellipse((x - _DOT_PX, y - _DOT_PX, x + _DOT_PX, y + _DOT_PX), _COLORS[each.name], _PAPER)
    for each in _worst(times, peaks):
        x, y = across.at(each.intensity), up.at(each.flops_per_s)
        is_left = x > 0.7 * _SIZE_PX[0]
        label = f"{each.layer.name.removesuffix('.conv')} {each.name}"
        pen.text((x - 8 if is_left else x + 8, y), label, _FAINT, font, anchor="rm" if is_left else "lm")
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
