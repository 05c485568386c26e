"""Masks that cannot mean what they would be read as; whole commands are in `tests/faults/test_labels.py`."""

import pytest

from unetdist.data.labels import Label, Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import MaskNotes, black_and_white, closest, remedy
from unetdist.data.labels.masks import UnknownColor

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def palette(*colors, has_ids=False):
    labels = [Label(n, f"c{n}", color, n) for n, color in enumerate(colors)]
    return Palette(tuple(labels), has_ids=has_ids)


@pytest.mark.parametrize(
    ("colors", "black", "white"),
    [
        ((BLACK, RED), "c0", "c1"),
        ((RED, BLACK), "c1", "c0"),
        ((WHITE, RED), "c1", "c0"),
        ((RED, WHITE), "c0", "c1"),
        ((RED, (0, 9, 0)), "c0", "c1"),
        ((RED,), "background", "c0"),
        ((BLACK, RED, (0, 9, 0)), "c0", "NAME"),
    ],
)
def test_black_and_white_get_the_names_that_the_colours_say(colors, black, white):
    notes = MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[0])
    text = black_and_white(palette(*colors), notes)
    assert f"\n  0 0 0 {black}\n  255 255 255 {white}\n" in text


@pytest.mark.parametrize(
    "notes",
    [
        MaskNotes(num_masks=9, num_ids=9, classes=[0]),
        MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[0, 1]),
        MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[1]),
    ],
)
def test_255_is_ignored_beside_other_classes(notes):
    assert black_and_white(palette(BLACK, RED), notes) is None


def test_the_closest_colours_are_those_of_two_labels():
    assert closest(palette(BLACK, RED, (250, 0, 0))) == (5, "c1", "c2")


def census_of(*colors):
    census = Census()
    census.add("a.png", [UnknownColor(color, 50, (0, 0), "c0", 99.0) for color in colors])
    return census


def test_the_line_of_a_class_without_pixels_has_an_id_where_the_others_have():
    notes = MaskNotes(num_masks=1, num_pixels=100, classes=[0])
    assert "'9 8 7 c1'" in remedy(census_of((9, 8, 7)), palette(BLACK, RED), notes)
    assert "'1 9 8 7 c1'" in remedy(census_of((9, 8, 7)), palette(BLACK, RED, has_ids=True), notes)
    assert remedy(census_of((9, 8, 7), (1, 1, 1)), palette(BLACK, RED), notes) is None
    everything = MaskNotes(num_masks=1, num_pixels=100, classes=[0, 1])
    assert remedy(census_of((9, 8, 7)), palette(BLACK, RED), everything) is None
    assert remedy(census_of(7), palette(BLACK, RED, (0, 9, 0)), notes) is None


def test_photographs_are_not_smoothed_masks():
    notes = MaskNotes(num_masks=1, num_pixels=3000)
    many = [UnknownColor((i % 256, i // 256, 90), 1, (0, 0), "c0", 60.0) for i in range(2000)]
    census = Census()
    census.add("a.png", many)
    assert "exchanged" in remedy(census, palette(BLACK, RED), notes)
