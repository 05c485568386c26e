import re

import pytest

from unetdist.apps.report import colors
from unetdist.apps.report.page import _file


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (64, 64, 0), (250, 250, 120), (128, 64, 128)])
@pytest.mark.parametrize("paper", [colors.LIGHT_PAPER, colors.DARK_PAPER])
def test_any_class_colour_can_be_seen_as_a_line(color, paper):
    assert colors.contrast(colors.legible(color, paper), paper) >= colors.LEAST_CONTRAST


def test_a_colour_that_can_be_seen_stays_as_it_is():
    assert colors.of_class([128, 0, 0])[0] == "#800000"
    assert colors.of_class([0, 200, 255])[1] == "#00c8ff"


def test_the_colours_of_runs_can_be_read_on_their_paper():
    for number in range(8):
        for color, paper in zip(colors.of_run(number), (colors.LIGHT_PAPER, colors.DARK_PAPER), strict=True):
            rgb = tuple(bytes.fromhex(color[1:]))
            assert colors.contrast(rgb, paper) >= 4.5


def test_contrast_is_that_of_the_standard():
    assert colors.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert colors.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


def test_the_paper_is_that_of_the_page():
    light, dark = re.search(r"--paper: light-dark\((#\w+), (#\w+)\)", _file("style.css")).groups()
    assert (light, dark) == (colors.to_hex(colors.LIGHT_PAPER), colors.to_hex(colors.DARK_PAPER))
