import io

import numpy as np
import pytest
from rich.console import Console

from unetdist.apps.ablation.outcome import Summary
from unetdist.apps.ablation.report import duration, picture_of, table_of
from unetdist.evaluation.comparison import Comparison

COMPARISON = Comparison(0.5, (0.4, 0.6), 0.525, (0.45, 0.61), (-0.001, 0.051), 0.0601, 12)


def summaries(**changes):
    plain = Summary(variant="plain", changes={}, num_seeds=3, mious={0: 0.50, 1: 0.52}, seconds=62.0)
    other = {"mious": {0: 0.51, 1: 0.54}, "differences": (0.01, 0.02), "seconds": None, **changes}
    return [plain, Summary(variant="[red]", changes={}, num_seeds=3, **other)]


def text_of(table):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def rows_of(table):
    return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


def test_a_row_per_variant():
    table = table_of(summaries(), title="tried")
    assert rows_of(table) == [
        ["plain", "2/3", "51.00 ± 1.41", "-", "-", "1:02 min"],
        [r"\[red]", "2/3", "52.50 ± 2.12", "+1.50", "0.205", "-"],
    ]
    assert "[red]" in text_of(table)


def test_images_have_columns_where_they_were_compared():
    table = table_of(summaries(over_images=COMPARISON), title="tried")
    assert [row[5:7] for row in rows_of(table)] == [["-", "-"], ["-0.1..+5.1", "0.0601"]]
    assert "…" not in text_of(table)


def test_what_is_not_known_is_left_open():
    table = table_of(summaries(mious={}, differences=()), title="tried")
    assert rows_of(table)[1][1:5] == ["0/3", "-", "-", "-"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (7.4, "7 s"), (65, "1:05 min"), (3600 + 125, "1:02 h")]
)
def test_times_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_dot_is_drawn_for_every_seed():
    few, more = picture_of(summaries(mious={}), title="t"), picture_of(summaries(), title="t")
    assert few.shape[2] == more.shape[2] == 3
    dots = [np.all(picture == (70, 120, 180), axis=2).sum() for picture in (few, more)]
    assert dots[0] > 0
    assert dots[1] == 2 * dots[0]


def test_a_picture_of_nothing_is_still_a_picture():
    nothing = [Summary(variant="plain", changes={}, num_seeds=3, mious={}, seconds=None)]
    assert picture_of(nothing, title="t").min() < 50
