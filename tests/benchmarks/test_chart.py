import numpy as np

from tests.benchmarks import chart
from tests.benchmarks.chart import bars_of, draw_chart
from tests.benchmarks.results import made_up_result


def test_bars_carry_rates_and_ratios():
    ours, files, dali = bars_of(made_up_result())
    assert (ours.label, ours.note, ours.is_ours) == ("ours", "850", True)
    assert (files.note, files.is_ours) == ("212   ours is 4.00 x", False)
    assert (dali.note, dali.spread) == ("void", None)


def test_bars_are_as_long_as_their_numbers():
    picture = draw_chart([made_up_result()], "a machine")
    assert picture.dtype == np.uint8
    ours = (picture == chart._OURS).all(2).sum(1).max()
    theirs = (picture == chart._THEIRS).all(2).sum(1).max()
    assert 3.9 < ours / theirs < 4.1


def test_each_result_has_a_panel_and_long_captions_fit():
    one, two = (draw_chart([made_up_result()] * count, "x" * 200) for count in (1, 2))
    assert 1.7 < two.shape[0] / one.shape[0] < 2
    assert (one[:, -8:] == 255).all()
