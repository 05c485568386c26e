import numpy as np
from PIL import Image, ImageDraw

from tests.benchmarks.layers import PassTime
from tests.benchmarks.roofline import _COLORS, _INK, _Axis, _overlap, _write_beside, draw_roofline
from unetdist.model.limit import Peaks, Work, layers_of
from unetdist.model.unet import UNetConfig


def count(picture, color):
    return int((picture == np.array(color, np.uint8)).all(-1).sum())


def test_every_pass_is_a_point_in_its_color():
    layers = layers_of(UNetConfig(widths=(4, 8)), 3, (8, 12))
    times = [PassTime(layer, "forward", Work(1e9 * (i + 1), 1e7), 0.01) for i, layer in enumerate(layers)]
    peaks = Peaks(5e12, 1e11)
    few = draw_roofline(times[:2], peaks, "title", "caption")
    many = draw_roofline(times, peaks, "title", "caption")
    assert many.dtype == np.uint8
    assert many.shape[2] == 3
    assert count(many, _COLORS["forward"]) > count(few, _COLORS["forward"]) + 100
    assert count(many, _COLORS["dgrad"]) == count(few, _COLORS["dgrad"])  # of the legend


def test_an_axis_is_logarithmic_and_has_round_ticks():
    axis = _Axis([1.5, 1000 / 1.2], 0, 300)
    assert (axis.at(1), round(axis.at(10)), round(axis.at(1000))) == (0, 100, 300)
    assert list(axis.ticks()) == [1, 3, 10, 30, 100, 300, 1000]


def test_names_lie_over_one_another_nowhere():
    sheet = Image.new("RGB", (980, 640), (255, 255, 255))
    names = []
    for _ in range(6):
        _write_beside(ImageDraw.Draw(sheet), "decoder.0.up wgrad", (400, 300), [(395, 295, 405, 305)], names)
    assert len(names) == 4
    assert not any(_overlap(one, other) for one in names for other in names if one is not other)


def test_the_slope_is_drawn_from_where_it_enters():
    (layer, *_) = layers_of(UNetConfig(widths=(4, 8)), 3, (8, 12))
    times = [PassTime(layer, "forward", Work(1e7, 1e9), 1e-5), PassTime(layer, "wgrad", Work(1e12, 1e9), 0.2)]
    picture = draw_roofline(times, Peaks(5e12, 1e9), "", "")
    columns = np.flatnonzero((picture[120:560, 100:900] == np.array(_INK, np.uint8)).all(-1).any(0))
    assert len(columns) > 30
