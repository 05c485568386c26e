from unetdist.data.labels.census import Census
from unetdist.data.labels.masks import UnknownColor

PINK = UnknownColor((255, 0, 255), 1200, (3, 4), "sky", 81.4)
GREEN = UnknownColor((0, 255, 0), 5, (7, 0), "tree", 127.0)


def test_nothing_unknown_is_false_and_empty():
    census = Census()
    census.add("a.png", [])
    assert not census
    assert census.report() == ""


def test_the_report_is_a_table_with_the_first_place_and_a_remedy():
    census = Census()
    census.add("b.png", [PINK, GREEN])
    census.add("a.png", [PINK])
    census.add("c.png", [])
    assert census
    assert census.report() == (
        "Labels.txt does not list 2 colours of the masks: 2,405 pixels in 2 files.\n"
        "  colour     pixels  files  nearest label  distance  first pixel\n"
        "  255 0 255   2,400      2  sky                  81  x 3, y 4 in b.png\n"
        "  0 255 0         5      1  tree                127  x 7, y 0 in b.png\n"
        "Add a line for each missing class to Labels.txt, such as '255 0 255 NAME'; "
        "use --unknown-colors ignore to leave the pixels out, or nearest if they are only noise."
    )


def test_only_the_commonest_are_rows():
    census = Census()
    census.add("a.png", [UnknownColor((i, 0, 200), 100 - i, (0, 0), "sky", 100.0) for i in range(50)])
    census.add("b.png", [UnknownColor(None, 7, (0, 0), "", 100.0, num_colors=4)])
    lines = census.report(max_rows=10).splitlines()
    assert len(lines) == 1 + 1 + 10 + 1 + 1
    assert lines[0].startswith("Labels.txt does not list at least 50 colours of the masks: 3,782 pixels in 2 files.")
    assert lines[-2] == "  (and rarer ones)"


def test_a_mask_of_another_format_gets_that_remedy():
    census = Census()
    census.add("a.png", [UnknownColor((1, 1, 1), 10, (0, 0), "cell", 1.7, fits="ids")])
    assert census.report().endswith("Read as ids, these values are listed: use --mask-format ids.")
    census = Census()
    census.add("a.png", [UnknownColor(9, 10, (0, 0), "cell", 1.0, fits="color")])
    assert census.report().endswith("Read as color, these values are listed: use --mask-format color.")
    census.add("b.png", [UnknownColor(12, 10, (0, 0), "cell", 1.0)])
    assert "  value 12      10" in census.report()
    assert "Add a line for each missing class to Labels.txt, with this id" in census.report()
    assert "renumber the masks if it is over 254" in census.report()


def test_many_colours_near_listed_ones_are_compression_or_smoothing():
    noise = [UnknownColor((i, 128, 0), 3, (0, 0), "tree", float(i)) for i in range(1, 40)]
    census = Census()
    census.add("a.JPG", noise)
    assert census.report().endswith(
        "JPEG changes colours like these: export masks as PNG without smoothing, or use --unknown-colors nearest."
    )
    census = Census()
    census.add("a.png", noise)
    assert "Smoothed or compressed edges make colours like these" in census.report()
