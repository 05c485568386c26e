import math

import numpy as np
import pytest

from tests.tracking.samples import CONFUSION, PALETTE, SCORES, picture
from unetdist.tracking.dashboard import Picture, Row, Shown, TrackedRun, sheets_of


@pytest.mark.parametrize(
    ("miou", "is_worst", "caption"),
    [
        (0.345, False, "day/a, mIoU 34.5 %"),
        (0.0, True, "worst: day/a, mIoU 0.0 %"),
        (math.nan, False, "day/a"),
    ],
)
def test_a_caption_says_how_good_the_image_is(miou, is_worst, caption):
    empty = np.zeros((1, 1), np.uint8)
    assert Picture("day/a", empty, empty, empty, miou, is_worst).caption == caption


def test_what_is_left_of_a_row():
    row = Row(3, {"a": 1.0, "b": 2.0}, Shown(SCORES, CONFUSION, []))
    assert row.without(()) == row
    assert row.without({"a", "c"}) == Row(3, {"b": 2.0}, row.shown)
    assert row.without({"a", "b"}) is None


def test_a_restart_finds_its_id_again(tmp_path):
    run = TrackedRun(project="p", mode="auto", folder=tmp_path, name="r", config={}, palette=PALETTE, step=0)
    first = run.own_id("wandb_id")
    assert len(first) == 8
    assert run.own_id("wandb_id") == first
    assert run.own_id("other_id") != first


def test_sheets_are_of_one_size():
    shown = Shown(SCORES, CONFUSION, [picture("a"), picture("b", 40, 9)])
    small, other = sheets_of(shown, PALETTE)
    assert small.shape == other.shape
    assert small.dtype == np.uint8
